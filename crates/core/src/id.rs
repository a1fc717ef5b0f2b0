//! Ids and names. An [`InstanceId`] may be chosen by the user; a [`Handle`] is always ours and short
//! enough for the name of a network device; the [`InstallationId`] tells our things from another
//! installation's on the same host.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a text is not an id or a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// The id of an instance, image or volume.
    #[error(
        "{0:?} is not an id: use 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit"
    )]
    Id(String),
    /// A handle.
    #[error("{0:?} is not a handle: it has 8 characters of a-z and 2-7")]
    Handle(String),
    /// An installation id.
    #[error("{0:?} is not an installation id: it has 4 characters of a-z and 2-7")]
    Installation(String),
    /// A name.
    #[error("a name has 1 to 128 characters and no control characters")]
    Name,
}

/// RFC 4648 base32 in lower case: no upper case, no 0/1 to misread, allowed in every kernel name.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn base32(entropy: &[u8], length: usize) -> String {
    let mut bits = 0u32;
    let mut held = 0u32;
    let mut text = String::with_capacity(length);
    for &byte in entropy {
        held = (held << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 && text.len() < length {
            bits -= 5;
            text.push(char::from(ALPHABET[((held >> bits) & 31) as usize]));
        }
    }
    text
}

fn is_base32(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| ALPHABET.contains(&b))
}

/// Checks the form every user-chosen id has: 1–63 of letters, digits, `-`, `_`, `.`; the first one a
/// letter or digit.
///
/// # Errors
/// [`IdError::Id`] with the text.
pub fn check_id(text: &str) -> Result<(), IdError> {
    let fits = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.as_bytes()[0].is_ascii_alphanumeric();
    if fits {
        Ok(())
    } else {
        Err(IdError::Id(text.to_owned()))
    }
}

/// Checks a free-text name: 1–128 characters, none of them control characters.
///
/// # Errors
/// [`IdError::Name`].
pub fn check_name(text: &str) -> Result<(), IdError> {
    let length = text.chars().count();
    if (1..=128).contains(&length) && !text.chars().any(char::is_control) && !text.trim().is_empty()
    {
        Ok(())
    } else {
        Err(IdError::Name)
    }
}

/// A DNS label made from a free-text name: lower case, runs of anything else become one `-`,
/// at most 50 characters so that a suffix for uniqueness still fits in the 63 of RFC 1035.
pub fn slug(name: &str) -> String {
    let mut label = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            label.push(c.to_ascii_lowercase());
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
        if label.len() >= 50 {
            break;
        }
    }
    let label = label.trim_matches('-').to_owned();
    if label.is_empty() {
        "instance".to_owned()
    } else {
        label
    }
}

macro_rules! text_id {
    ($type:ident, $check:expr) => {
        impl $type {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl std::str::FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> Result<(), IdError> = $check;
                check(text)?;
                Ok($type(text.to_owned()))
            }
        }
        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0
            }
        }
    };
}

/// The id of an instance: the user's own, or one we made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);
text_id!(InstanceId, check_id);

impl InstanceId {
    /// A fresh id from random bytes: 12 characters.
    pub fn from_entropy(entropy: [u8; 8]) -> Self {
        InstanceId(base32(&entropy, 12))
    }
}

/// The short, unique name of one instance in kernel objects and directories: 8 characters. A user's
/// id does not fit into the 15 bytes of a network device's name; this does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Handle(String);
text_id!(Handle, |text| if is_base32(text, 8) {
    Ok(())
} else {
    Err(IdError::Handle(text.to_owned()))
});

impl Handle {
    /// A fresh handle from random bytes.
    pub fn from_entropy(entropy: [u8; 5]) -> Self {
        Handle(base32(&entropy, 8))
    }
}

/// The id of one installation (one data directory): 4 characters, part of every name we give.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstallationId(String);
text_id!(InstallationId, |text| if is_base32(text, 4) {
    Ok(())
} else {
    Err(IdError::Installation(text.to_owned()))
});

impl InstallationId {
    /// A fresh id from random bytes.
    pub fn from_entropy(entropy: [u8; 3]) -> Self {
        InstallationId(base32(&entropy, 4))
    }
}

/// What a reference such as `{id}` in a path found among candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<T> {
    /// Exactly one.
    Found(T),
    /// Nothing.
    Missing,
    /// A prefix of several: their ids.
    Ambiguous(Vec<String>),
}

/// Whether a prefix of an id is good enough to name something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefixes {
    /// Yes, from four characters on: for everything that does not destroy.
    Accepted,
    /// No: for delete.
    Refused,
}

/// Finds `wanted` as an id, then as a name, then as an unambiguous prefix of at least four characters.
pub fn look_up<T>(
    wanted: &str,
    prefixes: Prefixes,
    candidates: impl IntoIterator<Item = (String, String, T)>,
) -> Lookup<T> {
    let mut by_name = None;
    let mut by_prefix = Vec::new();
    for (id, name, item) in candidates {
        if id == wanted {
            return Lookup::Found(item);
        }
        if name == wanted {
            by_name = Some(item);
        } else if prefixes == Prefixes::Accepted && wanted.len() >= 4 && id.starts_with(wanted) {
            by_prefix.push((id, item));
        }
    }
    if let Some(item) = by_name {
        return Lookup::Found(item);
    }
    if by_prefix.len() > 1 {
        let mut ids: Vec<String> = by_prefix.into_iter().map(|(id, _)| id).collect();
        ids.sort();
        return Lookup::Ambiguous(ids);
    }
    by_prefix
        .pop()
        .map_or(Lookup::Missing, |(_, item)| Lookup::Found(item))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_what_users_choose_and_refuse_what_paths_abuse() {
        for good in ["my-instance", "img-nginx", "a", "0.9_x"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".hidden",
            "a/b",
            "a b",
            "ä",
            "..",
            &"x".repeat(64),
        ] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn handles_and_installations_fit_a_tap_name() {
        let handle = Handle::from_entropy([0xff; 5]);
        let installation = InstallationId::from_entropy([7; 3]);
        assert_eq!(handle.as_str().len() + installation.as_str().len() + 2, 14);
        assert_eq!(handle.as_str().parse(), Ok(handle.clone()));
    }

    #[test]
    fn slugs_are_dns_labels() {
        assert_eq!(slug("My Workload"), "my-workload");
        assert_eq!(slug("--Ä--"), "instance");
        assert_eq!(slug("a__b  c"), "a-b-c");
        assert!(slug(&"x ".repeat(200)).len() <= 50);
    }

    #[test]
    fn lookup_prefers_id_then_name_then_prefix() {
        let all = || {
            [("abcd1", "web", 1), ("abcd2", "abcd1", 2), ("web", "db", 3)]
                .map(|(id, name, item)| (id.to_owned(), name.to_owned(), item))
        };
        assert_eq!(
            look_up("abcd1", Prefixes::Accepted, all()),
            Lookup::Found(1)
        );
        assert_eq!(look_up("web", Prefixes::Accepted, all()), Lookup::Found(3));
        assert_eq!(look_up("db", Prefixes::Refused, all()), Lookup::Found(3));
        assert_eq!(
            look_up("abcd", Prefixes::Accepted, all()),
            Lookup::Ambiguous(vec!["abcd1".into(), "abcd2".into()])
        );
        assert_eq!(look_up("abc", Prefixes::Accepted, all()), Lookup::Missing);
        assert_eq!(
            look_up("abcd", Prefixes::Refused, all()),
            Lookup::<i32>::Missing
        );
    }
}
