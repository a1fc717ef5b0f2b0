//! What the kernel command line tells the agent, because it has to be known before a host is there.
//!
//! | word | meaning | default |
//! |---|---|---|
//! | `warren.attach=` | the attach key, 32 hex digits | a well-known one |
//! | `warren.root=` | read-only root disk | `/dev/vda` |
//! | `warren.rootfstype=` | its file system | `erofs` |
//! | `warren.upper=` | writable disk, or `tmpfs` | `/dev/vdb` |
//! | `warren.upperfstype=` | its file system | `ext4` |
//! | `MODULE.PARAMETER=` | handed to that module (the kernel does so only for built-in ones) | |

use crate::protocol::AttachKey;

/// The words this agent knows.
#[derive(Debug, Clone)]
pub(super) struct CommandLine {
    pub(super) attach_key: AttachKey,
    pub(super) root: String,
    pub(super) root_fstype: String,
    pub(super) upper: Upper,
    words: Vec<String>,
}

/// Where changes to the root file system go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upper {
    Disk { device: String, fstype: String },
    Memory,
}

impl CommandLine {
    pub(super) fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let value = |name: &str| {
            words
                .iter()
                .rev()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let or = |name: &str, default: &str| value(name).unwrap_or(default).to_owned();
        let upper = match or("warren.upper", "/dev/vdb") {
            memory if memory == "tmpfs" => Upper::Memory,
            device => Upper::Disk {
                device,
                fstype: or("warren.upperfstype", "ext4"),
            },
        };
        Self {
            attach_key: value("warren.attach")
                .and_then(|key| key.parse().ok())
                .unwrap_or(AttachKey::WELL_KNOWN),
            root: or("warren.root", "/dev/vda"),
            root_fstype: or("warren.rootfstype", "erofs"),
            upper,
            words,
        }
    }

    /// Parameters for a module that is loaded, not built in: `-` and `_` are the same in its name.
    pub(super) fn module_parameters(&self, module: &str) -> String {
        let module = module.replace('-', "_");
        let mut parameters = Vec::new();
        for word in &self.words {
            if let Some((name, parameter)) = word.split_once('.')
                && name.replace('-', "_") == module
            {
                parameters.push(parameter);
            }
        }
        parameters.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_apply_and_the_last_word_wins() {
        let line = CommandLine::parse("quiet warren.root=/dev/vdx warren.root=/dev/vdc\n");
        assert_eq!(
            (line.root.as_str(), line.root_fstype.as_str()),
            ("/dev/vdc", "erofs")
        );
        let ext4 = Upper::Disk {
            device: "/dev/vdb".to_owned(),
            fstype: "ext4".to_owned(),
        };
        assert_eq!(line.upper, ext4);
        assert_eq!(
            CommandLine::parse("warren.upper=tmpfs").upper,
            Upper::Memory
        );
    }

    #[test]
    fn module_parameters_are_collected_by_module() {
        let line = CommandLine::parse(
            "virtio_mmio.device=512@0xfeb00000:5 a.b=c virtio-mmio.device=512@0xfeb00200:6",
        );
        assert_eq!(
            line.module_parameters("virtio_mmio"),
            "device=512@0xfeb00000:5 device=512@0xfeb00200:6"
        );
        assert_eq!(line.module_parameters("erofs"), "");
    }
}
