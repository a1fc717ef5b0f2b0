//! The keys of the store and the documents under them. Nothing else builds or reads a key.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::Ipv4Addr;
use warren_core::instance::InstanceIntent;
use warren_core::network::PortMapping;
use warren_core::ports::store::Record;
use warren_core::{InstanceId, PortError};

/// Intents, by id.
pub(crate) const INSTANCES: &str = "instance/";
/// Last reported statuses, by id.
pub(crate) const STATUSES: &str = "status/";
/// The newest event: one key, so that events take no room; whoever watches it sees every one.
pub(crate) const EVENT: &str = "event/latest";
/// Idempotency records, by tenant and key.
pub(crate) const IDEMPOTENCY: &str = "idempotency/";

/// What instances hold, each under a key of its own that names its holder: names, DNS labels, addresses, ports.
pub(crate) const RESERVATIONS: [&str; 4] = ["name/", "slug/", "address/", "port/"];

/// The keys that an instance holds beside its own.
pub(crate) fn reservations(intent: &InstanceIntent) -> Vec<String> {
    let mut keys = vec![name(&intent.tenant, &intent.spec.name), slug(&intent.slug)];
    keys.extend(intent.address.map(address));
    keys.extend(intent.spec.ports.iter().map(port));
    keys
}

pub(crate) fn instance(id: &InstanceId) -> String {
    format!("{INSTANCES}{id}")
}

pub(crate) fn status(id: &InstanceId) -> String {
    format!("{STATUSES}{id}")
}

pub(crate) fn name(tenant: &str, name: &str) -> String {
    format!("name/{}/{}", escape(tenant), escape(name))
}

pub(crate) fn slug(slug: &str) -> String {
    format!("slug/{slug}")
}

pub(crate) fn address(address: Ipv4Addr) -> String {
    format!("address/{address}")
}

pub(crate) fn port(mapping: &PortMapping) -> String {
    format!("port/{}/{}", mapping.protocol, mapping.host_port)
}

pub(crate) fn idempotency(tenant: &str, key: &str) -> String {
    format!("{IDEMPOTENCY}{}/{}", escape(tenant), escape(key))
}

/// Free text without slashes; everything else a key may hold, and a name of 128 characters still fits.
fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F")
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("our own records are JSON"))
}

pub(crate) fn decode<T: DeserializeOwned>(record: &Record) -> Result<T, PortError> {
    serde_json::from_slice(&record.value).map_err(|e| {
        PortError::bug(
            "damaged_record",
            format!("the record {} is damaged", record.key),
        )
        .with_source(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_reaches_another_tenants_key() {
        assert_eq!(name("a/b", "c"), "name/a%2Fb/c");
        assert_ne!(name("a", "b/c"), name("a/b", "c"));
        assert_eq!(name("default", "My Workload"), "name/default/My Workload");
    }
}
