//! Bridges, TAPs, addresses, nftables, DNS, published ports.
//!
//! Two implementations of `warren_core::ports::Network`: [`BridgeNetwork`] for a host with privileges and
//! [`UserNetwork`] for one without. Every privileged effect goes through a `warren_helper::Helper`; nothing here
//! runs `nft` or opens a device. Called by the agent, through the port.

mod bridge;
mod dns;
mod error;
mod none;
mod publish;
mod user;

/// Ways in for `fuzz/`: private decoders of what guests and name servers send. Not part of the API.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::dns::fuzzing::{answer_belongs, answer_query};
    pub use crate::user::fuzzing::Guard;
}

pub use bridge::{BridgeConfig, BridgeNetwork};
pub use none::NoNetwork;
pub use user::{UserConfig, UserNetwork, run_guard};
