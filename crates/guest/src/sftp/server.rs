//! Carries requests out, one after the other, and answers each.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, RenameFlags, StatVfs, StatVfsMountFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::longname::{self, Names};
use super::request::{OpenFlags, Request};
use super::wire::{MAX_PACKET, Packet};

/// The version that this server speaks, whatever a client can do beyond it.
const VERSION: u32 = 3;
/// Data in one reply or request: what is left of a packet beside its other fields, as OpenSSH has it.
const MAX_DATA: u32 = (MAX_PACKET - 1024) as u32;
/// Files and directories that are open at a time.
const MAX_HANDLES: usize = 1000;
/// A reply to a listing is sent when it has become so long.
const LISTED_TOGETHER: usize = 48 * 1024;
const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

mod kind {
    pub(super) const VERSION: u8 = 2;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const NAME: u8 = 104;
    pub(super) const ATTRIBUTES: u8 = 105;
    pub(super) const EXTENDED: u8 = 201;
}

/// Codes of section 7 of the draft.
mod status {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    pub(super) const FAILURE: u32 = 4;
    pub(super) const BAD_MESSAGE: u32 = 5;
    pub(super) const UNSUPPORTED: u32 = 8;
}

/// What a request comes to.
enum Reply {
    Done,
    Version,
    Handle(u32),
    Data(Vec<u8>),
    Path(Vec<u8>),
    Listed(Vec<(Vec<u8>, Vec<u8>, Attributes)>),
    Attributes(Attributes),
    FileSystem(StatVfs),
    Limits,
}

enum Failure {
    End,
    Unsupported,
    Handle,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Failure::Io(error.into())
    }
}

enum Handle {
    File { file: File, appends: bool },
    Directory { entries: ReadDir, path: PathBuf },
}

struct Server {
    handles: HashMap<u32, Handle>,
    next_handle: u32,
    names: Names,
    home: PathBuf,
}

/// Serves until the input ends. `home` is what `~` stands for.
///
/// # Errors
/// Input that cannot be read or output that cannot be written; a packet that is longer than [`MAX_PACKET`], or malformed.
pub fn serve(input: impl Read, output: impl Write, home: &Path) -> io::Result<()> {
    let mut input = BufReader::with_capacity(MAX_PACKET, input);
    let mut output = BufWriter::with_capacity(MAX_PACKET, output);
    let mut server = Server {
        handles: HashMap::new(),
        next_handle: 0,
        names: Names::read(),
        home: home.to_owned(),
    };
    let mut packet = Vec::new();
    while next_packet(&mut input, &mut packet)? {
        let (id, request) = Request::parse(&packet)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let reply = server.carry_out(request);
        output.write_all(&encode(id, reply).into_bytes())?;
        // Clients send many requests ahead: what they come to goes together.
        if !holds_a_packet(input.buffer()) {
            output.flush()?;
        }
    }
    Ok(())
}

fn next_packet(input: &mut impl Read, packet: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    let begun = input.read(&mut length)?;
    if begun == 0 {
        return Ok(false);
    }
    input.read_exact(&mut length[begun..])?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_PACKET {
        let words = format!("a packet of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    packet.resize(length, 0);
    input.read_exact(packet)?;
    Ok(true)
}

fn holds_a_packet(buffered: &[u8]) -> bool {
    buffered.first_chunk().is_some_and(|length| {
        let length = u64::from(u32::from_be_bytes(*length));
        u64::try_from(buffered.len()).is_ok_and(|buffered| buffered >= 4 + length)
    })
}

fn encode(id: u32, reply: Result<Reply, Failure>) -> Packet {
    match reply {
        Ok(Reply::Done) => encode_status(id, status::OK, "Success"),
        Ok(Reply::Version) => EXTENSIONS.iter().fold(
            Packet::new(kind::VERSION).u32(VERSION),
            |packet, (name, version)| packet.string(name.as_bytes()).string(version.as_bytes()),
        ),
        Ok(Reply::Handle(handle)) => Packet::answer(kind::HANDLE, id).string(&handle.to_be_bytes()),
        Ok(Reply::Data(data)) => Packet::answer(kind::DATA, id).string(&data),
        Ok(Reply::Path(path)) => {
            let packet = Packet::answer(kind::NAME, id).u32(1);
            Attributes::default().write(packet.string(&path).string(&path))
        }
        Ok(Reply::Listed(listed)) => {
            let count = u32::try_from(listed.len()).expect("a reply of ours is short");
            let packet = Packet::answer(kind::NAME, id).u32(count);
            listed
                .into_iter()
                .fold(packet, |packet, (name, line, attributes)| {
                    attributes.write(packet.string(&name).string(&line))
                })
        }
        Ok(Reply::Attributes(attributes)) => attributes.write(Packet::answer(kind::ATTRIBUTES, id)),
        Ok(Reply::FileSystem(of)) => encode_file_system(id, &of),
        Ok(Reply::Limits) => Packet::answer(kind::EXTENDED, id)
            .u64(MAX_PACKET as u64)
            .u64(u64::from(MAX_DATA))
            .u64(u64::from(MAX_DATA))
            .u64(MAX_HANDLES as u64),
        Err(Failure::End) => encode_status(id, status::EOF, "End of file"),
        Err(Failure::Unsupported) => encode_status(id, status::UNSUPPORTED, "Not supported"),
        Err(Failure::Handle) => encode_status(id, status::FAILURE, "Invalid handle"),
        Err(Failure::Io(error)) => {
            let code = match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => status::NO_SUCH_FILE,
                Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => status::PERMISSION_DENIED,
                Some(Errno::NAMETOOLONG | Errno::INVAL) => status::BAD_MESSAGE,
                _ => status::FAILURE,
            };
            // The number is dropped: "(os error 2)" helps nobody.
            let words = error.to_string();
            encode_status(
                id,
                code,
                words.split(" (os error").next().unwrap_or_default(),
            )
        }
    }
}

fn encode_status(id: u32, code: u32, words: &str) -> Packet {
    Packet::answer(kind::STATUS, id)
        .u32(code)
        .string(words.as_bytes())
        .string(b"en")
}

/// PROTOCOL, section 4.3.
fn encode_file_system(id: u32, of: &StatVfs) -> Packet {
    let flag = |flag, value| if of.f_flag.contains(flag) { value } else { 0 };
    Packet::answer(kind::EXTENDED, id)
        .u64(of.f_bsize)
        .u64(of.f_frsize)
        .u64(of.f_blocks)
        .u64(of.f_bfree)
        .u64(of.f_bavail)
        .u64(of.f_files)
        .u64(of.f_ffree)
        .u64(of.f_favail)
        .u64(of.f_fsid)
        .u64(flag(StatVfsMountFlags::RDONLY, 1) | flag(StatVfsMountFlags::NOSUID, 2))
        .u64(of.f_namemax)
}

impl Server {
    fn carry_out(&mut self, request: Request<'_>) -> Result<Reply, Failure> {
        match request {
            Request::Init(_) => return Ok(Reply::Version),
            Request::Open {
                path,
                flags,
                attributes,
            } => {
                return self.open(path_of(path), flags, attributes);
            }
            Request::Opendir(path) => {
                let path = path_of(path);
                let (entries, path) = (fs::read_dir(path)?, path.to_owned());
                return self.keep(Handle::Directory { entries, path });
            }
            Request::Close(handle) => {
                let number = number_of(handle)?;
                self.handles.remove(&number).ok_or(Failure::Handle)?;
            }
            Request::Read {
                handle,
                offset,
                length,
            } => return self.read(handle, offset, length),
            Request::Write {
                handle,
                offset,
                data,
            } => match self.handle(handle)? {
                Handle::File {
                    file,
                    appends: true,
                } => file.write_all(data)?,
                Handle::File { file, .. } => file.write_all_at(data, offset)?,
                Handle::Directory { .. } => return Err(Failure::Handle),
            },
            Request::Stat(path) => {
                return Ok(Reply::Attributes((&fs::metadata(path_of(path))?).into()));
            }
            Request::Lstat(path) => {
                return Ok(Reply::Attributes(
                    (&fs::symlink_metadata(path_of(path))?).into(),
                ));
            }
            Request::Fstat(handle) => {
                return Ok(Reply::Attributes((&self.file(handle)?.metadata()?).into()));
            }
            Request::Setstat { path, attributes } => set(path_of(path), attributes)?,
            Request::Fsetstat { handle, attributes } => set_open(self.file(handle)?, attributes)?,
            Request::Lsetstat { path, attributes } => set_link(path_of(path), attributes)?,
            Request::Readdir(handle) => return self.list(handle),
            Request::Remove(path) => fs::remove_file(path_of(path))?,
            Request::Mkdir { path, attributes } => {
                let mode = attributes.mode.map_or(0o777, |mode| mode & 0o7777);
                fs::DirBuilder::new().mode(mode).create(path_of(path))?;
            }
            Request::Rmdir(path) => fs::remove_dir(path_of(path))?,
            Request::Realpath(path) => return real(path_of(path)),
            Request::ExpandPath(path) => return real(&self.expand(path)),
            Request::Rename { from, to } => rename(path_of(from), path_of(to))?,
            Request::PosixRename { from, to } => fs::rename(path_of(from), path_of(to))?,
            Request::Readlink(path) => {
                let target = fs::read_link(path_of(path))?;
                return Ok(Reply::Path(target.into_os_string().into_vec()));
            }
            Request::Symlink { target, link } => {
                std::os::unix::fs::symlink(path_of(target), path_of(link))?;
            }
            Request::Hardlink { from, to } => fs::hard_link(path_of(from), path_of(to))?,
            Request::Statvfs(path) => {
                return Ok(Reply::FileSystem(rustix::fs::statvfs(path_of(path))?));
            }
            Request::Fstatvfs(handle) => {
                return Ok(Reply::FileSystem(rustix::fs::fstatvfs(self.file(handle)?)?));
            }
            Request::Fsync(handle) => self.file(handle)?.sync_all()?,
            Request::Limits => return Ok(Reply::Limits),
            Request::Unknown => return Err(Failure::Unsupported),
        }
        Ok(Reply::Done)
    }

    fn open(
        &mut self,
        path: &Path,
        flags: OpenFlags,
        attributes: Attributes,
    ) -> Result<Reply, Failure> {
        let mut options = OpenOptions::new();
        options
            .read(flags.has(OpenFlags::READ))
            .write(flags.has(OpenFlags::WRITE))
            .append(flags.has(OpenFlags::APPEND))
            .truncate(flags.has(OpenFlags::TRUNCATE))
            .mode(attributes.mode.map_or(0o666, |mode| mode & 0o7777));
        if flags.has(OpenFlags::CREATE | OpenFlags::EXCLUSIVE) {
            options.create_new(true);
        } else {
            options.create(flags.has(OpenFlags::CREATE));
        }
        let (file, appends) = (options.open(path)?, flags.has(OpenFlags::APPEND));
        self.keep(Handle::File { file, appends })
    }

    fn keep(&mut self, handle: Handle) -> Result<Reply, Failure> {
        if self.handles.len() >= MAX_HANDLES {
            return Err(Errno::MFILE.into());
        }
        let number = self.next_handle;
        self.next_handle = number.wrapping_add(1);
        self.handles.insert(number, handle);
        Ok(Reply::Handle(number))
    }

    fn handle(&mut self, handle: &[u8]) -> Result<&mut Handle, Failure> {
        self.handles
            .get_mut(&number_of(handle)?)
            .ok_or(Failure::Handle)
    }

    fn file(&mut self, handle: &[u8]) -> Result<&mut File, Failure> {
        match self.handle(handle)? {
            Handle::File { file, .. } => Ok(file),
            Handle::Directory { .. } => Err(Failure::Handle),
        }
    }

    fn read(&mut self, handle: &[u8], offset: u64, length: u32) -> Result<Reply, Failure> {
        let wanted = usize::try_from(length.min(MAX_DATA)).unwrap_or(0);
        let mut data = vec![0; wanted];
        let read = self.file(handle)?.read_at(&mut data, offset)?;
        if read == 0 && wanted > 0 {
            return Err(Failure::End);
        }
        data.truncate(read);
        Ok(Reply::Data(data))
    }

    fn list(&mut self, handle: &[u8]) -> Result<Reply, Failure> {
        let number = number_of(handle)?;
        let Some(Handle::Directory { entries, path }) = self.handles.get_mut(&number) else {
            return Err(Failure::Handle);
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let (mut listed, mut length) = (Vec::new(), 0);
        while length < LISTED_TOGETHER {
            let Some(entry) = entries.next().transpose()? else {
                break;
            };
            let name = entry.file_name().into_vec();
            // What has gone since is not listed.
            let Ok(metadata) = fs::symlink_metadata(path.join(OsStr::from_bytes(&name))) else {
                continue;
            };
            let line = longname::line(&name, &metadata, &self.names, now);
            length += name.len() + line.len() + 40;
            listed.push((name, line, (&metadata).into()));
        }
        if listed.is_empty() {
            return Err(Failure::End);
        }
        Ok(Reply::Listed(listed))
    }

    /// `~` and `~/…`; others' homes are not known here without their passwd entry.
    fn expand(&self, path: &[u8]) -> PathBuf {
        match path {
            b"~" => self.home.clone(),
            [b'~', b'/', rest @ ..] => self.home.join(path_of(rest)),
            path => path_of(path).to_owned(),
        }
    }
}

/// An empty path is where the server runs.
fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(if bytes.is_empty() {
        b"."
    } else {
        bytes
    }))
}

fn number_of(handle: &[u8]) -> Result<u32, Failure> {
    handle
        .try_into()
        .map(u32::from_be_bytes)
        .map_err(|_| Failure::Handle)
}

/// As realpath(3), but the last part need not be there: clients ask for what they are about to make.
fn real(path: &Path) -> Result<Reply, Failure> {
    let real = fs::canonicalize(path).or_else(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if missing => {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                };
                fs::canonicalize(parent).map(|parent| parent.join(name))
            }
            _ => Err(error),
        }
    })?;
    Ok(Reply::Path(real.into_os_string().into_vec()))
}

/// Never over what is there already (section 6.5).
fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do it in one step.
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => {
            Ok(fs::rename(from, to)?)
        }
        done => Ok(done?),
    }
}

fn timestamps((accessed, changed): (u32, u32)) -> Timestamps {
    let at = |seconds: u32| Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at(accessed),
        last_modification: at(changed),
    }
}

fn ids((user, group): (u32, u32)) -> (Option<u32>, Option<u32>) {
    (Some(user), Some(group))
}

/// Owner before mode: changing it takes setuid and setgid away. Times last, since the others change them.
fn set(path: &Path, attributes: Attributes) -> Result<(), Failure> {
    if let Some(size) = attributes.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some(owner) = attributes.owner {
        let (user, group) = ids(owner);
        std::os::unix::fs::chown(path, user, group)?;
    }
    if let Some(mode) = attributes.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), AtFlags::empty())?;
    }
    Ok(())
}

fn set_open(file: &File, attributes: Attributes) -> Result<(), Failure> {
    if let Some(size) = attributes.size {
        file.set_len(size)?;
    }
    if let Some(owner) = attributes.owner {
        let (user, group) = ids(owner);
        std::os::unix::fs::fchown(file, user, group)?;
    }
    if let Some(mode) = attributes.mode {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::futimens(file, &timestamps(times))?;
    }
    Ok(())
}

/// Of a link itself, which has no mode and no size of its own to set.
fn set_link(path: &Path, attributes: Attributes) -> Result<(), Failure> {
    if attributes.size.is_some() || attributes.mode.is_some() {
        return Err(Failure::Unsupported);
    }
    if let Some(owner) = attributes.owner {
        let (user, group) = ids(owner);
        std::os::unix::fs::lchown(path, user, group)?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
