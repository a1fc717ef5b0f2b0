//! Sizes and times in the configuration: written as `10GiB` and `90s`, or as numbers of bytes and seconds.

use serde::{Deserialize, Deserializer, Serializer};
use std::time::Duration;
use warren_core::units::{self, ByteSize};

/// A bare number, or a number with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity {
    Bare(u64),
    Spelled(String),
}

pub(super) fn bytes<S: Serializer>(size: &ByteSize, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(size.0)
}

pub(super) fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(time.as_secs())
}

pub(super) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<ByteSize, D::Error> {
    match Quantity::deserialize(from)? {
        Quantity::Bare(bytes) => Ok(ByteSize(bytes)),
        Quantity::Spelled(text) => units::parse_size(&text).map_err(serde::de::Error::custom),
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    match Quantity::deserialize(from)? {
        Quantity::Bare(seconds) => Ok(Duration::from_secs(seconds)),
        Quantity::Spelled(text) => units::parse_duration(&text).map_err(serde::de::Error::custom),
    }
}
