//! PAX extended header records: `LENGTH KEY=VALUE\n`.

use std::collections::HashSet;

use base64::Engine as _;

use crate::acl::{self, Acl};
use crate::sparse::PaxSparse;
use crate::{TarError, Timestamp};

/// What the records before an entry change of it.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) device_major: Option<u32>,
    pub(super) device_minor: Option<u32>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
    /// Names in `xattrs`: headers have room for tens of thousands, too many to look through for each.
    known: HashSet<Vec<u8>>,
}

impl Overrides {
    /// Reads the records of one extended header.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), TarError> {
        while !records.is_empty() {
            // Writers pad with NULs now and then.
            if records.iter().all(|byte| *byte == 0) {
                break;
            }
            let malformed = || TarError::Pax("(length)".into());
            let space = records
                .iter()
                .position(|b| *b == b' ')
                .ok_or_else(malformed)?;
            let length: usize = parse(&records[..space]).ok_or_else(malformed)?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &records[space + 1..length - 1];
            let equals = record
                .iter()
                .position(|b| *b == b'=')
                .ok_or_else(malformed)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let invalid = || TarError::Pax(String::from_utf8_lossy(key).chars().take(64).collect());
        // An xattr may be empty; for everything else an empty value means: as in the header.
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattr(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decode(name).ok_or_else(invalid)?;
            let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
            let digits = value.split(|b| *b == b'=').next().unwrap_or_default();
            self.xattr(name, engine.decode(digits).map_err(|_| invalid())?);
            return Ok(());
        }
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"path" | b"linkpath" if value.contains(&0) => return Err(invalid()),
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(natural(value).ok_or_else(invalid)?),
            b"uid" => self.uid = Some(natural(value).ok_or_else(invalid)?),
            b"gid" => self.gid = Some(natural(value).ok_or_else(invalid)?),
            b"mtime" => self.mtime = Some(parse_time(value).ok_or_else(invalid)?),
            b"SCHILY.acl.access" | b"SCHILY.acl.default" => self.acl(key, value)?,
            b"SCHILY.devmajor" => self.device_major = Some(parse(value).ok_or_else(invalid)?),
            b"SCHILY.devminor" => self.device_minor = Some(parse(value).ok_or_else(invalid)?),
            key if key.starts_with(b"GNU.sparse.") => self.sparse.record(&key[11..], value)?,
            _ => {}
        }
        Ok(())
    }

    fn acl(&mut self, key: &[u8], text: &[u8]) -> Result<(), TarError> {
        match acl::parse(text) {
            Some(Acl::Minimal(_)) if key == b"SCHILY.acl.access" => {}
            Some(Acl::Value(value) | Acl::Minimal(value)) => {
                let name = match key {
                    b"SCHILY.acl.access" => b"system.posix_acl_access".as_slice(),
                    _ => b"system.posix_acl_default",
                };
                self.xattr(name.to_vec(), value);
            }
            // An attribute of a namespace that no file system has: it is counted with the others that are dropped.
            Some(Acl::Named) => self.xattr(key.to_vec(), text.to_vec()),
            None => return Err(TarError::Pax(String::from_utf8_lossy(key).into_owned())),
        }
        Ok(())
    }

    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        // Both spellings are often given for one attribute: the first one stays.
        if self.known.insert(name.clone()) {
            self.xattrs.push((name, value));
        }
    }
}

/// Decimal digits only.
pub(super) fn parse<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A size or an id: not negative, and within 63 bits so that sums of two cannot overflow.
fn natural(value: &[u8]) -> Option<u64> {
    parse(value).filter(|value| i64::try_from(*value).is_ok())
}

/// `[-]seconds[.fraction]`; what is finer than a nanosecond is cut off towards zero.
fn parse_time(value: &[u8]) -> Option<Timestamp> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |b| *b == b'.');
    let whole: i64 = parse(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0u32, |value, at| {
        value * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'))
    });
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => Timestamp {
            seconds: whole,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -whole,
            nanoseconds: 0,
        },
        (true, nanoseconds) => Timestamp {
            seconds: -whole - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn percent_decode(name: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, later)) = rest.split_first() {
        rest = later;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        decoded.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed parse fails the test")]
    use super::*;

    #[test]
    fn times_count_forwards_from_the_second_below() {
        for (text, seconds, nanoseconds) in [
            ("1350244992.023960108", 1_350_244_992, 23_960_108),
            ("5", 5, 0),
            ("-1.5", -2, 500_000_000),
            ("-0.000000001", -1, 999_999_999),
            ("1.9999999999", 1, 999_999_999),
        ] {
            let time = parse_time(text.as_bytes()).unwrap();
            assert_eq!(
                (time.seconds, time.nanoseconds),
                (seconds, nanoseconds),
                "{text}"
            );
        }
        for text in ["", "-", ".5", "1e5", "1.x", "99999999999999999999"] {
            assert_eq!(parse_time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn records_are_checked() {
        let read = |bytes: &[u8]| {
            let mut overrides = Overrides::default();
            overrides.read(bytes).map(|()| overrides)
        };
        assert_eq!(read(b"12 path=a/b\n").unwrap().path.unwrap(), b"a/b");
        let value = read(b"30 SCHILY.xattr.user.a=\xff\x00\n=x\n\n").unwrap();
        assert_eq!(
            value.xattrs,
            [(b"user.a".to_vec(), b"\xff\0\n=x\n".to_vec())]
        );
        let first =
            read(b"22 SCHILY.xattr.u.a=1\n27 LIBARCHIVE.xattr.u.a=Mg\n22 SCHILY.xattr.u.b=3\n");
        let expected = [("u.a", "1"), ("u.b", "3")].map(|(n, v)| (n.into(), v.into()));
        assert_eq!(first.unwrap().xattrs, expected);
        for bad in [
            &b"999999999999999999999 path=a\n"[..],
            b"5 a=b\n6 a=b\nx",
            b"0 path=a\n",
            b"3 \n",
            b"path=a\n",
            b"13 size=-123\n",
            b"12 path=a\0b\n",
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
