//! What must not leave in a bundle: values of environments, passwords, tokens. Pure.
//!
//! Two sieves: by place (the fields of our own documents that hold secrets) and by content (a value of the instance's
//! environment wherever it turns up, and whatever looks like a credential). The second cannot be complete, because a
//! workload may write anything into its log.

use serde_json::Value;

/// What stands where something was hidden.
pub(super) const HIDDEN: &str = "(hidden)";
/// A shorter value would be found in innocent words.
const SHORTEST: usize = 6;
/// Names of what holds a secret, as parts of them.
const TELLING: [&str; 7] = [
    "password", "passwd", "secret", "token", "api_key", "apikey", "api-key",
];

/// The values to look for.
#[derive(Debug, Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Of these values, and of each of their lines, those that are long enough to be told from other text.
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a String>) -> Self {
        let mut all: Vec<String> = values
            .flat_map(|value| std::iter::once(value.as_str()).chain(value.lines()))
            .map(str::trim)
            .filter(|value| value.len() >= SHORTEST)
            .map(str::to_owned)
            .collect();
        // One may be a part of another.
        all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        Secrets(all)
    }

    /// Text without them, and without what looks like a credential.
    pub(super) fn hidden_in(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for secret in &self.0 {
            if clean.contains(secret.as_str()) {
                clean = clean.replace(secret.as_str(), HIDDEN);
            }
        }
        without_credentials(&clean)
    }

    /// The same in every text of a document, and nothing of what its fields say is secret.
    pub(super) fn hide_in(&self, document: &mut Value) {
        match document {
            Value::String(text) => *text = self.hidden_in(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide_in(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "env" {
                        hide_environment(value);
                    } else if is_telling(name)
                        || matches!(name.as_str(), "credentials" | "attach_key")
                    {
                        hide_all(value);
                    } else {
                        self.hide_in(value);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

fn is_telling(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    TELLING.iter().any(|word| name.contains(word))
}

/// `{"NAME": "value"}` or `["NAME=value"]`: the names stay.
fn hide_environment(env: &mut Value) {
    match env {
        Value::Array(words) => {
            for word in words {
                let name = word.as_str().and_then(|word| word.split_once('='));
                *word = match name {
                    Some((name, _)) => Value::String(format!("{name}={HIDDEN}")),
                    None => Value::String(HIDDEN.to_owned()),
                };
            }
        }
        Value::Object(pairs) => pairs.values_mut().for_each(hide_all),
        other => hide_all(other),
    }
}

fn hide_all(value: &mut Value) {
    if !value.is_null() {
        *value = Value::String(HIDDEN.to_owned());
    }
}

/// Whether a character ends a word.
fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '(' | ')' | '<' | '>' | '\0')
}

fn without_credentials(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut announced = false;
    for piece in text.split_inclusive(ends_word) {
        let word = piece.trim_end_matches(ends_word);
        let rest = &piece[word.len()..];
        if announced && word.len() >= SHORTEST {
            clean.push_str(HIDDEN);
        } else {
            clean.push_str(&without_credential(word));
        }
        if !word.is_empty() {
            announced = word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic");
        }
        clean.push_str(rest);
    }
    clean
}

/// A word without a password in its URL (`scheme://user:password@host`), the value of a telling name
/// (`--password=…`, `API_KEY=…`), or a JSON Web Token (RFC 7519: base64 of `{"` comes first, two dots).
fn without_credential(word: &str) -> String {
    if word.starts_with("eyJ") && word.matches('.').count() == 2 {
        return HIDDEN.to_owned();
    }
    if let Some((name, value)) = word.split_once('=')
        && !value.is_empty()
        && is_telling(name)
    {
        return format!("{name}={HIDDEN}");
    }
    if let Some((scheme, rest)) = word.split_once("://") {
        let authority = rest.split('/').next().unwrap_or_default();
        if let Some((user, _)) = authority.rsplit_once('@')
            && let Some((name, _)) = user.split_once(':')
        {
            let after = &rest[user.len()..];
            return format!("{scheme}://{name}:{HIDDEN}{after}");
        }
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secrets(values: &[&str]) -> Secrets {
        let values: Vec<String> = values.iter().map(|&value| value.to_owned()).collect();
        Secrets::new(values.iter())
    }

    #[test]
    fn documents_keep_names_and_lose_values() {
        let mut document = json!({
            "spec": {"env": {"A": "1", "KEY": "hunter2hunter2"}, "cmd": ["sh", "-c", "echo hunter2hunter2"]},
            "image_config": {"env": ["PATH=/bin", "odd"]},
            "attach_key": [1, 2, 3], "registry_token": "abc", "password": null, "memory": 256,
        });
        secrets(&["1", "hunter2hunter2"]).hide_in(&mut document);
        assert_eq!(
            document,
            json!({
                "spec": {"env": {"A": HIDDEN, "KEY": HIDDEN}, "cmd": ["sh", "-c", "echo (hidden)"]},
                "image_config": {"env": ["PATH=(hidden)", HIDDEN]},
                "attach_key": HIDDEN, "registry_token": HIDDEN, "password": null, "memory": 256,
            })
        );
    }

    #[test]
    fn text_loses_values_wherever_they_are_and_what_looks_like_a_credential() {
        let secrets = secrets(&[
            "first line\nsecond line",
            "line",
            "sesame-open",
            "sesame-open-wide",
        ]);
        for (text, expected) in [
            ("nothing here, really", "nothing here, really"),
            ("it is sesame-open-wide!", "it is (hidden)!"),
            ("a second line of it", "a (hidden) of it"),
            (
                "Authorization: Bearer abcdefgh\n",
                "Authorization: Bearer (hidden)\n",
            ),
            ("\"Basic  dXNlcjpwYXNz\"", "\"Basic  (hidden)\""),
            ("a basic idea", "a basic idea"),
            ("t=eyJhbGc.eyJzdWI.c2ln", "t=eyJhbGc.eyJzdWI.c2ln"),
            ("eyJhbGc.eyJzdWI.c2ln", "(hidden)"),
            (
                "--db-password=x1 --name=web",
                "--db-password=(hidden) --name=web",
            ),
            (
                "see postgres://me:pw@db:5432/x?a=b",
                "see postgres://me:(hidden)@db:5432/x?a=b",
            ),
            ("https://web:8443/path@2", "https://web:8443/path@2"),
        ] {
            assert_eq!(secrets.hidden_in(text), expected);
        }
    }
}
