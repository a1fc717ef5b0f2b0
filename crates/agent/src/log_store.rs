//! One source of log lines on disk, bounded: lines with sequence numbers, appended to a file that is
//! rotated once, followed by any number of readers.
//!
//! A workload's output arrives in pieces with the guest's own numbers. A line remembers where in that
//! stream it ended, so that a restarted host asks the guest for exactly what it does not have yet:
//! nothing twice, nothing lost.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use warren_core::Timestamp;
use warren_core::ports::BoxStream;
use warren_core::ports::host_link::{LogLine, LogQuery, OutputStream};

/// A file is rotated when it is larger; two are kept.
const ROTATE_AT: u64 = 8 << 20;
/// Longer lines are cut into several.
const LONGEST_LINE: usize = 16 << 10;

/// Where in a guest's output something ended: record number and bytes of that record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position(pub(crate) u64, pub(crate) u64);

#[derive(Debug, Serialize, Deserialize)]
struct StoredLine {
    #[serde(rename = "s")]
    seq: u64,
    /// Nanoseconds since 1970.
    #[serde(rename = "t")]
    at: i128,
    #[serde(rename = "o")]
    stream: OutputStream,
    #[serde(rename = "x")]
    text: String,
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    end: Option<Position>,
    /// Which boot of the guest `end` is about.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

/// A shared handle on one log.
#[derive(Clone)]
pub(crate) struct LogStore {
    inner: Arc<Mutex<Inner>>,
    last: Arc<watch::Sender<u64>>,
    path: PathBuf,
}

struct Inner {
    file: Option<File>,
    size: u64,
    next_seq: u64,
    partial: [Partial; 2],
    boot: Option<String>,
}

/// The beginning of a line whose end has not come yet.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    at: i128,
    /// Everything of this stream up to here is in the file.
    written: Position,
    /// Everything of this stream up to here is in the file or in `bytes`.
    taken: Position,
}

fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

impl LogStore {
    /// Opens (or will create, at the first line) the log at `path`. Reads what is there to find the next
    /// sequence number; a torn last line is dropped.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let mut next_seq = 1;
        let mut inner = Inner {
            file: None,
            size: 0,
            next_seq,
            partial: Default::default(),
            boot: None,
        };
        for file in [rotated(&path), path.clone()] {
            for line in stored_lines(&file)? {
                next_seq = next_seq.max(line.seq + 1);
                if line.boot.is_some() && line.boot != inner.boot {
                    inner.boot = line.boot;
                    inner.partial = Default::default();
                }
                if let Some(end) = line.end {
                    let partial = &mut inner.partial[index(line.stream)];
                    partial.written = partial.written.max(end);
                    partial.taken = partial.written;
                }
            }
        }
        inner.next_seq = next_seq;
        Ok(LogStore {
            inner: Arc::new(Mutex::new(inner)),
            last: Arc::new(watch::Sender::new(next_seq - 1)),
            path,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins (or goes on with) the output of one boot of the guest: the first record to ask it for.
    pub(crate) fn begin_boot(&self, boot: &str) -> u64 {
        let mut inner = self.lock();
        if inner.boot.as_deref() != Some(boot) {
            inner.boot = Some(boot.to_owned());
            inner.partial = Default::default();
        }
        for partial in &mut inner.partial {
            partial.bytes.clear();
            partial.taken = partial.written;
        }
        // A stream of which nothing is written may have an unfinished line in any record: from the first
        // one on. What the guest no longer has was acknowledged, so it is in the file.
        inner
            .partial
            .iter()
            .map(|partial| partial.written.0)
            .min()
            .unwrap_or(0)
            .max(1)
    }

    /// The newest guest record of which anything is in the file.
    pub(crate) fn newest_record(&self) -> u64 {
        self.lock()
            .partial
            .iter()
            .map(|partial| partial.written.0)
            .max()
            .unwrap_or(0)
    }

    /// Takes a piece of a workload's output. Whole lines are written; the rest waits for its end.
    pub(crate) fn append_record(
        &self,
        record: u64,
        at: i128,
        stream: OutputStream,
        data: &[u8],
    ) -> io::Result<()> {
        let mut inner = self.lock();
        let taken = inner.partial[index(stream)].taken;
        if record < taken.0 {
            return Ok(());
        }
        let skip = if record == taken.0 {
            usize::try_from(taken.1).unwrap_or(usize::MAX)
        } else {
            0
        };
        let fresh = data.get(skip..).unwrap_or_default();
        inner.take(&self.path, stream, at, fresh, Some((record, skip as u64)))?;
        self.announce(inner);
        Ok(())
    }

    /// Takes bytes that have no numbers of their own (a console).
    pub(crate) fn append(
        &self,
        at: Timestamp,
        stream: OutputStream,
        data: &[u8],
    ) -> io::Result<()> {
        let mut inner = self.lock();
        inner.take(&self.path, stream, at.unix_timestamp_nanos(), data, None)?;
        self.announce(inner);
        Ok(())
    }

    /// Writes a line of our own.
    pub(crate) fn note(&self, at: Timestamp, text: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.write(
            &self.path,
            OutputStream::Stderr,
            at.unix_timestamp_nanos(),
            text.to_owned(),
            None,
        )?;
        self.announce(inner);
        Ok(())
    }

    /// Writes unfinished lines as they are: their end is not coming, or somebody is waiting to see them.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut inner = self.lock();
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let partial = &mut inner.partial[index(stream)];
            if !partial.bytes.is_empty() {
                let (at, end) = (partial.at, partial.taken);
                let text =
                    String::from_utf8_lossy(&std::mem::take(&mut partial.bytes)).into_owned();
                inner.write(&self.path, stream, at, text, Some(end))?;
            }
        }
        self.announce(inner);
        Ok(())
    }

    /// The last guest record that is in the file whole, for every stream: what may be acknowledged once
    /// `received` is the last record received.
    pub(crate) fn acknowledgeable(&self, received: u64) -> u64 {
        let inner = self.lock();
        let waiting = inner
            .partial
            .iter()
            .filter(|partial| !partial.bytes.is_empty())
            .map(|partial| partial.written);
        waiting
            .map(|written| written.0)
            .min()
            .map_or(received, |oldest| oldest.min(received))
    }

    fn announce(&self, inner: std::sync::MutexGuard<'_, Inner>) {
        let last = inner.next_seq - 1;
        drop(inner);
        self.last
            .send_if_modified(|seen| std::mem::replace(seen, last) != last);
    }

    /// The lines that `query` asks for; with `follow`, until `over` is true.
    pub(crate) fn lines(
        &self,
        query: LogQuery,
        over: watch::Receiver<bool>,
    ) -> io::Result<BoxStream<LogLine>> {
        let follow = query.follow == warren_core::ports::host_link::Follow::Yes;
        let mut reader = Reader {
            path: self.path.clone(),
            file: None,
            after: query.after.unwrap_or(0),
        };
        if let Some(tail) = query.tail {
            reader.after = reader
                .after
                .max((self.lock().next_seq - 1).saturating_sub(tail));
        }
        let changes = self.last.subscribe();
        let state = (
            reader,
            changes,
            over,
            std::collections::VecDeque::<LogLine>::new(),
        );
        Ok(Box::pin(futures::stream::unfold(
            state,
            move |(mut reader, mut changes, mut over, mut ready)| async move {
                loop {
                    if let Some(line) = ready.pop_front() {
                        return Some((line, (reader, changes, over, ready)));
                    }
                    // Marked seen before reading: a line that comes meanwhile wakes the next wait.
                    changes.borrow_and_update();
                    let finished = *over.borrow_and_update();
                    let read = tokio::task::spawn_blocking(move || (reader.batch(), reader)).await;
                    let (batch, returned) = match read {
                        Ok(result) => result,
                        Err(_) => return None,
                    };
                    reader = returned;
                    match batch {
                        Ok(lines) if !lines.is_empty() => ready.extend(lines),
                        Ok(_) if follow && !finished => {
                            tokio::select! {
                                changed = changes.changed() => if changed.is_err() { return None },
                                changed = over.changed() => if changed.is_err() { return None },
                            }
                        }
                        Ok(_) | Err(_) => return None,
                    }
                }
            },
        )))
    }
}

impl Inner {
    fn take(
        &mut self,
        path: &Path,
        stream: OutputStream,
        at: i128,
        data: &[u8],
        origin: Option<(u64, u64)>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let room = LONGEST_LINE - self.partial[index(stream)].bytes.len();
            let rest = &data[done..];
            let newline = rest.iter().take(room).position(|byte| *byte == b'\n');
            let (length, ended) = match newline {
                Some(position) => (position + 1, true),
                None => (rest.len().min(room), rest.len() >= room),
            };
            let partial = &mut self.partial[index(stream)];
            if partial.bytes.is_empty() {
                partial.at = at;
            }
            partial.bytes.extend_from_slice(&rest[..length]);
            done += length;
            if let Some((record, skipped)) = origin {
                partial.taken = Position(record, skipped + done as u64);
            }
            if ended {
                let mut bytes = std::mem::take(&mut partial.bytes);
                let (at, end) = (partial.at, origin.map(|_| partial.taken));
                while bytes
                    .last()
                    .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
                {
                    bytes.pop();
                }
                self.write(
                    path,
                    stream,
                    at,
                    String::from_utf8_lossy(&bytes).into_owned(),
                    end,
                )?;
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        path: &Path,
        stream: OutputStream,
        at: i128,
        text: String,
        end: Option<Position>,
    ) -> io::Result<()> {
        let line = StoredLine {
            seq: self.next_seq,
            at,
            stream,
            text,
            end,
            boot: end.and(self.boot.clone()),
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        if self.size > ROTATE_AT {
            std::fs::rename(path, rotated(path))?;
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = OpenOptions::new().append(true).create(true).open(path)?;
                self.size = file.metadata()?.len();
                if self.size > 0 && !ends_with_newline(path)? {
                    // The last writer died in the middle of a line.
                    file.write_all(b"\n")?;
                }
                self.file.insert(file)
            }
        };
        file.write_all(&bytes)?;
        self.size += bytes.len() as u64;
        self.next_seq += 1;
        if let Some(end) = end {
            self.partial[index(stream)].written = end;
        }
        Ok(())
    }
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::Read;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn stored_lines(path: &Path) -> io::Result<impl Iterator<Item = StoredLine> + use<>> {
    let file = match File::open(path) {
        Ok(file) => Some(BufReader::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(file
        .into_iter()
        .flat_map(|file| file.split(b'\n').map_while(Result::ok))
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Reads a log from a sequence number on, across rotation.
struct Reader {
    path: PathBuf,
    file: Option<(BufReader<File>, u64)>,
    after: u64,
}

impl Reader {
    /// The next lines, some hundred at most; empty at the end.
    fn batch(&mut self) -> io::Result<Vec<LogLine>> {
        const MOST: usize = 256;
        let mut lines = Vec::new();
        while lines.len() < MOST {
            let Some((file, inode)) = &mut self.file else {
                if !self.open_next(None)? {
                    break;
                }
                continue;
            };
            let inode = *inode;
            let mut bytes = Vec::new();
            let start = file.stream_position()?;
            file.read_until(b'\n', &mut bytes)?;
            if bytes.last() != Some(&b'\n') {
                // The end, or a line that is being written: try again from its start.
                file.seek(SeekFrom::Start(start))?;
                if !self.open_next(Some(inode))? {
                    break;
                }
                continue;
            }
            if let Ok(line) = serde_json::from_slice::<StoredLine>(&bytes)
                && line.seq > self.after
            {
                self.after = line.seq;
                lines.push(LogLine {
                    seq: line.seq,
                    at: Timestamp::from_unix_timestamp_nanos(line.at)
                        .unwrap_or(Timestamp::UNIX_EPOCH),
                    stream: line.stream,
                    text: line.text,
                });
            }
        }
        Ok(lines)
    }

    /// Opens the file after the one with inode `done`: the rotated one first, then the current one.
    fn open_next(&mut self, done: Option<u64>) -> io::Result<bool> {
        let mut candidates = Vec::new();
        for path in [rotated(&self.path), self.path.clone()] {
            match File::open(&path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    candidates.push((file, inode));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let next = match done {
            None => candidates.into_iter().next(),
            Some(done) => match candidates.iter().position(|(_, inode)| *inode == done) {
                Some(at) => candidates.into_iter().nth(at + 1),
                // Rotated away twice while we were reading: go on with the oldest there is.
                None => candidates.into_iter().next(),
            },
        };
        match next {
            Some((file, inode)) => {
                self.file = Some((BufReader::new(file), inode));
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use futures::StreamExt;
    use warren_core::ports::host_link::Follow;

    fn texts(log: &LogStore, query: LogQuery) -> Vec<String> {
        let (_over, receiver) = watch::channel(true);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            log.lines(query, receiver)
                .unwrap()
                .map(|line| line.text)
                .collect()
                .await
        })
    }

    #[test]
    fn lines_cut_anywhere_come_out_whole_and_a_restart_takes_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        assert_eq!(log.begin_boot("a"), 1);
        log.append_record(1, 0, OutputStream::Stdout, b"one\ntw")
            .unwrap();
        assert_eq!(log.acknowledgeable(1), 1);
        log.append_record(2, 0, OutputStream::Stderr, b"err\n")
            .unwrap();
        log.append_record(3, 0, OutputStream::Stdout, b"o\nthr")
            .unwrap();
        assert_eq!(log.acknowledgeable(3), 3);
        drop(log);
        // The unfinished "thr" was in memory only: record 3 is asked for again, and its first two bytes skipped.
        let log = LogStore::open(path).unwrap();
        assert_eq!(log.begin_boot("a"), 2);
        log.append_record(2, 0, OutputStream::Stderr, b"err\n")
            .unwrap();
        log.append_record(3, 0, OutputStream::Stdout, b"o\nthr")
            .unwrap();
        log.append_record(4, 0, OutputStream::Stdout, b"ee\n")
            .unwrap();
        assert_eq!(
            texts(&log, LogQuery::default()),
            ["one", "err", "two", "three"]
        );
        assert_eq!(
            texts(
                &log,
                LogQuery {
                    tail: Some(1),
                    ..LogQuery::default()
                }
            ),
            ["three"]
        );
        assert_eq!(
            texts(
                &log,
                LogQuery {
                    after: Some(2),
                    ..LogQuery::default()
                }
            ),
            ["two", "three"]
        );
    }

    #[test]
    fn a_new_boot_starts_its_records_at_one() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(dir.path().join("log")).unwrap();
        log.begin_boot("a");
        log.append_record(9, 0, OutputStream::Stdout, b"first\n")
            .unwrap();
        assert_eq!(log.begin_boot("b"), 1);
        log.append_record(1, 0, OutputStream::Stdout, b"second\n")
            .unwrap();
        assert_eq!(texts(&log, LogQuery::default()), ["first", "second"]);
    }

    #[test]
    fn a_log_is_bounded_and_a_follower_sees_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        let (over, receiver) = watch::channel(false);
        let follow = LogQuery {
            follow: Follow::Yes,
            ..LogQuery::default()
        };
        let line = vec![b'x'; 100_000];
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let reader = log.lines(follow, receiver).unwrap();
        let seen = runtime.spawn(reader.map(|line| line.seq).collect::<Vec<_>>());
        for _ in 0..300 {
            log.append(Timestamp::UNIX_EPOCH, OutputStream::Stdout, &line)
                .unwrap();
        }
        log.flush().unwrap();
        let kept = std::fs::metadata(&path).unwrap().len()
            + std::fs::metadata(rotated(&path)).unwrap().len();
        assert!(kept < 2 * ROTATE_AT + (1 << 20), "{kept}");
        over.send_replace(true);
        let seen = runtime.block_on(seen).unwrap();
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(seen.last().copied(), Some(log.lock().next_seq - 1));
    }

    #[test]
    fn a_torn_last_line_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogStore::open(path.clone()).unwrap();
        log.append(Timestamp::UNIX_EPOCH, OutputStream::Stdout, b"whole\n")
            .unwrap();
        drop(log);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"s\":2,\"t\":")
            .unwrap();
        let log = LogStore::open(path).unwrap();
        log.append(Timestamp::UNIX_EPOCH, OutputStream::Stdout, b"next\n")
            .unwrap();
        assert_eq!(texts(&log, LogQuery::default()), ["whole", "next"]);
    }
}
