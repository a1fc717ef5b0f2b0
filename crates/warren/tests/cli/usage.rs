//! `warren stats` and `warren top`: counters that a server tells, as they are and as rates.

use crate::double::Double;
use crate::{ask, err, out};
use axum::Json;
use axum::extract::Path;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters grow each time that anybody looks.
static LOOKS: AtomicU64 = AtomicU64::new(1);

/// `GET /instances/{id}/stats`: a guest that is busy, and one that is silent.
pub(crate) async fn stats(Path(id): Path<String>) -> Json<Value> {
    let looks = LOOKS.fetch_add(1, Ordering::Relaxed);
    let name = id.strip_prefix("id-").unwrap_or(&id).to_owned();
    let mut stats = json!({
        "instance_id": id, "instance_name": format!("{name}\u{1b}[2J"), "cpu_seconds": looks, "memory_rss_bytes": 64 << 20,
        "memory_vms_bytes": 1 << 30, "network_rx_bytes": looks << 20, "network_tx_bytes": 0, "allocated_vcpus": 1,
        "allocated_memory_bytes": 128 << 20, "disk_bytes": 1 << 20,
    });
    if name == "web" {
        stats["guest_memory_used_bytes"] = json!(32 << 20);
        stats["guest"] = json!({
            "uptime_seconds": looks, "cpu_seconds": looks, "memory_total_bytes": 100 << 20, "memory_available_bytes": 68 << 20,
            "disk_total_bytes": 1 << 30, "disk_free_bytes": 1 << 29, "disk_read_bytes": 0, "disk_written_bytes": looks << 30,
            "tasks": 3,
        });
    }
    Json(stats)
}

#[test]
fn top_shows_rates_to_people() {
    let double = Double::start(None);
    let round = ["top", "--rounds", "1", "--sort", "disk", "off", "web"];
    let shown = ask(&double, &round);
    assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
    let table = out(&shown);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].starts_with("NAME") && lines[0].contains("WRITTEN"),
        "{table}"
    );
    // What reads and writes most is first; what nobody knows is not made up.
    assert!(
        lines[1].starts_with("web") && lines[1].contains("GiB/s"),
        "{table}"
    );
    assert!(
        lines[1].contains("32.0 MiB") && lines[1].contains("MiB/s"),
        "{table}"
    );
    assert!(
        lines[2].starts_with("off") && lines[2].contains(" - "),
        "{table}"
    );
    assert!(
        !table.contains('\u{1b}'),
        "a name drives the terminal: {table:?}"
    );
    let wide = out(&ask(&double, &["top", "-n", "1", "-o", "wide", "web"]));
    assert!(
        wide.contains("CPU IN GUEST") && wide.contains("TASKS"),
        "{wide}"
    );
}

#[test]
fn top_gives_scripts_one_object_a_line_each_round() {
    let double = Double::start(None);
    let all = [
        "top", "-o", "json", "--every", "100ms", "--rounds", "3", "web", "off",
    ];
    let answer = ask(&double, &all);
    assert_eq!(answer.status.code(), Some(0), "{}", err(&answer));
    let text = out(&answer);
    let rounds: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rounds.len(), 3, "{text}");
    for round in &rounds {
        assert!(round["at"].as_str().unwrap().ends_with('Z'), "{round}");
        let instances = round["instances"].as_array().unwrap();
        assert_eq!(instances.len(), 2, "{round}");
        for one in instances {
            assert!(one["cpu_percent"].as_f64().unwrap() > 0.0, "{one}");
            assert!(
                one["network_rx_bytes_per_second"].as_f64().unwrap() > 0.0,
                "{one}"
            );
            let is_known = one["disk_written_bytes_per_second"].is_number();
            assert_eq!(is_known, one["instance_id"] == "web", "{one}");
        }
    }
    for wrong in [
        &["top", "--sort", "luck"][..],
        &["top", "--every", "1ms"],
        &["top", "-n", "0"],
    ] {
        assert_eq!(ask(&double, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn stats_are_the_apis_own_object() {
    let double = Double::start(None);
    let text = out(&ask(&double, &["stats", "-o", "json", "web"]));
    let stats: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stats[0]["guest"]["tasks"], 3, "{text}");
    assert!(stats[0].get("cpu_percent").is_none(), "{text}");
    let table = out(&ask(&double, &["stats", "--no-stream", "web"]));
    assert!(table.contains('%') && table.contains("32.0 MiB"), "{table}");
}
