//! `vmm.log`: what a VMM writes to its stdout and stderr, kept to a bounded size.
//!
//! The VMM writes to the file itself, since no pipe of ours would outlive us. It writes in append mode, so the
//! file may be cut at any time; lines that arrive between reading the tail and cutting are lost.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Above this it is cut.
const MAX: u64 = 1 << 20;
/// To about this.
const KEEP: u64 = 256 << 10;

/// Opens it for a VMM.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Cuts it to its last lines if it has grown too long.
pub(crate) fn trim(path: &Path) -> io::Result<()> {
    let mut file = match File::options().read(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if length <= MAX {
        return Ok(());
    }
    file.seek(SeekFrom::Start(length - KEEP))?;
    let mut tail = Vec::new();
    (&mut file).take(KEEP).read_to_end(&mut tail)?;
    let start = tail
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    file.set_len(0)?;
    file.write_all(b"[earlier output was dropped]\n")?;
    file.write_all(&tail[start..])
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    #[test]
    fn a_long_log_keeps_its_end_and_its_writer() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("vmm.log");
        let mut writer = open(&path).unwrap();
        for number in 0..200_000 {
            writeln!(writer, "line {number}").unwrap();
        }
        trim(&path).unwrap();
        writeln!(writer, "after").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= KEEP + 100);
        assert!(text.starts_with("[earlier output was dropped]\nline "));
        assert!(text.ends_with("line 199999\nafter\n"));
        let before = text.len();
        trim(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap().len(), before);
    }
}
