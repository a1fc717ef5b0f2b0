//! What an installation has on a host, and how that differs from what its record says. Pure: the agent
//! takes stock, control knows what should be there, [`compare`] tells the difference.
//!
//! The rule: of an instance that has settled, exactly what its state needs is there; of one that is on its
//! way, anything of its own may be; of one that is not recorded, nothing.

use crate::host::NetworkMode;
use crate::id::{Handle, InstanceId};
use crate::instance::{Desired, InstanceIntent, InstanceStatus, NetworkChoice};
use crate::ports::hypervisor::ProcessIdentity;
use crate::state::StateName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

/// What sort of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A VMM, or the file that stands for one (the fake).
    Machine,
    /// The guard of a user-mode network.
    Guard,
    /// A user-mode network's stack (passt).
    NetworkStack,
    /// A child of the server that has ended and was not collected.
    Zombie,
    /// A TAP or a bridge.
    Device,
    /// The place of a TAP in a bridge.
    BridgePort,
    /// The nftables table.
    Rules,
    /// A published port in it.
    PublishedPort,
    /// A mount point or source in the data directory.
    Mount,
    /// A loop device over a file of the data directory.
    LoopDevice,
    /// A control group.
    Cgroup,
    /// An instance's directory.
    Directory,
    /// A file.
    File,
    /// A Unix socket.
    Socket,
    /// A key of the store.
    Key,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Machine => "machine",
            Kind::Guard => "network guard",
            Kind::NetworkStack => "network stack",
            Kind::Zombie => "zombie",
            Kind::Device => "network device",
            Kind::BridgePort => "bridge port",
            Kind::Rules => "nftables table",
            Kind::PublishedPort => "published port",
            Kind::Mount => "mount",
            Kind::LoopDevice => "loop device",
            Kind::Cgroup => "cgroup",
            Kind::Directory => "directory",
            Kind::File => "file",
            Kind::Socket => "socket",
            Kind::Key => "store key",
        })
    }
}

/// Which part of an installation a thing is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "kebab-case")]
pub enum Part {
    /// An instance's directory and what stays in it when nothing runs: record, disk, logs.
    Home {
        /// Whose.
        handle: Handle,
    },
    /// What is there while an instance has a VMM.
    Machine {
        /// Whose.
        handle: Handle,
    },
    /// What is there while an instance is attached to the network.
    Network {
        /// Whose.
        handle: Handle,
    },
    /// What is there while the guest with this address has a published port.
    Published {
        /// The guest's.
        address: Ipv4Addr,
    },
    /// What is there once, for all instances.
    Installation,
    /// What is there only while something is being done: half a file, an upload.
    Unfinished,
    /// Nothing that Warren makes.
    Unknown,
}

impl Part {
    /// Whether it is a part of the instance with this handle, whose guest has this address.
    pub fn is_of(&self, handle: &Handle, address: Option<Ipv4Addr>) -> bool {
        match self {
            Part::Published { address: of } => address == Some(*of),
            Part::Home { .. }
            | Part::Machine { .. }
            | Part::Network { .. }
            | Part::Installation
            | Part::Unfinished
            | Part::Unknown => self.handle() == Some(handle),
        }
    }

    /// Whose it is, where it is one instance's and its handle is known.
    pub fn handle(&self) -> Option<&Handle> {
        match self {
            Part::Home { handle } | Part::Machine { handle } | Part::Network { handle } => {
                Some(handle)
            }
            Part::Published { .. } | Part::Installation | Part::Unfinished | Part::Unknown => None,
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Item {
    /// What sort of thing.
    pub kind: Kind,
    /// Its name, by which a person finds it: `wtabcdefghijkl`, `pid 4711 (qemu-system-x86_64)`, a path.
    pub name: String,
    /// What it is part of.
    #[serde(flatten)]
    pub part: Part,
    /// Its pid, where it is a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

impl Item {
    /// A thing that is no process.
    pub fn new(kind: Kind, name: impl Into<String>, part: Part) -> Self {
        Item {
            kind,
            name: name.into(),
            part,
            pid: None,
        }
    }
}

/// Whether something must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It must.
    Must,
    /// It may.
    May,
    /// It must not.
    MustNot,
}

/// What should be there of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// Its name on the host.
    pub handle: Handle,
    /// Its id.
    pub id: InstanceId,
    /// The guest's address, where the mode has a pool.
    pub address: Option<Ipv4Addr>,
    /// Directory and record.
    pub home: Need,
    /// A machine.
    pub machine: Need,
    /// Which one, where it is known.
    pub process: Option<ProcessIdentity>,
    /// An attachment.
    pub network: Need,
    /// What makes an attachment whole, in this host's mode.
    pub attachment: &'static [Kind],
    /// Why, in a few words: "is Running", "was stopped".
    pub because: String,
}

/// What makes an attachment whole.
fn attachment(mode: NetworkMode) -> &'static [Kind] {
    match mode {
        NetworkMode::Bridge => &[Kind::Device, Kind::BridgePort],
        NetworkMode::User => &[Kind::Guard, Kind::NetworkStack],
        NetworkMode::None => &[],
    }
}

impl Expectation {
    fn new(intent: &InstanceIntent, mode: NetworkMode, because: impl Into<String>) -> Self {
        Expectation {
            handle: intent.handle.clone(),
            id: intent.id.clone(),
            address: intent.address,
            home: Need::May,
            machine: Need::May,
            process: None,
            network: Need::May,
            attachment: attachment(mode),
            because: because.into(),
        }
    }

    fn with(mut self, home: Need, machine: Need) -> Self {
        self.home = home;
        self.machine = machine;
        self.network = machine;
        self
    }

    fn without_interface(mut self, intent: &InstanceIntent) -> Self {
        if intent.spec.network == NetworkChoice::Disabled {
            self.network = Need::MustNot;
        }
        self
    }

    /// While a server runs: its newest status says what should be there, unless something is under way.
    pub fn of_settled(intent: &InstanceIntent, status: &InstanceStatus, mode: NetworkMode) -> Self {
        let state = status.state.name();
        let expectation = Self::new(intent, mode, format!("is {state}"));
        let current = status.generation >= intent.generation;
        match (intent.desired, state) {
            (Desired::Running, StateName::Running | StateName::Initializing)
            | (Desired::Paused, StateName::Paused)
                if current =>
            {
                Expectation {
                    process: status.state.vmm().cloned(),
                    ..expectation.with(Need::Must, Need::Must)
                }
                .without_interface(intent)
            }
            (Desired::Standby, StateName::Standby) if current => {
                expectation.with(Need::Must, Need::MustNot)
            }
            // A start that failed, a run that is over, a stop that was carried out.
            (
                Desired::Running | Desired::Paused | Desired::Standby | Desired::Stopped,
                StateName::Stopped,
            ) if current => expectation.with(Need::May, Need::MustNot),
            _ => expectation,
        }
    }

    /// While no server runs: the record of intent says what the next one will bring about. `over` tells
    /// whether the host has noted that its newest run has ended or cannot be started.
    pub fn of_resting(intent: &InstanceIntent, over: RunOver, mode: NetworkMode) -> Self {
        let because = match (intent.desired, over) {
            (Desired::Running | Desired::Paused, RunOver::No) => "should run",
            (Desired::Running | Desired::Paused, RunOver::Yes) => "has ended",
            (Desired::Standby, _) => "was put into standby",
            (Desired::Stopped, _) => "was stopped",
            (Desired::Deleted, _) => "was deleted",
        };
        let expectation = Self::new(intent, mode, because);
        match (intent.desired, over) {
            (Desired::Running | Desired::Paused, RunOver::No) => expectation
                .with(Need::Must, Need::Must)
                .without_interface(intent),
            // A restart may be pending.
            (Desired::Running | Desired::Paused, RunOver::Yes) => expectation,
            // It may still run, where that was not finished or could not be.
            (Desired::Standby, _) => Expectation {
                home: Need::Must,
                ..expectation
            },
            (Desired::Stopped, _) => expectation.with(Need::May, Need::MustNot),
            (Desired::Deleted, _) => expectation.with(Need::MustNot, Need::MustNot),
        }
    }
}

/// Whether a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOver {
    /// It goes on, or has not begun.
    No,
    /// It has ended, or was given up.
    Yes,
}

/// How record and host differ in one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DifferenceKind {
    /// It is on the host and should not be.
    Leaked,
    /// It should be on the host and is not.
    Missing,
    /// It cannot be read.
    Damaged,
    /// Nothing that Warren makes lies where only Warren should.
    Unknown,
}

/// What helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// `warren fsck --repair` takes it away or puts it right.
    Repair,
    /// A running server does it by itself.
    Server,
    /// `warren system recover`.
    Recover,
    /// A person has to look.
    Look,
}

/// One difference between the record and the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// In which way.
    pub kind: DifferenceKind,
    /// In what.
    pub item: Item,
    /// Whose it is, where that is recorded.
    pub instance: Option<InstanceId>,
    /// In words.
    pub sentence: String,
    /// What helps.
    pub remedy: Remedy,
}

/// Everything in which `found` is not what `expected` says, in order.
pub fn compare(expected: &[Expectation], found: &[Item]) -> Vec<Difference> {
    let mut differences: Vec<Difference> = found
        .iter()
        .filter_map(|item| excess(expected, found, item))
        .collect();
    for expectation in expected {
        differences.extend(lacks(expectation, found));
    }
    differences.sort();
    differences.dedup();
    differences
}

fn leaked(item: &Item, owner: Option<&Expectation>, why: &str) -> Difference {
    Difference {
        kind: DifferenceKind::Leaked,
        item: item.clone(),
        instance: owner.map(|owner| owner.id.clone()),
        sentence: format!("{} {} {why}", item.kind, item.name),
        remedy: Remedy::Repair,
    }
}

fn is_home_of(item: &Item, handle: &Handle) -> bool {
    let home = matches!(&item.part, Part::Home { handle: owner } if owner == handle);
    home && item.kind == Kind::Directory
}

/// Why this item should not be there, if it should not.
fn excess(expected: &[Expectation], found: &[Item], item: &Item) -> Option<Difference> {
    let of = |handle: &Handle| expected.iter().find(|one| one.handle == *handle);
    let is_unrecorded_home = |other: &Item| match &other.part {
        Part::Home { handle } => other.kind == Kind::Directory && of(handle).is_none(),
        _ => false,
    };
    let owner = match &item.part {
        Part::Home { handle } | Part::Machine { handle } | Part::Network { handle } => of(handle),
        Part::Published { address } => expected.iter().find(|one| one.address == Some(*address)),
        Part::Installation => return None,
        Part::Unfinished => {
            return Some(leaked(
                item,
                None,
                "was left behind by something unfinished",
            ));
        }
        Part::Unknown => {
            return Some(Difference {
                kind: DifferenceKind::Unknown,
                item: item.clone(),
                instance: None,
                sentence: format!("{} {} is nothing that Warren makes", item.kind, item.name),
                remedy: Remedy::Look,
            });
        }
    };
    let Some(owner) = owner else {
        let remedy = match &item.part {
            // One sentence for all of a directory.
            Part::Home { .. } if item.kind != Kind::Directory => return None,
            // Taking a directory with its record away is never a repair.
            Part::Home { .. } => Remedy::Recover,
            // What has a directory here is an instance: its record is what is missing, and it may well run.
            Part::Machine { handle } | Part::Network { handle }
                if found.iter().any(|other| is_home_of(other, handle)) =>
            {
                Remedy::Recover
            }
            // An address alone does not tell whose it is.
            Part::Published { .. } if found.iter().any(is_unrecorded_home) => Remedy::Recover,
            _ => Remedy::Repair,
        };
        return Some(Difference {
            remedy,
            ..leaked(item, None, "belongs to no recorded instance")
        });
    };
    let need = match item.part {
        Part::Home { .. } => owner.home,
        Part::Machine { .. } => owner.machine,
        _ => owner.network,
    };
    if need == Need::MustNot {
        let why = format!("belongs to {}, which {}", owner.id, owner.because);
        return Some(match (&item.part, item.kind) {
            // One sentence for all of a directory.
            (Part::Home { .. }, Kind::Directory) => Difference {
                remedy: Remedy::Server,
                ..leaked(item, Some(owner), &why)
            },
            (Part::Home { .. }, _) => return None,
            _ => leaked(item, Some(owner), &why),
        });
    }
    let twin = match (item.kind, &owner.process) {
        (Kind::Machine, Some(process)) => item.pid.is_some_and(|pid| pid != process.pid),
        (Kind::Machine | Kind::Guard, _) => found.iter().any(|other| {
            other.kind == item.kind && other.part == item.part && other.pid < item.pid
        }),
        _ => false,
    };
    twin.then(|| {
        Difference {
            // Which of two is the right one is not for a program to guess.
            remedy: Remedy::Look,
            ..leaked(
                item,
                Some(owner),
                &format!("is a second one of {}", owner.id),
            )
        }
    })
}

/// What is not there of one instance.
fn lacks(expectation: &Expectation, found: &[Item]) -> Vec<Difference> {
    let there = |kind: Kind, part: &Part| {
        found
            .iter()
            .any(|item| item.kind == kind && item.part == *part)
    };
    let handle = || expectation.handle.clone();
    let mut wanted: Vec<(Kind, Part)> = Vec::new();
    if expectation.home == Need::Must {
        wanted.push((Kind::Directory, Part::Home { handle: handle() }));
    }
    if expectation.machine == Need::Must {
        wanted.push((Kind::Machine, Part::Machine { handle: handle() }));
    }
    if expectation.network == Need::Must {
        let part = Part::Network { handle: handle() };
        wanted.extend(
            expectation
                .attachment
                .iter()
                .map(|kind| (*kind, part.clone())),
        );
    }
    wanted
        .into_iter()
        .filter(|(kind, part)| !there(*kind, part))
        .map(|(kind, part)| Difference {
            kind: DifferenceKind::Missing,
            item: Item::new(kind, format!("of {}", expectation.id), part),
            instance: Some(expectation.id.clone()),
            sentence: format!(
                "{} {} and has no {kind}",
                expectation.id, expectation.because
            ),
            remedy: Remedy::Server,
        })
        .collect()
}

#[cfg(test)]
mod tests;
