//! Basic and bearer authentication, and where credentials may go.

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use warren_core::ErrorClass;
use warren_core::ports::images::{PullRequest, RegistryCredentials};
use warren_image::source::registry::RegistrySettings;

use crate::server::{Image, Seen, Server, Then, cut, layer};
use crate::{Host, plain};

fn encoded(pair: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(pair)
}

fn image() -> Image {
    Image::of(&[layer("a", 100_000), layer("b", 50_000), layer("c", 1000)])
}

fn unauthorized(challenge: String) -> Response {
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, challenge)],
    )
        .into_response()
}

/// A registry that wants user and password.
async fn with_basic() -> Server {
    let server = Server::plain().await;
    server.put_image("web", "1", &image());
    server.rule(usize::MAX, |seen| {
        let right = format!("Basic {}", encoded("user:pass"));
        (seen.header("authorization") != Some(&right))
            .then(|| unauthorized("Basic realm=\"r\"".into()))
    });
    server
}

/// A registry that wants tokens, which its token server, another host, gives unless `refusal` has one. Tokens are `token-N`; those
/// below `valid_from` are at their end.
struct Tokens {
    registry: Server,
    server: Server,
    valid_from: Arc<AtomicUsize>,
}

impl Tokens {
    async fn new(refusal: impl Fn(&Seen) -> Option<Response> + Send + Sync + 'static) -> Self {
        let (registry, server) = (Server::plain().await, Server::plain().await);
        registry.put_image("web", "1", &image());
        let realm = format!("http://{}/token", server.host());
        let valid_from = Arc::new(AtomicUsize::new(1));
        let valid = Arc::clone(&valid_from);
        registry.rule(usize::MAX, move |seen| {
            let number = seen
                .header("authorization")
                .and_then(|value| value.strip_prefix("Bearer token-")?.parse::<usize>().ok());
            let accepted = number.is_some_and(|number| number >= valid.load(Ordering::SeqCst));
            (!accepted).then(|| {
                unauthorized(format!(
                    r#"Bearer realm="{realm}",service="the registry",scope="repository:web:pull""#
                ))
            })
        });
        let given = AtomicUsize::new(0);
        server.rule(usize::MAX, move |seen| {
            Some(match refusal(seen) {
                None => {
                    let number = given.fetch_add(1, Ordering::SeqCst) + 1;
                    let name = if number.is_multiple_of(2) {
                        "token"
                    } else {
                        "access_token"
                    };
                    json!({ name: format!("token-{number}"), "expires_in": 300,
                        "refresh_token": format!("refresh-{number}") })
                    .to_string()
                    .into_response()
                }
                Some(refused) => refused,
            })
        });
        Tokens {
            registry,
            server,
            valid_from,
        }
    }
}

fn with(server: &Server, username: &str, password: &str) -> PullRequest {
    PullRequest {
        credentials: Some(RegistryCredentials::Basic {
            username: username.into(),
            password: password.into(),
        }),
        ..plain(server, "web:1")
    }
}

#[tokio::test]
async fn basic_credentials_are_shown_when_they_are_asked_for() {
    let server = with_basic().await;
    let host = Host::new();
    host.pull(with(&server, "user", "pass")).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].header("authorization"), None);
    // Once told, it is not asked again.
    assert!(
        seen[1..]
            .iter()
            .all(|seen| seen.header("authorization").is_some())
    );
}

#[tokio::test]
async fn wrong_and_missing_credentials_are_told_apart() {
    let server = with_basic().await;
    let host = Host::new();
    let wrong = host
        .refused(with(&server, "user", "wrong"), "registry_denied")
        .await;
    assert_eq!(wrong.class, ErrorClass::Denied);
    assert!(
        wrong.message.contains("does not accept the credentials"),
        "{wrong}"
    );
    assert!(!format!("{wrong:?}").contains("wrong\""), "{wrong:?}");
    let missing = host
        .refused(plain(&server, "web:1"), "registry_denied")
        .await;
    assert!(missing.message.contains("without credentials"), "{missing}");
    assert!(
        missing.sentence().contains("docker login"),
        "{}",
        missing.sentence()
    );
}

#[tokio::test]
async fn credentials_come_from_the_configuration_file() {
    let server = with_basic().await;
    let config = json!({ "auths": { server.host(): { "auth": encoded("user:pass") } } });
    let host = Host::with(RegistrySettings::default(), Some(&config.to_string()));
    host.pull(plain(&server, "web:1")).await.unwrap();
}

#[tokio::test]
async fn a_broken_configuration_file_is_told_where_credentials_are_wanted_and_only_there() {
    let config = r#"{ "credsStore": "nobody-has-this-one" }"#;
    let host = Host::with(RegistrySettings::default(), Some(config));
    let public = Server::plain().await;
    public.put_image("web", "1", &image());
    host.pull(plain(&public, "web:1")).await.unwrap();
    let host = Host::with(RegistrySettings::default(), Some(config));
    let private = with_basic().await;
    let error = host
        .refused(plain(&private, "web:1"), "registry_credentials_invalid")
        .await;
    assert!(
        error
            .message
            .contains("docker-credential-nobody-has-this-one"),
        "{error}"
    );
}

#[tokio::test]
async fn one_anonymous_token_serves_all_layers() {
    let tokens = Tokens::new(|seen| {
        assert_eq!(seen.method, Method::GET);
        assert_eq!(seen.header("authorization"), None);
        None
    })
    .await;
    Host::new()
        .pull(plain(&tokens.registry, "web:1"))
        .await
        .unwrap();
    let asked = tokens.server.seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].field("scope").unwrap(), "repository:web:pull");
    assert_eq!(asked[0].field("service").unwrap(), "the registry");
}

#[tokio::test]
async fn a_password_goes_to_the_token_server_and_not_to_the_registry() {
    let tokens = Tokens::new(|seen| {
        let right = format!("Basic {}", encoded("user:pass"));
        match seen.header("authorization") == Some(&right) {
            true => None,
            false => Some(StatusCode::UNAUTHORIZED.into_response()),
        }
    })
    .await;
    let host = Host::new();
    let error = host
        .refused(with(&tokens.registry, "user", "no"), "registry_denied")
        .await;
    assert!(
        error.message.contains("does not accept the credentials"),
        "{error}"
    );
    host.pull(with(&tokens.registry, "user", "pass"))
        .await
        .unwrap();
    let told = tokens.registry.seen();
    let basic = |seen: &Seen| {
        seen.header("authorization")
            .is_some_and(|value| value.starts_with("Basic"))
    };
    assert!(!told.iter().any(basic));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_replaced() {
    let tokens = Tokens::new(|seen| {
        assert_eq!(seen.method, Method::POST);
        assert_eq!(
            seen.header("content-type"),
            Some("application/x-www-form-urlencoded")
        );
        assert_eq!(seen.field("grant_type").unwrap(), "refresh_token");
        assert_eq!(seen.field("scope").unwrap(), "repository:web:pull");
        assert_eq!(seen.field("service").unwrap(), "the registry");
        None
    })
    .await;
    let (digest, bytes) = image().layer(0);
    let valid_from = Arc::clone(&tokens.valid_from);
    tokens.registry.blob_rule(1, &digest, move |_| {
        // The first token ends with this answer.
        valid_from.store(2, Ordering::SeqCst);
        cut(&bytes, 500, Then::Break)
    });
    let config =
        json!({ "auths": { tokens.registry.host(): { "identitytoken": "secret&identity" } } });
    let host = Host::with(RegistrySettings::default(), Some(&config.to_string()));
    host.pull(plain(&tokens.registry, "web:1")).await.unwrap();
    let shown: Vec<_> = tokens
        .server
        .seen()
        .iter()
        .map(|seen| seen.field("refresh_token"))
        .collect();
    assert_eq!(
        shown,
        [
            Some("secret&identity".to_owned()),
            Some("refresh-1".to_owned())
        ]
    );
}

#[tokio::test]
async fn a_refresh_token_that_has_ended_is_a_denial() {
    let tokens = Tokens::new(|_| {
        let refused = json!({ "error": "invalid_grant" }).to_string();
        Some((StatusCode::BAD_REQUEST, refused).into_response())
    })
    .await;
    let config = json!({ "auths": { tokens.registry.host(): { "identitytoken": "old" } } });
    let host = Host::with(RegistrySettings::default(), Some(&config.to_string()));
    host.refused(plain(&tokens.registry, "web:1"), "registry_denied")
        .await;
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_a_pull_is_renewed_once() {
    let tokens = Tokens::new(|_| None).await;
    let image = image();
    // All three layers break off, and with that the token ends.
    for at in 0..3 {
        let (digest, bytes) = image.layer(at);
        let valid_from = Arc::clone(&tokens.valid_from);
        // Asked for after the rule that checks tokens has let it pass.
        tokens.registry.blob_rule(1, &digest, move |_| {
            valid_from.store(2, Ordering::SeqCst);
            cut(&bytes, 500, Then::Break)
        });
    }
    Host::new()
        .pull(plain(&tokens.registry, "web:1"))
        .await
        .unwrap();
    assert_eq!(tokens.server.seen().len(), 2);
}

#[tokio::test]
async fn a_token_server_that_fails_is_asked_again() {
    let times = AtomicUsize::new(0);
    let tokens = Tokens::new(move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => Some(StatusCode::SERVICE_UNAVAILABLE.into_response()),
        _ => None,
    })
    .await;
    Host::new()
        .pull(plain(&tokens.registry, "web:1"))
        .await
        .unwrap();
    assert_eq!(tokens.server.seen().len(), 2);
}

#[tokio::test]
async fn a_token_server_that_talks_nonsense_is_refused() {
    let registry = Server::plain().await;
    registry.put_image("web", "1", &image());
    for realm in [
        "no url",
        "http:",
        &format!("http://{}/v2/web/manifests/1", Server::plain().await.host()),
    ] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        registry.no_rules();
        registry.rule(usize::MAX, move |_| Some(unauthorized(challenge.clone())));
        let error = Host::new()
            .pull(plain(&registry, "web:1"))
            .await
            .unwrap_err();
        assert!(
            matches!(error.code, "image_damaged" | "registry_unreachable"),
            "{realm}: {error}"
        );
    }
}

#[tokio::test]
async fn a_token_that_is_refused_at_once_ends_the_pull() {
    let tokens = Tokens::new(|_| None).await;
    tokens.valid_from.store(usize::MAX, Ordering::SeqCst);
    let host = Host::new();
    host.refused(with(&tokens.registry, "user", "pass"), "registry_denied")
        .await;
    assert_eq!(tokens.server.seen().len(), 1);
    assert_eq!(tokens.registry.seen().len(), 2);
}

#[tokio::test]
async fn a_ready_token_is_shown_as_it_is() {
    let registry = Server::plain().await;
    registry.put_image("web", "1", &image());
    let request = PullRequest {
        credentials: Some(RegistryCredentials::Token("mine".into())),
        ..plain(&registry, "web:1")
    };
    Host::new().pull(request).await.unwrap();
    let mine = |seen: &Seen| seen.header("authorization") == Some("Bearer mine");
    assert!(registry.seen().iter().all(mine));
}

#[tokio::test]
async fn blobs_that_are_elsewhere_are_fetched_without_credentials() {
    let (registry, storage) = (with_basic().await, Server::plain().await);
    let image = image();
    let (digest, bytes) = image.layer(0);
    storage.put_blob(&bytes);
    let to = format!(
        "http://{}/v2/store/blobs/{digest}?signature=s",
        storage.host()
    );
    let right = format!("Basic {}", encoded("user:pass"));
    registry.no_rules();
    let wanted = digest.clone();
    registry.rule(usize::MAX, move |seen| {
        if seen.header("authorization") != Some(&right) {
            return Some(unauthorized("Basic realm=\"r\"".into()));
        }
        let moved = [(header::LOCATION, to.clone())];
        seen.path
            .ends_with(&wanted)
            .then(|| (StatusCode::TEMPORARY_REDIRECT, moved).into_response())
    });
    storage.rule(1, move |_| Some(cut(&bytes, 1000, Then::Silence)));
    Host::new()
        .pull(with(&registry, "user", "pass"))
        .await
        .unwrap();
    let asked = storage.seen();
    assert_eq!(asked.len(), 2);
    for seen in &asked {
        assert_eq!(seen.header("authorization"), None);
        assert_eq!(seen.header("referer"), None);
    }
    assert_eq!(asked[1].header("range"), Some("bytes=1000-"));
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let registry = Server::plain().await;
    registry.put_image("web", "1", &image());
    registry.rule(usize::MAX, |seen| {
        let again = [(header::LOCATION, seen.path.clone())];
        seen.path
            .contains("/blobs/")
            .then(|| (StatusCode::FOUND, again).into_response())
    });
    Host::new()
        .refused(plain(&registry, "web:1"), "image_damaged")
        .await;
}
