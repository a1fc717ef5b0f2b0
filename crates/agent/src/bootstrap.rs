//! What a guest is told to become: the image's configuration, overlaid with the instance's own.

use std::net::IpAddr;
use warren_core::image;
use warren_core::instance::{InstanceIntent, Stdin, Terminal};
use warren_core::ports::network::Attachment;
use warren_guest::protocol::boot::InterfaceAddress;
use warren_guest::protocol::{
    BootConfig, HostEntry, NetworkConfig, StdinMode, Terminal as Size, WorkloadConfig,
};

/// Until whoever attaches tells the real size.
const FIRST_TERMINAL: Size = Size { rows: 24, cols: 80 };
/// Random bytes handed to a guest, whose own sources are poor right after boot.
const ENTROPY: usize = 64;

/// The whole configuration. `now` is in nanoseconds since 1970.
pub(crate) fn boot_config(
    intent: &InstanceIntent,
    attachment: Option<&Attachment>,
    now: u64,
) -> BootConfig {
    let spec = &intent.spec;
    let hostname = spec.hostname.clone().unwrap_or_else(|| intent.slug.clone());
    let mut entropy = vec![0; ENTROPY];
    if rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty()).is_err() {
        entropy.clear();
    }
    let hosts = attachment
        .map(|attachment| HostEntry {
            address: IpAddr::V4(attachment.guest.address.addr()),
            names: vec![hostname.clone()],
        })
        .into_iter()
        .collect();
    let networks = attachment
        .map(|attachment| NetworkConfig {
            mac: Some(attachment.guest.mac.to_string()),
            addresses: vec![InterfaceAddress {
                address: IpAddr::V4(attachment.guest.address.addr()),
                prefix: attachment.guest.address.prefix_len(),
            }],
            gateways: vec![IpAddr::V4(attachment.guest.gateway)],
            mtu: Some(attachment.guest.mtu.into()),
        })
        .into_iter()
        .collect();
    BootConfig {
        instance_id: intent.id.to_string(),
        hostname,
        hosts,
        nameservers: attachment
            .map(|attachment| attachment.guest.nameservers.clone())
            .unwrap_or_default(),
        search: attachment
            .map(|attachment| attachment.guest.search.clone())
            .unwrap_or_default(),
        networks,
        mounts: Vec::new(),
        workload: workload(intent),
        authorized_keys: spec.ssh_keys.clone(),
        unix_nanos: now,
        entropy,
        exit_linger_millis: 60_000,
    }
}

fn workload(intent: &InstanceIntent) -> WorkloadConfig {
    let (spec, image) = (&intent.spec, &intent.image_config);
    let of_image = image
        .env
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let mut env: Vec<(String, String)> = of_image
        .filter(|(name, _)| !spec.env.contains_key(*name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    env.extend(spec.env.clone());
    let terminal = match spec.terminal {
        Terminal::Pty => Some(FIRST_TERMINAL),
        Terminal::None => None,
    };
    let stdin = match (spec.stdin, spec.terminal) {
        (Stdin::Attached, _) | (_, Terminal::Pty) => StdinMode::Attached,
        (Stdin::Null, Terminal::None) => StdinMode::Null,
    };
    WorkloadConfig {
        command: image::command(image, spec.entrypoint.as_deref(), spec.cmd.as_deref()),
        env,
        working_dir: spec
            .working_dir
            .clone()
            .unwrap_or_else(|| image.working_dir.clone()),
        user: spec.user.clone().unwrap_or_else(|| image.user.clone()),
        stop_signal: image.stop_signal.clone(),
        terminal,
        stdin,
    }
}
