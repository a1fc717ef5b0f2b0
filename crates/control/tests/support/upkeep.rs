//! What is found on the host, what is removed from it, and what a debug bundle gets of it.

use super::Host;
use async_trait::async_trait;
use warren_core::inventory::Item;
use warren_core::ports::host_link::{Evidence, HostRecords, HostUpkeep};
use warren_core::{InstanceId, PortError};

#[async_trait]
impl HostUpkeep for Host {
    async fn inventory(&self) -> Result<Vec<Item>, PortError> {
        let mut looks = Self::lock(&self.looks);
        Ok(match looks.len() {
            0 => Vec::new(),
            1 => looks[0].clone(),
            _ => looks.remove(0),
        })
    }

    async fn remove(&self, item: &Item) -> Result<(), PortError> {
        Self::lock(&self.looks)
            .iter_mut()
            .for_each(|look| look.retain(|one| one != item));
        Self::lock(&self.removed).push(item.clone());
        Ok(())
    }

    async fn records(&self) -> Result<HostRecords, PortError> {
        Ok(HostRecords {
            intents: Self::lock(&self.intents).values().cloned().collect(),
            ..HostRecords::default()
        })
    }

    async fn evidence(&self, id: &InstanceId) -> Result<Vec<Evidence>, PortError> {
        let intent = Self::lock(&self.intents).get(id).cloned();
        let record = serde_json::json!({"intent": intent, "attach_key": "never to be seen"});
        let piece = |name: &str, text: String| Evidence {
            name: name.to_owned(),
            text,
        };
        Ok(vec![
            piece("record.json", record.to_string()),
            piece("processes.txt", "qemu-system-x86_64\n-m\n256".to_owned()),
        ])
    }
}
