//! What takes room, what goes, and whether images are what they were.

use super::*;

#[test]
fn df_says_what_takes_room_and_what_can_go() {
    let double = Double::start(None);
    let answer = ask(&double, &["system", "df"]);
    let table = out(&answer);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|w| !w.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(lines[0], ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    assert_eq!(lines[1], ["images", "2", "1", "8.0 KiB", "2.0 KiB (25 %)"]);
    assert_eq!(lines[2], ["instance disks", "1", "4.0 KiB"]);
    assert_eq!(lines.last().unwrap(), &["total", "12.5 KiB"]);
    assert!(err(&answer).contains("1.0 MiB"), "{}", err(&answer));
    let each = out(&ask(&double, &["system", "df", "--verbose"]));
    for part in ["web:1", "id-web", "fedcba987654", "LAST USED"] {
        assert!(each.contains(part), "{part}: {each}");
    }
    assert!(
        !each.contains('\u{1b}'),
        "an image's name drives the terminal"
    );
    let object: Value =
        serde_json::from_str(&out(&ask(&double, &["system", "df", "-o", "json"]))).unwrap();
    assert_eq!(object["total_bytes"], 12800);
}

#[test]
fn prune_says_what_went() {
    let double = Double::start(None);
    let answer = ask(&double, &["prune"]);
    assert_eq!((answer.status.code(), out(&answer).as_str()), (Some(0), ""));
    let said = err(&answer);
    assert!(
        said.contains("removed 0 images, 1 disk and 3 layers or documents: 2.0 KiB"),
        "{said}"
    );
    let answer = ask(&double, &["prune", "--all", "--dry-run"]);
    assert_eq!(out(&answer), "old:1\n");
    assert!(err(&answer).contains("would remove 1 image,"));
    assert_eq!(out(&ask(&double, &["prune", "-aq"])), "id-old\n");
    let object: Value =
        serde_json::from_str(&out(&ask(&double, &["prune", "-o", "json"]))).unwrap();
    assert_eq!(object["reclaimed_bytes"], 2048);
    assert_eq!(
        double.bodies(),
        [
            json!({}),
            json!({"all": true, "dry_run": true}),
            json!({"all": true}),
            json!({}),
        ]
    );
}

#[test]
fn verify_fails_when_an_image_is_not_what_came() {
    let double = Double::start(None);
    let sound = ask(&double, &["image", "verify", "web"]);
    assert_eq!(sound.status.code(), Some(0), "{}", err(&sound));
    assert!(out(&sound).contains("sound"));
    let damaged = ask(&double, &["image", "verify", "web", "bad"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(out(&damaged).contains("disk damaged"), "{}", out(&damaged));
    assert!(
        err(&damaged).contains("bad: make it again"),
        "{}",
        err(&damaged)
    );
    let repaired = ask(&double, &["image", "verify", "--repair", "bad"]);
    assert_eq!(repaired.status.code(), Some(0), "{}", err(&repaired));
    assert!(out(&repaired).contains("disk made again"));
    let missing = ask(&double, &["image", "verify", "none", "web", "-o", "json"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(err(&missing).contains("the image none is not here"));
    let objects: Value = serde_json::from_str(&out(&missing)).unwrap();
    assert_eq!(objects[0]["parts"][1]["state"], "sound");
    for wrong in [
        &["image", "verify"][..],
        &["image", "verify", "--all", "web"],
    ] {
        assert_eq!(ask(&double, wrong).status.code(), Some(2), "{wrong:?}");
    }
    // No image, nothing wrong.
    assert_eq!(
        ask(&double, &["image", "verify", "--all"]).status.code(),
        Some(0)
    );
}
