//! From the helper's and the relays' failures to the port's errors: a class, a code, a sentence, a next step.

use warren_core::{ErrorClass, PortError};
use warren_helper::HelperError;

/// What a user is told about a verb that failed.
pub(crate) fn from_helper(error: HelperError) -> PortError {
    let (class, code) = match &error {
        HelperError::Invalid(_) => (ErrorClass::Invalid, "network_invalid"),
        HelperError::Permission { .. } => (ErrorClass::Denied, "network_not_permitted"),
        HelperError::Kernel { .. } | HelperError::Rules { .. } => {
            (ErrorClass::Retry, "network_failed")
        }
        HelperError::PortTaken { .. } => (ErrorClass::Conflict, "port_taken"),
        HelperError::NoSuchAddress { .. } => (ErrorClass::Invalid, "address_not_here"),
        HelperError::BridgeRefused { .. } => (ErrorClass::Conflict, "bridge_refused"),
        HelperError::SubnetInUse { .. } => (ErrorClass::Conflict, "subnet_in_use"),
        HelperError::NotOurs { .. } => (ErrorClass::Conflict, "device_not_ours"),
        HelperError::NotFound { .. } => (ErrorClass::Retry, "network_device_missing"),
        HelperError::Missing { .. } => (ErrorClass::Unsupported, "program_missing"),
        HelperError::BridgeFull { .. } => (ErrorClass::NoCapacity, "bridge_full"),
        HelperError::Timeout { .. } => (ErrorClass::Retry, "network_timeout"),
    };
    let hint = match &error {
        HelperError::PortTaken {
            transport, address, ..
        } => Some(format!(
            "publish another host port, or see who has it: ss -{}lnp 'sport = :{}'",
            if transport.name() == "tcp" { "t" } else { "u" },
            address.port()
        )),
        HelperError::Permission { .. } => {
            Some("run the server as root or with CAP_NET_ADMIN, or use user-mode networking".into())
        }
        HelperError::BridgeFull { .. } => {
            Some("stop or remove an instance, or take other devices out of the bridge".into())
        }
        _ => None,
    };
    let message = match &error {
        HelperError::PortTaken {
            transport, address, ..
        } => format!("host port {}/{transport} is taken", address.port()),
        other => other.to_string(),
    };
    let port_error = PortError::new(class, code, message).with_source(error);
    match hint {
        Some(hint) => port_error.with_hint(hint),
        None => port_error,
    }
}
