//! Ways in for `fuzz/`: private decoders of what the kernel and nft say. Not part of the API.

use std::net::Ipv4Addr;

use crate::blocking::{self, BlockingChain};
use crate::conntrack;

/// The tuples of connections of a guest in one datagram of a dump; `None` when it reports an error.
pub fn tracked(datagram: &[u8], address: Ipv4Addr) -> Option<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    conntrack::read_entries(datagram, address, &mut found).ok()?;
    Some(found)
}

/// Chains in `nft -j list ruleset` that end what a bridge forwards.
pub fn blocking(ruleset: &str) -> Vec<BlockingChain> {
    blocking::find(ruleset, "warren_abcd", "warren0")
}
