//! The privileged protocol: a closed set of verbs, and what carries them out.
//!
//! Owns every effect that needs privileges: bridges, TAPs, nftables rules, low ports, forwarding, connection
//! tracking. A caller sends a [`Verb`]; its arguments are ids, numbers and bounded typed values, never a path, a
//! device name of ours or a rule: those are built here. Descriptors come back in the [`Answer`].
//!
//! Must never: run a shell, take a path or a command from a caller, touch a device, table or rule that does not
//! carry the installation's id (a bridge of the user's own is used and never changed or deleted).
//!
//! Called by the network and hypervisor adapters through the [`Helper`] trait. [`InProcess`] carries verbs out in
//! the calling process; the types are serializable, so that a small root server can take its place.

mod blocking;
mod conntrack;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod in_process;
mod links;
mod nft;
mod protocol;
mod sockets;
mod tap;
mod values;

pub use blocking::BlockingChain;
pub use error::HelperError;
pub use in_process::InProcess;
pub use protocol::{
    Answer, BridgeOwner, Guests, Helper, HelperExt, OwnedDevice, OwnedKind, Publish, Reply,
    RuleSet, Transport, Verb,
};
pub use values::{BridgeName, Handle, Installation, InvalidValue, Mtu};
