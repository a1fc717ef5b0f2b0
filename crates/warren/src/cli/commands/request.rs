//! What `run` asks the server for. Pure but for the randomness of made-up names.

use crate::cli::args::{NetworkChoice, RunArgs};
use std::collections::BTreeMap;
use warren_api::instance::{
    CreateInstanceNetwork, CreateInstanceRequest, PortMapping, PortProtocol,
};
use warren_api::policy::RestartPolicy;
use warren_core::network::Protocol;

/// A name made from an image's: its last part without tag and digest, and four random characters.
pub(super) fn made_up_name(image: &str, entropy: [u8; 4]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let reference = image.split_once('@').map_or(image, |(name, _)| name);
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let base = last.split_once(':').map_or(last, |(name, _)| name);
    let slug = warren_core::id::slug(base);
    let suffix: String = entropy
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect();
    format!("{slug}-{suffix}")
}

pub(super) fn entropy() -> [u8; 4] {
    let mut bytes = [0u8; 4];
    // Without randomness names collide, which is asked again; nothing secret is made of it.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes
}

/// What to ask the server for.
pub(super) fn request(
    args: &RunArgs,
    name: String,
    env: BTreeMap<String, String>,
) -> CreateInstanceRequest {
    CreateInstanceRequest {
        name,
        image: args.image().to_owned(),
        memory_mb: args.memory.map(|size| size.mebibytes()),
        overlay_size: args.disk.map(|size| size.to_string()),
        vcpus: args.cpus,
        env,
        port_mappings: args
            .publish
            .iter()
            .map(|port| PortMapping {
                host_port: port.host_port,
                guest_port: port.guest_port,
                protocol: match port.protocol {
                    Protocol::Tcp => PortProtocol::Tcp,
                    Protocol::Udp => PortProtocol::Udp,
                },
            })
            .collect(),
        network: match args.network {
            NetworkChoice::Default => None,
            NetworkChoice::None => Some(CreateInstanceNetwork {
                enabled: Some(false),
                ..CreateInstanceNetwork::default()
            }),
        },
        labels: args.labels.iter().cloned().collect(),
        hypervisor: args.hypervisor,
        restart_policy: args.restart.map(|restart| RestartPolicy {
            policy: restart.when.into(),
            max_attempts: Some(restart.attempts),
            ..RestartPolicy::default()
        }),
        // An empty entrypoint takes the image's away, as with docker.
        entrypoint: args.entrypoint.as_ref().map(|program| match program {
            program if program.is_empty() => Vec::new(),
            program => vec![program.clone()],
        }),
        cmd: (!args.command().is_empty()).then(|| args.command().to_vec()),
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        hostname: args.hostname.clone(),
        tty: args.tty.then_some(true),
        open_stdin: args.interactive.then_some(true),
        auto_remove: args.rm.then_some(true),
        stop_grace_seconds: args.stop_timeout,
        ..CreateInstanceRequest::default()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn args(words: &[&str]) -> RunArgs {
        match Cli::try_parse_from(["warren", "run"].iter().chain(words))
            .unwrap()
            .command
        {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn asked(words: &[&str]) -> serde_json::Value {
        let request = request(&args(words), "n".into(), BTreeMap::new());
        serde_json::to_value(request).unwrap()
    }

    #[test]
    fn nothing_is_asked_for_that_was_not_said() {
        assert_eq!(
            asked(&["alpine"]),
            serde_json::json!({"name": "n", "image": "alpine"})
        );
    }

    #[test]
    fn every_option_reaches_the_request() {
        let request = asked(&[
            "-it",
            "-p",
            "53:53/udp",
            "--memory",
            "512M",
            "--disk",
            "2G",
            "--cpus",
            "4",
            "--rm",
            "-l",
            "a=b",
            "--restart",
            "on-failure:3",
            "--entrypoint",
            "/e",
            "-u",
            "1:2",
            "-w",
            "/w",
            "--hostname",
            "h",
            "--hypervisor",
            "qemu-microvm",
            "--stop-timeout",
            "3",
            "--network",
            "none",
            "img",
            "x",
            "-y",
        ]);
        let expected = serde_json::json!({
            "name": "n", "image": "img", "memory_mb": 512, "overlay_size": "2147483648B",
            "vcpus": 4, "labels": {"a": "b"}, "entrypoint": ["/e"], "cmd": ["x", "-y"],
            "user": "1:2", "working_dir": "/w", "hostname": "h", "hypervisor": "qemu-microvm",
            "stop_grace_seconds": 3, "network": {"enabled": false}, "tty": true,
            "open_stdin": true, "auto_remove": true,
            "port_mappings": [{"host_port": 53, "guest_port": 53, "protocol": "udp"}],
            "restart_policy": {"policy": "on_failure", "max_attempts": 3},
        });
        assert_eq!(request, expected);
        assert_eq!(
            warren_core::units::parse_size("2147483648B").unwrap().0,
            2 << 30
        );
    }

    #[test]
    fn an_empty_entrypoint_takes_the_images_away() {
        assert_eq!(
            asked(&["--entrypoint", "", "img", "sh"])["entrypoint"],
            serde_json::json!([])
        );
    }

    #[test]
    fn names_are_made_from_the_images() {
        for (image, name) in [
            ("nginx", "nginx-aaaa"),
            ("localhost:5000/team/web:1.2", "web-aaaa"),
            ("ghcr.io/o/app@sha256:00", "app-aaaa"),
            ("Weird Name", "weird-name-aaaa"),
        ] {
            assert_eq!(made_up_name(image, [0; 4]), name);
            assert!(warren_core::id::check_name(&made_up_name(image, [255; 4])).is_ok());
        }
    }
}
