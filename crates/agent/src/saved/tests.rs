//! What is not as it was written is refused (reliability: a snapshot with a flipped byte, truncated, of another tenant, of an
//! older version).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use std::os::unix::fs::FileExt;
use warren_core::instance::Desired;

const STREAM: &str = "machine";
/// Sparse: a piece of data, a hole of several pieces, and a last one that is not whole.
const SIZE: u64 = 7 * PIECE as u64 + 1000;

/// A saved machine of two files.
struct Place {
    root: tempfile::TempDir,
    intent: InstanceIntent,
    disk: PathBuf,
    key: SealKey,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("disk");
        std::fs::write(&disk, b"disk").unwrap();
        let place = Place {
            intent: crate::support::intent(1, 3, Desired::Standby),
            disk,
            key: SealKey::new(&[7; 32]),
            root,
        };
        let aside = place.saved().begin().unwrap();
        let stream = File::create(aside.join(STREAM)).unwrap();
        stream.set_len(SIZE).unwrap();
        stream.write_all_at(b"beginning", 10).unwrap();
        stream.write_all_at(b"end", SIZE - 3).unwrap();
        std::fs::write(aside.join("who.json"), b"{}").unwrap();
        assert_eq!(place.saved().presence(), Presence::Partial);
        let saved = place.saved();
        saved
            .finish(&place.key, place.owner(&place.intent), "boot".to_owned())
            .unwrap();
        assert_eq!(place.saved().presence(), Presence::Present);
        place
    }

    fn saved(&self) -> Saved<'_> {
        Saved::of(self.root.path())
    }

    fn owner<'a>(&'a self, intent: &'a InstanceIntent) -> Owner<'a> {
        Owner {
            intent,
            hypervisor: HypervisorKind::Fake,
            disk: &self.disk,
        }
    }

    fn verify(&self) -> Result<Manifest, PortError> {
        self.saved().verify(&self.key, self.owner(&self.intent))
    }

    fn stream(&self) -> PathBuf {
        self.saved().directory().join(STREAM)
    }

    /// Changes what the manifest says; it is sealed with `key`.
    fn rewrite(&self, key: &SealKey, change: impl FnOnce(&mut Manifest)) {
        let (mut manifest, _) = self.saved().read().unwrap();
        change(&mut manifest);
        let manifest = serde_json::to_string(&manifest).unwrap();
        let seal = key.sign(&manifest);
        let sealed = serde_json::to_vec(&Sealed { manifest, seal }).unwrap();
        std::fs::write(self.saved().directory().join(MANIFEST), sealed).unwrap();
    }
}

fn refused(outcome: Result<Manifest, PortError>, word: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.code, SAVED_DAMAGED, "{error:?}");
    assert!(error.sentence().contains(word), "{}", error.sentence());
    assert!(error.sentence().contains("warren stop"), "what to do next");
}

#[test]
fn what_was_written_is_restored_also_from_a_copy_without_holes() {
    let place = Place::new();
    assert_eq!(place.verify().unwrap().boot, "boot");
    // Copied: another inode, other times, no holes, the same bytes.
    let bytes = std::fs::read(place.stream()).unwrap();
    std::fs::remove_file(place.stream()).unwrap();
    std::fs::write(place.stream(), bytes).unwrap();
    place.verify().unwrap();
}

#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    for at in [0, 12, PIECE as u64 * 3, SIZE - 1] {
        let place = Place::new();
        let file = File::options()
            .read(true)
            .write(true)
            .open(place.stream())
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 1;
        file.write_all_at(&byte, at).unwrap();
        refused(place.verify(), "not what was written");
    }
}

#[test]
fn what_is_cut_off_or_missing_is_found() {
    let place = Place::new();
    let file = File::options().write(true).open(place.stream()).unwrap();
    file.set_len(SIZE - 1).unwrap();
    refused(place.verify(), "not whole");
    std::fs::remove_file(place.stream()).unwrap();
    refused(place.verify(), "missing");
}

#[test]
fn every_byte_of_the_manifest_matters() {
    let place = Place::new();
    let path = place.saved().directory().join(MANIFEST);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(place.verify().unwrap_err().code, SAVED_DAMAGED, "byte {at}");
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    refused(place.verify(), "manifest");
}

#[test]
fn what_others_wrote_or_another_version_is_refused() {
    let place = Place::new();
    place.rewrite(&SealKey::new(&[8; 32]), |_| {});
    refused(place.verify(), "this host did not write it");
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 5] = [
        ("version", |manifest| manifest.format = 0),
        ("another instance", |manifest| {
            manifest.tenant = "other".to_owned();
        }),
        ("another instance", |manifest| {
            manifest.instance = "other".parse().unwrap();
        }),
        ("this run", |manifest| manifest.run += 1),
        ("this run", |manifest| {
            manifest.hypervisor = HypervisorKind::Qemu;
        }),
    ];
    for (word, change) in changes {
        let place = Place::new();
        place.rewrite(&place.key, change);
        refused(place.verify(), word);
    }
}

#[test]
fn with_another_disk_it_is_refused() {
    let place = Place::new();
    std::fs::write(&place.disk, b"ksid").unwrap();
    refused(place.verify(), "disk");
}

#[test]
fn nothing_is_left_of_what_is_removed_and_removing_nothing_is_fine() {
    let place = Place::new();
    for _ in 0..2 {
        place.saved().remove().unwrap();
        assert_eq!(place.saved().presence(), Presence::Absent);
    }
    // Half of a removal, and half of a save.
    std::fs::create_dir(place.root.path().join(ASIDE)).unwrap();
    assert_eq!(place.saved().presence(), Presence::Partial);
    place.saved().remove().unwrap();
    assert_eq!(place.saved().presence(), Presence::Absent);
}
