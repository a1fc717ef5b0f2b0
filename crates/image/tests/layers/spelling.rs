//! Tar entries in the many ways in which programs write them.

use std::io::Write;

/// How one entry is spelled. Where a way cannot say what is to be said, another one is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spelling {
    pub(crate) format: Format,
    pub(crate) lead: Lead,
    pub(crate) sparse: Sparse,
    pub(crate) attributes: AttributeRecords,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Old fields where they suffice, PAX records for the rest.
    Pax,
    /// PAX records for everything.
    PaxAlways,
    /// GNU's long names and base-256 numbers.
    Gnu,
}

/// What stands before the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    Nothing,
    Dot,
    Slash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparse {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttributeRecords {
    Schily,
    Libarchive,
    Both,
}

/// What is to be said.
pub(crate) struct Said<'a> {
    /// Without a lead.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind<'a>,
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(&'a [u8], &'a [u8])>,
}

pub(crate) enum Kind<'a> {
    File(&'a [u8]),
    /// The contents, and the stretches of it that are stored.
    Sparse(&'a [u8], Vec<(usize, usize)>),
    HardLink(Vec<u8>),
    Symlink(&'a [u8]),
    Character(u32, u32),
    Block(u32, u32),
    Directory,
    Fifo,
}

/// Writes one entry.
pub(crate) fn write(said: &Said<'_>, spelling: Spelling, out: &mut Vec<u8>) {
    let mut format = spelling.format;
    // Neither nanoseconds nor attributes have a place in GNU's own format.
    if format == Format::Gnu && (said.mtime.1 != 0 || !said.xattrs.is_empty()) {
        format = Format::Pax;
    }
    let lead: &[u8] = match spelling.lead {
        Lead::Nothing => b"",
        Lead::Dot => b"./",
        Lead::Slash => b"/",
    };
    let mut path = [lead, &said.path].concat();
    if matches!(said.kind, Kind::Directory) {
        path.push(b'/');
    }
    let mut header = Header::new(format);
    let mut stored: Vec<u8> = Vec::new();
    match &said.kind {
        Kind::File(data) => {
            header.flag(b'0');
            stored.extend_from_slice(data);
        }
        Kind::Sparse(data, map) => {
            path = header.sparse(data, map, spelling.sparse, path, &mut stored);
        }
        Kind::HardLink(target) => {
            header.flag(b'1');
            header.link(&[lead, target].concat());
        }
        Kind::Symlink(target) => {
            header.flag(b'2');
            header.link(target);
        }
        Kind::Character(major, minor) => header.device(b'3', *major, *minor),
        Kind::Block(major, minor) => header.device(b'4', *major, *minor),
        Kind::Directory => header.flag(b'5'),
        Kind::Fifo => header.flag(b'6'),
    }
    header.name(&path);
    header.number(100..108, "", i64::from(said.permissions));
    header.number(108..116, "uid", i64::from(said.uid));
    header.number(116..124, "gid", i64::from(said.gid));
    header.number(124..136, "size", stored.len() as i64);
    header.time(said.mtime);
    for (name, value) in &said.xattrs {
        header.xattr(name, value, spelling.attributes);
    }
    header.finish(&stored, out);
}

struct Header {
    format: Format,
    block: [u8; 512],
    records: Vec<(Vec<u8>, Vec<u8>)>,
    /// GNU entries in front: type and contents.
    long: Vec<(u8, Vec<u8>)>,
    extensions: Vec<u8>,
}

impl Header {
    fn new(format: Format) -> Self {
        let mut block = [0; 512];
        block[257..265].copy_from_slice(match format {
            Format::Pax | Format::PaxAlways => b"ustar\x0000",
            Format::Gnu => b"ustar  \0",
        });
        Header {
            format,
            block,
            records: Vec::new(),
            long: Vec::new(),
            extensions: Vec::new(),
        }
    }

    fn flag(&mut self, flag: u8) {
        self.block[156] = flag;
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        self.records.push((key.as_bytes().to_vec(), value.to_vec()));
    }

    fn name(&mut self, path: &[u8]) {
        if self.format == Format::PaxAlways {
            self.record("path", path);
            self.block[..5].copy_from_slice(b"wrong");
        } else if path.len() <= 100 {
            self.block[..path.len()].copy_from_slice(path);
        } else if let (Format::Pax, Some(cut)) = (self.format, prefix_cut(path)) {
            self.block[345..345 + cut].copy_from_slice(&path[..cut]);
            let name = &path[cut + 1..];
            self.block[..name.len()].copy_from_slice(name);
        } else {
            self.long_name(b'L', "path", path, 0);
        }
    }

    fn link(&mut self, target: &[u8]) {
        if target.len() <= 100 && self.format != Format::PaxAlways {
            self.block[157..157 + target.len()].copy_from_slice(target);
        } else {
            self.long_name(b'K', "linkpath", target, 157);
        }
    }

    fn long_name(&mut self, flag: u8, key: &str, name: &[u8], field: usize) {
        let short = &name[..name.len().min(99)];
        self.block[field..field + short.len()].copy_from_slice(short);
        match self.format {
            Format::Gnu => self.long.push((flag, [name, b"\0"].concat())),
            Format::Pax | Format::PaxAlways => self.record(key, name),
        }
    }

    fn device(&mut self, flag: u8, major: u32, minor: u32) {
        self.flag(flag);
        self.number(329..337, "SCHILY.devmajor", i64::from(major));
        self.number(337..345, "SCHILY.devminor", i64::from(minor));
    }

    fn number(&mut self, field: std::ops::Range<usize>, key: &str, value: i64) {
        let digits = field.len() - 1;
        let octal = format!("{value:0digits$o}");
        let fits = value >= 0 && octal.len() <= digits;
        let always = self.format == Format::PaxAlways && !key.is_empty();
        if fits && !always {
            self.block[field.start..field.start + digits].copy_from_slice(octal.as_bytes());
        } else if self.format == Format::Gnu {
            let wide = i128::from(value).to_be_bytes();
            let length = field.len();
            self.block[field.clone()].copy_from_slice(&wide[16 - length..]);
            self.block[field.start] |= 0x80;
        } else {
            self.record(key, value.to_string().as_bytes());
        }
    }

    fn time(&mut self, (seconds, nanoseconds): (i64, u32)) {
        if nanoseconds == 0 {
            self.number(136..148, "mtime", seconds);
            return;
        }
        let text = match seconds {
            0.. => format!("{seconds}.{nanoseconds:09}"),
            // Counted from zero downwards.
            _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        };
        self.record("mtime", text.as_bytes());
    }

    fn xattr(&mut self, name: &[u8], value: &[u8], records: AttributeRecords) {
        use base64::Engine as _;
        if records != AttributeRecords::Libarchive {
            let key = [b"SCHILY.xattr.", name].concat();
            self.records.push((key, value.to_vec()));
        }
        if records != AttributeRecords::Schily {
            let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
            let key = [b"LIBARCHIVE.xattr.".to_vec(), percent_encode(name)].concat();
            self.records.push((key, engine.encode(value).into_bytes()));
        }
    }

    /// Gives the name that the entry itself has, and what is stored.
    fn sparse(
        &mut self,
        data: &[u8],
        map: &[(usize, usize)],
        sparse: Sparse,
        path: Vec<u8>,
        stored: &mut Vec<u8>,
    ) -> Vec<u8> {
        self.flag(b'0');
        let size = data.len().to_string().into_bytes();
        let numbers = || map.iter().flat_map(|(at, length)| [*at, *length]);
        let pieces = map.iter().flat_map(|(at, length)| &data[*at..at + length]);
        match sparse {
            Sparse::OldGnu => {
                self.old_gnu_map(data.len(), map);
                stored.extend(pieces);
                return path;
            }
            Sparse::Pax00 => {
                self.record("GNU.sparse.size", &size);
                self.record("GNU.sparse.numblocks", map.len().to_string().as_bytes());
                for (at, length) in map {
                    self.record("GNU.sparse.offset", at.to_string().as_bytes());
                    self.record("GNU.sparse.numbytes", length.to_string().as_bytes());
                }
                stored.extend(pieces);
                return path;
            }
            Sparse::Pax01 => {
                self.record("GNU.sparse.size", &size);
                self.record("GNU.sparse.numblocks", map.len().to_string().as_bytes());
                let list: Vec<String> = numbers().map(|number| number.to_string()).collect();
                self.record("GNU.sparse.map", list.join(",").as_bytes());
                stored.extend(pieces);
            }
            Sparse::Pax10 => {
                self.record("GNU.sparse.major", b"1");
                self.record("GNU.sparse.minor", b"0");
                self.record("GNU.sparse.realsize", &size);
                let mut text = format!("{}\n", map.len()).into_bytes();
                for number in numbers() {
                    writeln!(text, "{number}").unwrap();
                }
                text.resize(text.len().next_multiple_of(512), 0);
                stored.extend(text);
                stored.extend(pieces);
            }
        }
        self.record("GNU.sparse.name", &path);
        b"GNUSparseFile.1/x".to_vec()
    }

    fn old_gnu_map(&mut self, size: usize, map: &[(usize, usize)]) {
        self.flag(b'S');
        // Its map lies where ustar has the prefix of the name.
        self.format = Format::Gnu;
        self.block[257..265].copy_from_slice(b"ustar  \0");
        let field = |number: usize| format!("{number:011o}\0").into_bytes();
        let entry = |(at, length): &(usize, usize)| [field(*at), field(*length)].concat();
        for (place, piece) in map.iter().take(4).enumerate() {
            let at = 386 + place * 24;
            self.block[at..at + 24].copy_from_slice(&entry(piece));
        }
        self.block[482] = u8::from(map.len() > 4);
        self.block[483..495].copy_from_slice(&field(size));
        let rest = map.get(4..).unwrap_or_default();
        let blocks = rest.chunks(21);
        let last = blocks.len();
        for (number, pieces) in blocks.enumerate() {
            let mut block: Vec<u8> = pieces.iter().flat_map(entry).collect();
            block.resize(512, 0);
            block[504] = u8::from(number + 1 < last);
            self.extensions.extend(block);
        }
    }

    fn finish(mut self, stored: &[u8], out: &mut Vec<u8>) {
        for (flag, name) in &self.long {
            aside(*flag, name, out);
        }
        if !self.records.is_empty() {
            let mut data = Vec::new();
            for (key, value) in &self.records {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + 1;
                while length.to_string().len() + rest != length {
                    length = length.to_string().len() + rest;
                }
                write!(data, "{length} ").unwrap();
                data.extend_from_slice(key);
                data.push(b'=');
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            aside(b'x', &data, out);
        }
        seal(&mut self.block);
        out.extend_from_slice(&self.block);
        out.extend_from_slice(&self.extensions);
        out.extend_from_slice(stored);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

/// An entry that describes the next one.
fn aside(flag: u8, data: &[u8], out: &mut Vec<u8>) {
    let mut block = [0; 512];
    block[..13].copy_from_slice(b"././@LongLink");
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    out.extend_from_slice(&block);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// Where a path can be cut into ustar's prefix and name.
fn prefix_cut(path: &[u8]) -> Option<usize> {
    (1..path.len().min(156))
        .rev()
        .find(|at| path[*at] == b'/' && path.len() - at - 1 <= 100 && path.len() - at > 1)
}

fn percent_encode(name: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for byte in name {
        match byte {
            b'a'..=b'z' | b'.' => encoded.push(*byte),
            _ => write!(encoded, "%{byte:02X}").unwrap(),
        }
    }
    encoded
}
