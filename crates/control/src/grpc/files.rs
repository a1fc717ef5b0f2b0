//! Files of a VM, each whole in one message: larger ones are read in parts.

use super::LARGEST_CONTENT;
use super::caller::Caller;
use super::refusal::invalid;
use super::wire::{
    CreateDirectoryRequest, CreateDirectoryResponse, DeleteFileRequest, DeleteFileResponse,
    FileInfo, ListFilesRequest, ListFilesResponse, ReadFileRequest, ReadFileResponse,
    WriteFileRequest, WriteFileResponse,
};
use crate::app::App;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream;
use tonic::Status;
use warren_core::ports::guest_files::{
    Depth, FileContent, FileInfo as CoreInfo, FileKind, ListedFile, MakeDirectory, Parents,
    ReadRange, WriteFile,
};

/// What of a listed file's entry is not text.
const ENTRY_OVERHEAD: usize = 64;
/// What is listed when nothing is said.
const HOME: &str = "/root";
/// All permission bits.
const PERMISSIONS: i32 = 0o7777;
/// A file goes to the guest in pieces of this size.
const PIECE: usize = 256 << 10;

pub(super) async fn read(
    app: &App,
    caller: &Caller,
    request: ReadFileRequest,
) -> Result<ReadFileResponse, Status> {
    let found = caller.find(app, &request.vm_id)?;
    let range = range(request.offset, request.length)?;
    let path = given("file_path", &request.file_path)?;
    let id = found.intent.id.as_str();
    let FileContent { info, mut data } = app.read_file(id, path, range).await?;
    let left = info.size.saturating_sub(range.offset);
    fits(left.min(range.length.unwrap_or(u64::MAX)))?;
    let mut content = BytesMut::new();
    while let Some(piece) = data.next().await {
        content.extend_from_slice(&piece.map_err(crate::app::AppError::Port)?);
        // What the kernel makes up has no size before it is read.
        fits(content.len() as u64)?;
    }
    Ok(ReadFileResponse {
        content: content.freeze(),
        size: i64::try_from(info.size).unwrap_or(i64::MAX),
        modified_time: info.modified_seconds(),
        permissions: permissions_of(&info),
    })
}

pub(super) async fn write(
    app: &App,
    caller: &Caller,
    request: WriteFileRequest,
) -> Result<WriteFileResponse, Status> {
    let found = caller.find(app, &request.vm_id)?;
    let file = WriteFile {
        path: given("file_path", &request.file_path)?.to_owned(),
        mode: mode(request.permissions)?,
        owner: None,
        parents: parents(request.create_parents),
    };
    let data = stream::iter(pieces(request.content)).map(Ok).boxed();
    let id = found.intent.id.as_str();
    let written = app.write_file(id, file, data).await?;
    Ok(WriteFileResponse {
        success: true,
        message: "the file was written".to_owned(),
        bytes_written: i64::try_from(written).unwrap_or(i64::MAX),
    })
}

pub(super) async fn delete(
    app: &App,
    caller: &Caller,
    request: DeleteFileRequest,
) -> Result<DeleteFileResponse, Status> {
    let found = caller.find(app, &request.vm_id)?;
    let path = given("file_path", &request.file_path)?;
    let id = found.intent.id.as_str();
    app.remove_file(id, path, depth(request.recursive)).await?;
    Ok(DeleteFileResponse {
        success: true,
        message: "it was removed".to_owned(),
    })
}

pub(super) async fn list(
    app: &App,
    caller: &Caller,
    request: ListFilesRequest,
) -> Result<ListFilesResponse, Status> {
    let found = caller.find(app, &request.vm_id)?;
    let directory = match request.directory_path.as_str() {
        "" => HOME,
        path => path,
    };
    let id = found.intent.id.as_str();
    let depth = depth(request.recursive);
    let mut listed = app.list_files(id, directory, depth).await?;
    let (mut files, mut size) = (Vec::new(), 0);
    while let Some(file) = listed.next().await {
        let file = entry(directory, file.map_err(crate::app::AppError::Port)?);
        size += file.path.len() + file.name.len() + ENTRY_OVERHEAD;
        if size > LARGEST_CONTENT {
            return Err(Status::resource_exhausted(format!(
                "{directory} has more files than fit in a message of 100 MB: list parts of it"
            )));
        }
        files.push(file);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(ListFilesResponse { files })
}

pub(super) async fn create_directory(
    app: &App,
    caller: &Caller,
    request: CreateDirectoryRequest,
) -> Result<CreateDirectoryResponse, Status> {
    let found = caller.find(app, &request.vm_id)?;
    let directory = MakeDirectory {
        path: given("directory_path", &request.directory_path)?.to_owned(),
        mode: mode(request.permissions)?,
        owner: None,
        parents: parents(request.create_parents),
    };
    let id = found.intent.id.as_str();
    app.make_directory(id, directory).await?;
    Ok(CreateDirectoryResponse {
        success: true,
        message: "the directory was made".to_owned(),
    })
}

fn given<'a>(field: &str, path: &'a str) -> Result<&'a str, Status> {
    match path {
        "" => Err(invalid(field, "is required")),
        path => Ok(path),
    }
}

fn range(offset: i64, length: i64) -> Result<ReadRange, Status> {
    let natural =
        |field, number| u64::try_from(number).map_err(|_| invalid(field, "must not be negative"));
    Ok(ReadRange {
        offset: natural("offset", offset)?,
        length: Some(natural("length", length)?).filter(|length| *length > 0),
    })
}

fn mode(permissions: i32) -> Result<Option<u32>, Status> {
    match permissions {
        0 => Ok(None),
        1..=PERMISSIONS => Ok(Some(permissions.unsigned_abs())),
        _ => Err(invalid(
            "permissions",
            "must be mode bits, such as 0644 (420)",
        )),
    }
}

fn parents(create: bool) -> Parents {
    match create {
        true => Parents::Created,
        false => Parents::Expected,
    }
}

fn depth(recursive: bool) -> Depth {
    match recursive {
        true => Depth::Recursive,
        false => Depth::Shallow,
    }
}

fn fits(length: u64) -> Result<(), Status> {
    if length <= LARGEST_CONTENT as u64 {
        return Ok(());
    }
    Err(Status::resource_exhausted(
        "that is more than fits in a message of 100 MB: read it in parts, with offset and length",
    ))
}

fn pieces(mut content: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        (!content.is_empty()).then(|| content.split_to(content.len().min(PIECE)))
    })
}

fn permissions_of(info: &CoreInfo) -> i32 {
    i32::try_from(info.mode).unwrap_or_default() & PERMISSIONS
}

/// A file that the guest says is in a directory. Its name is text and nothing else: nothing is made of it here.
fn entry(directory: &str, file: ListedFile) -> FileInfo {
    let name = file.path.rsplit('/').next().unwrap_or_default().to_owned();
    FileInfo {
        name,
        path: format!("{}/{}", directory.trim_end_matches('/'), file.path),
        is_directory: file.info.kind == FileKind::Directory,
        size: i64::try_from(file.info.size).unwrap_or(i64::MAX),
        modified_time: file.info.modified_seconds(),
        permissions: permissions_of(&file.info),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tonic::Code;

    fn info() -> CoreInfo {
        CoreInfo {
            kind: FileKind::File,
            mode: 0o4755,
            uid: 0,
            gid: 0,
            size: 7,
            modified_nanos: -1,
            link_target: None,
        }
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(range(0, 0).unwrap(), ReadRange::default());
        let part = range(5, 7).unwrap();
        assert_eq!((part.offset, part.length), (5, Some(7)));
        assert!(range(-1, 0).is_err() && range(0, -1).is_err());
        assert_eq!(mode(0).unwrap(), None);
        assert_eq!(mode(0o644).unwrap(), Some(0o644));
        for wrong in [-1, 0o10000, 0o100644] {
            assert_eq!(mode(wrong).unwrap_err().code(), Code::InvalidArgument);
        }
    }

    #[test]
    fn more_than_a_message_is_refused_with_a_way_out() {
        assert!(fits(99 << 20).is_ok());
        let refused = fits(100 << 20).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("offset"));
    }

    #[test]
    fn files_are_listed_with_their_whole_paths() {
        for directory in ["/root", "/root/"] {
            let file = ListedFile {
                path: "a/b".into(),
                info: info(),
            };
            let shown = entry(directory, file);
            assert_eq!(
                (shown.name.as_str(), shown.path.as_str()),
                ("b", "/root/a/b")
            );
            assert_eq!((shown.permissions, shown.modified_time), (0o4755, -1));
        }
        let file = ListedFile {
            path: "etc".into(),
            info: info(),
        };
        assert_eq!(entry("/", file).path, "/etc");
    }

    #[test]
    fn content_is_cut_into_pieces_and_nothing_is_lost() {
        let content = Bytes::from(vec![7; 2 * PIECE + 1]);
        let sizes: Vec<usize> = pieces(content).map(|piece| piece.len()).collect();
        assert_eq!(sizes, [PIECE, PIECE, 1]);
        assert_eq!(pieces(Bytes::new()).count(), 0);
    }
}
