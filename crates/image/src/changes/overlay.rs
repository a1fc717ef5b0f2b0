//! What overlayfs notes on files of its upper directory, in `trusted.overlay.*`.

use crate::erofs::FileType;
use crate::ext4::{Inode, Xattrs};

const PREFIX: &[u8] = b"trusted.overlay.";

/// What a directory says about the image's directory of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Below {
    /// It shows through.
    Shown,
    /// Nothing of it is seen any more.
    Hidden,
}

/// Where a file of the upper directory began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// In the image: it was copied up to be changed.
    Image,
    /// Here.
    Instance,
}

/// The notes on one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notes {
    pub(super) below: Below,
    pub(super) origin: Origin,
}

/// A whiteout is a character device without numbers.
pub(super) fn is_whiteout(inode: &Inode) -> bool {
    inode.file_type == FileType::Character && inode.device == Some((0, 0))
}

/// Takes overlayfs' attributes out of a file's own.
///
/// # Errors
/// What overlayfs does with options that Warren's guests do not set, in words.
pub(super) fn take_notes(inode: &Inode, xattrs: &mut Xattrs) -> Result<Notes, &'static str> {
    let note = |name: &[u8]| xattrs.get([PREFIX, name].concat().as_slice());
    if inode.file_type == FileType::Regular && note(b"metacopy").is_some() {
        return Err("its data is still in the image (overlayfs' metacopy)");
    }
    if note(b"redirect").is_some() {
        return Err("it stands for another directory of the image (overlayfs' redirect_dir)");
    }
    let opaque = note(b"opaque").is_some_and(|value| value == b"y");
    let notes = Notes {
        below: if opaque { Below::Hidden } else { Below::Shown },
        origin: match note(b"origin") {
            Some(_) => Origin::Image,
            None => Origin::Instance,
        },
    };
    xattrs.retain(|name, _| !name.starts_with(PREFIX));
    Ok(notes)
}
