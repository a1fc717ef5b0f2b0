//! Finding a VMM by its arguments, when its record is missing or does not name it.

use super::identify;
use std::os::unix::fs::MetadataExt;
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::ProcessIdentity;

/// The start of the value of QEMU's `-name` for a home: no other machine on this host has it.
pub(crate) fn guest_name(home: &InstanceHome) -> String {
    format!("warren-{}-{}", home.installation, home.handle)
}

/// Whether these arguments (`/proc/<pid>/cmdline`: separated by zero bytes) are those of a VMM of `name`.
/// Whole arguments are compared, so that a shell or a `grep` that mentions the name is not taken for it.
fn is_vmm(cmdline: &[u8], name: &str) -> bool {
    let mut arguments = cmdline.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let base = program
        .rsplit(|byte| *byte == b'/')
        .next()
        .unwrap_or_default();
    if !base.starts_with(b"qemu-system-") {
        return false;
    }
    let wanted = format!("guest={name},");
    arguments
        .by_ref()
        .take_while(|argument| *argument != b"-kernel")
        .collect::<Vec<_>>()
        .windows(2)
        .any(|pair| pair[0] == b"-name" && pair[1].starts_with(wanted.as_bytes()))
}

/// The VMM of `home` among all processes of this user: another user's could pretend to be it.
pub(crate) fn find(home: &InstanceHome) -> std::io::Result<Option<ProcessIdentity>> {
    let name = guest_name(home);
    let user = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse::<u32>().ok())
        else {
            continue;
        };
        // Identity first, arguments second, identity again: all three are then of one process.
        let Some(identity) = identify(pid) else {
            continue;
        };
        let ours = std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|cmdline| is_vmm(&cmdline, &name))
            && entry
                .metadata()
                .is_ok_and(|metadata| metadata.uid() == user);
        if ours && identify(pid).as_ref() == Some(&identity) {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vmm_with_the_very_name_is_taken() {
        let name = "warren-abcd-aaaaaaaa";
        let yes =
            b"/usr/bin/qemu-system-x86_64\0-name\0guest=warren-abcd-aaaaaaaa,process=w\0-M\0x\0";
        assert!(is_vmm(yes, name));
        for no in [
            &b"grep\0-name\0guest=warren-abcd-aaaaaaaa,process=w\0"[..],
            b"sh\0-c\0qemu-system-x86_64 -name guest=warren-abcd-aaaaaaaa,process=w\0",
            b"qemu-system-x86_64\0-name\0guest=warren-abcd-aaaaaaab,process=w\0",
            b"qemu-system-x86_64\0-name\0guest=warren-abcd-aaaaaaaa2,process=w\0",
            b"qemu-system-x86_64\0-M\0x\0-kernel\0k\0-append\0-name\0guest=warren-abcd-aaaaaaaa,process=w\0",
            b"qemu-system-x86_64\0-name\0guest=other\0-append\0guest=warren-abcd-aaaaaaaa,\0",
            b"",
        ] {
            assert!(!is_vmm(no, name), "{}", String::from_utf8_lossy(no));
        }
    }
}
