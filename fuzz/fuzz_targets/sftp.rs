//! Requests of an SFTP client, one packet after the other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_guest::sftp::Request;

fuzz_target!(|packets: &[u8]| {
    let mut rest = packets;
    while let Some((&length, after)) = rest.split_first() {
        let (packet, after) = after.split_at(usize::from(length).min(after.len()));
        // What is longer holds the same request.
        if let Ok((id, request)) = Request::parse(packet) {
            let longer = [packet, b"more"].concat();
            assert_eq!(Request::parse(&longer), Ok((id, request)));
        }
        rest = after;
    }
});
