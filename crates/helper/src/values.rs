//! Bounded values that verbs are made of, and the names that are built from them.
//!
//! Every one is checked when it is made and again when it is read off the wire, so that code behind this module
//! can put them into device names, table names and rules without looking.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest device name the kernel takes (IFNAMSIZ is 16 with the closing zero).
const DEVICE_NAME_MAX: usize = 15;

/// A value that does not have the shape its type promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{kind} {value:?} is not valid: it must be {rule}")]
pub struct InvalidValue {
    /// What was being read.
    pub kind: String,
    /// What was given, cut to a length that is safe to show.
    pub value: String,
    /// The rule it breaks.
    pub rule: String,
}

impl InvalidValue {
    fn new(kind: &str, value: &str, rule: &str) -> Self {
        Self {
            kind: kind.into(),
            value: value.chars().take(64).collect(),
            rule: rule.into(),
        }
    }
}

macro_rules! text_value {
    ($type:ident) => {
        impl $type {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidValue;

            fn try_from(value: String) -> Result<Self, InvalidValue> {
                Self::new(&value)
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidValue;

            fn from_str(value: &str) -> Result<Self, InvalidValue> {
                Self::new(value)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
    };
}

fn lower_alphanumeric(value: &str) -> bool {
    value
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// The id of a Warren installation: 4 to 32 lower-case letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Installation(String);
text_value!(Installation);

impl Installation {
    /// Checks and wraps an id.
    pub fn new(value: &str) -> Result<Self, InvalidValue> {
        if (4..=32).contains(&value.len()) && lower_alphanumeric(value) {
            Ok(Self(value.into()))
        } else {
            Err(InvalidValue::new(
                "installation id",
                value,
                "4 to 32 lower-case letters and digits",
            ))
        }
    }

    /// What starts the name of every TAP of this installation.
    pub fn tap_prefix(&self) -> String {
        format!("wt{}", &self.0[..4])
    }

    /// The nftables table of this installation, in family `inet`.
    pub fn table(&self) -> String {
        format!("warren_{}", self.0)
    }

    /// The alias on a bridge of ours.
    pub(crate) fn bridge_alias(&self) -> String {
        format!("warren:{}", self.0)
    }

    /// The alias on a TAP of ours. Names hold four characters of the id; the alias holds all of it.
    pub(crate) fn tap_alias(&self, handle: &Handle) -> String {
        format!("warren:{}:{}", self.0, handle.0)
    }
}

/// The short handle of an instance: 8 lower-case letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Handle(String);
text_value!(Handle);

impl Handle {
    /// Checks and wraps a handle.
    pub fn new(value: &str) -> Result<Self, InvalidValue> {
        if value.len() == 8 && lower_alphanumeric(value) {
            Ok(Self(value.into()))
        } else {
            Err(InvalidValue::new(
                "instance handle",
                value,
                "8 lower-case letters and digits",
            ))
        }
    }

    /// The TAP of this instance: 14 bytes, `wt`, four of the installation, the handle.
    pub fn tap_name(&self, installation: &Installation) -> String {
        format!("{}{}", installation.tap_prefix(), self.0)
    }
}

/// The name of a bridge, as the user gave it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BridgeName(String);
text_value!(BridgeName);

impl BridgeName {
    /// Checks and wraps a device name.
    pub fn new(value: &str) -> Result<Self, InvalidValue> {
        let shape = value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if (1..=DEVICE_NAME_MAX).contains(&value.len())
            && shape
            && value.bytes().any(|b| b.is_ascii_alphanumeric())
        {
            Ok(Self(value.into()))
        } else {
            Err(InvalidValue::new(
                "bridge name",
                value,
                "1 to 15 letters, digits, '-', '_' and '.'",
            ))
        }
    }
}

/// The MTU of a bridge and its TAPs, in bytes: 576 (what every IPv4 host takes) to 65521.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u32);

impl Mtu {
    /// Ethernet's own.
    pub const ETHERNET: Mtu = Mtu(1500);

    /// Bytes.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Mtu {
    type Error = InvalidValue;

    fn try_from(value: u32) -> Result<Self, InvalidValue> {
        if (576..=65521).contains(&value) {
            Ok(Self(value))
        } else {
            Err(InvalidValue::new("MTU", &value.to_string(), "576 to 65521"))
        }
    }
}

impl From<Mtu> for u32 {
    fn from(value: Mtu) -> u32 {
        value.0
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_carry_the_installation() {
        let installation = Installation::new("abcd1234ef").unwrap();
        let handle = Handle::new("k3j2h1g0").unwrap();
        let tap = handle.tap_name(&installation);
        assert_eq!(tap, "wtabcdk3j2h1g0");
        assert!(tap.len() <= DEVICE_NAME_MAX);
        assert_eq!(
            installation.tap_alias(&handle),
            "warren:abcd1234ef:k3j2h1g0"
        );
        assert_eq!(installation.table(), "warren_abcd1234ef");
    }

    #[test]
    fn values_that_could_leave_their_place_are_refused() {
        for bad in ["", "abc", "ABCD", "ab cd", "abcd;drop", "../../etc", "äöüß"] {
            assert!(Installation::new(bad).is_err(), "{bad}");
        }
        for bad in ["", "short", "waytoolong", "abc\0defg", "ABCDEFGH"] {
            assert!(Handle::new(bad).is_err(), "{bad}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "x y",
            "br\"0",
            "sixteen-byteslng",
            "br0\n",
        ] {
            assert!(BridgeName::new(bad).is_err(), "{bad}");
        }
        assert!(BridgeName::new("vmbr0").is_ok());
        assert!(Mtu::try_from(100).is_err());
    }

    #[test]
    fn the_wire_is_checked_too() {
        assert!(serde_json::from_str::<Installation>("\"abcd\"").is_ok());
        assert!(serde_json::from_str::<Installation>("\"a b\"").is_err());
        assert!(serde_json::from_str::<Handle>("\"../../..\"").is_err());
        assert!(serde_json::from_str::<Mtu>("1").is_err());
    }
}
