//! Images as disks that other machines can have: an ext4 with the image's tree, alone or in a partition.
//!
//! It goes out as a tar archive with one sparse file, so that a disk of any size costs no more than what is on it, and whoever
//! unpacks it has its holes. Nothing is kept on this host.

use std::fs::File;
use std::io::{self, Write};

use bytes::Bytes;
use futures::{StreamExt, stream};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use warren_core::PortError;
use warren_core::ports::outlet::{Archive, DiskLayout, ExportRequest};
use warren_tar::{Entry, EntryKind};

use super::{ImageStore, StoreError};
use crate::digest::Digest;
use crate::erofs::{ReadError, Reader, Segment};
use crate::ext4::{Identity, Plan, WriteError};
use crate::gpt::{self, MARGIN, Purpose};

/// Bytes that go out at once.
const PIECE: usize = 256 << 10;
/// Pieces that wait for their reader.
const WAITING: usize = 4;

/// A disk that is laid out and not written yet.
struct Disk {
    plan: Plan,
    size: u64,
    table: Option<gpt::Table>,
}

impl Disk {
    fn of(
        image: &Reader,
        layout: DiskLayout,
        size: Option<u64>,
        name: &Named,
    ) -> Result<Self, WriteError> {
        let margins = match layout {
            DiskLayout::FileSystem => 0,
            DiskLayout::Partitioned => 2 * MARGIN,
        };
        let identity = Identity {
            uuid: name.uuid("file system"),
            hash_seed: name.uuid("hash seed"),
        };
        let inner = size.map(|size| size.saturating_sub(margins));
        let plan = Plan::of(image, inner, identity).map_err(|error| match error {
            WriteError::TooSmall { least, .. } => WriteError::TooSmall {
                asked: size.unwrap_or_default(),
                least: least + margins,
            },
            other => other,
        })?;
        // Of a size that is no whole number of sectors, the rest is left out.
        let size = size.map_or(plan.bytes() + margins, |size| size / 512 * 512);
        let table = (layout == DiskLayout::Partitioned).then(|| {
            let identity = gpt::Identity {
                disk: name.uuid("disk"),
                partition: name.uuid("partition"),
            };
            gpt::table(size, name.purpose, identity)
        });
        Ok(Disk { plan, size, table })
    }

    fn segments(&self) -> Vec<Segment> {
        let segments = self.plan.segments();
        let Some(table) = &self.table else {
            return segments;
        };
        let (head, tail) = (table.head.len() as u64, table.tail.len() as u64);
        let moved = segments.into_iter().map(|segment| Segment {
            offset: segment.offset + MARGIN,
            ..segment
        });
        let mut all = vec![Segment {
            offset: 0,
            length: head,
        }];
        all.extend(moved);
        all.push(Segment {
            offset: self.size - tail,
            length: tail,
        });
        all
    }

    fn write(&self, image: &Reader, to: &mut impl Write) -> Result<(), WriteError> {
        let (head, tail) = match &self.table {
            Some(table) => (table.head.as_slice(), table.tail.as_slice()),
            None => (&[][..], &[][..]),
        };
        to.write_all(head).map_err(WriteError::Write)?;
        self.plan.write(image, to)?;
        to.write_all(tail).map_err(WriteError::Write)
    }
}

/// What the disks of one image are known by.
struct Named {
    digest: Digest,
    purpose: Purpose,
}

impl Named {
    /// The same for the same image: version 8 of RFC 9562, from a digest.
    fn uuid(&self, what: &str) -> [u8; 16] {
        let hash = Sha256::new()
            .chain_update(self.digest.to_string())
            .chain_update(what)
            .finalize();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hash[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}

impl ImageStore {
    pub(super) async fn export_image(&self, request: ExportRequest) -> Result<Archive, StoreError> {
        let all = self.records.list()?.readable;
        let stored = all
            .into_iter()
            .find(|stored| stored.record.id == request.id)
            .ok_or_else(|| StoreError::NotHere(request.id.clone()))?;
        let record = stored.record;
        let digest: Digest = record
            .digest
            .parse()
            .map_err(|_| StoreError::NotHere(request.id.clone()))?;
        // Open, it stays readable when its image is removed.
        let file = File::open(self.disks.path(&digest)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::DiskGone(record.name.clone()),
            _ => StoreError::Disk {
                what: "opening the image's disk",
                source,
            },
        })?;
        let named = Named {
            digest,
            purpose: Purpose::of(&record.platform),
        };
        let name = record.name.clone();
        let planned = tokio::task::spawn_blocking(move || {
            let image = Reader::open(file)?;
            let disk = Disk::of(&image, request.layout, request.size, &named)?;
            Ok::<_, WriteError>((image, disk))
        });
        let exporting = |source| StoreError::Export {
            name: name.clone(),
            source,
        };
        let (image, disk) = match planned.await {
            Ok(planned) => planned.map_err(exporting)?,
            Err(error) => {
                return Err(StoreError::Disk {
                    what: "laying the disk out",
                    source: io::Error::other(error),
                });
            }
        };
        let file_name = match request.layout {
            DiskLayout::FileSystem => "disk.ext4",
            DiskLayout::Partitioned => "disk.raw",
        };
        let file = EntryKind::File {
            size: disk.size,
            segments: Some(disk.segments()),
        };
        let stored = file.stored();
        let header = warren_tar::header(&Entry::plain(file_name, file));
        let header = header.map_err(|source| exporting(WriteError::Write(source)))?;
        // Its segments are whole blocks.
        let size = header.len() as u64 + stored + warren_tar::END as u64;
        let (to, from) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let mut pieces = Pieces {
                to,
                piece: Vec::with_capacity(PIECE),
            };
            if let Err(error) = send(&image, &disk, &header, &mut pieces) {
                pieces.fail(name, error);
            }
        });
        let bytes = stream::unfold(from, |mut from| async move {
            from.recv().await.map(|piece| (piece, from))
        });
        Ok(Archive {
            size,
            bytes: bytes.boxed(),
        })
    }
}

fn send(image: &Reader, disk: &Disk, header: &[u8], to: &mut Pieces) -> Result<(), WriteError> {
    to.write_all(header).map_err(WriteError::Write)?;
    disk.write(image, to)?;
    to.write_all(&[0; warren_tar::END])
        .and_then(|()| to.flush())
        .map_err(WriteError::Write)
}

/// Pieces of an archive on their way to whoever reads it.
struct Pieces {
    to: mpsc::Sender<Result<Bytes, PortError>>,
    piece: Vec<u8>,
}

impl Pieces {
    /// Ends the archive before it is whole. A reader that has gone needs no reason.
    fn fail(self, name: String, source: WriteError) {
        let error = StoreError::Export { name, source };
        let _ = self.to.blocking_send(Err(error.into()));
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let sent = self.to.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What a user is told.
pub(super) fn describe(name: &str, error: &WriteError) -> PortError {
    let text = format!("the image {name} cannot be exported: {error}");
    match error {
        WriteError::Image(ReadError::Read(_)) => PortError::retry("image_unreadable", text),
        WriteError::Image(_) => PortError::conflict("image_damaged", text).with_hint(format!(
            "`warren image verify --repair {name}` makes its disk again"
        )),
        WriteError::Write(source) => {
            PortError::io(text, io::Error::new(source.kind(), source.to_string()))
        }
        WriteError::TooSmall { least, .. } => PortError::invalid("export_too_small", text)
            .with_hint(format!(
                "give it {} MiB at least, or no size for what it needs and room for more",
                least.div_ceil(1 << 20)
            )),
        WriteError::TooLarge | WriteError::File { .. } => {
            PortError::invalid("export_impossible", text)
        }
    }
}
