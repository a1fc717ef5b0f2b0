//! Files inside instances: who may ask, and when. The rest is the host's.

use super::{App, AppError, View};
use futures::stream::BoxStream;
use warren_core::InstanceId;
use warren_core::PortError;
use warren_core::admission::{Admission, Operation, admit};
use warren_core::id::Prefixes;
use warren_core::ports::guest_files::{
    Depth, FileContent, FileInfo, LastLink, ListedFile, MakeDirectory, PackTree, ReadRange,
    UnpackTree, WriteFile,
};

/// Longest path that is passed on, in bytes: what kernels take (PATH_MAX).
const LONGEST_PATH: usize = 4095;

/// Whether a path can name anything at all.
fn check_path(path: &str) -> Result<(), AppError> {
    let problem = match path {
        _ if !path.starts_with('/') => "must begin with /",
        _ if path.contains('\0') => "may not contain NUL",
        _ if path.len() > LONGEST_PATH => "is longer than the kernel takes (4095 bytes)",
        _ => return Ok(()),
    };
    Err(AppError::field("path", problem))
}

impl App {
    /// Whether files could be asked for now.
    ///
    /// # Errors
    /// Missing, ambiguous, or not in this state.
    pub fn check_copy(&self, wanted: &str) -> Result<View, AppError> {
        let view = self.find(wanted, Prefixes::Accepted)?;
        let state = view.status.state.name();
        match admit(Operation::Copy, state, view.intent.desired) {
            Admission::Refuse(refusal) => Err(refusal.into()),
            Admission::Accept | Admission::AlreadySo => Ok(view),
        }
    }

    fn files_of(&self, wanted: &str, path: &str) -> Result<InstanceId, AppError> {
        check_path(path)?;
        Ok(self.check_copy(wanted)?.intent.id.clone())
    }

    /// What a path inside an instance leads to.
    ///
    /// # Errors
    /// The admission table's, and the host's; so for all that follow.
    pub async fn stat_file(
        &self,
        wanted: &str,
        path: &str,
        last: LastLink,
    ) -> Result<FileInfo, AppError> {
        let id = self.files_of(wanted, path)?;
        Ok(self.0.host.files().stat(&id, path, last).await?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// See [`App::stat_file`].
    pub async fn read_file(
        &self,
        wanted: &str,
        path: &str,
        range: ReadRange,
    ) -> Result<FileContent, AppError> {
        let id = self.files_of(wanted, path)?;
        Ok(self.0.host.files().read(&id, path, range).await?)
    }

    /// Writes a file, whole or not at all, and answers with its size.
    ///
    /// # Errors
    /// See [`App::stat_file`]; the first error of `data`.
    pub async fn write_file(
        &self,
        wanted: &str,
        file: WriteFile,
        data: BoxStream<'static, Result<bytes::Bytes, PortError>>,
    ) -> Result<u64, AppError> {
        let id = self.files_of(wanted, &file.path)?;
        Ok(self.0.host.files().write(&id, file, data).await?)
    }

    /// Removes a file or a directory.
    ///
    /// # Errors
    /// See [`App::stat_file`].
    pub async fn remove_file(
        &self,
        wanted: &str,
        path: &str,
        depth: Depth,
    ) -> Result<(), AppError> {
        let id = self.files_of(wanted, path)?;
        Ok(self.0.host.files().remove(&id, path, depth).await?)
    }

    /// What is in a directory.
    ///
    /// # Errors
    /// See [`App::stat_file`].
    pub async fn list_files(
        &self,
        wanted: &str,
        path: &str,
        depth: Depth,
    ) -> Result<BoxStream<'static, Result<ListedFile, PortError>>, AppError> {
        let id = self.files_of(wanted, path)?;
        Ok(self.0.host.files().list(&id, path, depth).await?)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// See [`App::stat_file`].
    pub async fn make_directory(
        &self,
        wanted: &str,
        directory: MakeDirectory,
    ) -> Result<(), AppError> {
        let id = self.files_of(wanted, &directory.path)?;
        Ok(self.0.host.files().make_directory(&id, directory).await?)
    }

    /// Reads a tree as a tar stream.
    ///
    /// # Errors
    /// See [`App::stat_file`].
    pub async fn pack_tree(
        &self,
        wanted: &str,
        tree: PackTree,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes, PortError>>, AppError> {
        let id = self.files_of(wanted, &tree.path)?;
        Ok(self.0.host.files().pack(&id, tree).await?)
    }

    /// Unpacks a tar stream.
    ///
    /// # Errors
    /// See [`App::stat_file`]; the first error of `archive`.
    pub async fn unpack_tree(
        &self,
        wanted: &str,
        tree: UnpackTree,
        archive: BoxStream<'static, Result<bytes::Bytes, PortError>>,
    ) -> Result<(), AppError> {
        let id = self.files_of(wanted, &tree.path)?;
        Ok(self.0.host.files().unpack(&id, tree, archive).await?)
    }
}
