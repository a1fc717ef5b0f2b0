//! Manifests and indexes, followed from one to the other to an image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_image::{Digest, fuzzing};

fuzz_target!(|input: &[u8]| {
    let _ = fuzzing::resolve(linked(input));
});

/// Documents between NULs. `@D` and `@S` in one become digest and size of the next, which no mutation would hit.
fn linked(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut documents: Vec<Vec<u8>> = Vec::new();
    for part in bytes.rsplit(|byte| *byte == 0).take(8) {
        let mut text = String::from_utf8_lossy(part).into_owned();
        if let Some(next) = documents.last() {
            text = text
                .replace("@D", &Digest::of(next).to_string())
                .replace("@S", &next.len().to_string());
        }
        documents.push(text.into_bytes());
    }
    documents.reverse();
    documents
}
