//! What an installation leaves on the host.

use super::server::Server;
use std::path::Path;
use std::process::Command;

impl Server {
    /// What is on the host of this installation: VMMs, devices, nftables tables, instance directories.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let installation =
            std::fs::read_to_string(self.data().join("installation")).unwrap_or_default();
        let installation = installation.trim();
        if installation.is_empty() {
            return found;
        }
        for entry in std::fs::read_dir("/proc")
            .expect("/proc is mounted")
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&words).replace('\0', " ");
            let ours = line.contains(&self.data().to_string_lossy().into_owned());
            if ours && (line.contains("qemu-system") || line.contains("passt")) {
                found.push(format!("process {name}: {line}"));
            }
        }
        if let Ok(devices) = std::fs::read_dir("/sys/class/net") {
            for device in devices.flatten() {
                let name = device.file_name().to_string_lossy().into_owned();
                if name.starts_with(&format!("wt{installation}")) {
                    found.push(format!("device {name}"));
                }
            }
        }
        if let Ok(instances) = std::fs::read_dir(self.data().join("instances")) {
            found.extend(
                instances
                    .flatten()
                    .map(|entry| format!("directory {}", entry.path().display())),
            );
        }
        found
    }

    /// What must be gone once the server is stopped and `system clean` has run.
    pub(crate) fn network_leftovers(&self) -> Vec<String> {
        let installation =
            std::fs::read_to_string(self.data().join("installation")).unwrap_or_default();
        let mut found = Vec::new();
        if Path::new("/sys/class/net")
            .join(format!("wrnt{}", self.port))
            .exists()
        {
            found.push("the bridge".to_owned());
        }
        let tables = Command::new("nft").args(["list", "tables"]).output();
        if let Ok(tables) = tables
            && String::from_utf8_lossy(&tables.stdout)
                .contains(&format!("warren_{}", installation.trim()))
        {
            found.push("the nftables table".to_owned());
        }
        found
    }
}
