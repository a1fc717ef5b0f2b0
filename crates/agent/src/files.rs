//! Files inside guests, by way of their agents. Nothing is kept here: what comes from a guest goes on to whoever asked, and waits
//! for them.

use crate::agent::AgentLink;
use crate::guest_session::{GuestSession, guest_error};
use crate::steps::printable;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::sync::Arc;
use warren_core::ports::BoxStream;
use warren_core::ports::guest_files::{
    Depth, FileContent, FileFault, FileInfo, FileKind, GuestFiles, LastLink, ListedFile,
    MakeDirectory, PackTree, Parents, ReadRange, TreeOwners, UnpackTree, WriteFile,
};
use warren_core::{InstanceId, PortError};
use warren_guest::client::{ClientError, FileError, FileReader};
use warren_guest::protocol::FileRequest;
use warren_guest::protocol::files as protocol;

#[async_trait]
impl GuestFiles for AgentLink {
    async fn stat(
        &self,
        id: &InstanceId,
        path: &str,
        last: LastLink,
    ) -> Result<FileInfo, PortError> {
        let session = self.0.session(id).await?;
        let info = session.client.stat_file(path, last_link(last)).await;
        Ok(file_info(info.map_err(file_error)?))
    }

    async fn read(
        &self,
        id: &InstanceId,
        path: &str,
        range: ReadRange,
    ) -> Result<FileContent, PortError> {
        let session = self.0.session(id).await?;
        let read = session.client.read_file(path, range.offset, range.length);
        let (info, reader) = read.await.map_err(file_error)?;
        Ok(FileContent {
            info: file_info(info),
            data: pieces(reader, session),
        })
    }

    async fn write(
        &self,
        id: &InstanceId,
        file: WriteFile,
        data: BoxStream<Result<Bytes, PortError>>,
    ) -> Result<u64, PortError> {
        let session = self.0.session(id).await?;
        let request = FileRequest::Write {
            path: file.path,
            mode: file.mode,
            owner: file.owner,
            parents: parents(file.parents),
        };
        send(&session, request, data).await
    }

    async fn remove(&self, id: &InstanceId, path: &str, depth: Depth) -> Result<(), PortError> {
        let (path, depth) = (path.to_owned(), depth_of(depth));
        let session = self.0.session(id).await?;
        let removed = session
            .client
            .change_files(FileRequest::Remove { path, depth });
        removed.await.map_err(file_error)
    }

    async fn list(
        &self,
        id: &InstanceId,
        path: &str,
        depth: Depth,
    ) -> Result<BoxStream<Result<ListedFile, PortError>>, PortError> {
        let session = self.0.session(id).await?;
        let begun = session.client.list_files(path, depth_of(depth)).await;
        let list = begun.map_err(file_error)?;
        let batches = stream::unfold(Some((list, session)), |open| async move {
            let (mut list, session) = open?;
            match list.next().await {
                Ok(Some(files)) => {
                    let files: Vec<_> = files.into_iter().map(|file| Ok(listed(file))).collect();
                    Some((files, Some((list, session))))
                }
                Ok(None) => None,
                Err(error) => Some((vec![Err(file_error(error))], None)),
            }
        });
        let mut files = batches.flat_map(stream::iter).boxed().peekable();
        // A directory that is none is told of at once.
        let first = std::pin::Pin::new(&mut files)
            .next_if(|file| file.is_err())
            .await;
        match first {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(files.boxed()),
        }
    }

    async fn make_directory(
        &self,
        id: &InstanceId,
        directory: MakeDirectory,
    ) -> Result<(), PortError> {
        let request = FileRequest::MakeDirectory {
            path: directory.path,
            mode: directory.mode,
            owner: directory.owner,
            parents: parents(directory.parents),
        };
        let session = self.0.session(id).await?;
        let made = session.client.change_files(request).await;
        made.map_err(file_error)
    }

    async fn pack(
        &self,
        id: &InstanceId,
        tree: PackTree,
    ) -> Result<BoxStream<Result<Bytes, PortError>>, PortError> {
        let session = self.0.session(id).await?;
        let packing = session
            .client
            .pack_tree(&tree.path, last_link(tree.last), &tree.name)
            .await;
        Ok(pieces(packing.map_err(file_error)?, session))
    }

    async fn unpack(
        &self,
        id: &InstanceId,
        tree: UnpackTree,
        archive: BoxStream<Result<Bytes, PortError>>,
    ) -> Result<(), PortError> {
        let session = self.0.session(id).await?;
        let owners = match tree.owners {
            TreeOwners::Archived => protocol::TreeOwners::Archived,
            TreeOwners::All(uid, gid) => protocol::TreeOwners::All { uid, gid },
        };
        let path = tree.path;
        let unpack = FileRequest::Unpack { path, owners };
        send(&session, unpack, archive).await.map(drop)
    }
}

/// What comes of a file or a tree. The session is held: it ends with the last who uses it.
fn pieces(reader: FileReader, session: Arc<GuestSession>) -> BoxStream<Result<Bytes, PortError>> {
    let pieces = stream::unfold(Some((reader, session)), |open| async move {
        let (mut reader, session) = open?;
        match reader.next().await {
            Ok(Some(data)) => Some((Ok(data), Some((reader, session)))),
            Ok(None) => None,
            Err(error) => Some((Err(file_error(error)), None)),
        }
    });
    pieces.boxed()
}

async fn send(
    session: &GuestSession,
    request: FileRequest,
    mut data: BoxStream<Result<Bytes, PortError>>,
) -> Result<u64, PortError> {
    let begun = session.client.write_file(request).await;
    let mut writer = begun.map_err(file_error)?;
    while let Some(piece) = data.next().await {
        // Dropping the writer takes back what was written so far.
        writer.write(&piece?).await.map_err(file_error)?;
    }
    writer.finish().await.map_err(file_error)
}

fn last_link(last: LastLink) -> protocol::LastLink {
    match last {
        LastLink::Followed => protocol::LastLink::Followed,
        LastLink::Kept => protocol::LastLink::Kept,
    }
}

fn depth_of(depth: Depth) -> protocol::Depth {
    match depth {
        Depth::Shallow => protocol::Depth::Shallow,
        Depth::Recursive => protocol::Depth::Recursive,
    }
}

fn parents(parents: Parents) -> protocol::Parents {
    match parents {
        Parents::Expected => protocol::Parents::Expected,
        Parents::Created => protocol::Parents::Created,
    }
}

fn file_info(info: protocol::FileInfo) -> FileInfo {
    FileInfo {
        kind: match info.kind {
            protocol::FileKind::File => FileKind::File,
            protocol::FileKind::Directory => FileKind::Directory,
            protocol::FileKind::Symlink => FileKind::Symlink,
            protocol::FileKind::Other => FileKind::Other,
        },
        mode: info.mode & 0o7777,
        uid: info.uid,
        gid: info.gid,
        size: info.size,
        modified_nanos: i128::from(info.modified_seconds) * 1_000_000_000
            + i128::from(info.modified_nanos),
        link_target: info.link_target,
    }
}

fn listed(file: protocol::ListedFile) -> ListedFile {
    ListedFile {
        path: file.path,
        info: file_info(file.info),
    }
}

fn file_error(error: FileError) -> PortError {
    match error {
        FileError::Fault { fault, message } => fault_of(fault).error(printable(&message)),
        FileError::Client(error @ ClientError::NotKnown { .. }) => PortError::unsupported(
            "guest_too_old",
            "the guest was started by an older Warren, whose agent knows nothing of files",
        )
        .with_hint("restart the instance")
        .with_source(error),
        FileError::Client(error) => guest_error(error),
    }
}

fn fault_of(fault: protocol::FileFault) -> FileFault {
    match fault {
        protocol::FileFault::NotFound => FileFault::NotFound,
        protocol::FileFault::NotADirectory => FileFault::NotADirectory,
        protocol::FileFault::IsADirectory => FileFault::IsADirectory,
        protocol::FileFault::Exists => FileFault::Exists,
        protocol::FileFault::NotEmpty => FileFault::NotEmpty,
        protocol::FileFault::NotPermitted => FileFault::NotPermitted,
        protocol::FileFault::ReadOnly => FileFault::ReadOnly,
        protocol::FileFault::NoSpace => FileFault::NoSpace,
        protocol::FileFault::TooLarge => FileFault::TooLarge,
        protocol::FileFault::InvalidPath => FileFault::InvalidPath,
        protocol::FileFault::Unsuitable => FileFault::Unsuitable,
        protocol::FileFault::Failed => FileFault::Failed,
    }
}
