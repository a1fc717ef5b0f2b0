//! QEMU's arguments for a machine: a pure function, so that what is started can be read in a test.
//!
//! Every file is named with its format; nothing is probed and nothing is taken from QEMU's own configuration
//! (`-nodefaults -no-user-config`).

use super::QemuError;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;
use warren_core::ports::hypervisor::{Accelerator, DiskAccess, MachineConfig};

/// virtio-mmio slots of `microvm` with one IO-APIC (QEMU, hw/i386/microvm.c, `virtio_num_transports`).
const MMIO_SLOTS: usize = 8;
/// PCI slots of `pc` that QEMU does not use itself (host bridge, ISA bridge with IDE and power management).
const PCI_SLOTS: usize = 30;
/// Slots that are not for disks or the network interface: random numbers, the channel, the balloon.
const OWN_SLOTS: usize = 3;

/// Memory for translated code under TCG, MiB. QEMU's own choice grows to 1 GiB and is never given back.
const TRANSLATION_BUFFER_MIB: u32 = 64;
/// Everything that QEMU emulates, but for the promise that string instructions are fast byte by byte: emulated they are not, and kernels
/// and C libraries that believe it copy and clear memory with them at half the speed of a copy by words.
const EMULATED_CPU: &str = "max,-erms,-fsrm";

/// The name of the guest channel's port in the guest: `/dev/virtio-ports/warren.0` where udev runs, else by
/// `/sys/class/virtio-ports/vport*/name`.
pub const CHANNEL_PORT: &str = "warren.0";

/// Descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Listening.
    pub(crate) qmp: RawFd,
    /// Listening.
    pub(crate) events: RawFd,
    /// Listening.
    pub(crate) channel: RawFd,
    /// Listening.
    pub(crate) console: RawFd,
    pub(crate) nic: Option<NicDescriptor>,
}

/// What the network interface is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NicDescriptor {
    /// An opened TAP.
    Tap(RawFd),
    /// A connected stream of framed packets.
    Stream(RawFd),
}

/// Which of QEMU's machines: decided by what the guest's kernel can find its devices with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Board {
    /// `microvm` without ACPI: devices are named on the kernel's command line, no firmware runs. Needs a kernel
    /// with `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`, which distributions leave out.
    Microvm,
    /// `pc`: devices on PCI, found by any kernel. SeaBIOS and PCI cost some hundred milliseconds.
    Pc,
}

impl Board {
    /// The one that QEMU calls `machine` (`query-machines`, with its version where it has one).
    pub(crate) fn of(machine: &str) -> Self {
        match machine.starts_with("microvm") {
            true => Board::Microvm,
            false => Board::Pc,
        }
    }

    fn machine(self) -> &'static str {
        match self {
            Board::Microvm => {
                "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=on,dump-guest-core=off"
            }
            Board::Pc => "pc,usb=off,vmport=off,hpet=off,dump-guest-core=off",
        }
    }

    /// The ending of virtio devices' names.
    fn bus(self) -> &'static str {
        match self {
            Board::Microvm => "device",
            Board::Pc => "pci",
        }
    }

    fn slots(self) -> usize {
        match self {
            Board::Microvm => MMIO_SLOTS,
            Board::Pc => PCI_SLOTS,
        }
    }
}

/// With what a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// The guest's kernel.
    Boot,
    /// Nothing: it is told later where its memory and devices come from, and its processors wait.
    Incoming,
}

/// What all machines of a driver have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Platform<'a> {
    pub(crate) accelerator: Accelerator,
    pub(crate) board: Board,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// How fast the host's timestamp counter runs, kHz, where that is certain.
    pub(crate) timestamp: Option<u32>,
    pub(crate) extra_cmdline: &'a [String],
    pub(crate) beginning: Beginning,
}

/// `path` as the value of one key of an option: QEMU ends a value at a comma, and doubles stand for one.
fn escaped(path: &Path) -> Result<String, QemuError> {
    path.to_str()
        .map(|text| text.replace(',', ",,"))
        .ok_or_else(|| QemuError::Path(path.to_owned()))
}

/// The guest kernel's command line.
pub(crate) fn command_line(
    machine: &MachineConfig,
    platform: &Platform<'_>,
) -> Result<String, QemuError> {
    let mut words = vec![
        "console=ttyS0".to_owned(),
        "quiet".to_owned(),
        // A machine without ACPI can be left by a triple fault alone; QEMU then ends (-no-reboot).
        "reboot=t".to_owned(),
        "panic=-1".to_owned(),
        // On a busy host an emulated timer is late, and the kernel would panic over it ("IO-APIC + timer doesn't work").
        "no_timer_check".to_owned(),
        // Distributions' kernels test their ciphers at each boot: a fifth of an emulated one's time.
        "cryptomgr.notests".to_owned(),
    ];
    match (platform.accelerator, platform.timestamp) {
        (Accelerator::Tcg | Accelerator::None, Some(frequency)) => {
            words.push(format!("tsc_early_khz={frequency}"));
            // And not compared with the late timer afterwards.
            words.push("tsc=reliable".to_owned());
        }
        // KVM tells by itself.
        (Accelerator::Kvm, _) | (Accelerator::Tcg | Accelerator::None, None) => {}
    }
    // The first -device is vda (transports are found in the order of their slots, on either bus).
    for (name, device) in ["warren.root", "warren.upper"]
        .iter()
        .zip(["/dev/vda", "/dev/vdb"])
        .take(machine.disks.len())
    {
        words.push(format!("{name}={device}"));
    }
    words.extend(platform.extra_cmdline.iter().cloned());
    words.extend(machine.boot_args.iter().cloned());
    for word in &words {
        let plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain {
            return Err(QemuError::BootArgument(word.clone()));
        }
    }
    Ok(words.join(" "))
}

/// The arguments, without the program.
pub(crate) fn arguments(
    machine: &MachineConfig,
    platform: &Platform<'_>,
    descriptors: &Descriptors,
) -> Result<Vec<OsString>, QemuError> {
    let (board, bus) = (platform.board, platform.board.bus());
    let slots = OWN_SLOTS + machine.disks.len() + usize::from(machine.nic.is_some());
    if slots > board.slots() {
        return Err(QemuError::TooManyDevices {
            disks: machine.disks.len(),
            most: board.slots() - OWN_SLOTS - usize::from(machine.nic.is_some()),
        });
    }
    let mut arguments = Vec::with_capacity(80);
    let mut option = |name: &str, value: String| {
        arguments.push(OsString::from(name));
        arguments.push(OsString::from(value));
    };
    let home = &machine.home;
    option(
        "-name",
        format!(
            "guest={},process=warren-{}",
            crate::process::guest_name(home),
            home.handle
        ),
    );
    option("-machine", board.machine().to_owned());
    match platform.accelerator {
        Accelerator::Kvm => {
            option("-accel", "kvm".to_owned());
            option("-cpu", "host".to_owned());
        }
        Accelerator::Tcg | Accelerator::None => {
            option(
                "-accel",
                format!("tcg,thread=multi,tb-size={TRANSLATION_BUFFER_MIB}"),
            );
            option("-cpu", EMULATED_CPU.to_owned());
        }
    }
    option("-smp", machine.vcpus.to_string());
    option("-m", format!("{}M", machine.memory.0));
    option("-display", "none".to_owned());
    option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    option("-kernel", path_text(platform.kernel)?);
    option("-initrd", path_text(platform.initramfs)?);
    option("-append", command_line(machine, platform)?);
    for (name, descriptor) in [
        ("qmp", descriptors.qmp),
        ("events", descriptors.events),
        ("console", descriptors.console),
        ("channel", descriptors.channel),
    ] {
        option(
            "-chardev",
            format!("socket,id={name},fd={descriptor},server=on,wait=off"),
        );
    }
    for monitor in ["qmp", "events"] {
        option("-mon", format!("chardev={monitor},mode=control"));
    }
    option("-serial", "chardev:console".to_owned());
    for (index, disk) in machine.disks.iter().enumerate() {
        let path = escaped(&disk.path)?;
        let (file, format, device) = match disk.access {
            // Shared by many machines and never written, so there is nothing to lock.
            DiskAccess::ReadOnly => ("read-only=on,locking=off", "read-only=on", ""),
            // Freed blocks of the guest become holes; its flushes reach the disk. For want of room on the host's disk the
            // guest is stopped until there is some; any other failure is the guest's to hear of.
            DiskAccess::ReadWrite => (
                "locking=on,discard=unmap",
                "discard=unmap,detect-zeroes=unmap",
                ",discard=on,write-zeroes=on,werror=enospc,rerror=report",
            ),
        };
        option(
            "-blockdev",
            format!(
                "driver=file,node-name=file{index},filename={path},aio=threads,cache.direct=off,cache.no-flush=off,{file}"
            ),
        );
        option(
            "-blockdev",
            format!("driver=raw,node-name=disk{index},file=file{index},{format}"),
        );
        option(
            "-device",
            format!("virtio-blk-{bus},drive=disk{index}{device}"),
        );
    }
    if let (Some(nic), Some(descriptor)) = (&machine.nic, descriptors.nic) {
        option(
            "-netdev",
            match descriptor {
                NicDescriptor::Tap(number) => format!("tap,id=net0,fd={number}"),
                NicDescriptor::Stream(number) => {
                    format!("stream,id=net0,server=off,addr.type=fd,addr.str={number}")
                }
            },
        );
        option(
            "-device",
            format!("virtio-net-{bus},netdev=net0,mac={}", nic.mac),
        );
    }
    option("-object", "rng-builtin,id=rng0".to_owned());
    option("-device", format!("virtio-rng-{bus},rng=rng0"));
    option(
        "-device",
        format!("virtio-serial-{bus},id=serial0,max_ports=2"),
    );
    option(
        "-device",
        format!("virtserialport,bus=serial0.0,nr=1,chardev=channel,name={CHANNEL_PORT}"),
    );
    option(
        "-device",
        format!("virtio-balloon-{bus},free-page-reporting=on,deflate-on-oom=on"),
    );
    if platform.beginning == Beginning::Incoming {
        option("-incoming", "defer".to_owned());
        arguments.push(OsString::from("-S"));
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arguments.push(OsString::from(flag));
    }
    Ok(arguments)
}

/// A path that is a whole argument: QEMU takes these three as they are, commas included.
fn path_text(path: &Path) -> Result<String, QemuError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| QemuError::Path(path.to_owned()))
}

#[cfg(test)]
mod tests;
