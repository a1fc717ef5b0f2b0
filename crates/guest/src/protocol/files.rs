//! The messages of a files stream: one operation on the guest's files each.
//!
//! ```text
//!         host                          guest
//! stat    Open::Files ────────────────► Found | Failed
//! read    Open::Files ────────────────► Found, data…, Done | Failed (at any time); so for a tree out
//! write   Open::Files, data…, End ────► Working…, Done | Failed (at any time); so for a tree in
//! list    Open::Files ────────────────► Listed…, Done | Failed
//! others  Open::Files ────────────────► Working…, Done | Failed
//! ```
//!
//! Data are frames of kind [`super::FrameKind::File`]. A write whose stream ends before `End` never happened. Whoever is
//! silent for longer than [`FILE_SILENCE`] has gone: a guest that works and has nothing to send says `Working`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A guest that works says so at least this often.
pub const FILE_WORKING: Duration = Duration::from_secs(5);
/// A peer that neither sends nor takes anything for this long has gone.
pub const FILE_SILENCE: Duration = Duration::from_secs(30);
/// Entries of a listing in one message at most.
pub const LISTED_TOGETHER: usize = 128;
/// Bytes that are read of a file whose size is told as nothing (/proc), at most.
pub const UNSIZED_LIMIT: u64 = 64 << 20;
/// Longest path that a guest takes, in bytes: that of its kernel (PATH_MAX, without the NUL).
pub const PATH_LIMIT: usize = 4095;

/// What to do; the opening message of a files stream. Paths are absolute, and resolved within the workload's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "file", rename_all = "snake_case")]
pub enum FileRequest {
    /// What a path leads to.
    Stat {
        /// The path.
        path: String,
        /// A link at its end.
        last: LastLink,
    },
    /// The content of a file.
    Read {
        /// The path; a link at its end is followed.
        path: String,
        /// First byte.
        offset: u64,
        /// At most so many bytes; to the end when absent.
        length: Option<u64>,
    },
    /// A file, whole or not at all.
    Write {
        /// The path; a link at its end is followed.
        path: String,
        /// Permission bits; those of the file that is replaced when absent, else 0644.
        mode: Option<u32>,
        /// User and group; those of the file that is replaced when absent, else root.
        owner: Option<(u32, u32)>,
        /// Directories on the way.
        parents: Parents,
    },
    /// Take it away.
    Remove {
        /// The path; a link at its end is not followed.
        path: String,
        /// What is in it.
        depth: Depth,
    },
    /// What is in a directory.
    List {
        /// The path; a link at its end is followed.
        path: String,
        /// What is in what is in it.
        depth: Depth,
    },
    /// A new directory.
    MakeDirectory {
        /// The path.
        path: String,
        /// Permission bits; 0755 when absent.
        mode: Option<u32>,
        /// User and group; root when absent.
        owner: Option<(u32, u32)>,
        /// Directories on the way; with `Created`, one that is there already is no error.
        parents: Parents,
    },
    /// A file or a directory with all that is in it, as a tar stream.
    Pack {
        /// The path.
        path: String,
        /// A link at its end.
        last: LastLink,
        /// What it is called in the stream.
        name: String,
    },
    /// A tar stream, as files. What is whole when it breaks off stays.
    Unpack {
        /// Where: the stream's own `.`, or the directory that its entries are relative to. A link at its end is followed.
        path: String,
        /// Who is to own it.
        owners: TreeOwners,
    },
}

/// Who is to own what a tar stream becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "owners", rename_all = "snake_case")]
pub enum TreeOwners {
    /// Whom the stream names, with setuid, setgid and every extended attribute.
    Archived,
    /// One user and group, without them.
    All {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
}

/// A symbolic link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastLink {
    /// What it leads to is meant.
    Followed,
    /// It is meant itself.
    Kept,
}

/// What is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// Only what was named, or only what is right in it.
    Shallow,
    /// All of it.
    Recursive,
}

/// Directories that are missing on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parents {
    /// They must be there.
    Expected,
    /// They are made.
    Created,
}

/// Host to guest, after data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "file", rename_all = "snake_case")]
pub enum FileInput {
    /// That was all of it.
    End,
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "file", rename_all = "snake_case")]
pub enum FileReply {
    /// The file.
    Found {
        /// What it is.
        info: FileInfo,
    },
    /// A part of a listing.
    Listed {
        /// At most [`LISTED_TOGETHER`].
        files: Vec<ListedFile>,
    },
    /// It takes a while.
    Working,
    /// It is done; nothing follows.
    Done {
        /// Bytes of data that went through.
        bytes: u64,
    },
    /// It could not be done; nothing follows.
    Failed {
        /// The kind of reason.
        fault: FileFault,
        /// In words.
        message: String,
    },
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// An ordinary file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// What there is to know of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// When its content changed last: seconds since 1970.
    pub modified_seconds: i64,
    /// And nanoseconds.
    pub modified_nanos: u32,
    /// Where a symbolic link leads, invalid UTF-8 replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

/// One file of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Relative to what was listed, invalid UTF-8 replaced.
    pub path: String,
    /// The file.
    pub info: FileInfo,
}

/// Why something could not be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFault {
    /// It, or a directory on the way, is not there.
    NotFound,
    /// Something on the way, or it itself, is no directory.
    NotADirectory,
    /// It is a directory.
    IsADirectory,
    /// It is there already.
    Exists,
    /// A directory with something in it.
    NotEmpty,
    /// Even root may not.
    NotPermitted,
    /// The file system cannot be written to.
    ReadOnly,
    /// No room.
    NoSpace,
    /// Too large.
    TooLarge,
    /// A path that names nothing.
    InvalidPath,
    /// Nothing to read or write.
    Unsuitable,
    /// Anything else.
    #[serde(other)]
    Failed,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_fault_of_a_newer_guest_is_still_a_failure() {
        let reply: FileReply =
            serde_json::from_str(r#"{"file":"failed","fault":"moon_phase","message":"m"}"#)
                .unwrap();
        assert_eq!(
            reply,
            FileReply::Failed {
                fault: FileFault::Failed,
                message: "m".to_owned()
            }
        );
    }
}
