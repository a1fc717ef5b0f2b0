//! Bridge mode with real devices, rules and traffic, in a host of its own. Guests are namespaces behind the
//! instance's TAP, reached as a hypervisor reaches it: by the helper's descriptor.

#![expect(clippy::unwrap_used, reason = "a panic is the failure")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use support::{Process, ask, client, guest_on_tap, in_private_host, run, serve, upstream};
use warren_core::inventory::{Item, Kind};
use warren_core::network::{PortMapping, Subnet};
use warren_core::ports::network::{Attachment, AttachmentSpec, Network};
use warren_core::ports::{InstanceHome, Presence};
use warren_core::{ErrorClass, Handle, InstallationId};
use warren_helper::{HelperExt, InProcess, Installation, Verb};
use warren_network::{BridgeConfig, BridgeNetwork};

const GATEWAY: &str = "192.168.77.1";

fn config() -> BridgeConfig {
    let subnet = Subnet::new("192.168.77.0/24", GATEWAY.parse().unwrap()).unwrap();
    BridgeConfig {
        dns_servers: vec![SocketAddr::from(([203, 0, 113, 2], 53))],
        ..BridgeConfig::new(InstallationId::from_entropy([1, 2, 3]), subnet)
    }
}

fn network() -> BridgeNetwork {
    BridgeNetwork::start(config(), Arc::new(InProcess)).unwrap()
}

fn spec(n: u8, name: &str, ports: &[&str]) -> AttachmentSpec {
    AttachmentSpec {
        home: InstanceHome {
            id: name.parse().unwrap(),
            handle: Handle::from_entropy([n; 5]),
            installation: config().installation,
            directory: PathBuf::from("/nonexistent"),
        },
        names: vec![name.into()],
        address: Some(Ipv4Addr::new(192, 168, 77, 10 + n)),
        ports: ports
            .iter()
            .map(|port| port.parse::<PortMapping>().unwrap())
            .collect(),
    }
}

fn kinds(owned: &[Item], handle: &Handle) -> Vec<Kind> {
    let of_it = |item: &&Item| item.part.handle() == Some(handle);
    let mut kinds: Vec<Kind> = owned.iter().filter(of_it).map(|item| item.kind).collect();
    kinds.sort();
    kinds
}

fn taps(owned: &[Item]) -> usize {
    let tap = |item: &&Item| item.kind == Kind::Device && item.part.handle().is_some();
    owned.iter().filter(tap).count()
}

fn published(owned: &[Item]) -> Vec<String> {
    let published = |item: &&Item| item.kind == Kind::PublishedPort;
    owned
        .iter()
        .filter(published)
        .map(|item| item.name.clone())
        .collect()
}

async fn plug_in(name: &str, spec: &AttachmentSpec, attachment: &Attachment) -> Process {
    let verb = Verb::OpenTap {
        installation: Installation::new(spec.home.installation.as_str()).unwrap(),
        handle: warren_helper::Handle::new(spec.home.handle.as_str()).unwrap(),
    };
    let tap = InProcess.descriptor(verb).await.unwrap();
    let address = attachment.guest.address.to_string();
    guest_on_tap(name, tap, &address, &attachment.guest.gateway.to_string())
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    in_private_host(
        "published_ports_are_reached_from_everywhere",
        &[],
        || async {
            let network = network();
            let web = spec(1, "web", &["8080:80", "5353:80/udp"]);
            let other = spec(2, "other", &[]);
            let at = network.ensure(&web).await.unwrap();
            let beside = network.ensure(&other).await.unwrap();
            let _cables = (
                plug_in("g1", &web, &at).await,
                plug_in("g2", &other, &beside).await,
            );
            let _server = serve(Some("g1"), "0.0.0.0", 80, "page");
            for (kind, port) in [("tcp", 8080), ("udp", 5353)] {
                // From the host itself, spliced: the guest sees the gateway.
                for address in ["127.0.0.1", "::1", "203.0.113.1", "2001:db8::1"] {
                    let said = ask(None, kind, address, port).await;
                    assert_eq!(said, format!("page {GATEWAY}"), "{kind} {address}");
                }
                // From another machine, by DNAT: the guest sees who it is.
                let said = ask(Some("outside"), kind, "203.0.113.1", port).await;
                assert_eq!(said, "page 203.0.113.2", "{kind}");
                let said = ask(Some("outside"), kind, "2001:db8::1", port).await;
                assert_eq!(said, format!("page {GATEWAY}"), "{kind}");
                // From guests back to the host's addresses.
                for guest in ["g1", "g2"] {
                    for address in [GATEWAY, "203.0.113.1"] {
                        let said = ask(Some(guest), kind, address, port).await;
                        assert_eq!(said, format!("page {GATEWAY}"), "{kind} {guest} {address}");
                    }
                }
                // And not published: guest to guest, by the bridge.
                assert_eq!(
                    ask(Some("g2"), kind, "192.168.77.11", 80).await,
                    "page 192.168.77.12"
                );
            }
            let usage = network.usage(&web.home).await.unwrap();
            assert!(usage.received > 0 && usage.sent > 0, "{usage:?}");
            network.release(&web.home).await.unwrap();
            assert!(
                ask(Some("outside"), "tcp", "203.0.113.1", 8080)
                    .await
                    .starts_with("nothing")
            );
            assert!(
                ask(None, "tcp", "127.0.0.1", 8080)
                    .await
                    .starts_with("nothing")
            );
            network.tear_down().await.unwrap();
        },
    );
}

#[test]
fn guests_reach_the_outside_and_nothing_of_the_host() {
    in_private_host(
        "guests_reach_the_outside_and_nothing_of_the_host",
        &[],
        || async {
            let network = network();
            let one = spec(1, "one", &[]);
            let at = network.ensure(&one).await.unwrap();
            let _cable = plug_in("g1", &one, &at).await;
            let _outside = serve(Some("outside"), "203.0.113.2", 9000, "world");
            let _secret = serve(None, "127.0.0.1", 9001, "secret");
            let _open = serve(None, "0.0.0.0", 9002, "api");
            let _open6 = serve(None, "::", 9002, "api");
            for kind in ["tcp", "udp"] {
                assert_eq!(
                    ask(Some("g1"), kind, "203.0.113.2", 9000).await,
                    "world 203.0.113.1",
                    "{kind}"
                );
                for address in [GATEWAY, "203.0.113.1"] {
                    let said = ask(Some("g1"), kind, address, 9002).await;
                    assert!(said.starts_with("nothing"), "{kind} {address}: {said}");
                }
            }
            assert_eq!(run("cat /proc/sys/net/ipv4/conf/all/route_localnet"), "0");
            // A guest that takes pains: it routes 127.0.0.1 over its link. Even where somebody switched route_localnet on.
            run("ip netns exec g1 sysctl -qw net.ipv4.conf.all.route_localnet=1");
            run("ip -n g1 address del 127.0.0.1/8 dev lo");
            run("ip -n g1 route add 127.0.0.1/32 via 192.168.77.1");
            for setting in ["0", "1"] {
                run(&format!(
                    "sysctl -qw net.ipv4.conf.vmbr0.route_localnet={setting}"
                ));
                let said = ask(Some("g1"), "tcp", "127.0.0.1", 9001).await;
                assert!(
                    said.starts_with("nothing"),
                    "route_localnet={setting}: {said}"
                );
            }
            // Nor may others reach a guest that publishes nothing, by routing through this host.
            let _server = serve(Some("g1"), "0.0.0.0", 80, "private");
            run("ip -n outside route add 192.168.77.0/24 via 203.0.113.1");
            assert!(
                ask(Some("outside"), "tcp", "192.168.77.11", 80)
                    .await
                    .starts_with("nothing")
            );
            // A forged source goes nowhere.
            run("ip -n g1 address add 10.99.0.1/32 dev eth0");
            run("ip -n g1 route replace 203.0.113.2/32 via 192.168.77.1 src 10.99.0.1");
            assert!(
                ask(Some("g1"), "udp", "203.0.113.2", 9000)
                    .await
                    .starts_with("nothing")
            );
            network.tear_down().await.unwrap();
        },
    );
}

#[test]
fn guests_find_each_other_and_the_world_by_name() {
    in_private_host(
        "guests_find_each_other_and_the_world_by_name",
        &[],
        || async {
            let network = network();
            let (one, two) = (spec(1, "one", &[]), spec(2, "two", &[]));
            let at = network.ensure(&one).await.unwrap();
            network.ensure(&two).await.unwrap();
            assert_eq!(
                at.guest.nameservers,
                [std::net::IpAddr::from([192, 168, 77, 1])]
            );
            let _cable = plug_in("g1", &one, &at).await;
            let _upstream = upstream("outside", "203.0.113.2");
            let look_up = async |name: &str, kind: &str, over: &str| {
                client(Some("g1"), &["resolve", name, GATEWAY, kind, over]).await
            };
            for over in ["udp", "tcp"] {
                assert_eq!(look_up("two", "1", over).await, "True 0 192.168.77.12");
                assert_eq!(
                    look_up("TWO.warren.internal", "1", over).await,
                    "True 0 192.168.77.12"
                );
                assert_eq!(look_up("two.warren.internal", "28", over).await, "True 0");
                assert_eq!(look_up("nobody.warren.internal", "1", over).await, "True 3");
            }
            assert_eq!(
                look_up("www.example.com", "1", "udp").await,
                "True 0 198.51.100.9"
            );
            // Not a resolver for strangers.
            let said = client(Some("outside"), &["resolve", "two", "203.0.113.1"]).await;
            assert!(said.starts_with("nothing"), "{said}");
            run("ip -n outside route add 192.168.77.0/24 via 203.0.113.1");
            let said = client(Some("outside"), &["resolve", "two", GATEWAY]).await;
            assert!(said.starts_with("nothing"), "{said}");
            network.release(&two.home).await.unwrap();
            assert_eq!(look_up("two", "1", "udp").await, "True 3");
            network.tear_down().await.unwrap();
        },
    );
}

#[test]
fn everything_can_be_repeated_and_nothing_is_left() {
    in_private_host(
        "everything_can_be_repeated_and_nothing_is_left",
        &[],
        || async {
            let before = run("ip -o link show");
            let network = network();
            let one = spec(1, "one", &["8080:80"]);
            assert_eq!(network.observe(&one).await.unwrap(), Presence::Absent);
            // Before anything was attached there is nothing to release, and that is fine.
            network.release(&one.home).await.unwrap();
            let first = network.ensure(&one).await.unwrap();
            let rules = run("nft list ruleset");
            let again = network.ensure(&one).await.unwrap();
            assert_eq!(first, again);
            assert_eq!(run("nft list ruleset"), rules);
            assert_eq!(network.observe(&one).await.unwrap(), Presence::Present);
            assert_eq!(
                kinds(&network.owned().await.unwrap(), &one.home.handle),
                [Kind::Device, Kind::BridgePort]
            );
            network.preflight(&one).await.unwrap();

            // A changed port replaces the old one.
            let moved = AttachmentSpec {
                ports: spec(1, "one", &["8081:80"]).ports,
                ..one.clone()
            };
            network.ensure(&moved).await.unwrap();
            network
                .preflight(&spec(2, "two", &["8080:80"]))
                .await
                .unwrap();

            // A new process adopts: the device stays, its ports are bound again, a leak is listed and swept.
            network.ensure(&spec(3, "leak", &[])).await.unwrap();
            let index = run("ip -o link show type tun");
            drop(network);
            let network = self::network();
            assert_eq!(taps(&network.owned().await.unwrap()), 2);
            assert_eq!(network.observe(&moved).await.unwrap(), Presence::Partial);
            // The former task closes its sockets as it ends.
            let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
            while let Err(error) = network.ensure(&moved).await {
                assert!(
                    error.code == "port_taken" && tokio::time::Instant::now() < deadline,
                    "{error:?}"
                );
                tokio::task::yield_now().await;
            }
            assert_eq!(network.observe(&moved).await.unwrap(), Presence::Present);
            assert_eq!(run("ip -o link show type tun"), index);
            network
                .sweep(&spec(3, "leak", &[]).home.handle)
                .await
                .unwrap();
            let owned = network.owned().await.unwrap();
            assert_eq!(
                (taps(&owned), published(&owned)),
                (1, vec!["8081/tcp to 192.168.77.11:80".to_owned()])
            );

            // A new process that only takes away takes the rules of the old one away too.
            drop(network);
            let network = self::network();
            network.release(&one.home).await.unwrap();
            network.release(&one.home).await.unwrap();
            let owned = network.owned().await.unwrap();
            assert_eq!((taps(&owned), published(&owned)), (0, vec![]));
            assert_eq!(network.observe(&moved).await.unwrap(), Presence::Absent);
            network.tear_down().await.unwrap();
            network.tear_down().await.unwrap();
            assert_eq!(run("ip -o link show"), before);
            assert_eq!(run("nft list ruleset"), "");
        },
    );
}

#[test]
fn a_full_bridge_is_said_leaves_nothing_and_takes_the_next_one_once_there_is_room() {
    in_private_host(
        "a_full_bridge_is_said_leaves_nothing_and_takes_the_next_one_once_there_is_room",
        &[],
        || async {
            let network = network();
            let first = spec(1, "first", &["8080:80"]);
            network.ensure(&first).await.unwrap();
            // The kernel's limit is 1,023 ports: one is taken.
            let mut batch = String::new();
            for number in 0..511 {
                batch.push_str(&format!(
                    "link add a{number} type veth peer name b{number}\n"
                ));
                batch.push_str(&format!("link set a{number} master vmbr0\n"));
                batch.push_str(&format!("link set b{number} master vmbr0\n"));
            }
            std::fs::write("/run/batch", batch).unwrap();
            run("ip -batch /run/batch");
            let before = network.owned().await.unwrap();
            let late = spec(2, "late", &["8081:80"]);
            let error = network.ensure(&late).await.unwrap_err();
            assert_eq!(
                (error.class, error.code),
                (ErrorClass::NoCapacity, "bridge_full")
            );
            assert!(error.sentence().contains("vmbr0"), "{}", error.sentence());
            assert_eq!(network.owned().await.unwrap(), before);
            assert_eq!(network.observe(&late).await.unwrap(), Presence::Absent);
            run("ip link del a7");
            network.ensure(&late).await.unwrap();
            assert_eq!(network.observe(&late).await.unwrap(), Presence::Present);
            network.tear_down().await.unwrap();
        },
    );
}

#[test]
fn what_is_taken_is_said() {
    in_private_host("what_is_taken_is_said", &[], || async {
        let network = network();
        let _holder = serve(None, "127.0.0.1", 8080, "mine");
        let wanted = spec(1, "one", &["8080:80"]);
        for error in [
            network.preflight(&wanted).await.unwrap_err(),
            network.ensure(&wanted).await.unwrap_err(),
        ] {
            assert_eq!(
                (error.class, error.code),
                (ErrorClass::Conflict, "port_taken")
            );
            assert!(
                error.sentence().contains("8080/tcp") && error.sentence().contains("ss -tlnp"),
                "{}",
                error.sentence()
            );
        }
        // A failed attachment holds nothing back.
        network.release(&wanted.home).await.unwrap();
        let web = spec(2, "web", &["8081:80"]);
        network.ensure(&web).await.unwrap();
        let error = network
            .ensure(&spec(3, "late", &["8081:81"]))
            .await
            .unwrap_err();
        assert!(error.message.contains("instance web"), "{error}");
        let error = network
            .ensure(&AttachmentSpec {
                address: web.address,
                ..spec(3, "late", &[])
            })
            .await
            .unwrap_err();
        assert_eq!(error.code, "address_taken");
        let outside = AttachmentSpec {
            address: Some([10, 0, 0, 1].into()),
            ..spec(4, "far", &[])
        };
        assert_eq!(
            network.preflight(&outside).await.unwrap_err().code,
            "address_outside_subnet"
        );
        network.tear_down().await.unwrap();

        // Networks and bridges that belong to others.
        run("ip address add 192.168.0.1/16 dev wan0");
        let error = network.ensure(&web).await.unwrap_err();
        assert_eq!(error.code, "subnet_in_use");
        assert!(error.message.contains("wan0"), "{error}");
        run("ip address del 192.168.0.1/16 dev wan0");
        run("ip link add vmbr0 type bridge");
        run("ip link set vmbr0 up");
        let error = network.ensure(&web).await.unwrap_err();
        assert_eq!(error.code, "bridge_refused");
        assert!(
            error.message.contains("ip address add 192.168.77.1/24"),
            "{error}"
        );
        // With the address it serves, it is not changed, its other users keep the host, and it stays.
        run("ip address add 192.168.77.1/24 dev vmbr0");
        run("ip netns add neighbour");
        run("ip link add nb0 type veth peer name eth0 netns neighbour");
        run("ip link set nb0 master vmbr0 up");
        run("ip -n neighbour address add 192.168.77.200/24 dev eth0");
        run("ip -n neighbour link set eth0 up");
        let at = network.ensure(&web).await.unwrap();
        let _cable = plug_in("g1", &web, &at).await;
        let _api = serve(None, "0.0.0.0", 9002, "api");
        let _page = serve(Some("g1"), "0.0.0.0", 80, "page");
        assert_eq!(
            ask(Some("neighbour"), "tcp", GATEWAY, 9002).await,
            "api 192.168.77.200"
        );
        assert_eq!(
            ask(Some("neighbour"), "tcp", GATEWAY, 8081).await,
            format!("page {GATEWAY}")
        );
        assert!(
            ask(Some("g1"), "tcp", GATEWAY, 9002)
                .await
                .starts_with("nothing")
        );
        network.tear_down().await.unwrap();
        assert!(run("ip -o link show type bridge").contains("vmbr0"));
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn a_firewall_of_the_hosts_own_is_pointed_out() {
    in_private_host(
        "a_firewall_of_the_hosts_own_is_pointed_out",
        &[],
        || async {
            let network = network();
            network.ensure(&spec(1, "one", &[])).await.unwrap();
            assert_eq!(
                network.report().await.unwrap().warnings,
                Vec::<String>::new()
            );
            run("nft add table ip filter");
            run(
                "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
            );
            let warnings = network.report().await.unwrap().warnings;
            assert!(
                warnings.len() == 1 && warnings[0].contains("iptables -I FORWARD -i vmbr0"),
                "{warnings:?}"
            );
            run("nft add rule ip filter FORWARD iifname vmbr0 accept");
            assert_eq!(
                network.report().await.unwrap().warnings,
                Vec::<String>::new()
            );
            network.tear_down().await.unwrap();
        },
    );
}
