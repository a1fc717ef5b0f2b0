//! Records and lines on the host: what the kernel, nft, QEMU and kernel files say, records in instances' directories,
//! privileged verbs, and the spellings that people use.
#![no_main]

use std::fmt::Debug;
use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use warren_agent::HostRecord;
use warren_core::network::{MacAddress, PortMapping, Subnet};
use warren_core::{Handle, InstallationId, InstanceId, id, units};
use warren_helper::{Reply, RuleSet, Verb};
use warren_hypervisor::process::Record;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let text = || str::from_utf8(bytes).unwrap_or_default();
    match choice & 7 {
        0 => drop(warren_helper::fuzzing::tracked(
            bytes,
            Ipv4Addr::new(10, 9, 9, 9),
        )),
        1 => drop(warren_helper::fuzzing::blocking(text())),
        2 => {
            round_trip::<Verb>(bytes);
            round_trip::<Reply>(bytes);
            round_trip::<RuleSet>(bytes);
        }
        3 => {
            let most = 1 << 16;
            if let Some(vmlinux) = warren_hypervisor::fuzzing::vmlinux(bytes, most) {
                assert!(vmlinux.len() as u64 <= most.max(bytes.len() as u64));
            }
        }
        4 => drop(warren_hypervisor::fuzzing::monitor(bytes)),
        5 => round_trip::<HostRecord>(bytes),
        6 => round_trip::<Record>(bytes),
        _ => spelled(text()),
    }
});

/// What was read and is written again is the same.
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again = serde_json::from_slice::<T>(&written).expect("what was written can be read");
    assert_eq!(value, again);
}

fn spelled(text: &str) {
    drop(units::parse_size(text).map(|size| size.to_string()));
    drop(units::parse_duration(text));
    if let Ok(mapping) = text.parse::<PortMapping>() {
        assert!(mapping.host_port > 0 && mapping.guest_port > 0);
        assert_eq!(mapping.to_string().parse(), Ok(mapping));
    }
    for parsed in [
        text.parse::<InstanceId>().map(String::from),
        text.parse::<Handle>().map(String::from),
        text.parse::<InstallationId>().map(String::from),
    ] {
        assert!(parsed.is_err() || parsed.as_deref() == Ok(text));
    }
    if text.parse::<InstanceId>().is_ok() {
        assert!(!text.starts_with('.') && !text.contains('/'));
    }
    if id::check_name(text).is_ok() {
        assert!(!text.contains(['\n', '\x1b']));
    }
    let slug = id::slug(text);
    assert!((1..=50).contains(&slug.len()) && !slug.starts_with('-') && !slug.ends_with('-'));
    assert!(
        slug.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    );
    if let Ok(mac) = MacAddress::try_from(text.to_owned()) {
        assert_eq!(mac.to_string(), text.to_ascii_lowercase());
    }
    let (cidr, gateway) = text.split_once(' ').unwrap_or((text, ""));
    if let Ok(subnet) = Subnet::new(cidr, gateway.parse().unwrap_or(Ipv4Addr::UNSPECIFIED)) {
        let handle = Handle::from_entropy([1; 5]);
        let address = subnet
            .allocate(&handle, |_| false)
            .expect("an empty subnet has room");
        assert!(subnet.cidr.contains(&address) && address != subnet.gateway);
    }
}
