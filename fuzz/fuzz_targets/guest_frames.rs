//! Frames and messages as they come from a guest or a host, and the search for attaches in a raw line.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use warren_guest::protocol::attach::{Scan, TOKEN_LENGTH};
use warren_guest::protocol::message::DATA_FRAME_LIMIT;
use warren_guest::protocol::{
    AttachKey, AttachScanner, ControlEvent, ControlRequest, ExecInput, ExecOutput, Frame,
    FreezeReply, ListenReply, LogEntry, Open, OpenReply, frame,
};

const KEY: AttachKey = AttachKey(*b"0123456789abcdef");

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    if choice & 1 == 0 {
        frames(bytes, usize::from(choice >> 1) * 8 + 1);
    } else {
        attaches(bytes, usize::from(choice >> 1) + 1);
    }
    if let Ok(key) = str::from_utf8(bytes)
        .unwrap_or_default()
        .parse::<AttachKey>()
    {
        assert_eq!(
            key.to_string(),
            str::from_utf8(bytes)
                .unwrap_or_default()
                .to_ascii_lowercase()
        );
    }
});

/// All frames of a stream that arrives in two pieces; a frame may come late but must not change.
fn frames(bytes: &[u8], cut: usize) {
    let whole = decode_all(&[bytes]);
    let (near, far) = bytes.split_at(cut.min(bytes.len()));
    let in_pieces = decode_all(&[near, far]);
    assert_eq!(whole, in_pieces);
    for one in whole {
        messages(one);
    }
}

fn decode_all(pieces: &[&[u8]]) -> Vec<Frame> {
    let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match frame::decode(&mut buffer, DATA_FRAME_LIMIT) {
                Ok(Some(one)) => {
                    assert!(one.payload.len() < DATA_FRAME_LIMIT);
                    found.push(one);
                }
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

fn messages(one: Frame) {
    drop(one.message::<ControlEvent>());
    drop(one.message::<ControlRequest>());
    drop(one.message::<Open>());
    drop(one.message::<OpenReply>());
    drop(one.message::<ListenReply>());
    drop(one.message::<FreezeReply>());
    if let Ok(ExecOutput::Exited(report)) = ExecOutput::from_frame(one.clone()) {
        assert!((0..=255).contains(&report.status.shell_code()));
    }
    if let Ok(input) = ExecInput::from_frame(one.clone()) {
        let again = input.to_frame().expect("what was read can be written");
        assert_eq!(ExecInput::from_frame(again).ok(), Some(input));
    }
    if let Ok(entry) = LogEntry::from_frame(one) {
        let (kind, header, data) = entry.to_parts().expect("what was read can be written");
        let payload = [header.as_slice(), &data].concat().into();
        assert_eq!(
            LogEntry::from_frame(Frame { kind, payload }).ok(),
            Some(entry)
        );
    }
}

/// How a line is cut into reads must not decide which attaches are found in it.
fn attaches(line: &[u8], size: usize) {
    let whole = scan(&[line]);
    let pieces: Vec<&[u8]> = line.chunks(size).collect();
    assert_eq!(whole, scan(&pieces));
    for (end, nonce) in whole {
        assert_eq!(line[end - TOKEN_LENGTH..end], nonce);
    }
}

fn scan(pieces: &[&[u8]]) -> Vec<(usize, [u8; TOKEN_LENGTH])> {
    let mut scanner = AttachScanner::new(&KEY);
    let (mut found, mut at) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        while let Scan::Attached { nonce, consumed } = scanner.feed(rest) {
            rest = &rest[consumed..];
            found.push((at + piece.len() - rest.len(), nonce));
        }
        at += piece.len();
    }
    found
}
