//! Quantities with their unit in the type, and the one place where people's spellings of sizes and
//! durations (`1GB`, `512M`, `90s`, `1h30m`) are parsed.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Guest memory in mebibytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemoryMib(pub u64);

impl MemoryMib {
    /// The same amount in bytes.
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

impl fmt::Display for MemoryMib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        ByteSize(n << 30)
    }

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        ByteSize(n << 20)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
        ];
        for (unit, factor) in UNITS {
            if self.0 >= factor {
                let tenths =
                    (u128::from(self.0) * 10 + u128::from(factor) / 2) / u128::from(factor);
                return write!(f, "{}.{} {unit}", tenths / 10, tenths % 10);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Why a size or a duration could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseUnitError {
    /// Not a number with an optional unit.
    #[error("{0:?} is not a size: write a number and a unit, such as 512MB, 10GB or 1GiB")]
    Size(String),
    /// Not a sequence of numbers with time units.
    #[error("{0:?} is not a duration: write a number and a unit, such as 500ms, 90s, 5m or 1h30m")]
    Duration(String),
}

/// Parses `10GB`, `512M`, `1.5GiB`, `4096`. Units are powers of 1024 with or without the `i`, as
/// the instance API has always read them; a bare number is bytes.
///
/// # Errors
/// [`ParseUnitError::Size`] for anything else, for negative numbers and for what 64 bits cannot hold.
pub fn parse_size(text: &str) -> Result<ByteSize, ParseUnitError> {
    let wrong = || ParseUnitError::Size(text.to_owned());
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if digits.is_empty()
        || whole.len() + fraction.len() == 0
        || fraction.contains('.')
        || fraction.len() > 9
    {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| wrong())?
    };
    let mut bytes = u128::from(whole) * u128::from(factor);
    if !fraction.is_empty() {
        let numerator: u64 = fraction.parse().map_err(|_| wrong())?;
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
        bytes += u128::from(numerator) * u128::from(factor) / scale;
    }
    u64::try_from(bytes).map(ByteSize).map_err(|_| wrong())
}

/// Parses `500ms`, `90s`, `5m`, `1h30m`, `2d`; a bare number is seconds.
///
/// # Errors
/// [`ParseUnitError::Duration`] for anything else.
pub fn parse_duration(text: &str) -> Result<Duration, ParseUnitError> {
    let wrong = || ParseUnitError::Duration(text.to_owned());
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    if let Ok(seconds) = rest.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("10GB", 10 << 30),
            ("1GiB", 1 << 30),
            ("512M", 512 << 20),
            ("1.5g", 3 << 29),
            ("4096", 4096),
            (" 7 kb", 7 << 10),
        ] {
            assert_eq!(parse_size(text), Ok(ByteSize(bytes)), "{text}");
        }
        for text in [
            "",
            "GB",
            "-1GB",
            "1.2.3G",
            "10 lightyears",
            "99999999999999T",
            ".",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("500ms", 500),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("12", 12_000),
            ("0.5s", 500),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["", "s", "-1s", "1x", "1h30", "1e400s", "."] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_one_decimal() {
        assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteSize::gib(10).to_string(), "10.0 GiB");
        assert_eq!(ByteSize(12).to_string(), "12 B");
    }
}
