//! An image's configuration: what it says is to be run, and on what.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_image::fuzzing;

fuzz_target!(|input: &[u8]| {
    let Some((run, diff_ids)) = fuzzing::configuration(input) else {
        return;
    };
    assert!(diff_ids.iter().all(|id| id.hex().len() >= 64));
    // It is written into records and read again.
    let written = serde_json::to_vec(&run).expect("what was read can be written");
    let again: warren_core::image::ImageConfig =
        serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(run, again);
});
