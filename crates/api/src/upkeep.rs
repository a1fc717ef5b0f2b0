//! Looking after an installation, on the wire: what is on the host, how it differs from the record, and what
//! was done about it. `warren fsck` and `warren system recover` print these, with and without a server.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use warren_core::inventory;

/// One thing on the host that belongs to the installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InventoryItem {
    /// `machine`, `guard`, `network-stack`, `zombie`, `device`, `bridge-port`, `rules`, `published-port`, `mount`,
    /// `loop-device`, `cgroup`, `directory`, `file`, `socket` or `key`.
    pub kind: String,
    /// By which a person finds it: a device, a path, `pid 4711 (qemu-system-x86)`, a key of the store.
    pub name: String,
    /// The handle of the instance it belongs to: the name of its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// Its pid, where it is a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// In which way record and host differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DifferenceKind {
    /// It is there and should not be.
    Leaked,
    /// It should be there and is not.
    Missing,
    /// It cannot be read.
    Damaged,
    /// Nothing that Warren makes, where only Warren should be.
    Unknown,
}

/// What helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// `warren fsck --repair`.
    Repair,
    /// A running server does it by itself.
    Server,
    /// `warren system recover`.
    Recover,
    /// A person has to look.
    Look,
}

/// One difference between the record and the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// In which way.
    pub kind: DifferenceKind,
    /// In words.
    pub sentence: String,
    /// What helps.
    pub remedy: Remedy,
    /// What to do, in words.
    pub hint: String,
    /// The instance it is about, where one is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// In what.
    pub item: InventoryItem,
}

/// A repair that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailedRepair {
    /// Of what.
    pub difference: Difference,
    /// Why.
    pub error: String,
}

/// The outcome of a check, and of a repair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Whether record and host agree now.
    pub clean: bool,
    /// In what they do not.
    pub differences: Vec<Difference>,
    /// What was put right just now.
    pub repaired: Vec<Difference>,
    /// What could not be.
    pub failed: Vec<FailedRepair>,
    /// Everything that is on the host.
    pub inventory: Vec<InventoryItem>,
}

/// What a recovery did to the record. Nothing on the host is touched by it. Ids, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recovery {
    /// Were not recorded, and are again.
    pub recovered: Vec<String>,
    /// Were recorded as they once were, and are now as the host knows them.
    pub updated: Vec<String>,
    /// Were recorded as they are.
    pub unchanged: Vec<String>,
    /// Were recorded and have nothing on the host: deleted since, and no longer recorded.
    pub forgotten: Vec<String>,
    /// Directories on the host whose own record cannot be read: `handle: why`.
    pub unreadable: Vec<String>,
}

impl From<&inventory::Item> for InventoryItem {
    fn from(item: &inventory::Item) -> Self {
        let kind = match serde_json::to_value(item.kind) {
            Ok(serde_json::Value::String(name)) => name,
            _ => item.kind.to_string(),
        };
        InventoryItem {
            kind,
            name: item.name.clone(),
            handle: item.part.handle().map(ToString::to_string),
            pid: item.pid,
        }
    }
}

impl From<&inventory::Difference> for Difference {
    fn from(difference: &inventory::Difference) -> Self {
        let (remedy, hint) = match difference.remedy {
            inventory::Remedy::Repair => (Remedy::Repair, "`warren fsck --repair` puts it right"),
            inventory::Remedy::Server => (
                Remedy::Server,
                "a running server sees to it: start it, or see its log",
            ),
            inventory::Remedy::Recover => (
                Remedy::Recover,
                "`warren system recover` takes what is on the host into the record",
            ),
            inventory::Remedy::Look => (
                Remedy::Look,
                "look at it yourself: Warren does not touch it",
            ),
        };
        Difference {
            kind: match difference.kind {
                inventory::DifferenceKind::Leaked => DifferenceKind::Leaked,
                inventory::DifferenceKind::Missing => DifferenceKind::Missing,
                inventory::DifferenceKind::Damaged => DifferenceKind::Damaged,
                inventory::DifferenceKind::Unknown => DifferenceKind::Unknown,
            },
            sentence: difference.sentence.clone(),
            remedy,
            hint: hint.to_owned(),
            instance_id: difference.instance.as_ref().map(ToString::to_string),
            item: (&difference.item).into(),
        }
    }
}

impl Check {
    /// What was found, before anything is done about it.
    pub fn of(inventory: &[inventory::Item], differences: &[inventory::Difference]) -> Self {
        Check {
            clean: differences.is_empty(),
            differences: differences.iter().map(Into::into).collect(),
            inventory: inventory.iter().map(Into::into).collect(),
            ..Check::default()
        }
    }
}
