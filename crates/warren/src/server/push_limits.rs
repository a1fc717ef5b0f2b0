//! `[push_limits]`: what clients may push to this host's own registry.

use super::quantity::{bytes, duration, seconds, size};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use warren_core::units::ByteSize;
use warren_image::UploadLimits;

/// Sizes are written as `10GiB` or in bytes, the time as `90s`, `1h30m` or in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PushLimits {
    /// One blob.
    #[serde(serialize_with = "bytes", deserialize_with = "size")]
    blob_size: ByteSize,
    /// All uploads together that are not finished.
    #[serde(serialize_with = "bytes", deserialize_with = "size")]
    pending_size: ByteSize,
    /// An upload to which nothing came for so long is given up.
    #[serde(serialize_with = "seconds", deserialize_with = "duration")]
    idle: Duration,
}

impl Default for PushLimits {
    fn default() -> Self {
        let limits = UploadLimits::default();
        PushLimits {
            blob_size: ByteSize(limits.blob_bytes),
            pending_size: ByteSize(limits.pending_bytes),
            idle: limits.idle,
        }
    }
}

impl PushLimits {
    /// The same for the store.
    pub(crate) fn limits(&self) -> UploadLimits {
        UploadLimits {
            blob_bytes: self.blob_size.0,
            pending_bytes: self.pending_size.0,
            idle: self.idle,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn limits_are_read_as_people_write_them() {
        let read = |text: &str| serde_json::from_str::<PushLimits>(text);
        assert_eq!(read("{}").unwrap().limits(), UploadLimits::default());
        let limits = read(r#"{"blob_size": "2GiB", "idle": "10m"}"#)
            .unwrap()
            .limits();
        assert_eq!(limits.blob_bytes, 2 << 30);
        assert_eq!(limits.idle, Duration::from_secs(600));
        assert!(read(r#"{"blob": 1}"#).is_err());
    }
}
