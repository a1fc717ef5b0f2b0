//! Compressed layers through the whole pipeline: recognising, decompressing, hashing, merging.
#![no_main]

use std::io::{Cursor, Read};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio_util::sync::CancellationToken;
use warren_fuzz::{in_memory, limits};
use warren_image::Limits;
use warren_image::pipeline::{LayerInput, convert};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let limits = Limits {
        time: Duration::from_secs(5),
        unpacked_bytes: 4 << 20,
        ratio: 100,
        ratio_from: 1 << 20,
        ..limits()
    };
    let cut = usize::from(choice) * bytes.len() / 255;
    let (lower, upper) = bytes.split_at(cut);
    let layers = [lower, upper].map(<[u8]>::to_vec).map(|bytes| LayerInput {
        digest: None,
        size: Some(bytes.len() as u64),
        diff_id: None,
        open: Box::new(move |_| Ok(Box::new(Cursor::new(bytes)) as Box<dyn Read + Send>)),
    });
    let cancel = CancellationToken::new();
    let Ok(done) = convert(
        layers.into(),
        in_memory(&[]),
        None,
        &limits,
        &cancel,
        &|_, _| {},
    ) else {
        return;
    };
    let unpacked: u64 = done.layers.iter().map(|layer| layer.unpacked).sum();
    assert!(unpacked <= limits.unpacked_bytes);
    assert_eq!(
        done.layers.iter().map(|layer| layer.size).sum::<u64>(),
        bytes.len() as u64
    );
});
