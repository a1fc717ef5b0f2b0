//! `[image_limits]`: what one image may ask of this host.

use super::quantity::{bytes, duration, seconds, size};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use warren_core::units::ByteSize;
use warren_image::{Limits, Options};

/// Each is a bound on one conversion; whoever meets it is told which it was. Sizes are written as `10GiB` or in bytes,
/// the time as `90s`, `1h30m` or in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImageLimits {
    /// What all layers of an image, and an archive of an image, unpack to.
    #[serde(serialize_with = "bytes", deserialize_with = "size")]
    total_size: ByteSize,
    /// The disk that is made of it, holes of sparse files included.
    #[serde(serialize_with = "bytes", deserialize_with = "size")]
    disk_size: ByteSize,
    /// One file, holes included.
    #[serde(serialize_with = "bytes", deserialize_with = "size")]
    file_size: ByteSize,
    /// Files, directories, links and everything else in all layers.
    entries: u64,
    /// Directories above a file.
    depth: usize,
    /// Unpacked bytes for each packed one. The first GiB of a layer is not held against it.
    expansion_ratio: u64,
    /// What names, inodes and directories take while an image is converted.
    #[serde(serialize_with = "bytes", deserialize_with = "size")]
    memory: ByteSize,
    /// From the first byte of the first layer to the last, waiting for downloads included.
    #[serde(serialize_with = "seconds", deserialize_with = "duration")]
    time: Duration,
    /// How long a registry may say nothing before it is asked again, and after some attempts given up.
    #[serde(serialize_with = "seconds", deserialize_with = "duration")]
    stall: Duration,
}

impl Default for ImageLimits {
    fn default() -> Self {
        let limits = Limits::default();
        ImageLimits {
            total_size: ByteSize(limits.unpacked_bytes),
            disk_size: ByteSize(limits.image_bytes),
            file_size: ByteSize(limits.file_bytes),
            entries: limits.entries,
            depth: limits.depth,
            expansion_ratio: limits.ratio,
            memory: ByteSize(limits.tree_memory),
            time: limits.time,
            stall: Options::default().stall,
        }
    }
}

impl ImageLimits {
    /// The same for the converter.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            unpacked_bytes: self.total_size.0,
            image_bytes: self.disk_size.0,
            file_bytes: self.file_size.0,
            entries: self.entries,
            depth: self.depth,
            ratio: self.expansion_ratio,
            tree_memory: self.memory.0,
            time: self.time,
            ..Limits::default()
        }
    }

    /// The same for what reads from registries.
    pub(crate) fn stall(&self) -> Duration {
        self.stall
    }

    /// # Errors
    /// A sentence that names the setting no image could live with, or that no kernel could.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        // An EROFS of 4096-byte blocks has 32-bit block numbers.
        const LARGEST: u64 = 16 << 40;
        let mib = 1 << 20;
        for (name, value, range) in [
            ("total_size", self.total_size.0, mib..=1 << 60),
            ("disk_size", self.disk_size.0, mib..=LARGEST),
            ("file_size", self.file_size.0, mib..=LARGEST),
            ("memory", self.memory.0, mib..=64 << 30),
            ("entries", self.entries, 1..=1 << 31),
            // Linux takes no path of more than 4096 bytes.
            ("depth", self.depth as u64, 1..=2048),
            ("expansion_ratio", self.expansion_ratio, 1..=1_000_000),
            ("time", self.time.as_secs(), 1..=30 * 86_400),
            ("stall", self.stall.as_secs(), 1..=3600),
        ] {
            anyhow::ensure!(
                range.contains(&value),
                "configuration: image_limits.{name} is {value}; it can be from {} to {}",
                range.start(),
                range.end()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use figment::Figment;
    use figment::providers::{Format, Serialized, Toml};

    fn read(text: &str) -> Result<ImageLimits, String> {
        let read: ImageLimits = Figment::from(Serialized::defaults(ImageLimits::default()))
            .merge(Toml::string(text))
            .extract()
            .map_err(|error| error.to_string())?;
        read.check().map_err(|error| error.to_string())?;
        Ok(read)
    }

    #[test]
    fn limits_are_read_as_people_write_them() {
        assert_eq!(read("").unwrap().limits(), Limits::default());
        let limits = read("total_size = \"1.5GiB\"\nfile_size = 2097152\ntime = \"2m\"\ndepth = 9")
            .unwrap()
            .limits();
        assert_eq!(limits.unpacked_bytes, 3 << 29);
        assert_eq!(limits.file_bytes, 2 << 20);
        assert_eq!(limits.time, Duration::from_secs(120));
        assert_eq!(
            (limits.depth, limits.entries),
            (9, Limits::default().entries)
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, named) in [
            ("total_size = \"many\"", "\"many\" is not a size"),
            ("total_size = 5", "image_limits.total_size"),
            ("disk_size = \"17TiB\"", "image_limits.disk_size"),
            ("depth = 100000", "image_limits.depth"),
            ("entries = 0", "image_limits.entries"),
            ("expansion_ratio = 0", "image_limits.expansion_ratio"),
            ("time = \"0s\"", "image_limits.time"),
            ("stall = \"2h\"", "image_limits.stall"),
            ("times = 5", "times"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
