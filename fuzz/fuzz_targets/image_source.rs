//! What surrounds an image: references, challenges, tokens, indexes of layouts, whole archives.
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
        0 | 1 => {
            let archive = in_memory(&sealed(bytes));
            for (promised, read) in fuzzing::archive(archive).into_iter().flatten() {
                assert!(read <= promised.unwrap_or(0));
            }
        }
        2 => fuzzing::documents(bytes),
        _ => text(str::from_utf8(bytes).unwrap_or_default()),
    }
});

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
