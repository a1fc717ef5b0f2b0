//! File systems: the kernel's own, the root made of a read-only image and a writable disk, and the move into it.
//!
//! ```text
//! initramfs /lower   erofs      the image, shared by all its instances
//! initramfs /upper   ext4       this instance's changes: upper/ and work/
//! initramfs /newroot overlay    moved to / at the end
//! ```

use std::ffi::{CStr, CString};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use super::commandline::{CommandLine, Upper};
use super::uevent;
use crate::protocol::MountConfig;
use crate::protocol::boot::MountAccess;

/// Disks are plugged in before the VM starts: one that is not there by then never comes.
const DISK_DEADLINE: Duration = Duration::from_secs(20);

/// The writable disk's directory, kept open so that it can be made read-only at power-off.
static WRITABLE: Mutex<Option<File>> = Mutex::new(None);

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
#[error("mount {source_name} ({fstype}) on {target}: {cause}")]
pub(super) struct MountError {
    source_name: String,
    fstype: String,
    target: String,
    cause: io::Error,
}

fn mount_at(
    source: &str,
    target: &str,
    fstype: &str,
    flags: MountFlags,
    data: &CStr,
) -> Result<(), MountError> {
    let fail = |cause: io::Error| MountError {
        source_name: source.to_owned(),
        fstype: fstype.to_owned(),
        target: target.to_owned(),
        cause,
    };
    std::fs::create_dir_all(target).map_err(fail)?;
    mount(source, target, fstype, flags, data).map_err(|error| fail(error.into()))
}

const NO_DEVICES: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NODEV);

/// What the agent itself needs: processes, devices and their descriptions.
pub(super) fn mount_early() -> Result<(), MountError> {
    mount_at("proc", "/proc", "proc", NO_DEVICES, c"")?;
    mount_at("sysfs", "/sys", "sysfs", NO_DEVICES, c"")?;
    match mount_at(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        c"mode=0755",
    ) {
        // The kernel was configured to mount it.
        Err(error) if error.cause.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(()),
        result => result,
    }
}

async fn wait_for_device(device: &str) -> Result<(), MountError> {
    let path = Path::new(device);
    uevent::wait_for(DISK_DEADLINE, || path.exists().then_some(()))
        .await
        .map_err(|cause| MountError {
            source_name: device.to_owned(),
            fstype: "device".to_owned(),
            target: "/".to_owned(),
            cause,
        })
}

/// Waits for the disks, joins them, and makes the result the root of everything.
pub(super) async fn enter_root(command_line: &CommandLine) -> Result<(), MountError> {
    wait_for_device(&command_line.root).await?;
    mount_at(
        &command_line.root,
        "/lower",
        &command_line.root_fstype,
        MountFlags::RDONLY,
        c"",
    )?;
    match &command_line.upper {
        Upper::Disk { device, fstype } => {
            wait_for_device(device).await?;
            mount_at(device, "/upper", fstype, MountFlags::NOATIME, c"")?;
            let directory = File::open("/upper").ok();
            *WRITABLE
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = directory;
        }
        Upper::Memory => mount_at(
            "tmpfs",
            "/upper",
            "tmpfs",
            MountFlags::NOATIME,
            c"mode=0755",
        )?,
    }
    let fail = |target: &'static str| {
        move |cause: io::Error| MountError {
            source_name: "overlay".to_owned(),
            fstype: "overlay".to_owned(),
            target: target.to_owned(),
            cause,
        }
    };
    for directory in ["/upper/upper", "/upper/work"] {
        DirBuilder::new()
            .mode(0o755)
            .recursive(true)
            .create(directory)
            .map_err(fail("/upper"))?;
    }
    let layers = c"lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work";
    mount_at(
        "overlay",
        "/newroot",
        "overlay",
        MountFlags::empty(),
        layers,
    )?;
    switch("/newroot").map_err(fail("/"))?;
    mount_late();
    Ok(())
}

/// Another handle on the writable disk, if there is one.
pub(super) fn writable() -> Option<File> {
    let directory = WRITABLE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    directory.as_ref()?.try_clone().ok()
}

/// The writable disk, if there is one; the second caller gets nothing.
pub(super) fn take_writable() -> Option<File> {
    WRITABLE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take()
}

fn switch(new_root: &str) -> io::Result<()> {
    for mounted in ["/proc", "/sys", "/dev"] {
        let target = format!("{new_root}{mounted}");
        std::fs::create_dir_all(&target)?;
        mount_move(mounted, target.as_str())?;
    }
    // The initramfs stays in memory for ever; what is in it need not.
    let _ = std::fs::remove_file("/init");
    let _ = std::fs::remove_dir_all("/lib");
    std::env::set_current_dir(new_root)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

/// What programs expect to find. An image that makes one of these impossible runs without it.
fn mount_late() {
    let _ = mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    );
    // Terminals opened through devtmpfs' own ptmx would belong to no instance of devpts.
    let _ = std::fs::remove_file("/dev/ptmx");
    let _ = symlink("pts/ptmx", "/dev/ptmx");
    let _ = mount_at(
        "tmpfs",
        "/dev/shm",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=1777",
    );
    let _ = mount_at("mqueue", "/dev/mqueue", "mqueue", NO_DEVICES, c"");
    let _ = mount_at(
        "cgroup2",
        "/sys/fs/cgroup",
        "cgroup2",
        NO_DEVICES,
        c"nsdelegate",
    );
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, link);
    }
    let _ = DirBuilder::new().mode(0o755).create("/run");
    if DirBuilder::new().create("/tmp").is_ok() {
        // The umask has no say in a sticky directory for everybody.
        let _ = std::fs::set_permissions("/tmp", std::fs::Permissions::from_mode(0o1777));
    }
}

/// Mounts what the boot configuration asks for beyond the root.
pub(super) async fn mount_configured(mounts: &[MountConfig]) -> Result<(), MountError> {
    for wanted in mounts {
        if wanted.source.starts_with("/dev/") {
            wait_for_device(&wanted.source).await?;
        }
        let flags = match wanted.access {
            MountAccess::ReadWrite => MountFlags::empty(),
            MountAccess::ReadOnly => MountFlags::RDONLY,
        };
        let data = CString::default();
        mount_at(&wanted.source, &wanted.target, &wanted.fstype, flags, &data)?;
    }
    Ok(())
}
