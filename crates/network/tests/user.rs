//! User mode with a real passt, in a host of its own; the guest is a namespace on the guard's socket, in QEMU's
//! place. Once as an unprivileged user, once as root.

#![expect(clippy::unwrap_used, reason = "a panic is the failure")]

mod support;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use support::{Process, ask, client, guest_on_stream, in_private_host, run, serve};
use warren_core::network::PortMapping;
use warren_core::ports::hypervisor::NicBackend;
use warren_core::ports::network::{Attachment, AttachmentSpec, Network};
use warren_core::ports::{InstanceHome, Presence};
use warren_core::{Handle, InstallationId};
use warren_helper::InProcess;
use warren_network::{UserConfig, UserNetwork};

const INSTANCES: &str = "/run/warren/instances";

/// Who runs the guest's network stack.
#[derive(Clone, Copy)]
enum As {
    Root,
    User,
}

const UID: u32 = 12_345;

fn network(who: As) -> UserNetwork {
    // The build directory may be closed to others.
    let guard = "/run/warren/guard";
    if !PathBuf::from(guard).exists() {
        std::fs::create_dir_all(INSTANCES).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_warren-net-guard"), guard).unwrap();
    }
    let words = match who {
        As::Root => vec![guard],
        As::User => vec![
            "/usr/bin/setpriv",
            "--reuid=12345",
            "--regid=12345",
            "--clear-groups",
            "--inh-caps=-all",
            guard,
        ],
    };
    let config = UserConfig {
        installation: InstallationId::from_entropy([1, 2, 3]),
        instances: INSTANCES.into(),
        dns_servers: vec![
            SocketAddr::from(([1, 1, 1, 1], 53)),
            SocketAddr::from(([127, 0, 0, 53], 53)),
        ],
        guard: words.into_iter().map(OsString::from).collect(),
    };
    UserNetwork::start(config, Arc::new(InProcess)).unwrap()
}

fn spec(who: As, n: u8, ports: &[&str]) -> AttachmentSpec {
    let handle = Handle::from_entropy([n; 5]);
    let directory = PathBuf::from(INSTANCES).join(handle.as_str());
    if !directory.exists() {
        std::fs::create_dir_all(&directory).unwrap();
        if matches!(who, As::User) {
            std::os::unix::fs::chown(&directory, Some(UID), Some(UID)).unwrap();
        }
        run(&format!("chmod 700 {}", directory.display()));
    }
    AttachmentSpec {
        home: InstanceHome {
            id: "one".parse().unwrap(),
            handle,
            installation: InstallationId::from_entropy([1, 2, 3]),
            directory,
        },
        names: vec!["one".into()],
        address: None,
        ports: ports
            .iter()
            .map(|port| port.parse::<PortMapping>().unwrap())
            .collect(),
    }
}

fn socket(attachment: &Attachment) -> PathBuf {
    match &attachment.nic.backend {
        NicBackend::Stream { socket } => socket.clone(),
        NicBackend::Tap { .. } => panic!("a TAP in user mode"),
    }
}

fn plug_in(name: &str, at: &Attachment) -> Process {
    let (mac, address) = (at.guest.mac.to_string(), at.guest.address.to_string());
    guest_on_stream(
        name,
        &socket(at),
        &mac,
        &address,
        &at.guest.gateway.to_string(),
    )
}

/// It ends with its guard, an instant later.
async fn no_stack_is_left() {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    while !stacks().is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "passt outlives its guard"
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The processes called passt that are not zombies; only this test's can be seen.
fn stacks() -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let mut found: Vec<u32> = processes
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(passt") && !stat.contains(") Z ")
        })
        .collect();
    found.sort_unstable();
    found
}

async fn ports_and_isolation(who: As) {
    let network = network(who);
    let one = spec(who, 1, &["8080:80", "8443:80", "5353:80/udp"]);
    network.preflight(&one).await.unwrap();
    let at = network.ensure(&one).await.unwrap();
    assert_eq!(at.guest.nameservers, [std::net::IpAddr::from([1, 1, 1, 1])]);
    let cable = plug_in("g1", &at);
    let server = serve(Some("g1"), "0.0.0.0", 80, "page");
    let _outside = serve(Some("outside"), "203.0.113.2", 9000, "world");
    let _secret = serve(None, "127.0.0.1", 9001, "secret");
    for (kind, port) in [("tcp", 8080), ("tcp", 8443), ("udp", 5353)] {
        for address in ["127.0.0.1", "::1", "203.0.113.1"] {
            assert_eq!(
                ask(None, kind, address, port).await,
                "page 10.0.2.2",
                "{kind} {address}"
            );
        }
        assert_eq!(
            ask(Some("outside"), kind, "203.0.113.1", port).await,
            "page 10.0.2.2",
            "{kind}"
        );
        // The guest, back by the host's address.
        assert_eq!(
            ask(Some("g1"), kind, "203.0.113.1", port).await,
            "page 10.0.2.2",
            "{kind}"
        );
    }
    for kind in ["tcp", "udp"] {
        assert_eq!(
            ask(Some("g1"), kind, "203.0.113.2", 9000).await,
            "world 203.0.113.1",
            "{kind}"
        );
        // The gateway is not a way to the host.
        assert!(
            ask(Some("g1"), kind, "10.0.2.2", 9001)
                .await
                .starts_with("nothing"),
            "{kind}"
        );
    }
    drop((cable, server));
    // Another VMM on the same socket, a hostile one, with hand-made frames; the last address shows that frames do go out.
    let targets = "127.0.0.1:9001,127.0.0.2:9001,0.0.0.0:9001,10.0.2.2:9001,203.0.113.2:9000";
    let path = socket(&at);
    let arguments = [
        "loopback_frames",
        path.to_str().unwrap(),
        &at.guest.mac.to_string(),
        "10.0.2.15",
        "ff:ff:ff:ff:ff:ff",
        targets,
    ];
    assert_eq!(client(None, &arguments).await, "answers: 203.0.113.2:9000");
    network.release(&one.home).await.unwrap();
    assert!(
        ask(None, "tcp", "127.0.0.1", 8080)
            .await
            .starts_with("nothing")
    );
    assert_eq!(std::fs::read_dir(&one.home.directory).unwrap().count(), 0);
}

#[test]
fn an_unprivileged_user_publishes_ports_and_keeps_the_loopback_to_itself() {
    in_private_host(
        "an_unprivileged_user_publishes_ports_and_keeps_the_loopback_to_itself",
        &["passt", "setpriv"],
        || ports_and_isolation(As::User),
    );
}

#[test]
fn root_without_a_bridge_does_too() {
    in_private_host("root_without_a_bridge_does_too", &["passt"], || {
        ports_and_isolation(As::Root)
    });
}

#[test]
fn a_guests_stack_outlives_the_server() {
    in_private_host(
        "a_guests_stack_outlives_the_server",
        &["passt", "setpriv"],
        || async {
            let first = network(As::User);
            let one = spec(As::User, 1, &["8080:80"]);
            let at = first.ensure(&one).await.unwrap();
            assert_eq!(first.ensure(&one).await.unwrap(), at);
            assert_eq!(first.observe(&one).await.unwrap(), Presence::Present);
            let _cable = plug_in("g1", &at);
            let _server = serve(Some("g1"), "0.0.0.0", 80, "page");
            let before = stacks();
            assert_eq!(before.len(), 1);
            drop(first);

            let second = network(As::User);
            let owned = second.owned().await.unwrap();
            let owners: Vec<_> = owned.iter().filter_map(|item| item.part.handle()).collect();
            assert_eq!(owners, [&one.home.handle]);
            assert_eq!(second.observe(&one).await.unwrap(), Presence::Partial);
            let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
            while let Err(error) = second.ensure(&one).await {
                assert!(
                    error.code == "port_taken" && tokio::time::Instant::now() < deadline,
                    "{error:?}"
                );
                tokio::task::yield_now().await;
            }
            // The same stack, and the guest's cable is still in it.
            assert_eq!(stacks(), before);
            assert_eq!(ask(None, "tcp", "127.0.0.1", 8080).await, "page 10.0.2.2");

            // Somebody else's port; a stack that died is made anew, and the same ports lead to it.
            let _taken = serve(None, "0.0.0.0", 8090, "mine");
            let error = second
                .ensure(&spec(As::User, 2, &["8090:80"]))
                .await
                .unwrap_err();
            assert_eq!(error.code, "port_taken");
            for pid in before {
                run(&format!("kill -9 {pid}"));
            }
            let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
            while second.observe(&one).await.unwrap() == Presence::Present {
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "the guard outlives its stack"
                );
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            let at = second.ensure(&one).await.unwrap();
            run("ip netns del g1");
            let _cable = plug_in("g2", &at);
            let _server = serve(Some("g2"), "0.0.0.0", 80, "anew");
            assert_eq!(ask(None, "tcp", "127.0.0.1", 8080).await, "anew 10.0.2.2");

            second.tear_down().await.unwrap();
            second.release(&one.home).await.unwrap();
            assert_eq!(second.owned().await.unwrap(), []);
            no_stack_is_left().await;

            // One whose record was never written is found by its lock and its arguments.
            let bare = spec(As::Root, 3, &[]);
            let third = network(As::Root);
            third.ensure(&bare).await.unwrap();
            std::fs::remove_file(bare.home.directory.join("net.json")).unwrap();
            drop(third);
            let fourth = network(As::Root);
            assert_eq!(fourth.observe(&bare).await.unwrap(), Presence::Partial);
            fourth.release(&bare.home).await.unwrap();
            assert_eq!(fourth.observe(&bare).await.unwrap(), Presence::Absent);
            no_stack_is_left().await;
        },
    );
}

#[test]
fn a_host_without_a_route_is_told_so() {
    in_private_host("a_host_without_a_route_is_told_so", &["passt"], || async {
        run("ip route del default");
        let network = network(As::Root);
        let one = spec(As::Root, 1, &[]);
        let error = network.ensure(&one).await.unwrap_err();
        assert_eq!(error.code, "no_default_route", "{error}");
        network.release(&one.home).await.unwrap();
    });
}

/// passt of 2023 turned in a circle for ever when it read a SYN+ACK and what came after it together, which took a busy
/// machine and some hundred connections to guests that speak first.
#[test]
fn three_thousand_connections_in_a_row_are_answered() {
    let test = "three_thousand_connections_in_a_row_are_answered";
    in_private_host(test, &["passt"], || async {
        let network = network(As::Root);
        let one = spec(As::Root, 1, &["8080:80"]);
        let at = network.ensure(&one).await.unwrap();
        let _cable = plug_in("g1", &at);
        let _server = serve(Some("g1"), "0.0.0.0", 80, "page");
        let asked = client(None, &["ask_often", "203.0.113.1", "8080", "3000"]).await;
        assert_eq!(asked, "3000 answers");
        network.release(&one.home).await.unwrap();
    });
}
