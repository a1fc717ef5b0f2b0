//! Copies of sparse files that share or skip what they can.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Makes `to`, which is empty, equal to `from`: by sharing its blocks where the file system can (btrfs, xfs), else by
/// copying only what is not a hole.
pub(super) fn sparse(from: &File, to: &mut File) -> io::Result<()> {
    if ioctl_ficlone(&*to, from).is_ok() {
        return Ok(());
    }
    let size = from.metadata()?.len();
    ftruncate(&*to, size)?;
    let mut at = 0;
    while at < size {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // No data behind `at`.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(begin))?;
        copy(from, to, begin, end)?;
        at = end;
    }
    Ok(())
}

fn copy(from: &File, to: &File, begin: u64, end: u64) -> io::Result<()> {
    let (mut read, mut write) = (begin, begin);
    while read < end {
        let left = usize::try_from(end - read).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, read, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Between file systems of old kernels.
fn copy_by_hand(from: &File, to: &File, begin: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 256 << 10];
    let mut at = begin;
    while at < end {
        let want = buffer
            .len()
            .min(usize::try_from(end - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut buffer[..want], at)?;
        to.write_all_at(&buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}
