//! What an image may ask of a host. Everything a layer says is hostile: each number here has a typed refusal.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Bounds on one conversion. The defaults let every ordinary image pass and keep the memory of a conversion
/// below 256 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk image, holes included.
    pub image_bytes: u64,
    /// Uncompressed bytes of all layers.
    pub unpacked_bytes: u64,
    /// Entries in all layers.
    pub entries: u64,
    /// Size of one file, holes included.
    pub file_bytes: u64,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of a path.
    pub path_bytes: usize,
    /// Uncompressed bytes for each compressed one, once a layer is past `ratio_from`.
    pub ratio: u64,
    /// Uncompressed bytes of a layer that are not held against `ratio`.
    pub ratio_from: u64,
    /// Bytes of extended attributes of one file.
    pub xattr_bytes: usize,
    /// Bytes of the headers of one entry (PAX records, long names).
    pub header_bytes: u64,
    /// Memory for names, inodes and directories.
    pub tree_memory: u64,
    /// Layers of an image.
    pub layers: usize,
    /// Time for one conversion, waiting for downloads included.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            image_bytes: 1 << 40,
            unpacked_bytes: 256 << 30,
            entries: 4_000_000,
            file_bytes: 1 << 40,
            depth: 512,
            path_bytes: 4096,
            ratio: 200,
            ratio_from: 1 << 30,
            xattr_bytes: 64 << 10,
            header_bytes: 1 << 20,
            tree_memory: 96 << 20,
            layers: 512,
            time: Duration::from_secs(3600),
        }
    }
}

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    /// See [`Limits::unpacked_bytes`].
    #[error("the layers unpack to more than {0} bytes")]
    UnpackedBytes(u64),
    /// See [`Limits::entries`].
    #[error("the layers have more than {0} entries")]
    Entries(u64),
    /// See [`Limits::file_bytes`].
    #[error("a file is larger than {0} bytes")]
    FileBytes(u64),
    /// See [`Limits::depth`].
    #[error("a path has more than {0} components")]
    Depth(usize),
    /// See [`Limits::path_bytes`].
    #[error("a path is longer than {0} bytes")]
    PathBytes(usize),
    /// A component of a path is longer than Linux allows.
    #[error("a file name is longer than 255 bytes")]
    NameBytes,
    /// See [`Limits::ratio`].
    #[error("a layer unpacks to more than {0} times its size")]
    Ratio(u64),
    /// See [`Limits::xattr_bytes`].
    #[error("a file has more than {0} bytes of extended attributes")]
    XattrBytes(usize),
    /// See [`Limits::tree_memory`].
    #[error("the image's directory tree needs more than {0} bytes of memory")]
    TreeMemory(u64),
    /// See [`Limits::layers`].
    #[error("the image has more than {0} layers")]
    Layers(usize),
    /// See [`Limits::time`].
    #[error("the conversion took longer than {0:?}")]
    Time(Duration),
}

/// Why something that is measured has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Limit(LimitExceeded),
    Cancelled,
}

/// Watches uncompressed bytes come, from one source after the other.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    limits: &'a Limits,
    stop: &'a CancellationToken,
    started: Instant,
    unpacked: u64,
}

impl<'a> Meter<'a> {
    /// The time starts now.
    pub(crate) fn new(limits: &'a Limits, stop: &'a CancellationToken) -> Self {
        Meter {
            limits,
            stop,
            started: Instant::now(),
            unpacked: 0,
        }
    }

    /// Whether it may go on.
    pub(crate) fn check(&self) -> Result<(), Stop> {
        if self.stop.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        if self.started.elapsed() > self.limits.time {
            return Err(Stop::Limit(LimitExceeded::Time(self.limits.time)));
        }
        Ok(())
    }

    /// `more` bytes have come from a source that has given `unpacked` by now, out of `compressed`.
    pub(crate) fn count(
        &mut self,
        more: usize,
        unpacked: u64,
        compressed: u64,
    ) -> Result<(), Stop> {
        let limits = self.limits;
        self.unpacked += more as u64;
        if self.unpacked > limits.unpacked_bytes {
            return Err(Stop::Limit(LimitExceeded::UnpackedBytes(
                limits.unpacked_bytes,
            )));
        }
        if unpacked > limits.ratio_from && unpacked / limits.ratio.max(1) > compressed {
            return Err(Stop::Limit(LimitExceeded::Ratio(limits.ratio)));
        }
        Ok(())
    }
}
