//! Rows: their checksums, and the reads of records that readers and the writer share.

use crate::rules::KeyRange;
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};
use warren_core::ports::store::{Damaged, Page, Record, Revision};

/// The first 16 bytes of SHA-256: against disks, not against forgers.
pub(super) type Checksum = [u8; 16];

fn checksum(kind: u8, revision: i64, position: u32, key: &[u8], value: &[u8]) -> Checksum {
    let mut hash = Sha256::new();
    hash.update([kind]);
    hash.update(revision.to_le_bytes());
    hash.update(position.to_le_bytes());
    hash.update((key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value);
    let mut sum = Checksum::default();
    sum.copy_from_slice(&hash.finalize()[..16]);
    sum
}

/// Of a row of `records`.
pub(super) fn of_record(key: &[u8], value: &[u8], revision: i64) -> Checksum {
    checksum(b'r', revision, 0, key, value)
}

/// Of a row of `changes`.
pub(super) fn of_change(
    revision: i64,
    position: u32,
    key: &[u8],
    value: Option<&[u8]>,
) -> Checksum {
    match value {
        Some(value) => checksum(b'p', revision, position, key, value),
        None => checksum(b'd', revision, position, key, &[]),
    }
}

/// SQLite counts in `i64`; a revision reaches its end no sooner than time does.
pub(super) fn to_sql(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(revision: i64) -> Revision {
    Revision::try_from(revision).unwrap_or(0)
}

pub(super) fn raw(value: ValueRef<'_>) -> Option<&[u8]> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    }
}

/// A row of `records` as far as it can be told.
#[derive(Debug)]
pub(super) enum Sighting {
    Whole(Record),
    Broken(Broken),
}

/// What a damaged row still holds.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) key: String,
    pub(super) reason: String,
    pub(super) value: Option<Vec<u8>>,
    pub(super) revision: Option<i64>,
    pub(super) checksum: Option<Vec<u8>>,
}

/// Reads `key, value, revision, checksum`; a flipped bit may have changed even a column's type.
pub(super) fn sight(row: &Row<'_>) -> Result<Sighting, rusqlite::Error> {
    let key = raw(row.get_ref(0)?);
    let value = raw(row.get_ref(1)?);
    let revision = match row.get_ref(2)? {
        ValueRef::Integer(revision) => Some(revision),
        _ => None,
    };
    let stored = raw(row.get_ref(3)?);
    if let (Some(key), Some(value), Some(revision), Some(stored)) = (key, value, revision, stored)
        && of_record(key, value, revision) == *stored
        && let Ok(key) = std::str::from_utf8(key)
    {
        return Ok(Sighting::Whole(Record {
            key: key.to_owned(),
            value: Bytes::copy_from_slice(value),
            revision: from_sql(revision),
        }));
    }
    Ok(Sighting::Broken(Broken {
        key: key.map_or_else(String::new, |key| String::from_utf8_lossy(key).into_owned()),
        reason: "its checksum does not match".to_owned(),
        value: value.map(<[u8]>::to_vec),
        revision,
        checksum: stored.map(<[u8]>::to_vec),
    }))
}

/// What a read gave when everything it touched was whole.
pub(super) enum Checked<T> {
    Whole(T),
    /// Something was not: it must be set aside, then read again.
    Damaged,
}

pub(super) fn get(
    connection: &Connection,
    key: &str,
) -> Result<Checked<Option<Record>>, rusqlite::Error> {
    let row = connection
        .prepare_cached("SELECT key, value, revision, checksum FROM records WHERE key = ?1")?
        .query_row([key], sight)
        .optional()?;
    Ok(match row {
        None => Checked::Whole(None),
        Some(Sighting::Whole(record)) => Checked::Whole(Some(record)),
        Some(Sighting::Broken(_)) => Checked::Damaged,
    })
}

pub(super) fn counters(connection: &Connection) -> Result<(Revision, Revision), rusqlite::Error> {
    connection
        .prepare_cached("SELECT revision, compacted FROM counters WHERE id = 0")?
        .query_row([], |row| Ok((from_sql(row.get(0)?), from_sql(row.get(1)?))))
}

pub(super) fn list(
    connection: &mut Connection,
    range: &KeyRange,
    limit: usize,
) -> Result<Checked<Page>, rusqlite::Error> {
    // One snapshot for the rows and the revision they are true of.
    let snapshot = connection.transaction()?;
    let (revision, _) = counters(&snapshot)?;
    let mut records = Vec::new();
    let mut next = None;
    if !range.is_empty() {
        let mut statement = match &range.high {
            Some(_) => snapshot.prepare_cached(
                "SELECT key, value, revision, checksum FROM records WHERE key >= ?1 AND key < ?2 ORDER BY key",
            )?,
            None => snapshot.prepare_cached(
                "SELECT key, value, revision, checksum FROM records WHERE key >= ?1 ORDER BY key",
            )?,
        };
        let mut rows = match &range.high {
            Some(high) => statement.query(params![range.low, high])?,
            None => statement.query(params![range.low])?,
        };
        while let Some(row) = rows.next()? {
            if records.len() == limit {
                next = records.last().map(|last: &Record| last.key.clone());
                break;
            }
            match sight(row)? {
                Sighting::Whole(record) => records.push(record),
                Sighting::Broken(_) => return Ok(Checked::Damaged),
            }
        }
    }
    Ok(Checked::Whole(Page {
        records,
        next,
        revision,
    }))
}

pub(super) fn damaged(connection: &Connection) -> Result<Vec<Damaged>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT key, reason FROM damaged ORDER BY id")?
        .query_map([], |row| {
            Ok(Damaged {
                key: row.get(0)?,
                reason: row.get(1)?,
            })
        })?
        .collect()
}
