//! The files in `/etc` by which programs find names: written anew at each boot.
//!
//! A file is replaced by renaming, never written through: where the image has a symlink (to systemd-resolved's
//! stub, say) the link is replaced, and nothing outside `/etc` is touched.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::protocol::BootConfig;

/// Writes `hostname`, `hosts` and, if there are name servers, `resolv.conf` below `etc`.
pub(super) fn write(etc: &Path, config: &BootConfig) -> io::Result<()> {
    std::fs::create_dir_all(etc)?;
    replace(etc, "hostname", &format!("{}\n", config.hostname))?;
    replace(etc, "hosts", &hosts(config))?;
    if config.nameservers.is_empty() {
        return Ok(());
    }
    replace(etc, "resolv.conf", &resolv_conf(config))
}

fn replace(etc: &Path, name: &str, content: &str) -> io::Result<()> {
    let fresh = etc.join(format!(".{name}.warren"));
    std::fs::write(&fresh, content)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(&fresh, etc.join(name))
}

fn hosts(config: &BootConfig) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    let own = config
        .networks
        .iter()
        .flat_map(|network| &network.addresses);
    let mut named = false;
    for address in own {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}\t{}", address.address, config.hostname);
        named = true;
    }
    if !named {
        let _ = writeln!(text, "127.0.1.1\t{}", config.hostname);
    }
    for entry in &config.hosts {
        let _ = writeln!(text, "{}\t{}", entry.address, entry.names.join(" "));
    }
    text
}

fn resolv_conf(config: &BootConfig) -> String {
    let mut text = String::new();
    for server in &config.nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !config.search.is_empty() {
        let _ = writeln!(text, "search {}", config.search.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn config() -> BootConfig {
        serde_json::from_value(serde_json::json!({
            "instance_id": "i", "hostname": "web",
            "hosts": [{"address": "10.0.0.3", "names": ["db.internal", "db"]}],
            "nameservers": ["10.0.0.1"], "search": ["internal"],
            "networks": [{"addresses": [{"address": "10.0.0.2", "prefix": 24}]}],
            "workload": {"command": []},
        }))
        .unwrap()
    }

    #[test]
    fn symlinks_are_replaced_and_their_targets_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let stub = root.path().join("stub");
        std::fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        std::os::unix::fs::symlink(&stub, etc.join("resolv.conf")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", etc.join("hosts")).unwrap();
        write(&etc, &config()).unwrap();
        assert_eq!(
            std::fs::read_to_string(&stub).unwrap(),
            "nameserver 127.0.0.53\n"
        );
        let resolv = std::fs::read_to_string(etc.join("resolv.conf")).unwrap();
        assert_eq!(resolv, "nameserver 10.0.0.1\nsearch internal\n");
        let hosts = std::fs::read_to_string(etc.join("hosts")).unwrap();
        assert!(hosts.contains("10.0.0.2\tweb\n") && hosts.ends_with("10.0.0.3\tdb.internal db\n"));
        assert_eq!(
            std::fs::read_to_string(etc.join("hostname")).unwrap(),
            "web\n"
        );
    }
}
