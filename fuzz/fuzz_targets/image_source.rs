//! What registries and archives say about an image: references, challenges, tokens, manifests, whole archives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{in_memory, sealed};
use warren_image::source::Reference;
use warren_image::{Digest, fuzzing};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    match choice & 3 {
        0 => {
            let _ = fuzzing::resolve(linked(bytes));
        }
        1 => {
            let archive = in_memory(&sealed(bytes));
            for (promised, read) in fuzzing::archive(archive).into_iter().flatten() {
                assert!(read <= promised.unwrap_or(0));
            }
        }
        2 => fuzzing::documents(bytes),
        _ => text(str::from_utf8(bytes).unwrap_or_default()),
    }
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

fn text(text: &str) {
    if let Some(realm) = fuzzing::challenge(text) {
        assert!(text.contains(&realm));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let shown = reference.to_string();
        assert_eq!(
            shown.parse::<Reference>().as_ref(),
            Ok(&reference),
            "{shown}"
        );
        let path = reference.repository();
        assert!(
            !path.split('/').any(|part| matches!(part, "" | "." | "..")),
            "{path}"
        );
        assert!(!reference.registry().contains(['/', '@', '?', '#', ' ']));
    }
}
