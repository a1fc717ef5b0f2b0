//! The configuration a guest is booted with, and what it makes of it.

use crate::exec::{exec, shell, words};
use warren_guest::client::GuestClient;
use warren_guest::protocol::boot::InterfaceAddress;
use warren_guest::protocol::unix_nanos_now;
use warren_guest::protocol::{
    BootConfig, ExecRequest, HostEntry, NetworkConfig, StdinMode, WorkloadConfig,
};

pub(crate) fn config(command: &[&str]) -> BootConfig {
    BootConfig {
        instance_id: "instance-1".to_owned(),
        hostname: "web".to_owned(),
        hosts: vec![HostEntry {
            address: "10.0.2.9".parse().unwrap(),
            names: words(&["db"]),
        }],
        nameservers: vec!["10.0.2.3".parse().unwrap()],
        search: words(&["internal"]),
        networks: vec![NetworkConfig {
            mac: Some("52:54:00:12:34:56".to_owned()),
            addresses: vec![
                InterfaceAddress {
                    address: "10.0.2.15".parse().unwrap(),
                    prefix: 24,
                },
                InterfaceAddress {
                    address: "fd00::15".parse().unwrap(),
                    prefix: 64,
                },
            ],
            gateways: vec!["10.0.2.2".parse().unwrap(), "fd00::1".parse().unwrap()],
            mtu: Some(1400),
        }],
        mounts: Vec::new(),
        workload: WorkloadConfig {
            command: words(command),
            env: vec![("GREETING".to_owned(), "hello".to_owned())],
            working_dir: "/srv/made/for/it".to_owned(),
            user: "web".to_owned(),
            stop_signal: "SIGUSR1".to_owned(),
            terminal: None,
            stdin: StdinMode::Null,
        },
        unix_nanos: unix_nanos_now(),
        entropy: vec![7; 64],
        authorized_keys: Vec::new(),
        exit_linger_millis: 2000,
    }
}

pub(crate) async fn configuration(client: &GuestClient) {
    let (ids, _) = shell(client, "id -u; id -g; id -G").await;
    assert_eq!(ids, "1234\n1235\n1235 777\n");
    let root = |script: &str| ExecRequest {
        command: words(&["sh", "-c", script]),
        user: Some("root".to_owned()),
        working_dir: Some("/".to_owned()),
        ..ExecRequest::default()
    };
    let (names, _) = exec(client, root("hostname 2>/dev/null || busybox hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts")).await;
    assert!(
        names.starts_with("web\nweb\nnameserver 10.0.2.3\nsearch internal\n"),
        "{names}"
    );
    assert!(
        names.contains("10.0.2.15\tweb\n") && names.contains("10.0.2.9\tdb\n"),
        "{names}"
    );
    let (network, _) = exec(client, root("ip addr; ip route; ip -6 route")).await;
    for part in [
        "inet 10.0.2.15/24",
        "inet6 fd00::15/64",
        "mtu 1400",
        "default via 10.0.2.2",
        "default via fd00::1",
        "inet 127.0.0.1/8",
    ] {
        assert!(network.contains(part), "{part} in\n{network}");
    }
    // The kernel's own link-local address may still be.
    let tentative = |line: &str| line.contains("fd00::15") && line.contains("tentative");
    assert!(!network.lines().any(tentative), "{network}");
    let (mounts, _) = exec(
        client,
        root("cat /proc/mounts; touch /x 2>/dev/null || busybox touch /x"),
    )
    .await;
    for part in [
        "overlay / overlay",
        "proc /proc",
        "devpts /dev/pts",
        "tmpfs /dev/shm",
        "cgroup2 /sys/fs/cgroup",
    ] {
        assert!(mounts.contains(part), "{part} in\n{mounts}");
    }
    let (date, _) = shell(client, "date +%s").await;
    let seconds: u64 = date.trim().parse().unwrap();
    assert!(seconds.abs_diff(unix_nanos_now() / 1_000_000_000) < 5);
    let stats = client.stats().await.unwrap();
    assert!(
        stats.memory_total_bytes > 100 << 20 && stats.disk_total_bytes > 100 << 20,
        "{stats:?}"
    );
    assert!(
        stats.cpus == 1 && stats.uptime_millis > 0 && stats.tasks > 1,
        "{stats:?}"
    );
}
