//! Names from an archive, taken apart.

use super::MergeError;
use crate::limits::{LimitExceeded, Limits};

/// The components of an entry's path: absolute paths are taken from the image's root, `.` and empty components
/// go, `..` is refused. Empty for the root itself.
pub(super) fn components<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, MergeError> {
    if path.len() > limits.path_bytes {
        return Err(LimitExceeded::PathBytes(limits.path_bytes).into());
    }
    if path.is_empty() || path.contains(&0) {
        return Err(MergeError::hostile(path));
    }
    let mut components = Vec::with_capacity(8);
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(MergeError::hostile(path)),
            component => {
                check_name(component)?;
                components.push(component);
            }
        }
    }
    if components.len() > limits.depth {
        return Err(LimitExceeded::Depth(limits.depth).into());
    }
    Ok(components)
}

/// What the last component of an entry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Last<'a> {
    /// A thing of this name.
    Name(&'a [u8]),
    /// The thing of this name in the layers below goes.
    Whiteout(&'a [u8]),
    /// All that the layers below have in the directory goes.
    Opaque,
    /// Bookkeeping of AUFS, not content.
    Ignored,
}

/// Reads a whiteout marker off a name.
pub(super) fn last<'a>(name: &'a [u8], path: &[u8]) -> Result<Last<'a>, MergeError> {
    let Some(hidden) = name.strip_prefix(b".wh.") else {
        return Ok(Last::Name(name));
    };
    match hidden {
        b".wh..opq" => Ok(Last::Opaque),
        b"" | b"." | b".." => Err(MergeError::hostile(path)),
        hidden if hidden.starts_with(b".wh.") => Ok(Last::Ignored),
        hidden => Ok(Last::Whiteout(hidden)),
    }
}

/// A component of a path, from an archive or from a symbolic link's target.
pub(super) fn check_name(name: &[u8]) -> Result<(), LimitExceeded> {
    if name.len() > 255 {
        Err(LimitExceeded::NameBytes)
    } else {
        Ok(())
    }
}
