//! Whether a host has room: a pure function over what it has and what is promised on it.

use crate::units::MemoryMib;

/// What a host can give to guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Virtual processors, over-commitment applied.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: MemoryMib,
}

/// What instances on it have been promised, or what one asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
}

/// A host is full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Not enough memory.
    #[error("no room: {asked} MiB of memory asked, {free} MiB of {total} MiB free for guests")]
    Memory {
        /// MiB asked.
        asked: u64,
        /// MiB free.
        free: u64,
        /// MiB for guests in all.
        total: u64,
    },
    /// More processors than this host may give to one instance.
    #[error("no room: {asked} vCPUs asked, this host gives at most {total}")]
    Processors {
        /// Asked.
        asked: u32,
        /// Given at most.
        total: u32,
    },
}

/// How much more than is there may be promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overcommit {
    /// Virtual processors per real one.
    pub vcpus: u32,
    /// Guest memory in percent of what guests may have. Above 100 the host may run out of it.
    pub memory_percent: u32,
}

impl Default for Overcommit {
    fn default() -> Self {
        Overcommit {
            vcpus: 16,
            memory_percent: 100,
        }
    }
}

/// Memory kept for the host itself: a sixteenth, at least 256 MiB, at most 4 GiB.
pub fn capacity(cpus: u32, memory: MemoryMib, overcommit: Overcommit) -> Capacity {
    let kept = (memory.0 / 16).clamp(256, 4096);
    let for_guests = memory.0.saturating_sub(kept);
    Capacity {
        vcpus: cpus.saturating_mul(overcommit.vcpus),
        memory: MemoryMib(for_guests.saturating_mul(overcommit.memory_percent.into()) / 100),
    }
}

/// Whether `asked` fits beside `promised`. No more memory is promised than `capacity` has; processors are shared.
///
/// # Errors
/// [`NoRoom`] with the numbers.
pub fn place(capacity: Capacity, promised: Demand, asked: Demand) -> Result<(), NoRoom> {
    let free = capacity.memory.0.saturating_sub(promised.memory_mib);
    if asked.memory_mib > free {
        return Err(NoRoom::Memory {
            asked: asked.memory_mib,
            free,
            total: capacity.memory.0,
        });
    }
    if asked.vcpus > capacity.vcpus {
        return Err(NoRoom::Processors {
            asked: asked.vcpus,
            total: capacity.vcpus,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_never_promised_twice() {
        let host = capacity(2, MemoryMib(8192), Overcommit::default());
        assert_eq!(host.memory, MemoryMib(8192 - 512));
        let doubled = Overcommit {
            memory_percent: 200,
            ..Overcommit::default()
        };
        let twice = capacity(2, MemoryMib(8192), doubled);
        assert_eq!(twice.memory, MemoryMib(2 * (8192 - 512)));
        let promised = Demand {
            vcpus: 2,
            memory_mib: 7000,
        };
        assert!(
            place(
                host,
                promised,
                Demand {
                    vcpus: 1,
                    memory_mib: 680
                }
            )
            .is_ok()
        );
        assert!(matches!(
            place(
                host,
                promised,
                Demand {
                    vcpus: 1,
                    memory_mib: 681
                }
            ),
            Err(NoRoom::Memory { free: 680, .. })
        ));
        assert!(matches!(
            place(
                host,
                promised,
                Demand {
                    vcpus: 33,
                    memory_mib: 1
                }
            ),
            Err(NoRoom::Processors { .. })
        ));
    }
}
