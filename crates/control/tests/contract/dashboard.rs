//! The committed Grafana dashboard asks for nothing that the server does not say.

use super::*;
use std::collections::BTreeSet;

/// Every query of the dashboard.
fn queries(document: &Value, found: &mut Vec<String>) {
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("expr" | "query", Value::String(query)) => found.push(query.clone()),
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The words of a query that could be names.
fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

#[tokio::test]
async fn every_query_of_the_dashboard_has_an_answer() {
    let world = world().await;
    world.make(json!({"name": "m", "image": "busybox"})).await;
    let pull = Some(json!({"name": "localhost:5000/team/web:1"}));
    world.call("POST", "/images", pull).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let metrics = loop {
        let metrics = world.get("/metrics").await.text;
        if metrics.contains("warren_image_imports_total") {
            break metrics;
        }
        assert!(tokio::time::Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let samples: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let text = include_str!("../../../../packaging/grafana/warren.json");
    let dashboard: Value = serde_json::from_str(text).unwrap();
    let mut all = Vec::new();
    queries(&dashboard["panels"], &mut all);
    queries(&dashboard["templating"]["list"][1], &mut all);
    assert!(all.len() >= 8, "{all:?}");
    let mut asked = BTreeSet::new();
    for query in &all {
        let names: Vec<&str> = words(query)
            .filter(|word| word.starts_with("warren_"))
            .collect();
        assert!(!names.is_empty(), "{query} asks for nothing of ours");
        for name in names {
            assert!(
                samples.contains(name),
                "{query}: there is no {name} in {samples:?}"
            );
            asked.insert(name);
        }
        // Labels by which it sums or chooses.
        for label in [
            "kind", "method", "name", "outcome", "route", "state", "status",
        ] {
            if words(query).any(|word| word == label) {
                let has = |line: &str| {
                    words(query).any(|name| {
                        line.starts_with(&format!("{name}{{"))
                            && line.contains(&format!("{label}=\""))
                    })
                };
                assert!(metrics.lines().any(has), "{query}: no label {label}");
            }
        }
    }
    // And what the server says is on it.
    let families: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for family in families {
        let shown = asked.iter().any(|name| name.starts_with(family));
        assert!(shown, "{family} is on no panel");
    }
}
