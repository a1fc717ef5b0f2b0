//! The installation's nftables table: its text, made from typed values, and the one way to `nft`.
//!
//! The table is always rebuilt whole, in one transaction: declared (so that deleting it cannot fail), deleted,
//! declared again with its contents. Other tables are never touched; a verdict of theirs to drop is final, and one
//! of ours to accept binds only us.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::HelperError;
use crate::protocol::{Guests, Publish, RuleSet, Transport};
use crate::values::Installation;
use warren_crashpoint::reached;

const PROGRAMS: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];
const DEADLINE: Duration = Duration::from_secs(15);

/// Replaces the table by what the rules say.
pub(crate) async fn apply(rules: &RuleSet) -> Result<(), HelperError> {
    run(&["-f", "-"], &transaction(rules)).await?;
    reached("rules.applied");
    Ok(())
}

/// Removes the table; also when there is none.
pub(crate) async fn delete(installation: &Installation) -> Result<(), HelperError> {
    let table = installation.table();
    let text = format!("table inet {table} {{}}\ndelete table inet {table}\n");
    run(&["-f", "-"], &text).await.map(|_| ())
}

/// The published ports that the table has; `None` where there is no table.
pub(crate) async fn published_ports(
    installation: &Installation,
) -> Result<Option<Vec<Publish>>, HelperError> {
    let table = installation.table();
    match run(&["-j", "list", "table", "inet", &table], "").await {
        Ok(listing) => Ok(Some(read_published(&listing))),
        // What nft says of ENOENT (libnftables, `nft list table` of none).
        Err(HelperError::Rules { message }) if message.contains("No such file or directory") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The elements of our maps in nft's JSON (libnftables-json(5)): `[8080, {"concat": ["192.168.100.7", 80]}]`.
fn read_published(listing: &str) -> Vec<Publish> {
    let Ok(listing) = serde_json::from_str::<serde_json::Value>(listing) else {
        return Vec::new();
    };
    let mut published = Vec::new();
    for map in listing["nftables"].as_array().into_iter().flatten() {
        let map = &map["map"];
        let transport = match map["name"].as_str() {
            Some("tcp_to_guest") => Transport::Tcp,
            Some("udp_to_guest") => Transport::Udp,
            Some(_) | None => continue,
        };
        for element in map["elem"].as_array().into_iter().flatten() {
            let port = |value: &serde_json::Value| u16::try_from(value.as_u64()?).ok();
            let target = &element[1]["concat"];
            let address = target[0].as_str().and_then(|text| text.parse().ok());
            if let (Some(host_port), Some(guest_address), Some(guest_port)) =
                (port(&element[0]), address, port(&target[1]))
            {
                published.push(Publish {
                    transport,
                    host_port,
                    guest_address,
                    guest_port,
                });
            }
        }
    }
    published
}

/// The whole rule set of the host, in nft's JSON.
pub(crate) async fn list_all() -> Result<String, HelperError> {
    run(&["-j", "list", "ruleset"], "").await
}

async fn run(arguments: &[&str], input: &str) -> Result<String, HelperError> {
    let program = PROGRAMS
        .iter()
        .find(|path| std::path::Path::new(path).exists())
        .ok_or_else(|| HelperError::Missing {
            program: "nft".into(),
            hint: "install the package nftables".into(),
        })?;
    let fail = |error: std::io::Error| HelperError::io("run nft", &error);
    let work = async {
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(fail)?;
        let mut stdin = child.stdin.take().expect("stdin was asked for above");
        // nft reads all of its input before it writes, so this cannot wait for a reader of its output.
        stdin.write_all(input.as_bytes()).await.map_err(fail)?;
        drop(stdin);
        child.wait_with_output().await.map_err(fail)
    };
    let output =
        tokio::time::timeout(DEADLINE, work)
            .await
            .map_err(|_| HelperError::Timeout {
                operation: "nft".into(),
            })??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("Operation not permitted") {
        return Err(HelperError::Permission {
            operation: "change nftables rules".into(),
        });
    }
    Err(HelperError::Rules {
        message: words.lines().take(4).collect::<Vec<_>>().join("; "),
    })
}

/// The text that takes the table from whatever it is to what the rules say.
pub(crate) fn transaction(rules: &RuleSet) -> String {
    let table = rules.installation.table();
    let mut text = format!("table inet {table} {{}}\ndelete table inet {table}\n");
    // Writing to a string cannot fail.
    let _ = write!(text, "table inet {table} {{\n{}}}\n", body(rules));
    text
}

fn body(rules: &RuleSet) -> String {
    let bridge = rules.bridge.as_str();
    let gateway = rules.gateway.addr();
    let subnet = rules.gateway.trunc();
    let (guests, not_guests, guest_set) = match &rules.guests {
        Guests::WholeBridge => (subnet.to_string(), format!("!= {subnet}"), String::new()),
        Guests::Addresses(addresses) => (
            "@guests".to_owned(),
            "!= @guests".to_owned(),
            set(
                "guests",
                "ipv4_addr",
                addresses.iter().map(ToString::to_string).collect(),
            ),
        ),
    };
    // On a bridge of ours whatever is not a guest's is forged; on the user's own it is somebody else's.
    let (forged, others_in, others_out) = match rules.guests {
        Guests::WholeBridge => (
            format!("\t\tiifname \"{bridge}\" ip saddr {not_guests} drop\n"),
            String::new(),
            format!("\t\toifname \"{bridge}\" jump to_guests\n\t\tiifname \"{bridge}\" drop\n"),
        ),
        Guests::Addresses(_) => (
            String::new(),
            format!("\t\tmeta nfproto ipv6 accept\n\t\tip saddr {not_guests} accept\n"),
            format!("\t\toifname \"{bridge}\" ip daddr {guests} jump to_guests\n"),
        ),
    };
    let mut text = guest_set;
    for transport in [Transport::Tcp, Transport::Udp] {
        text.push_str(&published(transport, &rules.published));
    }
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\
\tchain ingress {{
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tiifname \"{bridge}\" ip daddr 127.0.0.0/8 drop
{forged}\t}}
\tchain publish {{
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tiifname {{ \"lo\", \"{bridge}\" }} return
\t\tmeta nfproto ipv4 fib daddr type local dnat ip to tcp dport map @tcp_to_guest
\t\tmeta nfproto ipv4 fib daddr type local dnat ip to udp dport map @udp_to_guest
\t}}
\tchain outward {{
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tip saddr {guests} oifname != \"{bridge}\" masquerade
\t}}
\tchain to_guests {{
\t\tct state established,related accept
\t\tct status dnat accept
\t\tdrop
\t}}
\tchain forward {{
\t\ttype filter hook forward priority 0; policy accept;
\t\tiifname \"{bridge}\" oifname \"{bridge}\" accept
\t\tiifname \"{bridge}\" ip saddr {guests} accept
{others_out}\t}}
\tchain input {{
\t\ttype filter hook input priority 0; policy accept;
\t\tiifname != \"{bridge}\" accept
{others_in}\t\tct state established,related accept
\t\tip daddr {gateway} udp dport 53 accept
\t\tip daddr {gateway} tcp dport 53 accept
\t\ticmp type echo-request accept
\t\ticmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert }} accept
\t\ttcp dport @tcp_published accept
\t\tudp dport @udp_published accept
\t\tdrop
\t}}
"
    );
    text
}

/// The map from host port to guest, for DNAT, and the set of host ports, for guests that come back by them.
fn published(transport: Transport, all: &[Publish]) -> String {
    let mine = || all.iter().filter(|entry| entry.transport == transport);
    let map = mine()
        .map(|entry| {
            format!(
                "{} : {} . {}",
                entry.host_port, entry.guest_address, entry.guest_port
            )
        })
        .collect();
    let ports = mine().map(|entry| entry.host_port.to_string()).collect();
    format!(
        "{}{}",
        collection(
            "map",
            &format!("{transport}_to_guest"),
            "inet_service : ipv4_addr . inet_service",
            map
        ),
        set(&format!("{transport}_published"), "inet_service", ports)
    )
}

fn set(name: &str, of: &str, elements: Vec<String>) -> String {
    collection("set", name, of, elements)
}

fn collection(what: &str, name: &str, of: &str, elements: Vec<String>) -> String {
    let elements = if elements.is_empty() {
        String::new()
    } else {
        format!("\t\telements = {{ {} }}\n", elements.join(", "))
    };
    format!("\t{what} {name} {{\n\t\ttype {of};\n{elements}\t}}\n")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use super::*;
    use crate::values::BridgeName;

    fn rules(guests: Guests) -> RuleSet {
        RuleSet {
            installation: Installation::new("abcd").unwrap(),
            bridge: BridgeName::new("vmbr0").unwrap(),
            gateway: "192.168.100.1/24".parse().unwrap(),
            guests,
            published: vec![
                Publish {
                    transport: Transport::Tcp,
                    host_port: 8080,
                    guest_address: "192.168.100.7".parse().unwrap(),
                    guest_port: 80,
                },
                Publish {
                    transport: Transport::Udp,
                    host_port: 5353,
                    guest_address: "192.168.100.8".parse().unwrap(),
                    guest_port: 53,
                },
            ],
        }
    }

    #[test]
    fn the_old_table_goes_in_the_same_transaction() {
        let text = transaction(&rules(Guests::WholeBridge));
        let start =
            "table inet warren_abcd {}\ndelete table inet warren_abcd\ntable inet warren_abcd {\n";
        assert!(text.starts_with(start), "{text}");
    }

    #[test]
    fn ports_are_map_elements_so_that_rules_do_not_grow_with_them() {
        let text = transaction(&rules(Guests::WholeBridge));
        assert!(
            text.contains("elements = { 8080 : 192.168.100.7 . 80 }"),
            "{text}"
        );
        assert!(
            text.contains("elements = { 5353 : 192.168.100.8 . 53 }"),
            "{text}"
        );
        let mut more = rules(Guests::WholeBridge);
        let one = more.published[0];
        more.published
            .extend((9000..9100).map(|host_port| Publish { host_port, ..one }));
        assert_eq!(transaction(&more).lines().count(), text.lines().count());
    }

    #[test]
    fn published_ports_are_read_back_from_what_nft_prints() {
        let printed = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "warren_abcd", "handle": 1}},
            {"map": {"family": "inet", "name": "tcp_to_guest", "table": "warren_abcd", "type": "inet_service",
             "handle": 1, "map": "ipv4_addr . inet_service", "elem": [[8080, {"concat": ["192.168.100.7", 80]}]]}},
            {"map": {"family": "inet", "name": "udp_to_guest", "table": "warren_abcd", "type": "inet_service",
             "handle": 2, "map": "ipv4_addr . inet_service"}}]}"#;
        let all = rules(Guests::WholeBridge).published;
        assert_eq!(read_published(printed), all[..1]);
        assert_eq!(read_published("not json"), []);
    }

    #[test]
    fn on_the_users_bridge_only_guests_are_filtered() {
        let addresses = vec!["192.168.100.7".parse().unwrap()];
        let text = transaction(&rules(Guests::Addresses(addresses)));
        assert!(text.contains("ip saddr != @guests accept"), "{text}");
        assert!(!text.contains("iifname \"vmbr0\" drop"), "{text}");
    }
}
