#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use std::fs;

fn names(items: &[Item], wanted: impl Fn(&Part) -> bool) -> Vec<String> {
    let mut names: Vec<String> = items
        .iter()
        .filter(|item| wanted(&item.part))
        .map(|item| item.name.rsplit('/').next().unwrap_or_default().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn files_are_told_apart_and_strangers_are_named() {
    let data = tempfile::tempdir().unwrap();
    let instances = data.path().join("instances");
    let home = instances.join("aaaabbbb");
    fs::create_dir_all(&home).unwrap();
    fs::create_dir_all(instances.join("ccccdddd.deleted")).unwrap();
    fs::create_dir_all(data.path().join("images/blobs")).unwrap();
    for name in [
        "record.json",
        "disk.ext4",
        "vmm.json",
        "net.json",
        ".tmpAbCdEf",
        "notes.txt",
    ] {
        fs::write(home.join(name), "{}").unwrap();
    }
    fs::write(instances.join("README"), "").unwrap();
    fs::write(data.path().join(".installation.new"), "").unwrap();
    fs::write(data.path().join("images/blobs/.tmp-1"), "").unwrap();
    fs::write(data.path().join("images/blobs/sha256-1"), "").unwrap();
    let busy = fs::File::create(data.path().join("images/blobs/.tmp-2")).unwrap();
    rustix::fs::flock(&busy, rustix::fs::FlockOperation::LockExclusive).unwrap();

    let items = files::in_data_directory(data.path(), &instances).unwrap();
    assert_eq!(
        names(&items, |part| matches!(part, Part::Home { .. })),
        ["aaaabbbb", "disk.ext4", "record.json"]
    );
    assert_eq!(
        names(&items, |part| matches!(part, Part::Machine { .. })),
        ["vmm.json"]
    );
    assert_eq!(
        names(&items, |part| matches!(part, Part::Network { .. })),
        ["net.json"]
    );
    assert_eq!(
        names(&items, |part| *part == Part::Unfinished),
        [
            ".installation.new",
            ".tmp-1",
            ".tmpAbCdEf",
            "ccccdddd.deleted"
        ]
    );
    assert_eq!(
        names(&items, |part| *part == Part::Unknown),
        ["README", "notes.txt"]
    );
}

#[test]
fn a_handle_is_read_from_any_path_below_the_instances() {
    let instances = Path::new("/d/instances");
    let ours = Some("aaaabbbb".parse().unwrap());
    assert_eq!(
        handle_in(instances, Path::new("/d/instances/aaaabbbb")),
        ours
    );
    assert_eq!(
        handle_in(instances, Path::new("/d/instances/aaaabbbb/x/y")),
        ours
    );
    assert_eq!(handle_in(instances, Path::new("/d/instances")), None);
    assert_eq!(handle_in(instances, Path::new("/d/aaaabbbb")), None);
}
