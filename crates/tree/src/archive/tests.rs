//! Writer against reader, and reader against everything.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
use super::*;
use proptest::prelude::*;

fn bytes(limit: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1..=255u8, 1..limit)
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    bytes(300).prop_map(|mut path| {
        // A name that ends so is a directory's.
        path.push(b'n');
        path
    })
}

/// Pieces with holes between them, and the size of the file they are of.
fn sparse() -> impl Strategy<Value = (u64, Vec<Extent>)> {
    proptest::collection::vec((0..1_000_000u64, 0..2000u64), 0..60).prop_map(|steps| {
        let mut at = 0;
        let extents = steps
            .into_iter()
            .map(|(hole, length)| {
                let offset = at + hole;
                at = offset + length;
                Extent { offset, length }
            })
            .collect();
        (at + 77, extents)
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (0..3000u64).prop_map(|size| Kind::File {
            size,
            extents: None
        }),
        sparse().prop_map(|(size, extents)| Kind::File {
            size,
            extents: Some(extents)
        }),
        Just(Kind::Directory),
        path().prop_map(|target| Kind::Symlink { target }),
        path().prop_map(|target| Kind::HardLink { target }),
        Just(Kind::Fifo),
        (0..5000u32, 0..1_000_000u32).prop_map(|(major, minor)| Kind::Device {
            class: DeviceClass::Block,
            major,
            minor
        }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let attribute = (bytes(40), proptest::collection::vec(any::<u8>(), 0..300)).prop_map(
        |(mut name, value)| {
            name.retain(|byte| *byte != b'=');
            (name, value)
        },
    );
    (
        path(),
        kind(),
        0..0o10000u32,
        any::<u32>(),
        any::<u32>(),
        (-20_000_000_000..99_000_000_000i64, 0..1_000_000_000u32),
        proptest::collection::vec(attribute, 0..3),
    )
        .prop_map(|(path, kind, mode, uid, gid, time, attributes)| Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            modified: Modified {
                seconds: time.0,
                nanos: time.1,
            },
            attributes,
        })
}

fn content(entry: &Entry, at: usize) -> Vec<u8> {
    let length = usize::try_from(entry.kind.stored()).unwrap();
    (0..length).map(|n| (n * 31 + at) as u8).collect()
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut writer = ArchiveWriter::new(Vec::new());
    for (at, entry) in entries.iter().enumerate() {
        writer.entry(entry).unwrap();
        writer.content(&content(entry, at)).unwrap();
    }
    writer.finish().unwrap()
}

fn all_of(reader: &mut ArchiveReader<impl std::io::Read>) -> Result<Vec<u8>, ArchiveError> {
    let (mut all, mut piece) = (Vec::new(), [0; 700]);
    loop {
        match reader.content(&mut piece)? {
            0 => return Ok(all),
            read => all.extend_from_slice(&piece[..read]),
        }
    }
}

/// Reads everything; answers with how many entries there were.
fn read_through(data: &[u8]) -> Result<usize, ArchiveError> {
    let mut reader = ArchiveReader::new(data);
    let mut count = 0;
    while reader.next_entry()?.is_some() {
        all_of(&mut reader)?;
        count += 1;
    }
    Ok(count)
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in proptest::collection::vec(entry(), 0..12)) {
        let data = archive(&entries);
        prop_assert_eq!(data.len() % BLOCK, 0);
        let mut reader = ArchiveReader::new(data.as_slice());
        for (at, entry) in entries.iter().enumerate() {
            let read = reader.next_entry().unwrap().unwrap();
            prop_assert_eq!(&read, entry);
            // What is not read is skipped.
            if at % 3 != 0 {
                prop_assert_eq!(all_of(&mut reader).unwrap(), content(entry, at));
            }
        }
        prop_assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn a_cut_archive_is_never_whole(entries in proptest::collection::vec(entry(), 1..4), cut in 0.0..1.0f64) {
        let data = archive(&entries);
        // The last block of the end mark is not missed.
        let cut = (cut * (data.len() - 2 * BLOCK) as f64) as usize;
        prop_assert!(matches!(read_through(&data[..cut]), Err(ArchiveError::Truncated)));
    }

    #[test]
    fn noise_is_refused_and_never_followed(
        entries in proptest::collection::vec(entry(), 1..3),
        flips in proptest::collection::vec((0.0..1.0f64, any::<u8>()), 1..8),
    ) {
        let mut data = archive(&entries);
        for (at, value) in flips {
            let at = (at * data.len() as f64) as usize;
            data[at] = value;
        }
        let _ = read_through(&data);
    }
}

#[test]
fn lengths_beyond_everything_are_refused_before_they_are_kept() {
    let file = Entry {
        path: b"x".to_vec(),
        kind: Kind::File {
            size: 0,
            extents: None,
        },
        mode: 0,
        uid: 0,
        gid: 0,
        modified: Modified::default(),
        attributes: vec![(b"user.a".to_vec(), vec![b'x'; 10])],
    };
    let data = archive(&[file]);
    let with = |at: usize, field: &[u8]| {
        let mut data = data.clone();
        data[at..at + field.len()].copy_from_slice(field);
        data[148..156].fill(b' ');
        let sum: u64 = data[..BLOCK].iter().map(|byte| u64::from(*byte)).sum();
        data[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        read_through(&data)
    };
    assert_eq!(with(0, b"P").unwrap(), 1);
    assert!(matches!(
        with(124, b"77777777777\0"),
        Err(ArchiveError::TooLong(_))
    ));
    let binary = [
        0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    assert!(matches!(with(124, &binary), Err(ArchiveError::TooLong(_))));
    assert!(matches!(
        with(124, &[0xbf; 12]),
        Err(ArchiveError::Malformed(_))
    ));
    assert!(matches!(with(124, b"9"), Err(ArchiveError::Malformed(_))));
    assert!(matches!(with(156, b"L"), Ok(_) | Err(_)));
    assert!(matches!(with(156, b"?"), Err(ArchiveError::Malformed(_))));
    let mut broken = data.clone();
    broken[0] ^= 1;
    assert!(matches!(
        read_through(&broken),
        Err(ArchiveError::Malformed(_))
    ));
    for bad in [
        "5 a=b\n", "99 a=b\n", "6 a=b", "6 a=bx", "x", "6  a=b\n", "0 \n",
    ] {
        assert!(
            pax::records(bad.as_bytes(), |_, _| Ok(())).is_err(),
            "{bad:?}"
        );
    }
}

#[test]
fn maps_of_sparse_files_that_lie_are_refused() {
    let extent = |offset, length| Extent { offset, length };
    for (extents, size, stored) in [
        (vec![extent(0, 11)], 10, 11),
        (vec![extent(5, 1), extent(5, 1)], 10, 2),
        (vec![extent(u64::MAX, 2)], 10, 2),
        (vec![extent(0, 5)], 10, 6),
    ] {
        assert!(
            sparse::check(&extents, size, stored).is_err(),
            "{extents:?}"
        );
    }
    assert!(sparse::check(&[extent(0, 5), extent(10, 0)], 10, 5).is_ok());
    let mut blocks = 0;
    let endless = sparse::read_map(|| {
        blocks += 1;
        let mut block = [b'1'; BLOCK];
        block[15] = b'\n';
        Ok(block)
    });
    assert!(endless.is_err() && blocks == 1);
}
