#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;

fn handle(text: &str) -> Handle {
    text.parse().unwrap()
}

fn expectation(home: Need, machine: Need) -> Expectation {
    Expectation {
        handle: handle("aaaaaaaa"),
        id: "web".parse().unwrap(),
        address: Some(Ipv4Addr::new(10, 0, 0, 2)),
        home,
        machine,
        process: None,
        network: machine,
        attachment: attachment(NetworkMode::Bridge),
        because: "is so".to_owned(),
    }
}

fn whole(handle_text: &str) -> Vec<Item> {
    let handle = handle(handle_text);
    let network = || Part::Network {
        handle: handle.clone(),
    };
    let home = || Part::Home {
        handle: handle.clone(),
    };
    vec![
        Item::new(Kind::Directory, handle_text, home()),
        Item::new(Kind::File, "record.json", home()),
        Item {
            pid: Some(7),
            ..Item::new(
                Kind::Machine,
                "pid 7",
                Part::Machine {
                    handle: handle.clone(),
                },
            )
        },
        Item::new(Kind::Device, "wtabcdaaaaaaaa", network()),
        Item::new(Kind::BridgePort, "wtabcdaaaaaaaa", network()),
        Item::new(
            Kind::PublishedPort,
            "tcp 80",
            Part::Published {
                address: Ipv4Addr::new(10, 0, 0, 2),
            },
        ),
    ]
}

fn kinds(differences: &[Difference]) -> Vec<(DifferenceKind, Kind)> {
    differences
        .iter()
        .map(|one| (one.kind, one.item.kind))
        .collect()
}

#[test]
fn what_runs_and_is_whole_is_no_difference() {
    let expected = [expectation(Need::Must, Need::Must)];
    assert_eq!(compare(&expected, &whole("aaaaaaaa")), []);
}

#[test]
fn what_may_be_there_is_no_difference_present_or_absent() {
    let expected = [expectation(Need::May, Need::May)];
    assert_eq!(compare(&expected, &whole("aaaaaaaa")), []);
    assert_eq!(compare(&expected, &[]), []);
}

#[test]
fn each_missing_thing_is_named() {
    use DifferenceKind::Missing;
    let expected = [expectation(Need::Must, Need::Must)];
    assert_eq!(
        kinds(&compare(&expected, &[])),
        [
            (Missing, Kind::Machine),
            (Missing, Kind::Device),
            (Missing, Kind::BridgePort),
            (Missing, Kind::Directory),
        ]
    );
}

#[test]
fn what_is_stopped_has_neither_machine_nor_network() {
    use DifferenceKind::Leaked;
    let expected = [expectation(Need::May, Need::MustNot)];
    assert_eq!(
        kinds(&compare(&expected, &whole("aaaaaaaa"))),
        [
            (Leaked, Kind::Machine),
            (Leaked, Kind::Device),
            (Leaked, Kind::BridgePort),
            (Leaked, Kind::PublishedPort),
        ]
    );
}

#[test]
fn what_is_unrecorded_and_has_no_directory_is_a_leak() {
    let homeless: Vec<Item> = whole("bbbbbbbb")
        .into_iter()
        .filter(|item| !matches!(item.part, Part::Home { .. }))
        .collect();
    let differences = compare(&[], &homeless);
    assert_eq!(differences.len(), homeless.len());
    for difference in differences {
        assert_eq!(
            (difference.kind, difference.remedy),
            (DifferenceKind::Leaked, Remedy::Repair),
            "{difference:?}"
        );
    }
}

#[test]
fn what_is_unrecorded_and_has_a_directory_is_for_recovery_with_all_that_it_has() {
    let mut found = whole("bbbbbbbb");
    let leak = Item::new(
        Kind::Device,
        "wtabcdcccccccc",
        Part::Network {
            handle: handle("cccccccc"),
        },
    );
    found.push(leak.clone());
    let differences = compare(&[], &found);
    // All but the file in the directory.
    assert_eq!(differences.len(), found.len() - 1);
    for difference in differences {
        let remedy = if difference.item == leak {
            Remedy::Repair
        } else {
            Remedy::Recover
        };
        assert_eq!(difference.remedy, remedy, "{difference:?}");
    }
    // Beside an instance that is recorded it is as much of a leak.
    let expected = [expectation(Need::Must, Need::Must)];
    let mut found = whole("aaaaaaaa");
    found.push(leak.clone());
    let differences = compare(&expected, &found);
    assert_eq!(differences.len(), 1);
    assert_eq!(
        (&differences[0].item, differences[0].remedy),
        (&leak, Remedy::Repair)
    );
}

#[test]
fn a_second_machine_is_seen_and_never_repaired_by_a_guess() {
    let mut found = whole("aaaaaaaa");
    found.push(Item {
        pid: Some(9),
        ..found[2].clone()
    });
    let mut expected = expectation(Need::Must, Need::Must);
    let differences = compare(std::slice::from_ref(&expected), &found);
    assert_eq!(
        kinds(&differences),
        [(DifferenceKind::Leaked, Kind::Machine)]
    );
    assert_eq!(differences[0].remedy, Remedy::Look);
    expected.process = Some(ProcessIdentity {
        pid: 9,
        start_time: 1,
        boot_id: String::new(),
    });
    let differences = compare(&[expected], &found);
    assert_eq!(
        differences[0].item.pid,
        Some(7),
        "the other one is recorded"
    );
}

#[test]
fn halves_are_leaks_and_strangers_are_for_a_person() {
    let found = [
        Item::new(Kind::File, "a.new", Part::Unfinished),
        Item::new(Kind::File, "notes.txt", Part::Unknown),
        Item::new(Kind::Rules, "warren_abcd", Part::Installation),
    ];
    let differences = compare(&[], &found);
    let remedies: Vec<_> = differences
        .iter()
        .map(|one| (one.kind, one.remedy))
        .collect();
    assert_eq!(
        remedies,
        [
            (DifferenceKind::Leaked, Remedy::Repair),
            (DifferenceKind::Unknown, Remedy::Look)
        ]
    );
}
