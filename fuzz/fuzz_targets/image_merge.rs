//! The tar reader and the merge on one or two layers, and the image that comes out of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{in_memory, limits, sealed};
use warren_image::merge::Merge;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let archive = match choice & 1 {
        0 => bytes.to_vec(),
        _ => sealed(bytes),
    };
    // Cut at a block's border, so that both halves begin with what may be a header.
    let cut = (usize::from(choice >> 1) * 512).min(archive.len());
    let (lower, upper) = archive.split_at(cut);
    let (Some(first), Some(second)) = (merged(lower, upper), merged(lower, upper)) else {
        return;
    };
    assert_eq!(first, second, "the same layers give the same image");
});

fn merged(lower: &[u8], upper: &[u8]) -> Option<Vec<u8>> {
    let limits = limits();
    let mut merge = Merge::new(in_memory(&[]), limits);
    for layer in [lower, upper] {
        merge.layer(layer).ok()?;
    }
    let (file, merged) = merge.finish([7; 16]).ok()?;
    assert!(merged.entries <= limits.entries);
    let size = file.metadata().ok()?.len();
    assert!(size <= limits.image_bytes && size.is_multiple_of(4096));
    let mut bytes = vec![0; usize::try_from(size).ok()?.min(1 << 16)];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).ok()?;
    assert_eq!(bytes[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
    Some(bytes)
}
