//! What a client can ask for: sections 4 and 6 of the draft, and OpenSSH's extensions.

use super::attributes::Attributes;
use super::wire::{Fields, Malformed};

/// How to open a file (section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    /// To read.
    pub const READ: u32 = 0x01;
    /// To write.
    pub const WRITE: u32 = 0x02;
    /// Every write goes to the end.
    pub const APPEND: u32 = 0x04;
    /// Make it where it is not there.
    pub const CREATE: u32 = 0x08;
    /// Empty it first.
    pub const TRUNCATE: u32 = 0x10;
    /// With `CREATE`: it must not be there.
    pub const EXCLUSIVE: u32 = 0x20;

    /// Whether all of these are set.
    #[must_use]
    pub fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }
}

/// A request without its number. Paths are bytes; a relative one is relative to where the server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the draft's own names and fields")]
pub enum Request<'a> {
    Init(u32),
    Open {
        path: &'a [u8],
        flags: OpenFlags,
        attributes: Attributes,
    },
    Close(&'a [u8]),
    Read {
        handle: &'a [u8],
        offset: u64,
        length: u32,
    },
    Write {
        handle: &'a [u8],
        offset: u64,
        data: &'a [u8],
    },
    Lstat(&'a [u8]),
    Fstat(&'a [u8]),
    Setstat {
        path: &'a [u8],
        attributes: Attributes,
    },
    Fsetstat {
        handle: &'a [u8],
        attributes: Attributes,
    },
    Opendir(&'a [u8]),
    Readdir(&'a [u8]),
    Remove(&'a [u8]),
    Mkdir {
        path: &'a [u8],
        attributes: Attributes,
    },
    Rmdir(&'a [u8]),
    Realpath(&'a [u8]),
    Stat(&'a [u8]),
    Rename {
        from: &'a [u8],
        to: &'a [u8],
    },
    Readlink(&'a [u8]),
    Symlink {
        target: &'a [u8],
        link: &'a [u8],
    },
    PosixRename {
        from: &'a [u8],
        to: &'a [u8],
    },
    Statvfs(&'a [u8]),
    Fstatvfs(&'a [u8]),
    Hardlink {
        from: &'a [u8],
        to: &'a [u8],
    },
    Fsync(&'a [u8]),
    Lsetstat {
        path: &'a [u8],
        attributes: Attributes,
    },
    Limits,
    ExpandPath(&'a [u8]),
    Unknown,
}

impl<'a> Request<'a> {
    /// The request of a packet (without its length) and its number, which the first one has none of.
    ///
    /// # Errors
    /// It ends too early.
    pub fn parse(packet: &'a [u8]) -> Result<(u32, Self), Malformed> {
        let mut fields = Fields(packet);
        let kind = fields.u8()?;
        if kind == 1 {
            let version = fields.u32()?;
            return Ok((0, Request::Init(version)));
        }
        let id = fields.u32()?;
        let request = match kind {
            3 => {
                let (path, flags) = (fields.string()?, OpenFlags(fields.u32()?));
                let attributes = Attributes::read(&mut fields)?;
                Request::Open {
                    path,
                    flags,
                    attributes,
                }
            }
            4 => Request::Close(fields.string()?),
            5 => {
                let (handle, offset, length) = (fields.string()?, fields.u64()?, fields.u32()?);
                Request::Read {
                    handle,
                    offset,
                    length,
                }
            }
            6 => {
                let (handle, offset, data) = (fields.string()?, fields.u64()?, fields.string()?);
                Request::Write {
                    handle,
                    offset,
                    data,
                }
            }
            7 => Request::Lstat(fields.string()?),
            8 => Request::Fstat(fields.string()?),
            9 => {
                let (path, attributes) = (fields.string()?, Attributes::read(&mut fields)?);
                Request::Setstat { path, attributes }
            }
            10 => {
                let (handle, attributes) = (fields.string()?, Attributes::read(&mut fields)?);
                Request::Fsetstat { handle, attributes }
            }
            11 => Request::Opendir(fields.string()?),
            12 => Request::Readdir(fields.string()?),
            13 => Request::Remove(fields.string()?),
            14 => {
                let (path, attributes) = (fields.string()?, Attributes::read(&mut fields)?);
                Request::Mkdir { path, attributes }
            }
            15 => Request::Rmdir(fields.string()?),
            16 => Request::Realpath(fields.string()?),
            17 => Request::Stat(fields.string()?),
            18 => Request::Rename {
                from: fields.string()?,
                to: fields.string()?,
            },
            19 => Request::Readlink(fields.string()?),
            // In OpenSSH's order, which every client follows and not the draft's (its PROTOCOL, 4.1).
            20 => Request::Symlink {
                target: fields.string()?,
                link: fields.string()?,
            },
            200 => Self::extended(&mut fields)?,
            _ => Request::Unknown,
        };
        Ok((id, request))
    }

    fn extended(fields: &mut Fields<'a>) -> Result<Self, Malformed> {
        Ok(match fields.string()? {
            b"posix-rename@openssh.com" => Request::PosixRename {
                from: fields.string()?,
                to: fields.string()?,
            },
            b"statvfs@openssh.com" => Request::Statvfs(fields.string()?),
            b"fstatvfs@openssh.com" => Request::Fstatvfs(fields.string()?),
            b"hardlink@openssh.com" => Request::Hardlink {
                from: fields.string()?,
                to: fields.string()?,
            },
            b"fsync@openssh.com" => Request::Fsync(fields.string()?),
            b"lsetstat@openssh.com" => {
                let (path, attributes) = (fields.string()?, Attributes::read(fields)?);
                Request::Lsetstat { path, attributes }
            }
            b"limits@openssh.com" => Request::Limits,
            b"expand-path@openssh.com" => Request::ExpandPath(fields.string()?),
            _ => Request::Unknown,
        })
    }
}
