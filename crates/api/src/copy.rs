//! The frames of a copy: files into an instance and out of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CopyDirection {
    /// Into the instance.
    To,
    /// Out of it.
    From,
}

/// What the binary frames are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CopyFormat {
    /// The content of files, each between a header and an end.
    #[default]
    Files,
    /// One tar stream (POSIX pax), with everything that a tree may have.
    Tar,
}

/// The first frame of a copy: text, JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyStart {
    /// Which way.
    pub direction: CopyDirection,
    /// The path inside the instance, which must begin with `/`.
    pub guest_path: String,
    /// Towards the instance: whether a directory is to be made and nothing else.
    #[serde(default)]
    pub is_dir: bool,
    /// Towards the instance: permission bits; 0644 for a file and 0755 for a directory when absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Out of the instance: whether a symbolic link at the end of the path is followed.
    #[serde(default)]
    pub follow_links: bool,
    /// The file's name, for a `guest_path` that is a directory; in a tar stream out of the instance, what it is called there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_basename: Option<String>,
    /// Towards the instance: the owner; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Towards the instance: the group; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// What the binary frames are.
    #[serde(default)]
    pub format: CopyFormat,
    /// A tar stream towards the instance: whether owners, setuid and all extended attributes of the stream are kept.
    #[serde(default)]
    pub keep_owners: bool,
}

/// A text frame after the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum CopyMessage {
    /// Out of the instance: a file; its content follows.
    Header(CopyHeader),
    /// Towards the instance: that was all. Out of it: that was the file, or with `final` everything.
    End {
        /// Whether it was the last.
        #[serde(default, rename = "final")]
        is_final: bool,
    },
    /// Towards the instance: how it went; the last frame.
    Result(CopyResult),
    /// Out of the instance: it failed; the last frame.
    Error {
        /// In words.
        message: String,
        /// What it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// The stable code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
}

/// A file that comes out of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyHeader {
    /// Relative to what is copied; a file's own name, or `.` for a directory itself.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Whether it is a symbolic link.
    pub is_symlink: bool,
    /// Where a link leads: unchecked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
    /// Bytes.
    pub size: u64,
    /// When its content changed last, in seconds since 1970.
    pub mtime: i64,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// How a copy into an instance went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyResult {
    /// Whether everything is in its place.
    pub success: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Bytes of content, or of the tar stream.
    pub bytes_written: u64,
    /// The stable code of the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}
