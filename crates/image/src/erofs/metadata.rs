//! Packs inodes with their xattrs and inline tails into clusters of blocks.
//!
//! A cluster's blocks are reserved in the image when it is opened, so a node number is known as soon as an inode is
//! placed; its bytes are written once, when it is full. The block chosen is the fullest that still has room (best
//! fit); an inline tail must not cross a block boundary, so nothing placed here does.

use std::io;

use super::format::{BLOCK, SLOT};
use super::output::Output;

const SLOTS_PER_BLOCK: usize = (BLOCK / SLOT) as usize;
/// Clusters grow to this many blocks: small images stay small, large ones get few, long writes.
const MAX_CLUSTER: usize = 256;
const FIRST_CLUSTER: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Metadata {
    cluster: Option<Cluster>,
    opened: u32,
}

#[derive(Debug)]
struct Cluster {
    offset: u64,
    bytes: Vec<u8>,
    /// Blocks by their number of free slots, all at the end of the block.
    by_free: Vec<Vec<u16>>,
    /// Bit n is set when `by_free[n + 1]` is not empty.
    mask: u128,
}

impl Metadata {
    /// Places one inode with what follows it and returns its node number.
    pub(crate) fn place(&mut self, out: &mut Output, head: &[u8], tail: &[u8]) -> io::Result<u64> {
        let length = head.len() + tail.len();
        let slots = length.div_ceil(SLOT as usize);
        if slots > SLOTS_PER_BLOCK {
            return place_alone(out, head, tail);
        }
        if self.cluster.as_mut().and_then(|c| c.find(slots)).is_none() {
            self.flush(out)?;
            let blocks = MAX_CLUSTER.min(FIRST_CLUSTER << self.opened.min(8));
            self.opened += 1;
            let offset = out.align()? * BLOCK;
            out.append_zeros(blocks as u64 * BLOCK)?;
            self.cluster = Some(Cluster::new(offset, blocks));
        }
        let cluster = self.cluster.as_mut().expect("a cluster was opened above");
        let free = cluster.find(slots).expect("a new cluster has empty blocks");
        Ok(cluster.take(free, slots, head, tail))
    }

    /// Writes the open cluster out.
    pub(crate) fn flush(&mut self, out: &mut Output) -> io::Result<()> {
        match self.cluster.take() {
            Some(cluster) => out.patch(cluster.offset, &cluster.bytes),
            None => Ok(()),
        }
    }

    /// Changes bytes of an inode placed earlier, wherever they are by now.
    pub(crate) fn patch(&mut self, out: &mut Output, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(cluster) = &mut self.cluster
            && let Some(at) = offset.checked_sub(cluster.offset)
            && at + (bytes.len() as u64) <= cluster.bytes.len() as u64
        {
            cluster.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        out.patch(offset, bytes)
    }
}

/// What is larger than a block (huge xattrs, long chunk maps) gets blocks of its own.
fn place_alone(out: &mut Output, head: &[u8], tail: &[u8]) -> io::Result<u64> {
    debug_assert!(
        tail.is_empty(),
        "an inline tail must fit one block with its inode"
    );
    let block = out.align()?;
    out.append(head)?;
    out.align()?;
    Ok(block * BLOCK / SLOT)
}

impl Cluster {
    fn new(offset: u64, blocks: usize) -> Self {
        let mut by_free = vec![Vec::new(); SLOTS_PER_BLOCK + 1];
        by_free[SLOTS_PER_BLOCK] = (0..blocks as u16).rev().collect();
        Cluster {
            offset,
            bytes: vec![0; blocks * BLOCK as usize],
            by_free,
            mask: 1 << (SLOTS_PER_BLOCK - 1),
        }
    }

    fn find(&mut self, slots: usize) -> Option<usize> {
        let fitting = self.mask >> (slots - 1);
        (fitting != 0).then(|| slots + fitting.trailing_zeros() as usize)
    }

    fn take(&mut self, free: usize, slots: usize, head: &[u8], tail: &[u8]) -> u64 {
        let block = self.by_free[free]
            .pop()
            .expect("the mask says there is one");
        if self.by_free[free].is_empty() {
            self.mask &= !(1 << (free - 1));
        }
        let left = free - slots;
        if left > 0 {
            self.by_free[left].push(block);
            self.mask |= 1 << (left - 1);
        }
        let at = usize::from(block) * BLOCK as usize + (SLOTS_PER_BLOCK - free) * SLOT as usize;
        self.bytes[at..at + head.len()].copy_from_slice(head);
        self.bytes[at + head.len()..at + head.len() + tail.len()].copy_from_slice(tail);
        (self.offset + at as u64) / SLOT
    }
}
