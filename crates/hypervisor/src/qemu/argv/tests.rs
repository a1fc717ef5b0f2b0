#![expect(clippy::unwrap_used, reason = "a failing test may panic")]
use super::*;
use std::path::PathBuf;
use warren_core::MemoryMib;
use warren_core::network::MacAddress;
use warren_core::ports::InstanceHome;
use warren_core::ports::hypervisor::{Disk, Nic, NicBackend};

fn machine() -> MachineConfig {
    let disk = |path: &str, access| Disk {
        path: PathBuf::from(path),
        access,
    };
    MachineConfig {
        home: InstanceHome {
            id: "web".parse().unwrap(),
            handle: "aaaabbbb".parse().unwrap(),
            installation: "wxyz".parse().unwrap(),
            directory: PathBuf::from("/data/instances/aaaabbbb"),
        },
        vcpus: 2,
        memory: MemoryMib(256),
        disks: vec![
            disk("/data/images/a,b.erofs", DiskAccess::ReadOnly),
            disk("/data/instances/aaaabbbb/upper.ext4", DiskAccess::ReadWrite),
        ],
        nic: Some(Nic {
            mac: MacAddress([0x52, 1, 2, 3, 4, 5]),
            backend: NicBackend::Tap {
                name: "wtwxyzaaaabbbb".to_owned(),
            },
        }),
        boot_args: vec!["warren.attach=00ff".to_owned()],
    }
}

fn platform() -> Platform<'static> {
    Platform {
        accelerator: Accelerator::Tcg,
        board: Board::Microvm,
        kernel: Path::new("/cache/kernels/tuned/vmlinux"),
        initramfs: Path::new("/cache/initramfs/x.cpio"),
        timestamp: None,
        extra_cmdline: &[],
        beginning: Beginning::Boot,
    }
}

const DESCRIPTORS: Descriptors = Descriptors {
    qmp: 10,
    events: 14,
    channel: 11,
    console: 12,
    nic: Some(NicDescriptor::Tap(13)),
};

fn lines(arguments: &[OsString]) -> String {
    let mut text = String::new();
    for argument in arguments {
        let argument = argument.to_str().unwrap();
        let separator = if argument.starts_with('-') { '\n' } else { ' ' };
        text.push(separator);
        text.push_str(argument);
    }
    text.trim_start().to_owned()
}

#[test]
fn a_machine_becomes_these_arguments() {
    let arguments = arguments(&machine(), &platform(), &DESCRIPTORS).unwrap();
    assert_eq!(lines(&arguments), include_str!("tcg_tap.txt").trim_end());
}

#[test]
fn kvm_and_a_stream_change_only_their_lines() {
    let with_tcg = lines(&arguments(&machine(), &platform(), &DESCRIPTORS).unwrap());
    let platform = Platform {
        accelerator: Accelerator::Kvm,
        ..platform()
    };
    let descriptors = Descriptors {
        nic: Some(NicDescriptor::Stream(13)),
        ..DESCRIPTORS
    };
    let with_kvm = lines(&arguments(&machine(), &platform, &descriptors).unwrap());
    let changed: Vec<&str> = with_kvm
        .lines()
        .filter(|line| !with_tcg.lines().any(|other| other == *line))
        .collect();
    assert_eq!(
        changed,
        [
            "-accel kvm",
            "-cpu host",
            "-netdev stream,id=net0,server=off,addr.type=fd,addr.str=13",
        ]
    );
}

#[test]
fn words_that_would_become_several_are_refused() {
    for word in ["init=/bin/sh quiet", "", "a\nb", "ä"] {
        let mut machine = machine();
        machine.boot_args.push(word.to_owned());
        assert!(
            matches!(
                command_line(&machine, &platform()),
                Err(QemuError::BootArgument(_))
            ),
            "{word:?}"
        );
    }
}

#[test]
fn more_disks_than_slots_are_refused() {
    let mut machine = machine();
    machine.disks.extend(machine.disks.clone());
    assert!(arguments(&machine, &platform(), &DESCRIPTORS).is_ok());
    machine.disks.push(machine.disks[1].clone());
    assert!(matches!(
        arguments(&machine, &platform(), &DESCRIPTORS),
        Err(QemuError::TooManyDevices { disks: 5, most: 4 })
    ));
}

#[test]
fn a_kernel_that_finds_only_pci_gets_a_machine_with_pci() {
    let platform = Platform {
        board: Board::Pc,
        ..platform()
    };
    let text = lines(&arguments(&machine(), &platform, &DESCRIPTORS).unwrap());
    assert!(text.contains("-machine pc,"), "{text}");
    assert_eq!(text.matches("-pci").count(), 6, "{text}");
    assert!(!text.contains("-device,"), "{text}");
}

#[test]
fn an_emulated_guest_is_told_how_fast_its_timestamp_counter_runs_where_that_is_certain() {
    let told = |accelerator, timestamp| {
        let platform = Platform {
            accelerator,
            timestamp,
            ..platform()
        };
        command_line(&machine(), &platform).unwrap()
    };
    let words = " tsc_early_khz=2596118 tsc=reliable ";
    assert!(told(Accelerator::Tcg, Some(2_596_118)).contains(words));
    assert!(!told(Accelerator::Tcg, None).contains("tsc"));
    assert!(!told(Accelerator::Kvm, Some(2_596_118)).contains("tsc"));
}

#[test]
fn a_machine_that_is_restored_differs_from_one_that_boots_in_waiting_for_its_state() {
    let told = |beginning| {
        let platform = Platform {
            beginning,
            ..platform()
        };
        arguments(&machine(), &platform, &DESCRIPTORS).unwrap()
    };
    let (boot, incoming) = (told(Beginning::Boot), told(Beginning::Incoming));
    let added: Vec<_> = incoming
        .iter()
        .filter(|word| !boot.contains(word))
        .collect();
    assert_eq!(added, ["-incoming", "defer", "-S"]);
    assert_eq!(incoming.len(), boot.len() + 3);
}
