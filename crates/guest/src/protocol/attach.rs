//! The attach handshake, which makes sessions out of a line that knows no connections.
//!
//! A virtio-serial port carries whatever was written to it: bytes of a host that died, the second half
//! of a frame, replies to a session that no longer exists. So each attach begins with
//!
//! ```text
//! host  → guest   key (16 bytes, random per instance)  nonce (16 bytes, random per attach)
//! guest → host    nonce (16 bytes)
//! ```
//!
//! after which a fresh yamux session starts on both sides. The guest looks for the key in *all* bytes,
//! also in the middle of a session, because it often misses the hang-up; the host throws away all bytes
//! before its nonce. The key is random so that no payload contains it by accident or on purpose.
//!
//! Nothing is ever held back while looking: [`AttachScanner`] remembers the last bytes instead.

use std::fmt;
use std::str::FromStr;

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

/// Length of a key and of a nonce.
pub const TOKEN_LENGTH: usize = 16;

/// The random bytes with which every attach to one instance begins; the guest gets them on its kernel
/// command line as `warren.attach=<32 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttachKey(pub [u8; TOKEN_LENGTH]);

impl AttachKey {
    /// Used by a guest whose command line names no key. Only for manual experiments.
    pub const WELL_KNOWN: AttachKey = AttachKey(*b"\xffwarren-attach\x00\xfe");

    /// A fresh random key.
    #[cfg(feature = "client")]
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for AttachKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AttachKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttachKey(..)")
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an attach key is 32 hexadecimal digits")]
pub struct AttachKeyError;

impl FromStr for AttachKey {
    type Err = AttachKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != TOKEN_LENGTH * 2 {
            return Err(AttachKeyError);
        }
        let mut key = [0; TOKEN_LENGTH];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or(AttachKeyError)?;
            let low = char::from(pair[1]).to_digit(16).ok_or(AttachKeyError)?;
            *byte = u8::try_from(high * 16 + low).map_err(|_| AttachKeyError)?;
        }
        Ok(Self(key))
    }
}

impl Serialize for AttachKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttachKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What the host made up for one attach and the guest must echo.
pub type Nonce = [u8; TOKEN_LENGTH];

/// What [`AttachScanner::feed`] found in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// No key: the whole chunk belongs to the session that is running, if any.
    Nothing,
    /// The key was seen but its nonce has not arrived in full: the running session is over.
    KeySeen,
    /// A whole attach ended after `consumed` bytes of the chunk; what follows is the new session's and
    /// has to be fed again when it is read by that session.
    Attached {
        /// What to echo.
        nonce: Nonce,
        /// Bytes of the chunk up to and including the nonce.
        consumed: usize,
    },
}

/// Finds attaches in a stream of chunks cut anywhere.
pub struct AttachScanner {
    key: Finder<'static>,
    /// The last bytes fed, at most one less than a key, so that a key cut by chunks is found.
    tail: Vec<u8>,
    /// The nonce as far as it has arrived, if a key was seen.
    nonce: Option<Vec<u8>>,
}

impl AttachScanner {
    /// A scanner that has seen nothing.
    #[must_use]
    pub fn new(key: &AttachKey) -> Self {
        Self {
            key: Finder::new(&key.0).into_owned(),
            tail: Vec::with_capacity(TOKEN_LENGTH),
            nonce: None,
        }
    }

    /// Looks at the next bytes of the stream.
    pub fn feed(&mut self, chunk: &[u8]) -> Scan {
        let mut at = 0;
        loop {
            if let Some(mut nonce) = self.nonce.take() {
                let take = (TOKEN_LENGTH - nonce.len()).min(chunk.len() - at);
                nonce.extend_from_slice(&chunk[at..at + take]);
                at += take;
                let Ok(whole) = Nonce::try_from(nonce.as_slice()) else {
                    self.nonce = Some(nonce);
                    return Scan::KeySeen;
                };
                // A host that died between key and nonce, followed by another that attached: what
                // was taken for the nonce then holds the start of the second key.
                self.remember(&whole);
                return Scan::Attached {
                    nonce: whole,
                    consumed: at,
                };
            }
            match self.find(&chunk[at..]) {
                Some(end) => {
                    at += end;
                    self.tail.clear();
                    self.nonce = Some(Vec::with_capacity(TOKEN_LENGTH));
                }
                None => {
                    self.remember(&chunk[at..]);
                    return Scan::Nothing;
                }
            }
        }
    }

    /// Where, in `bytes`, a key ends that may have begun in the tail.
    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let head = &bytes[..bytes.len().min(TOKEN_LENGTH - 1)];
        let mut seam = Vec::with_capacity(2 * TOKEN_LENGTH);
        seam.extend_from_slice(&self.tail);
        seam.extend_from_slice(head);
        if let Some(start) = self.key.find(&seam) {
            return Some(start + TOKEN_LENGTH - self.tail.len());
        }
        self.key.find(bytes).map(|start| start + TOKEN_LENGTH)
    }

    fn remember(&mut self, bytes: &[u8]) {
        let keep = TOKEN_LENGTH - 1;
        if bytes.len() >= keep {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - keep..]);
        } else {
            let excess = (self.tail.len() + bytes.len()).saturating_sub(keep);
            self.tail.drain(..excess);
            self.tail.extend_from_slice(bytes);
        }
    }
}

impl fmt::Debug for AttachScanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachScanner")
            .field("in_nonce", &self.nonce.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: AttachKey = AttachKey(*b"0123456789abcdef");

    fn attaches(chunks: &[&[u8]], key: &AttachKey) -> Vec<Nonce> {
        let mut scanner = AttachScanner::new(key);
        let mut found = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            while let Scan::Attached { nonce, consumed } = scanner.feed(rest) {
                found.push(nonce);
                rest = &rest[consumed..];
            }
        }
        found
    }

    #[test]
    fn key_text_round_trips_and_rejects_garbage() {
        assert_eq!(KEY.to_string().parse(), Ok(KEY));
        for bad in [
            "",
            "00",
            "zz",
            &"g".repeat(32),
            &"0".repeat(33),
            "é".repeat(16).as_str(),
        ] {
            assert_eq!(bad.parse::<AttachKey>(), Err(AttachKeyError));
        }
    }

    #[test]
    fn attach_interrupted_by_another_attach_yields_the_second() {
        let mut line = KEY.0.to_vec();
        line.extend_from_slice(b"short");
        line.extend_from_slice(&KEY.0);
        line.extend_from_slice(&[7; 16]);
        assert_eq!(attaches(&[&line], &KEY).last(), Some(&[7; 16]));
    }

    proptest! {
        #[test]
        fn every_attach_is_found_however_the_line_is_cut(
            noise in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..5),
            key in any::<[u8; 16]>(),
            cuts in proptest::collection::vec(1usize..40, 1..60),
        ) {
            let mut line = Vec::new();
            let mut expected = Vec::new();
            for (index, part) in noise.iter().enumerate() {
                line.extend_from_slice(part);
                line.extend_from_slice(&key);
                let nonce = [index as u8; 16];
                line.extend_from_slice(&nonce);
                expected.push(nonce);
            }
            let mut chunks = Vec::new();
            let mut rest = line.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let cut = cuts.next().copied().unwrap_or(1).min(rest.len());
                chunks.push(&rest[..cut]);
                rest = &rest[cut..];
            }
            let key = AttachKey(key);
            // Noise that contains the key by chance (or a key like its own nonce) is not this test's subject.
            prop_assume!(noise.iter().all(|part| Finder::new(&key.0).find(part).is_none()));
            prop_assume!(key.0.iter().any(|byte| *byte != key.0[0]));
            prop_assert_eq!(attaches(&chunks, &key), expected);
        }
    }
}
