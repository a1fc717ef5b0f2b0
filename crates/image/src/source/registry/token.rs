//! What a registry is shown with each request: what its challenge asks for, and bearer tokens while they last.
//!
//! Sources: RFC 7235; distribution's "Token Authentication Specification" and "OAuth2 Token Authentication".

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

/// What `WWW-Authenticate` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of what an answer asks for.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
    }

    /// Parses one header value: a scheme, then `key="value"` or `key=value`, separated by commas.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = HashMap::new();
        while let Some((key, value)) = rest.split_once('=') {
            let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
            let (value, later) = match value.trim_start().strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => value.split_once(',').unwrap_or((value, "")),
            };
            parameters.insert(key, value.trim().to_owned());
            rest = later;
        }
        Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope").filter(|scope| !scope.is_empty()),
        })
    }
}

/// The fields of a request for a token, for its query or its form.
pub(super) fn token_fields<'a>(
    service: Option<&'a str>,
    scope: &'a str,
    grant: Grant<'a>,
) -> Vec<(&'static str, &'a str)> {
    let mut fields: Vec<_> = service
        .map(|service| ("service", service))
        .into_iter()
        .collect();
    match grant {
        // Each scope is a parameter of its own.
        Grant::Query => fields.extend(scope.split_whitespace().map(|scope| ("scope", scope))),
        Grant::Refresh(token) => fields.extend([
            ("scope", scope),
            ("grant_type", "refresh_token"),
            ("client_id", "warren"),
            ("refresh_token", token),
        ]),
    }
    fields
}

/// How a token is asked for.
#[derive(Clone, Copy)]
pub(super) enum Grant<'a> {
    /// GET, with user and password or nothing.
    Query,
    /// OAuth2, with a refresh token.
    Refresh(&'a str),
}

/// Fields as `application/x-www-form-urlencoded`.
pub(super) fn form(fields: &[(&str, &str)]) -> String {
    let Ok(mut url) = Url::parse("form:") else {
        return String::new();
    };
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

/// A token with its end.
#[derive(Clone)]
pub(crate) struct Bearer {
    pub(super) token: String,
    pub(super) until: Instant,
    /// A refresh token that takes the place of the one it was got with.
    pub(super) refresh: Option<String>,
}

/// The answer of a token server.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
}

impl TokenAnswer {
    pub(crate) fn bearer(self) -> Option<Bearer> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        // The specification's default is 60 s; a little less, so that none is used at its very end. A token that ends
        // sooner than it is of use is used nevertheless: the registry says no in time.
        let seconds = self.expires_in.unwrap_or(60).clamp(10, 3600);
        Some(Bearer {
            token: given(self.token).or_else(|| given(self.access_token))?,
            until: Instant::now() + Duration::from_secs(seconds * 9 / 10),
            refresh: given(self.refresh_token),
        })
    }
}

/// What one registry accepts from us at the moment.
#[derive(Clone, Default)]
pub(super) enum Authorization {
    /// Not asked for anything yet.
    #[default]
    None,
    /// User and password with every request.
    Basic,
    /// A token, and the challenge that led to it.
    Bearer(Bearer, Challenge),
}

/// The authorization of one registry, shared by all requests to it; a token is asked for once, whoever needs it.
#[derive(Default)]
pub(super) struct Session {
    state: Mutex<(u64, Authorization)>,
    /// Held while a token is asked for.
    pub(super) renewing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session(…)")
    }
}

impl Session {
    /// What is held, and its number.
    pub(super) fn current(&self) -> (u64, Authorization) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clone()
    }

    pub(super) fn replace(&self, authorization: Authorization) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 + 1, authorization);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed parse fails the test")]
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        let bearer = Challenge::parse(
            r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("r.example".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer realm=\"x"), None);
    }

    #[test]
    fn each_scope_is_a_parameter_of_its_own() {
        let both = "repository:a:pull,push repository:b:pull";
        let query = form(&token_fields(Some("r"), both, Grant::Query));
        assert_eq!(
            query,
            "service=r&scope=repository%3Aa%3Apull%2Cpush&scope=repository%3Ab%3Apull"
        );
        let posted = form(&token_fields(None, both, Grant::Refresh("s&t")));
        assert!(posted.starts_with("scope=repository%3Aa%3Apull%2Cpush+repository%3Ab%3Apull&"));
        assert!(posted.ends_with("refresh_token=s%26t"), "{posted}");
    }

    #[test]
    fn tokens_are_taken_under_both_names() {
        let bearer = |text: &str| serde_json::from_str::<TokenAnswer>(text).unwrap().bearer();
        for text in [
            r#"{"token":"t","expires_in":300}"#,
            r#"{"access_token":"t","token":""}"#,
        ] {
            assert_eq!(bearer(text).unwrap().token, "t");
        }
        assert!(bearer(r#"{"expires_in":300}"#).is_none());
        assert!(bearer(r#"{"token":"t","expires_in":18446744073709551615}"#).is_some());
    }
}
