//! The journal (JBD2): which blocks have a newer form in it than in their place. Numbers in it are big-endian.
//!
//! Source: Linux, `Documentation/filesystems/ext4/journal.rst`, `include/linux/jbd2.h`, `fs/jbd2/recovery.c`.

use std::collections::HashMap;

use super::{Ext4, Ext4Error, Source};
use crate::crc32c;

pub(super) const MAGIC: u32 = 0xc03b_3998;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

mod incompat {
    pub(super) const REVOKE: u32 = 0x1;
    pub(super) const BITS_64: u32 = 0x2;
    pub(super) const CSUM_V2: u32 = 0x8;
    pub(super) const CSUM_V3: u32 = 0x10;
    pub(super) const KNOWN: u32 = REVOKE | BITS_64 | CSUM_V2 | CSUM_V3;
}

mod tag {
    pub(super) const ESCAPED: u32 = 1;
    pub(super) const SAME_UUID: u32 = 2;
    pub(super) const LAST: u32 = 8;
}

/// Where a newer form of a block is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newer {
    /// The block of the disk that has it.
    pub(super) place: u64,
    /// Whether it begins with the journal's own magic number, which stands as zeros there.
    pub(super) escaped: bool,
}

/// What a mount would write back before anything else.
#[derive(Debug, Default)]
pub(super) struct Replay(HashMap<u64, Newer>);

impl Replay {
    pub(super) fn get(&self, block: u64) -> Option<Newer> {
        self.0.get(&block).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The journal's blocks and what its superblock says of them.
struct Log<'a, S> {
    ext4: &'a Ext4<S>,
    /// The place of each of its blocks on the disk.
    places: Vec<u64>,
    first: u64,
    length: u64,
    features: u32,
    /// What its checksums begin with.
    seed: u32,
}

/// Which transaction, in a circle.
fn is_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// One block that a transaction wrote: where it belongs, where it is, and of which transaction.
struct Written {
    block: u64,
    newer: Newer,
    sequence: u32,
}

pub(super) fn read<S: Source>(ext4: &Ext4<S>) -> Result<Replay, Ext4Error> {
    let damaged = Ext4Error::Damaged;
    let inode = ext4.inode(ext4.geometry.journal_inode)?;
    let list = ext4.block_list(&inode)?;
    // A journal is allocated whole.
    let whole = list
        .iter()
        .zip(0..)
        .all(|((logical, _), index)| *logical == index);
    if list.is_empty() || !whole {
        return Err(damaged("its journal has holes"));
    }
    let places: Vec<u64> = list.into_iter().map(|(_, place)| place).collect();
    let superblock = ext4.block(places[0])?;
    if be32(&superblock, 0) != MAGIC || be32(&superblock, 4) != SUPERBLOCK_V2 {
        return Err(damaged("its journal is none"));
    }
    let features = be32(&superblock, 0x28);
    if features & !incompat::KNOWN != 0 {
        return Err(Ext4Error::Unsupported(format!(
            "features {features:#x} of the journal"
        )));
    }
    let log = Log {
        ext4,
        first: u64::from(be32(&superblock, 0x14)),
        length: u64::from(be32(&superblock, 0x10)),
        features,
        seed: crc32c::update(!0, &superblock[0x30..0x40]),
        places,
    };
    let start = u64::from(be32(&superblock, 0x1c));
    if u64::from(be32(&superblock, 0x0c)) != ext4.geometry.block_bytes
        || log.first == 0
        || log.first >= log.length
        || log.length > log.places.len() as u64
    {
        return Err(damaged("its journal has no size"));
    }
    if start == 0 {
        // Empty: it was unmounted, or frozen.
        return Ok(Replay::default());
    }
    if start < log.first || start >= log.length {
        return Err(damaged("its journal begins nowhere"));
    }
    let (written, revoked) = log.transactions(start, be32(&superblock, 0x18))?;
    let mut replay = HashMap::new();
    for Written {
        block,
        newer,
        sequence,
    } in written
    {
        // What a later transaction gave up must not come back.
        let given_up = revoked
            .get(&block)
            .is_some_and(|by| !is_before(*by, sequence));
        if !given_up {
            replay.insert(block, newer);
        }
    }
    Ok(Replay(replay))
}

impl<S: Source> Log<'_, S> {
    fn next(&self, at: u64) -> u64 {
        if at + 1 == self.length {
            self.first
        } else {
            at + 1
        }
    }

    fn has_checksums(&self) -> bool {
        self.features & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0
    }

    fn block(&self, at: u64) -> Result<Vec<u8>, Ext4Error> {
        self.ext4.block(self.places[at as usize])
    }

    /// What whole transactions wrote, in order, and what they gave up. The first thing that is not what comes next is the end.
    fn transactions(
        &self,
        start: u64,
        sequence: u32,
    ) -> Result<(Vec<Written>, HashMap<u64, u32>), Ext4Error> {
        let (mut all, mut all_revoked) = (Vec::new(), HashMap::new());
        let (mut written, mut revoked) = (Vec::new(), Vec::new());
        let (mut at, mut sequence) = (start, sequence);
        let mut left = self.length - self.first;
        while left > 0 {
            let block = self.block(at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            (at, left) = (self.next(at), left - 1);
            match be32(&block, 4) {
                DESCRIPTOR if self.tail_is_right(&block) => {
                    for (home, flags) in self.tags(&block) {
                        if left == 0 {
                            break;
                        }
                        written.push(Written {
                            block: home,
                            newer: Newer {
                                place: self.places[at as usize],
                                escaped: flags & tag::ESCAPED != 0,
                            },
                            sequence,
                        });
                        (at, left) = (self.next(at), left - 1);
                    }
                }
                REVOKE if self.tail_is_right(&block) => revoked.extend(self.revoked(&block)),
                COMMIT if self.commit_is_right(&block) => {
                    all.append(&mut written);
                    for home in revoked.drain(..) {
                        all_revoked.insert(home, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        Ok((all, all_revoked))
    }

    /// Checksum at the end of a descriptor or a revocation.
    fn tail_is_right(&self, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let at = block.len() - 4;
        let register = crc32c::update(self.seed, &block[..at]);
        crc32c::update(register, &[0; 4]) == be32(block, at)
    }

    fn commit_is_right(&self, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let mut plain = block.to_vec();
        plain[0x10..0x14].fill(0);
        crc32c::update(self.seed, &plain) == be32(block, 0x10)
    }

    /// Where the blocks behind a descriptor belong, and their flags.
    fn tags(&self, block: &[u8]) -> Vec<(u64, u32)> {
        let v3 = self.features & incompat::CSUM_V3 != 0;
        let wide = self.features & incompat::BITS_64 != 0;
        let length = match (v3, self.features & incompat::CSUM_V2 != 0, wide) {
            (true, _, _) => 16,
            (false, v2, wide) => 8 + if v2 { 2 } else { 0 } + if wide { 4 } else { 0 },
        };
        let end = block.len() - if self.has_checksums() { 4 } else { 0 };
        let (mut at, mut tags) = (12, Vec::new());
        while at + length <= end {
            let low = u64::from(be32(block, at));
            let (flags, high) = if v3 {
                (be32(block, at + 4), be32(block, at + 8))
            } else {
                let flags = u32::from(u16::from_be_bytes([block[at + 6], block[at + 7]]));
                (flags, if wide { be32(block, at + 8) } else { 0 })
            };
            let high = if wide { u64::from(high) << 32 } else { 0 };
            tags.push((high | low, flags));
            at += length;
            if flags & tag::SAME_UUID == 0 {
                at += 16;
            }
            if flags & tag::LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revoked(&self, block: &[u8]) -> Vec<u64> {
        let wide = self.features & incompat::BITS_64 != 0;
        let used = (be32(block, 12) as usize).min(block.len());
        let list = block.get(16..used).unwrap_or_default();
        if wide {
            list.chunks_exact(8)
                .map(|entry| u64::from(be32(entry, 0)) << 32 | u64::from(be32(entry, 4)))
                .collect()
        } else {
            list.chunks_exact(4)
                .map(|entry| u64::from(be32(entry, 0)))
                .collect()
        }
    }
}
