//! Files of a guest that is none: kept in memory, the same for all instances. `/full` has no room for anything, and `/lies`
//! breaks off when it is read.

use super::Host;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::MutexGuard;
use warren_core::ports::BoxStream;
use warren_core::ports::guest_files::{
    Depth, FileContent, FileFault, FileInfo, FileKind, GuestFiles, LastLink, ListedFile,
    MakeDirectory, PackTree, Parents, ReadRange, TreeOwners, UnpackTree, WriteFile,
};
use warren_core::{InstanceId, PortError};

/// A file that is kept in memory; a directory has no content.
#[derive(Clone)]
pub(crate) struct Kept {
    content: Option<Bytes>,
    mode: u32,
    owner: (u32, u32),
}

pub(crate) type Tree = BTreeMap<String, Kept>;

/// What every guest begins with.
pub(crate) fn beginning() -> Tree {
    let directory = |mode| Kept {
        content: None,
        mode,
        owner: (0, 0),
    };
    let file = |content: &'static [u8]| Kept {
        content: Some(Bytes::from_static(content)),
        mode: 0o640,
        owner: (1, 2),
    };
    BTreeMap::from([
        ("/".to_owned(), directory(0o755)),
        ("/full".to_owned(), directory(0o755)),
        ("/etc".to_owned(), directory(0o755)),
        ("/etc/motd".to_owned(), file(b"hello")),
        ("/etc/empty".to_owned(), directory(0o700)),
        ("/lies".to_owned(), file(b"half of it")),
    ])
}

fn info(kept: &Kept) -> FileInfo {
    FileInfo {
        kind: match kept.content {
            Some(_) => FileKind::File,
            None => FileKind::Directory,
        },
        mode: kept.mode,
        uid: kept.owner.0,
        gid: kept.owner.1,
        size: kept.content.as_ref().map_or(4096, |data| data.len() as u64),
        modified_nanos: 1_700_000_000_123_456_789,
        link_target: None,
    }
}

fn clean(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    }
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((parent, _)) => parent,
    }
}

impl Host {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        Self::lock(&self.tree)
    }

    fn kept(&self, path: &str) -> Result<Kept, PortError> {
        let kept = self.tree().get(&clean(path)).cloned();
        kept.ok_or_else(|| FileFault::NotFound.error(format!("{path}: no such file or directory")))
    }

    fn room_for(&self, path: &str, parents: Parents) -> Result<(), PortError> {
        let above = parent(path).to_owned();
        if above == "/full" {
            return Err(FileFault::NoSpace.error(format!("{path}: no space left on device")));
        }
        match (self.kept(&above), parents) {
            (Ok(kept), _) if kept.content.is_some() => {
                Err(FileFault::NotADirectory.error(format!("{path}: not a directory")))
            }
            (Ok(_), _) => Ok(()),
            (Err(missing), Parents::Expected) => Err(missing),
            (Err(_), Parents::Created) => {
                self.room_for(&above, parents)?;
                let made = Kept {
                    content: None,
                    mode: 0o755,
                    owner: (0, 0),
                };
                self.tree().insert(above, made);
                Ok(())
            }
        }
    }
}

#[async_trait]
impl GuestFiles for Host {
    async fn stat(&self, _: &InstanceId, path: &str, _: LastLink) -> Result<FileInfo, PortError> {
        Ok(info(&self.kept(path)?))
    }

    async fn read(
        &self,
        _: &InstanceId,
        path: &str,
        range: ReadRange,
    ) -> Result<FileContent, PortError> {
        let kept = self.kept(path)?;
        let Some(mut data) = kept.content.clone() else {
            return Err(FileFault::IsADirectory.error(format!("{path}: is a directory")));
        };
        let begin = usize::try_from(range.offset).map_or(data.len(), |at| at.min(data.len()));
        let _ = data.split_to(begin);
        if let Some(length) = range.length {
            data.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        }
        let mut pieces: Vec<Result<Bytes, PortError>> = vec![Ok(data)];
        if path == "/lies" {
            let gone = PortError::retry("guest_unreachable", "the guest's agent: it has gone");
            pieces.push(Err(gone));
        }
        Ok(FileContent {
            info: info(&kept),
            data: stream::iter(pieces).boxed(),
        })
    }

    async fn write(
        &self,
        _: &InstanceId,
        file: WriteFile,
        mut data: BoxStream<Result<Bytes, PortError>>,
    ) -> Result<u64, PortError> {
        self.room_for(&file.path, file.parents)?;
        if self
            .kept(&file.path)
            .is_ok_and(|kept| kept.content.is_none())
        {
            return Err(FileFault::IsADirectory.error(format!("{}: is a directory", file.path)));
        }
        let mut content = Vec::new();
        while let Some(piece) = data.next().await {
            content.extend_from_slice(&piece?);
        }
        let size = content.len() as u64;
        let kept = Kept {
            content: Some(content.into()),
            mode: file.mode.unwrap_or(0o644),
            owner: file.owner.unwrap_or((0, 0)),
        };
        self.tree().insert(clean(&file.path), kept);
        Ok(size)
    }

    async fn remove(&self, _: &InstanceId, path: &str, depth: Depth) -> Result<(), PortError> {
        self.kept(path)?;
        let path = clean(path);
        let below = format!("{path}/");
        let mut tree = self.tree();
        if depth == Depth::Shallow && tree.keys().any(|other| other.starts_with(&below)) {
            return Err(FileFault::NotEmpty.error(format!("{path}: directory not empty")));
        }
        tree.retain(|other, _| *other != path && !other.starts_with(&below));
        Ok(())
    }

    async fn list(
        &self,
        _: &InstanceId,
        path: &str,
        depth: Depth,
    ) -> Result<BoxStream<Result<ListedFile, PortError>>, PortError> {
        if self.kept(path)?.content.is_some() {
            return Err(FileFault::NotADirectory.error(format!("{path}: not a directory")));
        }
        let below = format!("{}/", clean(path).trim_end_matches('/'));
        let files: Vec<_> = self
            .tree()
            .iter()
            .filter_map(|(path, kept)| Some((path.strip_prefix(&below)?, kept)))
            .filter(|(path, _)| {
                !path.is_empty() && (depth == Depth::Recursive || !path.contains('/'))
            })
            .map(|(path, kept)| {
                Ok(ListedFile {
                    path: path.to_owned(),
                    info: info(kept),
                })
            })
            .collect();
        Ok(stream::iter(files).boxed())
    }

    async fn make_directory(
        &self,
        _: &InstanceId,
        directory: MakeDirectory,
    ) -> Result<(), PortError> {
        self.room_for(&directory.path, directory.parents)?;
        match self.kept(&directory.path) {
            Ok(kept) if kept.content.is_none() && directory.parents == Parents::Created => Ok(()),
            Ok(_) => Err(FileFault::Exists.error(format!("{}: file exists", directory.path))),
            Err(_) => {
                let made = Kept {
                    content: None,
                    mode: directory.mode.unwrap_or(0o755),
                    owner: directory.owner.unwrap_or((0, 0)),
                };
                self.tree().insert(clean(&directory.path), made);
                Ok(())
            }
        }
    }

    async fn pack(
        &self,
        _: &InstanceId,
        tree: PackTree,
    ) -> Result<BoxStream<Result<Bytes, PortError>>, PortError> {
        let top = self.kept(&tree.path)?;
        let below = format!("{}/", clean(&tree.path).trim_end_matches('/'));
        let inside = self.tree().clone().into_iter().filter_map(|(path, kept)| {
            let path = path.strip_prefix(&below)?.to_owned();
            (!path.is_empty()).then(|| (format!("{}/{path}", tree.name), kept))
        });
        let mut archive = tar::Builder::new(Vec::new());
        for (path, kept) in std::iter::once((tree.name.clone(), top)).chain(inside) {
            let mut header = tar::Header::new_ustar();
            header.set_mode(kept.mode);
            header.set_uid(kept.owner.0.into());
            header.set_gid(kept.owner.1.into());
            header.set_mtime(1_700_000_000);
            header.set_entry_type(match kept.content {
                Some(_) => tar::EntryType::Regular,
                None => tar::EntryType::Directory,
            });
            let content = kept.content.unwrap_or_default();
            header.set_size(content.len() as u64);
            let written = archive.append_data(&mut header, &path, content.as_ref());
            written.expect("it is kept in memory");
        }
        let data = archive.into_inner().expect("it is kept in memory");
        let mut pieces: Vec<_> = data
            .chunks(700)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        if tree.path == "/lies" {
            pieces.truncate(1);
            let gone = PortError::retry("guest_unreachable", "the guest's agent: it has gone");
            pieces.push(Err(gone));
        }
        Ok(stream::iter(pieces).boxed())
    }

    async fn unpack(
        &self,
        _: &InstanceId,
        tree: UnpackTree,
        mut archive: BoxStream<Result<Bytes, PortError>>,
    ) -> Result<(), PortError> {
        let mut data = Vec::new();
        while let Some(piece) = archive.next().await {
            data.extend_from_slice(&piece?);
        }
        let bad = |error: std::io::Error| FileFault::Unsuitable.error(error.to_string());
        let mut archive = tar::Archive::new(data.as_slice());
        for entry in archive.entries().map_err(bad)? {
            let mut entry = entry.map_err(bad)?;
            let path = entry.path().map_err(bad)?.display().to_string();
            let path =
                clean(&format!("{}/{}", tree.path.trim_end_matches('/'), path)).replace("/./", "/");
            let path = path.trim_end_matches("/.").to_owned();
            self.room_for(&path, Parents::Created)?;
            let header = entry.header().clone();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).map_err(bad)?;
            let kept = Kept {
                content: (!header.entry_type().is_dir()).then(|| content.into()),
                mode: header.mode().map_err(bad)?,
                owner: match tree.owners {
                    TreeOwners::All(uid, gid) => (uid, gid),
                    TreeOwners::Archived => (7, 7),
                },
            };
            self.tree().insert(path, kept);
        }
        Ok(())
    }
}
