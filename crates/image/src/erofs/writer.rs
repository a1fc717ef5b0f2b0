//! The writer itself: inodes and data in, one sealed image out.

use std::fs::File;
use std::io::{self, BufRead};

use sha2::{Digest as _, Sha256};
use warren_tar::{Segment, Timestamp};

use super::dedup::{Extents, Key, Known};
use super::directory::{self, DirectoryTree};
use super::format::{
    BLOCK, Chunked, FileType, INODE_SIZE, InodeFields, Layout, NLINK_OFFSET, NULL_ADDR,
    ROOT_OFFSET, SLOT, Superblock, encode_device,
};
use super::metadata::Metadata;
use super::output::Output;
use super::xattr::Xattrs;

/// Files up to here are looked up among what is there before anything is written; larger ones are written first
/// and given back if they turn out to be copies.
const WHOLE: u64 = 256 << 10;
/// Below this size a shared block would cost more than the copies.
const DEDUP_FROM: u64 = 1024;
/// Above this size the bytes a tail saves do not matter, and whole blocks can be shared whole.
const INLINE_BELOW: u64 = 64 << 10;
/// A chunk map has at most this many entries (256 KiB); larger sparse files get larger chunks.
const MAX_CHUNKS: u64 = 1 << 16;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The image file.
    #[error("writing the disk image failed")]
    Write(#[source] io::Error),
    /// The data of a file ended or failed.
    #[error("reading a file's data failed")]
    Data(#[source] io::Error),
    /// Larger than allowed, or than 32-bit block numbers can say.
    #[error("the disk image would be larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// A device number Linux has no room for.
    #[error("device number {major}:{minor} is out of range")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The root directory's inode must fit the first block.
    #[error("the root directory's extended attributes are too large")]
    RootXattrs,
}

/// What every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time; EROFS keeps no other.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Attributes {
    /// What a directory has that is only implied by names below it.
    pub(crate) fn unsaid() -> Self {
        Attributes {
            permissions: 0o755,
            ..Attributes::default()
        }
    }
}

/// The data of a regular file.
pub struct FileData<'a> {
    /// The file's size.
    pub size: u64,
    /// For a sparse file, where its data lies: ascending, disjoint, within `size`. The bytes of all segments
    /// come one behind the other.
    pub segments: Option<&'a [Segment]>,
    /// Where the bytes come from.
    pub bytes: &'a mut dyn BufRead,
}

/// What an inode that is not a directory holds.
pub enum Content<'a> {
    /// A regular file.
    File(FileData<'a>),
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// A character device.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// A written inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    pub(crate) nid: u64,
    pub(crate) file_type: FileType,
    /// Its extent, `u32::MAX` if it has none.
    pub(crate) extent: u32,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image in bytes.
    pub size: u64,
    /// Inodes, directories included.
    pub inodes: u64,
    /// Bytes of file data that were there already.
    pub shared_bytes: u64,
}

const NO_EXTENT: u32 = u32::MAX;

/// Writes one image.
#[derive(Debug)]
pub struct Writer {
    out: Output,
    metadata: Metadata,
    extents: Extents,
    scratch: Vec<u8>,
    head: Vec<u8>,
    next_ino: u32,
    chunked: Chunked,
    shared_bytes: u64,
    limit: u64,
}

impl Writer {
    /// Starts an image in `file`, which is empty, of at most `limit` bytes.
    pub fn new(file: File, limit: u64) -> Self {
        Writer {
            out: Output::new(file),
            metadata: Metadata::default(),
            extents: Extents::default(),
            scratch: Vec::new(),
            head: Vec::new(),
            next_ino: 1,
            chunked: Chunked::No,
            shared_bytes: 0,
            // The last block number is EROFS_NULL_ADDR.
            limit: limit.min((u64::from(u32::MAX) - 1) * BLOCK),
        }
    }

    /// Memory held for what was written so far, in bytes, without the fixed buffers.
    pub fn memory(&self) -> u64 {
        self.extents.memory()
    }

    /// Writes an inode with its content. It has one link; see [`Writer::set_links`].
    ///
    /// # Errors
    /// The image's file, the data, the size limit.
    pub fn add(
        &mut self,
        attributes: &Attributes,
        content: Content<'_>,
    ) -> Result<Inode, ErofsError> {
        let device = |major, minor| {
            encode_device(major, minor)
                .map(|rdev| Layout::Device { rdev })
                .ok_or(ErofsError::Device { major, minor })
        };
        match content {
            Content::File(file) => self.add_file(attributes, file),
            Content::Symlink(target) => {
                let inline =
                    attributes.xattrs.bytes().len() + INODE_SIZE + target.len() <= BLOCK as usize;
                let size = target.len() as u64;
                if inline {
                    let layout = Layout::Inline { raw_blkaddr: 0 };
                    return self.place(
                        attributes,
                        FileType::Symlink,
                        size,
                        layout,
                        target,
                        NO_EXTENT,
                    );
                }
                let start = self.append_blocks(target)?;
                let extent = self.extents.add(None, start, 1);
                let layout = Layout::Plain { raw_blkaddr: start };
                self.place(attributes, FileType::Symlink, size, layout, &[], extent)
            }
            Content::Character(major, minor) => {
                let layout = device(major, minor)?;
                self.place(attributes, FileType::Character, 0, layout, &[], NO_EXTENT)
            }
            Content::Block(major, minor) => {
                let layout = device(major, minor)?;
                self.place(attributes, FileType::Block, 0, layout, &[], NO_EXTENT)
            }
            Content::Fifo => {
                self.place(attributes, FileType::Fifo, 0, Layout::Empty, &[], NO_EXTENT)
            }
            Content::Socket => self.place(
                attributes,
                FileType::Socket,
                0,
                Layout::Empty,
                &[],
                NO_EXTENT,
            ),
        }
    }

    /// Says how many names an inode has in the end.
    ///
    /// # Errors
    /// The image's file.
    pub fn set_links(&mut self, nid: u64, links: u32) -> Result<(), ErofsError> {
        let offset = nid * SLOT + NLINK_OFFSET;
        self.metadata
            .patch(&mut self.out, offset, &links.to_le_bytes())
            .map_err(ErofsError::Write)
    }

    /// Says that nothing names an inode any more.
    pub fn release(&mut self, extent: u32) {
        if extent != NO_EXTENT {
            let extent = self.extents.get_mut(extent);
            extent.users = extent.users.saturating_sub(1);
        }
    }

    /// Writes the directories and the superblock. `links` is the number of inodes that are not directories.
    ///
    /// # Errors
    /// The image's file, the size limit, the root's xattrs.
    pub(crate) fn finish(
        mut self,
        tree: &mut dyn DirectoryTree,
        others: u64,
        uuid: [u8; 16],
    ) -> Result<(File, Summary), ErofsError> {
        self.metadata
            .flush(&mut self.out)
            .map_err(ErofsError::Write)?;
        for (start, blocks) in self.extents.dead() {
            self.out
                .discard(u64::from(start) * BLOCK, u64::from(blocks) * BLOCK)
                .map_err(ErofsError::Write)?;
        }
        let room = BLOCK as usize - ROOT_OFFSET;
        let (root, directories) =
            directory::write_all(tree, &mut self.out, &mut self.next_ino, room)
                .map_err(ErofsError::Write)?
                .ok_or(ErofsError::RootXattrs)?;
        let blocks = self.out.align().map_err(ErofsError::Write)?;
        self.check_room(0)?;
        let mut first = vec![0u8; BLOCK as usize];
        first[ROOT_OFFSET..ROOT_OFFSET + root.len()].copy_from_slice(&root);
        let inodes = others + directories;
        Superblock {
            inodes,
            blocks: blocks as u32,
            uuid,
            chunked: self.chunked,
        }
        .seal(&mut first);
        let file = self.out.seal(&first).map_err(ErofsError::Write)?;
        let summary = Summary {
            size: blocks * BLOCK,
            inodes,
            shared_bytes: self.shared_bytes,
        };
        Ok((file, summary))
    }

    fn add_file(
        &mut self,
        attributes: &Attributes,
        file: FileData<'_>,
    ) -> Result<Inode, ErofsError> {
        let FileData {
            size,
            segments,
            bytes,
        } = file;
        match segments {
            Some(segments) if !covers(segments, size) => {
                self.add_sparse(attributes, size, segments, bytes)
            }
            _ if size <= WHOLE => self.add_whole(attributes, size, bytes),
            _ => self.add_streamed(attributes, size, bytes),
        }
    }

    /// A file that fits memory.
    fn add_whole(
        &mut self,
        attributes: &Attributes,
        size: u64,
        bytes: &mut dyn BufRead,
    ) -> Result<Inode, ErofsError> {
        let mut content = std::mem::take(&mut self.scratch);
        content.clear();
        copy(bytes, size, |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        let inode = self.add_content(attributes, &content);
        self.scratch = content;
        inode
    }

    fn add_content(
        &mut self,
        attributes: &Attributes,
        content: &[u8],
    ) -> Result<Inode, ErofsError> {
        let size = content.len() as u64;
        let tail = (size % BLOCK) as usize;
        let room = BLOCK as usize - INODE_SIZE;
        let inline =
            tail > 0 && size < INLINE_BELOW && attributes.xattrs.bytes().len() + tail <= room;
        if size < DEDUP_FROM {
            if inline || size == 0 {
                let layout = match size {
                    0 => Layout::Plain { raw_blkaddr: 0 },
                    _ => Layout::Inline { raw_blkaddr: 0 },
                };
                return self.place(
                    attributes,
                    FileType::Regular,
                    size,
                    layout,
                    content,
                    NO_EXTENT,
                );
            }
            return self.add_plain(attributes, content, None);
        }
        let key = content_key(Sha256::new().chain_update(content), size);
        if inline && size < BLOCK {
            return match self.extents.find(&key, 1) {
                Known::Stored(index) => self.share(attributes, size, index, &[]),
                Known::Inlined(index) => {
                    let start = self.append_blocks(content)?;
                    let extent = self.extents.get_mut(index);
                    (extent.start, extent.blocks, extent.users) = (start, 1, 0);
                    self.share_new(attributes, size, index, &[])
                }
                Known::No => {
                    let extent = self.extents.add(Some(key), 0, 0);
                    // An inlined copy is no user of blocks.
                    self.extents.get_mut(extent).users = 0;
                    let layout = Layout::Inline { raw_blkaddr: 0 };
                    self.place(
                        attributes,
                        FileType::Regular,
                        size,
                        layout,
                        content,
                        NO_EXTENT,
                    )
                }
            };
        }
        if !inline {
            return self.add_plain(attributes, content, Some(key));
        }
        let (blocks, tail) = content.split_at(content.len() - tail);
        let count = blocks.len() as u64 / BLOCK;
        match self.extents.find(&key, count) {
            Known::Stored(index) => self.share(attributes, size, index, tail),
            Known::Inlined(_) | Known::No => {
                let start = self.append_blocks(blocks)?;
                let extent = self.extents.add(Some(key), start, count as u32);
                let layout = Layout::Inline { raw_blkaddr: start };
                self.place(attributes, FileType::Regular, size, layout, tail, extent)
            }
        }
    }

    /// All of a file in blocks, the last one padded.
    fn add_plain(
        &mut self,
        attributes: &Attributes,
        content: &[u8],
        key: Option<Key>,
    ) -> Result<Inode, ErofsError> {
        let size = content.len() as u64;
        let count = size.div_ceil(BLOCK);
        if let Some(key) = &key
            && let Known::Stored(index) = self.extents.find(key, count)
        {
            return self.share(attributes, size, index, &[]);
        }
        let start = self.append_blocks(content)?;
        let extent = self.extents.add(key, start, count as u32);
        let layout = Layout::Plain { raw_blkaddr: start };
        self.place(attributes, FileType::Regular, size, layout, &[], extent)
    }

    fn share(
        &mut self,
        attributes: &Attributes,
        size: u64,
        index: u32,
        tail: &[u8],
    ) -> Result<Inode, ErofsError> {
        self.shared_bytes += size - tail.len() as u64;
        self.share_new(attributes, size, index, tail)
    }

    fn share_new(
        &mut self,
        attributes: &Attributes,
        size: u64,
        index: u32,
        tail: &[u8],
    ) -> Result<Inode, ErofsError> {
        let extent = self.extents.get_mut(index);
        extent.users += 1;
        let raw_blkaddr = extent.start;
        let layout = match tail {
            [] => Layout::Plain { raw_blkaddr },
            _ => Layout::Inline { raw_blkaddr },
        };
        self.place(attributes, FileType::Regular, size, layout, tail, index)
    }

    /// A large file: written as it comes, given back if it was there already.
    fn add_streamed(
        &mut self,
        attributes: &Attributes,
        size: u64,
        bytes: &mut dyn BufRead,
    ) -> Result<Inode, ErofsError> {
        self.check_room(size)?;
        let start = self.out.align().map_err(ErofsError::Write)?;
        let mut hash = Sha256::new();
        copy(bytes, size, |piece| {
            hash.update(piece);
            self.out.append(piece).map_err(ErofsError::Write)
        })?;
        let key = content_key(hash, size);
        let count = size.div_ceil(BLOCK);
        if let Known::Stored(index) = self.extents.find(&key, count) {
            self.out.rewind(start * BLOCK);
            return self.share(attributes, size, index, &[]);
        }
        self.out.align().map_err(ErofsError::Write)?;
        let extent = self.extents.add(Some(key), start as u32, count as u32);
        let layout = Layout::Plain {
            raw_blkaddr: start as u32,
        };
        self.place(attributes, FileType::Regular, size, layout, &[], extent)
    }

    /// A file with holes: chunks without data have no blocks.
    fn add_sparse(
        &mut self,
        attributes: &Attributes,
        size: u64,
        segments: &[Segment],
        bytes: &mut dyn BufRead,
    ) -> Result<Inode, ErofsError> {
        let mut bits = 0u8;
        while size.div_ceil(BLOCK << bits) > MAX_CHUNKS {
            bits += 1;
        }
        // EROFS_CHUNK_FORMAT_BLKBITS_MASK has five bits; size is 64 bits wide, chunks 2^16.
        if bits > 31 {
            return Err(ErofsError::TooLarge { limit: self.limit });
        }
        let chunk = BLOCK << bits;
        let mut map = vec![NULL_ADDR; size.div_ceil(chunk) as usize];
        let first = self.out.align().map_err(ErofsError::Write)?;
        // The run being written: where it starts in the file and in the image, and how far it is filled.
        let (mut run, mut run_block, mut filled) = (0u64, first, 0u64);
        for segment in segments.iter().filter(|segment| segment.length > 0) {
            let begin = segment.offset / chunk * chunk;
            let end = segment.offset + segment.length;
            if filled == run || begin >= filled.next_multiple_of(chunk) {
                if filled > run {
                    self.fill_chunk(&mut filled, chunk, size)?;
                }
                run_block = self.out.align().map_err(ErofsError::Write)?;
                (run, filled) = (begin, begin);
            }
            self.check_room(end - filled)?;
            self.out
                .append_zeros(segment.offset - filled)
                .map_err(ErofsError::Write)?;
            copy(bytes, segment.length, |piece| {
                self.out.append(piece).map_err(ErofsError::Write)
            })?;
            filled = end;
            for index in segment.offset / chunk..end.div_ceil(chunk) {
                let block = run_block + (index * chunk - run) / BLOCK;
                map[index as usize] =
                    u32::try_from(block).map_err(|_| ErofsError::TooLarge { limit: self.limit })?;
            }
        }
        if filled > run {
            self.fill_chunk(&mut filled, chunk, size)?;
        }
        let blocks = self.out.align().map_err(ErofsError::Write)? - first;
        let extent = self.extents.add(None, first as u32, blocks as u32);
        self.chunked = Chunked::Yes;
        let layout = Layout::Chunked { bits };
        let map: Vec<u8> = map.iter().flat_map(|block| block.to_le_bytes()).collect();
        // The map is 4-byte aligned behind the xattrs, which are a multiple of 4 themselves.
        self.fill_head(attributes, FileType::Regular, size, layout);
        self.head.extend_from_slice(&map);
        self.place_head(FileType::Regular, &[], extent)
    }

    /// Zeros up to the end of the chunk, or of the file's last block.
    fn fill_chunk(&mut self, filled: &mut u64, chunk: u64, size: u64) -> Result<(), ErofsError> {
        let end = filled
            .next_multiple_of(chunk)
            .min(size.next_multiple_of(BLOCK));
        self.check_room(end - *filled)?;
        self.out
            .append_zeros(end - *filled)
            .map_err(ErofsError::Write)?;
        *filled = end;
        Ok(())
    }

    fn append_blocks(&mut self, bytes: &[u8]) -> Result<u32, ErofsError> {
        self.check_room(bytes.len() as u64)?;
        let start = self.out.align().map_err(ErofsError::Write)?;
        self.out.append(bytes).map_err(ErofsError::Write)?;
        self.out.align().map_err(ErofsError::Write)?;
        Ok(start as u32)
    }

    fn place(
        &mut self,
        attributes: &Attributes,
        file_type: FileType,
        size: u64,
        layout: Layout,
        tail: &[u8],
        extent: u32,
    ) -> Result<Inode, ErofsError> {
        self.fill_head(attributes, file_type, size, layout);
        self.place_head(file_type, tail, extent)
    }

    fn fill_head(
        &mut self,
        attributes: &Attributes,
        file_type: FileType,
        size: u64,
        layout: Layout,
    ) {
        let xattrs = attributes.xattrs.bytes();
        let fields = InodeFields {
            file_type,
            permissions: attributes.permissions,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            size,
            links: 1,
            ino: self.next_ino,
            xattr_bytes: xattrs.len(),
            layout,
        };
        self.next_ino = self.next_ino.wrapping_add(1);
        self.head.clear();
        self.head.extend_from_slice(&fields.encode());
        self.head.extend_from_slice(xattrs);
    }

    fn place_head(
        &mut self,
        file_type: FileType,
        tail: &[u8],
        extent: u32,
    ) -> Result<Inode, ErofsError> {
        self.check_room((self.head.len() + tail.len()) as u64)?;
        let nid = self
            .metadata
            .place(&mut self.out, &self.head, tail)
            .map_err(ErofsError::Write)?;
        Ok(Inode {
            nid,
            file_type,
            extent,
        })
    }

    fn check_room(&self, more: u64) -> Result<(), ErofsError> {
        match self.out.position().checked_add(more) {
            Some(end) if end <= self.limit => Ok(()),
            _ => Err(ErofsError::TooLarge { limit: self.limit }),
        }
    }
}

/// Whether the segments leave no hole.
fn covers(segments: &[Segment], size: u64) -> bool {
    let mut end = 0;
    segments.iter().all(|segment| {
        let adjoining = segment.offset <= end;
        end = segment.offset + segment.length;
        adjoining
    }) && end >= size
}

fn content_key(hash: Sha256, size: u64) -> Key {
    let digest = hash.chain_update(size.to_le_bytes()).finalize();
    let mut key = Key::default();
    key.copy_from_slice(&digest[..16]);
    key
}

/// Takes exactly `size` bytes, in whatever pieces they come.
fn copy(
    from: &mut dyn BufRead,
    size: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), ErofsError>,
) -> Result<(), ErofsError> {
    let mut left = size;
    while left > 0 {
        let piece = from.fill_buf().map_err(ErofsError::Data)?;
        if piece.is_empty() {
            return Err(ErofsError::Data(io::ErrorKind::UnexpectedEof.into()));
        }
        let now = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        take(&piece[..now])?;
        from.consume(now);
        left -= now as u64;
    }
    Ok(())
}
