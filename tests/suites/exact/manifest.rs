//! Says all that a tree is, a line for each name: run on the host over what umoci has unpacked, and in a guest over the
//! disk that it has booted from.
//!
//! `manifest ROOT`, or `manifest DEVICE DIRECTORY`, which mounts the disk there first, read-only. Built by hand, static,
//! with nothing but the standard library: it goes into images of any kind.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fs::Metadata;
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

unsafe extern "C" {
    fn llistxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn lgetxattr(
        path: *const c_char,
        name: *const c_char,
        value: *mut c_void,
        size: usize,
    ) -> isize;
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
}

const MS_RDONLY: c_ulong = 1;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let root = match arguments.as_slice() {
        [root] => root.clone(),
        [device, directory] => {
            std::fs::create_dir_all(directory)?;
            mount_disk(device, directory)?;
            directory.clone()
        }
        _ => return Err("usage: manifest ROOT | manifest DEVICE DIRECTORY".into()),
    };
    let mut found: BTreeMap<Vec<u8>, (PathBuf, Metadata)> = BTreeMap::new();
    let mut first_name: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut pending = vec![root.clone()];
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata()?;
        let name = path.strip_prefix(&root)?.as_os_str().as_bytes().to_vec();
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
        let first = first_name.entry(meta.ino()).or_insert_with(|| name.clone());
        if name < *first {
            first.clone_from(&name);
        }
        found.insert(name, (path, meta));
    }
    // Nothing large is made anew for each of thousands of files.
    let (mut buffer, mut names) = (vec![0; 1 << 18], vec![0; 1 << 16]);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for (name, (path, meta)) in &found {
        let kind = meta.file_type();
        write!(
            out,
            "/{} {:o} {}:{} {}.{:09} links={}",
            name.escape_ascii(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink()
        )?;
        if kind.is_file() {
            write!(
                out,
                " size={} {:016x}",
                meta.len(),
                digest(path, &mut buffer)?
            )?;
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(path)?;
            write!(out, " -> {}", target.as_os_str().as_bytes().escape_ascii())?;
        }
        if kind.is_char_device() || kind.is_block_device() {
            write!(out, " device={:x}", meta.rdev())?;
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            let first = &first_name[&meta.ino()];
            write!(out, " same-as=/{}", first.escape_ascii())?;
        }
        for (name, value) in xattrs(path, &mut names)? {
            write!(out, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        writeln!(out)?;
    }
    // Whoever reads this knows that it is all.
    writeln!(out, "{} names", found.len())?;
    out.flush()?;
    Ok(())
}

/// FNV-1a over words of eight bytes: quick in an emulated machine, and nobody here means to deceive it.
fn digest(path: &Path, buffer: &mut [u8]) -> std::io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut digest = 0xcbf2_9ce4_8422_2325u64;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        let words = filled.next_multiple_of(8);
        buffer[filled..words].fill(0);
        for word in buffer[..words].chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            digest = (digest ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(1);
        }
        if filled < buffer.len() {
            return Ok(digest);
        }
    }
}

fn c_path(path: &Path) -> std::io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn xattrs(path: &Path, names: &mut [u8]) -> std::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = c_path(path)?;
    // SAFETY: the path ends with a NUL, and the buffer has as many bytes as is said.
    let length = unsafe { llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let length = usize::try_from(length).map_err(|_| std::io::Error::last_os_error())?;
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let c_name = CString::new(name)?;
        let mut value = vec![0u8; 1 << 16];
        // SAFETY: both strings end with a NUL, and the buffer has as many bytes as is said.
        let length = unsafe {
            lgetxattr(
                path.as_ptr(),
                c_name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        let length = usize::try_from(length).map_err(|_| std::io::Error::last_os_error())?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

fn mount_disk(device: &Path, directory: &Path) -> std::io::Result<()> {
    let (source, target) = (c_path(device)?, c_path(directory)?);
    // SAFETY: all strings end with a NUL, and erofs needs no data.
    let result = unsafe {
        mount(
            source.as_ptr(),
            target.as_ptr(),
            c"erofs".as_ptr(),
            MS_RDONLY,
            std::ptr::null(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
