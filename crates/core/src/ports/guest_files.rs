//! Files inside a guest, by way of its agent. Paths are absolute ones of the workload: they, and every symbolic
//! link on the way, are resolved within its root file system and never beyond.
//!
//! Everything is done as the guest's root. A guest is hostile: what comes from it is bounded in length by what was asked
//! for, every wait for it has a deadline, and names and link targets are unchecked text.

use super::BoxStream;
use crate::error::{ErrorClass, PortError};
use crate::id::InstanceId;
use async_trait::async_trait;
use bytes::Bytes;

/// Why a guest did not do what was asked of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileFault {
    /// The file, or a directory on the way, is not there.
    NotFound,
    /// Something on the way, or at the place itself, is no directory.
    NotADirectory,
    /// It is a directory where a file was meant.
    IsADirectory,
    /// Something of this name is there already.
    Exists,
    /// A directory that is not empty, and not to be removed with what is in it.
    NotEmpty,
    /// Even root may not do this (an immutable file, a mount point in use).
    NotPermitted,
    /// A file system that cannot be written to.
    ReadOnly,
    /// The guest's disk is full.
    NoSpace,
    /// Larger than its file system or the operation can take.
    TooLarge,
    /// A path that can name nothing: relative, too long, or with links that lead to each other.
    InvalidPath,
    /// What cannot be read or written as a file (a socket), or an archive that is none.
    Unsuitable,
    /// Anything else that the guest's kernel says.
    Failed,
}

impl FileFault {
    /// All of them.
    pub const ALL: [FileFault; 12] = [
        FileFault::NotFound,
        FileFault::NotADirectory,
        FileFault::IsADirectory,
        FileFault::Exists,
        FileFault::NotEmpty,
        FileFault::NotPermitted,
        FileFault::ReadOnly,
        FileFault::NoSpace,
        FileFault::TooLarge,
        FileFault::InvalidPath,
        FileFault::Unsuitable,
        FileFault::Failed,
    ];

    /// The stable code of the [`PortError`] that tells of it. A guest that cannot be asked at all is a Retry
    /// `guest_unreachable`, and one whose agent is too old an Unsupported `guest_too_old`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            FileFault::NotFound => "file_not_found",
            FileFault::NotADirectory => "not_a_directory",
            FileFault::IsADirectory => "is_a_directory",
            FileFault::Exists => "file_exists",
            FileFault::NotEmpty => "directory_not_empty",
            FileFault::NotPermitted => "file_not_permitted",
            FileFault::ReadOnly => "file_system_read_only",
            FileFault::NoSpace => "guest_disk_full",
            FileFault::TooLarge => "file_too_large",
            FileFault::InvalidPath => "invalid_file_path",
            FileFault::Unsuitable => "file_unsuitable",
            FileFault::Failed => "guest_file_failed",
        }
    }

    /// What may be concluded.
    #[must_use]
    pub fn class(self) -> ErrorClass {
        match self {
            FileFault::NotFound => ErrorClass::NotFound,
            FileFault::NotADirectory
            | FileFault::IsADirectory
            | FileFault::Exists
            | FileFault::NotEmpty
            | FileFault::ReadOnly
            | FileFault::Failed => ErrorClass::Conflict,
            FileFault::NotPermitted => ErrorClass::Denied,
            FileFault::NoSpace => ErrorClass::NoSpace,
            FileFault::TooLarge | FileFault::InvalidPath | FileFault::Unsuitable => {
                ErrorClass::Invalid
            }
        }
    }

    /// Which one an error is; `None` for an error of another kind.
    #[must_use]
    pub fn of(error: &PortError) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|fault| fault.code() == error.code)
    }

    /// The error that tells of it in `words`.
    #[must_use]
    pub fn error(self, words: impl Into<String>) -> PortError {
        let error = PortError::new(self.class(), self.code(), words);
        match self {
            FileFault::NoSpace => {
                error.with_hint("remove something in the guest, or give it a larger disk")
            }
            FileFault::NotEmpty => {
                error.with_hint("ask for everything in it to be removed as well")
            }
            _ => error,
        }
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// An ordinary file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a named pipe, a socket.
    Other,
}

/// What there is to know of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// When its content changed last, in nanoseconds since 1970.
    pub modified_nanos: i128,
    /// Where a symbolic link leads: unchecked, invalid UTF-8 replaced.
    pub link_target: Option<String>,
}

impl FileInfo {
    /// The second in which it was changed last, since 1970.
    #[must_use]
    pub fn modified_seconds(&self) -> i64 {
        i64::try_from(self.modified_nanos.div_euclid(1_000_000_000)).unwrap_or_default()
    }
}

/// One file of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Relative to the directory that was listed: unchecked, invalid UTF-8 replaced.
    pub path: String,
    /// The file itself; links are not followed.
    pub info: FileInfo,
}

/// What becomes of a symbolic link at the end of a path. Links on the way are always followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LastLink {
    /// What it leads to is meant.
    Followed,
    /// The link itself is meant.
    #[default]
    Kept,
}

/// Whether what is in a directory is meant as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// Only what was named, or only what is right in it.
    #[default]
    Shallow,
    /// All of it.
    Recursive,
}

/// What becomes of directories that are missing on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parents {
    /// They must be there.
    #[default]
    Expected,
    /// They are made, with mode 0755.
    Created,
}

/// Which part of a file to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadRange {
    /// First byte; beyond the end there is nothing.
    pub offset: u64,
    /// At most so many; to the end when absent.
    pub length: Option<u64>,
}

/// A file that is being read.
pub struct FileContent {
    /// The file as it was when it was opened.
    pub info: FileInfo,
    /// The bytes; an error is the last item. Never more of them than were asked for.
    pub data: BoxStream<Result<Bytes, PortError>>,
}

/// A file to write. It appears under its name whole or not at all; what was there is replaced, and stays as it was when
/// writing fails. A symbolic link at the end of the path is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteFile {
    /// Where.
    pub path: String,
    /// Permission bits; those of the file that is replaced when absent, else 0644.
    pub mode: Option<u32>,
    /// Owner and group; those of the file that is replaced when absent, else root.
    pub owner: Option<(u32, u32)>,
    /// Directories on the way.
    pub parents: Parents,
}

/// A directory to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MakeDirectory {
    /// Where.
    pub path: String,
    /// Permission bits; 0755 when absent.
    pub mode: Option<u32>,
    /// Owner and group; root when absent.
    pub owner: Option<(u32, u32)>,
    /// With [`Parents::Created`] a directory that is there already is no error, and keeps its mode.
    pub parents: Parents,
}

/// A tree to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackTree {
    /// Where: a file, or a directory with all that is in it.
    pub path: String,
    /// A link at the end of the path.
    pub last: LastLink,
    /// What it is called in the archive; its entries begin with this.
    pub name: String,
}

/// Who is to own what an archive becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeOwners {
    /// Whom the archive names, with setuid, setgid and every extended attribute.
    Archived,
    /// This user and group, without setuid and setgid, and with extended attributes of users alone.
    All(u32, u32),
}

/// An archive to unpack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackTree {
    /// The directory that its entries are relative to; an entry `.` is this very path, which may then also become a file.
    pub path: String,
    /// Who is to own it.
    pub owners: TreeOwners,
}

/// The files of guests.
#[async_trait]
pub trait GuestFiles: Send + Sync {
    /// What a path leads to.
    async fn stat(
        &self,
        id: &InstanceId,
        path: &str,
        last: LastLink,
    ) -> Result<FileInfo, PortError>;
    /// Reads a file; dropping the content ends it.
    async fn read(
        &self,
        id: &InstanceId,
        path: &str,
        range: ReadRange,
    ) -> Result<FileContent, PortError>;
    /// Writes a file and answers with its size. When `data` gives an error, or is dropped with the future, nothing of it stays.
    async fn write(
        &self,
        id: &InstanceId,
        file: WriteFile,
        data: BoxStream<Result<Bytes, PortError>>,
    ) -> Result<u64, PortError>;
    /// Removes a file, a link or a directory.
    async fn remove(&self, id: &InstanceId, path: &str, depth: Depth) -> Result<(), PortError>;
    /// What is in a directory, without the directory itself; directories come before what is in them. An error is the last item.
    async fn list(
        &self,
        id: &InstanceId,
        path: &str,
        depth: Depth,
    ) -> Result<BoxStream<Result<ListedFile, PortError>>, PortError>;
    /// Makes a directory.
    async fn make_directory(
        &self,
        id: &InstanceId,
        directory: MakeDirectory,
    ) -> Result<(), PortError>;
    /// Reads a tree as a tar stream (POSIX pax, with extended attributes and sparse files as GNU tar has them). An error is the
    /// last item, and what came until then no archive.
    async fn pack(
        &self,
        id: &InstanceId,
        tree: PackTree,
    ) -> Result<BoxStream<Result<Bytes, PortError>>, PortError>;
    /// Unpacks a tar stream. Each file of it appears whole or not at all; what is whole when it breaks off stays.
    async fn unpack(
        &self,
        id: &InstanceId,
        tree: UnpackTree,
        archive: BoxStream<Result<Bytes, PortError>>,
    ) -> Result<(), PortError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_fault_has_a_code_of_its_own() {
        let codes: BTreeSet<_> = FileFault::ALL.iter().map(|fault| fault.code()).collect();
        assert_eq!(codes.len(), FileFault::ALL.len());
        assert_eq!(FileFault::NoSpace.error("full").class, ErrorClass::NoSpace);
        for fault in FileFault::ALL {
            assert_eq!(FileFault::of(&fault.error("no")), Some(fault));
        }
        assert_eq!(FileFault::of(&PortError::bug("other", "no")), None);
    }
}
