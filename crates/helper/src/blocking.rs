//! Finds chains of other programs that would drop what guests send or receive.
//!
//! Docker, ufw and firewalld set the forward (and ufw the input) hook to drop what they do not know. Our accept
//! cannot overrule that, and their rules are not ours to change; so it is said in words before somebody wonders.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A chain of somebody else's in which our traffic ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockingChain {
    /// Its family: `ip` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// `forward` or `input`.
    pub hook: String,
}

#[derive(Default)]
struct Chain {
    hook: Option<String>,
    drops: bool,
    rules: Vec<Value>,
}

/// What the names of all installations' tables begin with.
const TABLES: &str = "warren_";

/// Reads `nft -j list ruleset`. A chain blocks when it is hooked at forward or input, drops at its end, and neither
/// it nor a chain it jumps to has a rule that accepts by the bridge's name.
pub(crate) fn find(ruleset: &str, own_table: &str, bridge: &str) -> Vec<BlockingChain> {
    let Ok(parsed) = serde_json::from_str::<Value>(ruleset) else {
        return Vec::new();
    };
    let mut chains: HashMap<[String; 3], Chain> = HashMap::new();
    for object in parsed["nftables"].as_array().into_iter().flatten() {
        if let Some(chain) = object.get("chain") {
            let entry = chains.entry(key(chain, "name")).or_default();
            if chain["type"] == "filter" {
                entry.hook = chain["hook"].as_str().map(str::to_owned);
                entry.drops = chain["policy"] == "drop";
            }
        } else if let Some(rule) = object.get("rule") {
            chains
                .entry(key(rule, "chain"))
                .or_default()
                .rules
                .push(rule["expr"].clone());
        }
    }
    let mut found: Vec<BlockingChain> = chains
        .iter()
        .filter(|(key, chain)| {
            let family = matches!(key[0].as_str(), "ip" | "inet");
            let hook = matches!(chain.hook.as_deref(), Some("forward" | "input"));
            let drops = chain.drops || chain.rules.iter().any(drops_everything);
            // Installations of ours drop what other machines' guests may not do, and nothing of this bridge's.
            family && hook && drops && key[1] != own_table && !key[1].starts_with(TABLES)
        })
        .filter(|(key, _)| !accepts(&chains, key, bridge, 4))
        .map(|([family, table, name], chain)| BlockingChain {
            family: family.clone(),
            table: table.clone(),
            chain: name.clone(),
            hook: chain.hook.clone().unwrap_or_default(),
        })
        .collect();
    found.sort_by(|a, b| (&a.hook, &a.table, &a.chain).cmp(&(&b.hook, &b.table, &b.chain)));
    found
}

fn key(object: &Value, name: &str) -> [String; 3] {
    ["family", "table", name].map(|field| object[field].as_str().unwrap_or_default().to_owned())
}

fn statements(rule: &Value) -> impl Iterator<Item = &Value> {
    rule.as_array().into_iter().flatten()
}

/// A rule with no condition that drops or rejects.
fn drops_everything(rule: &Value) -> bool {
    statements(rule).any(|s| s.get("drop").is_some() || s.get("reject").is_some())
        && statements(rule).all(|s| {
            ["drop", "reject", "counter", "log"]
                .iter()
                .any(|known| s.get(known).is_some())
        })
}

/// Whether some rule of the chain, or of one it jumps to, accepts by the bridge's name or without any condition.
fn accepts(
    chains: &HashMap<[String; 3], Chain>,
    at: &[String; 3],
    bridge: &str,
    depth: usize,
) -> bool {
    let Some(chain) = chains.get(at) else {
        return false;
    };
    chain.rules.iter().any(|rule| {
        let accept = statements(rule).any(|s| s.get("accept").is_some());
        let conditions = || statements(rule).filter_map(|s| s.get("match"));
        let unconditional =
            statements(rule).all(|s| s.get("accept").is_some() || s.get("counter").is_some());
        let by_bridge = conditions().any(|m| {
            let device = m["left"]["meta"]["key"].as_str().unwrap_or_default();
            m["op"] == "==" && device.ends_with("ifname") && names(&m["right"], bridge)
        });
        if accept && (by_bridge || unconditional) {
            return true;
        }
        let target = statements(rule)
            .find_map(|s| s.get("jump").or_else(|| s.get("goto")))
            .and_then(|jump| jump["target"].as_str());
        match target {
            Some(target) if depth > 0 => {
                let next = [at[0].clone(), at[1].clone(), target.to_owned()];
                accepts(chains, &next, bridge, depth - 1)
            }
            _ => false,
        }
    })
}

fn names(value: &Value, bridge: &str) -> bool {
    match value {
        Value::String(name) => match name.strip_suffix('*') {
            Some(start) => bridge.starts_with(start),
            None => name == bridge,
        },
        Value::Object(object) => object
            .get("set")
            .and_then(Value::as_array)
            .is_some_and(|set| set.iter().any(|one| names(one, bridge))),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(rules: &str) -> String {
        format!(
            r#"{{"nftables":[{{"metainfo":{{}}}},
            {{"chain":{{"family":"ip","table":"filter","name":"FORWARD","type":"filter","hook":"forward","prio":0,"policy":"drop"}}}},
            {{"chain":{{"family":"ip","table":"filter","name":"DOCKER-USER"}}}},
            {{"chain":{{"family":"inet","table":"warren_abcd","name":"forward","type":"filter","hook":"forward","prio":0,"policy":"drop"}}}}
            {rules}]}}"#
        )
    }

    const JUMP: &str = r#",{"rule":{"family":"ip","table":"filter","chain":"FORWARD","expr":[{"counter":{}},{"jump":{"target":"DOCKER-USER"}}]}}"#;

    #[test]
    fn a_forward_policy_of_drop_is_found_and_our_own_table_is_not() {
        let found = find(&ruleset(JUMP), "warren_abcd", "vmbr0");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].table, "filter");
    }

    #[test]
    fn another_installations_table_drops_nothing_of_this_bridge() {
        let found = find(&ruleset(JUMP), "warren_efgh", "vmbr0");
        assert!(
            found.iter().all(|chain| chain.table == "filter"),
            "{found:?}"
        );
    }

    #[test]
    fn an_accept_for_the_bridge_behind_a_jump_clears_it() {
        let accept = r#",{"rule":{"family":"ip","table":"filter","chain":"DOCKER-USER","expr":[
            {"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"vmbr0"}},{"counter":{}},{"accept":null}]}}"#;
        assert!(find(&ruleset(&format!("{JUMP}{accept}")), "warren_abcd", "vmbr0").is_empty());
        let other = find(&ruleset(&format!("{JUMP}{accept}")), "warren_abcd", "vmbr1");
        assert_eq!(other.len(), 1);
    }

    #[test]
    fn a_closing_reject_counts_as_drop() {
        let text = r#"{"nftables":[
            {"chain":{"family":"inet","table":"firewalld","name":"filter_FORWARD","type":"filter","hook":"forward","prio":10,"policy":"accept"}},
            {"rule":{"family":"inet","table":"firewalld","chain":"filter_FORWARD","expr":[{"reject":{"type":"icmpx","expr":"admin-prohibited"}}]}}]}"#;
        assert_eq!(find(text, "warren_abcd", "vmbr0").len(), 1);
        assert!(find("not json", "warren_abcd", "vmbr0").is_empty());
    }
}
