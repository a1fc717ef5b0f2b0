//! Blobs that arrive in pieces, from somebody who says at the end what digest they have.
//!
//! An upload lives in this process: a server that starts anew has none, and removes what they had written when it opens
//! the store. One piece at a time, each at the place where the last one ended.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Content, blocking_io};
use crate::digest::{Digest, Hasher};
use crate::store::publish::Temporary;

/// Uploads at once.
const MOST: usize = 256;
/// An upload that got nothing for so long makes room for others.
const IDLE: Duration = Duration::from_secs(3600);
/// A finished blob waits so long for the manifest that names it.
const GRACE: Duration = Duration::from_secs(3600);

/// Why an upload does not go on.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is none of this id, or not any more.
    #[error("there is no such upload")]
    Unknown,
    /// Another request writes to it.
    #[error("the upload is being written by another request")]
    Busy,
    /// A piece that does not begin where the last one ended.
    #[error("the upload has {expected} bytes, the next piece cannot begin at {given}")]
    Offset {
        /// Where it must begin.
        expected: u64,
        /// Where it does.
        given: u64,
    },
    /// What was uploaded is something else. The upload is gone.
    #[error("the upload has the digest {actual} instead of {expected}")]
    Digest {
        /// Promised.
        expected: Digest,
        /// Found.
        actual: Digest,
    },
    /// More than a store keeps track of.
    #[error("there are too many uploads at once")]
    TooMany,
    /// The data directory.
    #[error("an upload cannot be written")]
    Disk(#[from] io::Error),
}

/// Uploads under way, by id.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<String, Upload>>);

#[derive(Debug, Clone)]
struct Upload {
    touched: Instant,
    writing: Arc<tokio::sync::Mutex<Writing>>,
}

#[derive(Debug)]
struct Writing {
    /// Gone while a piece is written, and for good when that failed or the upload has ended.
    temporary: Option<Temporary>,
    hasher: Hasher,
    written: u64,
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &str) -> Result<Arc<tokio::sync::Mutex<Writing>>, UploadError> {
        let mut all = self.lock();
        let upload = all.get_mut(id).ok_or(UploadError::Unknown)?;
        upload.touched = Instant::now();
        Ok(Arc::clone(&upload.writing))
    }

    fn admit(&self) -> Result<(), UploadError> {
        let mut all = self.lock();
        all.retain(|_, upload| upload.touched.elapsed() < IDLE);
        if all.len() < MOST {
            Ok(())
        } else {
            Err(UploadError::TooMany)
        }
    }
}

impl Content {
    /// Begins an upload; its id.
    ///
    /// # Errors
    /// [`UploadError::TooMany`], [`UploadError::Disk`].
    pub async fn create_upload(&self) -> Result<String, UploadError> {
        self.uploads.admit()?;
        let beside = self.path(&Digest::of(b""));
        let temporary = blocking_io(move || Temporary::beside(&beside)).await?;
        let mut random = [0u8; 16];
        rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())
            .map_err(io::Error::from)?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let upload = Upload {
            touched: Instant::now(),
            writing: Arc::new(tokio::sync::Mutex::new(Writing {
                temporary: Some(temporary),
                hasher: Hasher::default(),
                written: 0,
            })),
        };
        self.uploads.lock().insert(id.clone(), upload);
        Ok(id)
    }

    /// How many bytes an upload has: where its next piece begins.
    ///
    /// # Errors
    /// [`UploadError::Unknown`]; [`UploadError::Busy`] while another request writes.
    pub fn upload_offset(&self, id: &str) -> Result<u64, UploadError> {
        let writing = self.uploads.get(id)?;
        let writing = writing.try_lock().map_err(|_| UploadError::Busy)?;
        Ok(writing.written)
    }

    /// Adds a piece that begins at `offset`; how many bytes there are then.
    ///
    /// # Errors
    /// See [`UploadError`]. After [`UploadError::Disk`] the upload is gone.
    pub async fn append(&self, id: &str, offset: u64, piece: Bytes) -> Result<u64, UploadError> {
        let writing = self.uploads.get(id)?;
        let mut writing = writing.try_lock_owned().map_err(|_| UploadError::Busy)?;
        if writing.written != offset {
            return Err(UploadError::Offset {
                expected: writing.written,
                given: offset,
            });
        }
        let mut temporary = writing.temporary.take().ok_or(UploadError::Unknown)?;
        let result = blocking_io(move || {
            temporary.file().write_all(&piece)?;
            writing.hasher.update(&piece);
            writing.written += piece.len() as u64;
            writing.temporary = Some(temporary);
            Ok(writing.written)
        })
        .await;
        if result.is_err() {
            self.cancel_upload(id);
        }
        Ok(result?)
    }

    /// Ends an upload: its bytes are the blob `digest` from now on. Whoever uploaded has an hour to put a
    /// record or a tag that reaches it before it may be collected.
    ///
    /// # Errors
    /// See [`UploadError`]; but for [`UploadError::Busy`] the upload is gone in any case.
    pub async fn finish_upload(&self, id: &str, digest: &Digest) -> Result<u64, UploadError> {
        let writing = self.uploads.get(id)?;
        let mut writing = writing.try_lock_owned().map_err(|_| UploadError::Busy)?;
        self.uploads.lock().remove(id);
        let mut temporary = writing.temporary.take().ok_or(UploadError::Unknown)?;
        self.keep_for(digest, GRACE);
        let (expected, path) = (digest.clone(), self.path(digest));
        let (hasher, written) = (std::mem::take(&mut writing.hasher), writing.written);
        let actual = blocking_io(move || {
            let actual = match expected.algorithm() == hasher.algorithm() {
                true => hasher.finish(),
                false => hash_again(temporary.file(), &expected)?,
            };
            if actual == expected {
                temporary.publish(&path)?;
            }
            Ok(actual)
        })
        .await?;
        if actual != *digest {
            return Err(UploadError::Digest {
                expected: digest.clone(),
                actual,
            });
        }
        Ok(written)
    }

    /// Gives an upload up; whether there was one.
    pub fn cancel_upload(&self, id: &str) -> bool {
        self.uploads.lock().remove(id).is_some()
    }
}

/// For a digest of another kind than was computed on the way.
fn hash_again(file: &std::fs::File, expected: &Digest) -> io::Result<Digest> {
    let mut hasher = Hasher::like(Some(expected));
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let count = file.read_at(&mut buffer, at)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
        at += count as u64;
    }
}
