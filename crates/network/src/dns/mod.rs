//! The guests' name server: answers for instances by name, passes everything else on.
//!
//! Listens on the gateway's address only and answers only whoever is in the guests' network (and the host itself),
//! so that it is nobody's open resolver. Guests' queries and upstream's answers are hostile: sizes, times and the
//! number of queries in flight are bounded.

mod answer;
pub(crate) mod fuzzing;
mod server;
mod upstream;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock};

use warren_core::Handle;

pub(crate) use server::{DnsServer, serve};

/// Which name leads to which instance. Shared by the server and whoever attaches instances.
#[derive(Debug)]
pub(crate) struct NameTable {
    domain: String,
    names: RwLock<Names>,
}

#[derive(Debug, Default)]
struct Names {
    by_handle: HashMap<Handle, (Vec<String>, Ipv4Addr)>,
    by_name: HashMap<String, Ipv4Addr>,
    by_address: HashMap<Ipv4Addr, String>,
}

impl NameTable {
    /// An empty table for a domain such as `warren.internal`.
    pub(crate) fn new(domain: &str) -> Self {
        Self {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            names: RwLock::default(),
        }
    }

    pub(crate) fn domain(&self) -> &str {
        &self.domain
    }

    /// Gives an instance its names, in place of those it had.
    pub(crate) fn set(&self, handle: &Handle, names: &[String], address: Ipv4Addr) {
        let names = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let mut table = self.names.write().unwrap_or_else(PoisonError::into_inner);
        table.by_handle.insert(handle.clone(), (names, address));
        table.rebuild();
    }

    /// Takes an instance's names away.
    pub(crate) fn remove(&self, handle: &Handle) {
        let mut table = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if table.by_handle.remove(handle).is_some() {
            table.rebuild();
        }
    }

    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let table = self.names.read().unwrap_or_else(PoisonError::into_inner);
        table.by_name.get(name).copied()
    }

    fn name(&self, address: Ipv4Addr) -> Option<String> {
        let table = self.names.read().unwrap_or_else(PoisonError::into_inner);
        table.by_address.get(&address).cloned()
    }
}

impl Names {
    fn rebuild(&mut self) {
        self.by_name.clear();
        self.by_address.clear();
        for (names, address) in self.by_handle.values() {
            if let Some(first) = names.first() {
                self.by_address.insert(*address, first.clone());
            }
            for name in names {
                self.by_name.insert(name.clone(), *address);
            }
        }
    }
}
