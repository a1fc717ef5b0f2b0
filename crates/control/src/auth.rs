//! Who may do what. With a secret: bearer tokens (JWT, HS256 and nothing else). Without one: this
//! machine only, and `guard` keeps web pages out.

use hyper::Method;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation, decode};
use ring::hmac;
use serde::Deserialize;
use signature::{Signer, Verifier};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use warren_api::{Code, Problem};

/// Clocks of two machines differ by this much, seconds.
const LEEWAY: u64 = 30;
/// A token longer than this is none.
const LONGEST_TOKEN: usize = 8192;

/// How requests are authenticated.
#[derive(Clone)]
pub enum Auth {
    /// No secret: only from this machine, and not by web pages.
    Loopback,
    /// Bearer tokens signed with this secret.
    Jwt(Box<JwtKey>),
}

/// A secret, ready for use.
#[derive(Clone)]
pub struct JwtKey {
    key: DecodingKey,
    validation: Validation,
}

/// A listener that would let anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is reachable from other machines and no JWT_SECRET is set: set one, or listen on 127.0.0.1"
)]
pub struct OpenToAll(pub SocketAddr);

/// What a credential allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scopes {
    /// Everything.
    All,
    /// `resource:action`, with `*` for any.
    Only(BTreeSet<String>),
}

/// Whose a credential is, and what it allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The token's subject, where it has one.
    pub subject: Option<String>,
    /// What it allows.
    pub scopes: Scopes,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Option<serde_json::Value>,
    #[serde(default)]
    permissions: Option<serde_json::Value>,
}

impl Auth {
    /// By secret; an empty one is none.
    pub fn from_secret(secret: Option<&str>) -> Self {
        match secret.filter(|secret| !secret.is_empty()) {
            None => Auth::Loopback,
            Some(secret) => {
                install_hmac();
                let mut validation = Validation::new(Algorithm::HS256);
                validation.leeway = LEEWAY;
                validation.validate_exp = true;
                validation.validate_nbf = true;
                validation.validate_aud = false;
                // A token without an end is the user's choice: JWT_SECRET's first users have such tokens.
                validation.required_spec_claims.clear();
                Auth::Jwt(Box::new(JwtKey {
                    key: DecodingKey::from_secret(secret.as_bytes()),
                    validation,
                }))
            }
        }
    }

    /// Whether a server may listen there.
    ///
    /// # Errors
    /// [`OpenToAll`] off loopback without a secret.
    pub fn check_listener(&self, address: SocketAddr) -> Result<(), OpenToAll> {
        match self {
            Auth::Jwt(_) => Ok(()),
            Auth::Loopback if address.ip().is_loopback() => Ok(()),
            Auth::Loopback => Err(OpenToAll(address)),
        }
    }

    /// What a request may do, by its `Authorization` header.
    ///
    /// # Errors
    /// A 401 problem.
    pub fn authenticate(&self, header: Option<&str>) -> Result<Scopes, Box<Problem>> {
        self.identify(header).map(|identity| identity.scopes)
    }

    /// Who makes a request and what it may do, by its `Authorization` header.
    ///
    /// # Errors
    /// A 401 problem.
    pub fn identify(&self, header: Option<&str>) -> Result<Identity, Box<Problem>> {
        let Auth::Jwt(jwt) = self else {
            return Ok(Identity {
                subject: None,
                scopes: Scopes::All,
            });
        };
        let refuse = |why: &str| Box::new(Problem::new(Code::Unauthorized, why));
        let token = header
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .filter(|token| !token.is_empty() && token.len() <= LONGEST_TOKEN)
            .ok_or_else(|| {
                refuse("this server wants a credential: send `Authorization: Bearer TOKEN`")
            })?;
        let claims = decode::<Claims>(token, &jwt.key, &jwt.validation)
            .map_err(|e| {
                refuse(match e.kind() {
                    ErrorKind::ExpiredSignature => "the token has expired: get a new one",
                    ErrorKind::ImmatureSignature => "the token is not valid yet",
                    ErrorKind::InvalidAlgorithm => "the token must be signed with HS256",
                    _ => "the token is not valid",
                })
            })?
            .claims;
        let scopes = match claims.permissions {
            None => Scopes::All,
            Some(serde_json::Value::Array(list)) => Scopes::Only(
                list.iter()
                    .filter_map(|scope| scope.as_str().map(str::to_owned))
                    .collect(),
            ),
            Some(_) => return Err(refuse("the token's permissions are not a list")),
        };
        // A subject that is no text is none: REST asks for no subject and must not mind.
        let subject = claims.sub.as_ref().and_then(serde_json::Value::as_str);
        Ok(Identity {
            subject: subject.map(str::to_owned),
            scopes,
        })
    }
}

impl Scopes {
    /// Whether this is allowed.
    pub fn allow(&self, resource: &str, action: &str) -> bool {
        match self {
            Scopes::All => true,
            Scopes::Only(list) => [
                format!("{resource}:{action}"),
                format!("{resource}:*"),
                "*".to_owned(),
                "*:*".to_owned(),
                format!("*:{action}"),
            ]
            .iter()
            .any(|scope| list.contains(scope)),
        }
    }
}

/// Which scope a request needs; `None` for what is public.
pub fn scope(method: &Method, path: &str) -> Option<(&'static str, &'static str)> {
    let mut segments = path.trim_matches('/').split('/');
    let first = segments.next().unwrap_or_default();
    let last = segments.next_back();
    let resource = match first {
        "health" | "spec.json" | "spec.yaml" => return None,
        "images" | "v2" => "image",
        "instances" => "instance",
        "volumes" => "volume",
        "snapshots" => "snapshot",
        "ingresses" => "ingress",
        "devices" => "device",
        "builds" | "builders" | "pushes" => "build",
        _ => "resource",
    };
    // These are GET because WebSockets are; they change what is inside.
    let enters = resource == "instance" && matches!(last, Some("exec" | "attach" | "cp" | "ssh"));
    let part = resource == "instance" && path.trim_matches('/').split('/').count() > 2;
    // Giving up an upload of one's own takes nothing away.
    let part = part || (first == "v2" && path.contains("/blobs/uploads/"));
    // POSTs because they have a body; they change nothing.
    let reads = matches!(path.trim_matches('/'), "images/save" | "images/export");
    let action = if reads || *method == Method::GET || *method == Method::HEAD {
        if enters { "write" } else { "read" }
    } else if *method == Method::DELETE && !part {
        "delete"
    } else {
        "write"
    };
    Some((resource, action))
}

/// A user's name and password as the bearer token that the password is: `docker login` and its kind know nothing else
/// (RFC 7617). The name is not looked at. `None` for any other scheme.
pub(crate) fn token_of_basic(header: &str) -> Option<String> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let (scheme, credentials) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || credentials.len() > 2 * LONGEST_TOKEN {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (_, password) = decoded.split_once(':')?;
    Some(format!("Bearer {password}"))
}

/// HS256 from ring, which is here for TLS anyway; the crate's own back ends bring RSA or another TLS library.
struct Hs256(hmac::Key);

impl Hs256 {
    fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self, jsonwebtoken::errors::Error> {
        if algorithm == Algorithm::HS256 {
            Ok(Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret)))
        } else {
            Err(ErrorKind::InvalidAlgorithm.into())
        }
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

fn install_hmac() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key: &EncodingKey| {
            Ok(Box::new(Hs256::new(*algorithm, key.as_bytes())?))
        },
        verifier_factory: |algorithm, key: &DecodingKey| {
            Ok(Box::new(Hs256::new(*algorithm, key.try_get_as_bytes()?)?))
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    // Only the first call of a process does something.
    let _ = PROVIDER.install_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    use serde_json::json;

    const SECRET: &str = "a secret for tests";

    fn token(header: serde_json::Value, claims: serde_json::Value, secret: &str) -> String {
        let head = B64.encode(header.to_string());
        let body = B64.encode(claims.to_string());
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signed = hmac::sign(&key, format!("{head}.{body}").as_bytes());
        format!("Bearer {head}.{body}.{}", B64.encode(signed.as_ref()))
    }

    fn hs256(claims: serde_json::Value) -> String {
        token(json!({"alg": "HS256", "typ": "JWT"}), claims, SECRET)
    }

    fn try_token(header: Option<&str>) -> Result<Scopes, u16> {
        Auth::from_secret(Some(SECRET))
            .authenticate(header)
            .map_err(|problem| problem.status)
    }

    #[test]
    fn jwt_matrix() {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        for good in [
            hs256(json!({})),
            hs256(json!({"exp": now + 100})),
            hs256(json!({"nbf": now - 100, "exp": now + 100, "sub": "me"})),
            hs256(json!({"aud": "somebody"})),
        ] {
            assert_eq!(try_token(Some(&good)), Ok(Scopes::All), "{good}");
        }
        let none = {
            let head = B64.encode(json!({"alg": "none"}).to_string());
            format!("Bearer {head}.{}.", B64.encode("{}"))
        };
        for bad in [
            hs256(json!({"exp": now - 100})),
            hs256(json!({"nbf": now + 100})),
            hs256(json!({"permissions": "instance:read"})),
            token(json!({"alg": "HS256"}), json!({}), "another secret"),
            token(json!({"alg": "HS512"}), json!({}), SECRET),
            token(json!({"alg": "RS256"}), json!({}), SECRET),
            token(json!({"alg": "none"}), json!({}), SECRET),
            none,
            hs256(json!({})).replace("Bearer ", "Basic "),
            "Bearer ".to_owned(),
            format!("Bearer {}", "x".repeat(10_000)),
        ] {
            assert_eq!(try_token(Some(&bad)), Err(401), "{bad}");
        }
        assert_eq!(try_token(None), Err(401));
    }

    #[test]
    fn a_password_is_a_token() {
        use base64::engine::general_purpose::STANDARD;
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(
            token_of_basic(&basic("me:a.b:c")).as_deref(),
            Some("Bearer a.b:c")
        );
        assert_eq!(token_of_basic(&basic(":x")).as_deref(), Some("Bearer x"));
        for none in [
            basic("no colon"),
            "Basic !!!".to_owned(),
            "Bearer x:y".to_owned(),
            "Basic".to_owned(),
        ] {
            assert_eq!(token_of_basic(&none), None, "{none}");
        }
    }

    #[test]
    fn scopes_allow_what_they_say() {
        let Ok(scopes) = try_token(Some(&hs256(
            json!({"permissions": ["instance:read", "image:*"]}),
        ))) else {
            panic!("valid");
        };
        assert!(scopes.allow("instance", "read") && scopes.allow("image", "delete"));
        assert!(!scopes.allow("instance", "write") && !scopes.allow("volume", "read"));
        let none = try_token(Some(&hs256(json!({"permissions": []}))));
        assert_eq!(none, Ok(Scopes::Only(BTreeSet::new())));
    }

    #[test]
    fn every_route_but_the_public_ones_has_a_scope() {
        assert_eq!(scope(&Method::GET, "/health"), None);
        assert_eq!(scope(&Method::GET, "/spec.json"), None);
        let cases = [
            (Method::GET, "/instances", ("instance", "read")),
            (Method::GET, "/instances/a/exec", ("instance", "write")),
            (Method::GET, "/instances/a/logs", ("instance", "read")),
            (Method::DELETE, "/instances/a", ("instance", "delete")),
            (
                Method::DELETE,
                "/instances/a/volumes/v",
                ("instance", "write"),
            ),
            (
                Method::DELETE,
                "/images/docker.io/library/a:1",
                ("image", "delete"),
            ),
            (Method::POST, "/images/load", ("image", "write")),
            (Method::POST, "/images/save", ("image", "read")),
            (Method::POST, "/images/export", ("image", "read")),
            (Method::GET, "/v2/", ("image", "read")),
            (Method::HEAD, "/v2/a/manifests/1", ("image", "read")),
            (Method::PUT, "/v2/a/manifests/1", ("image", "write")),
            (Method::DELETE, "/v2/a/manifests/1", ("image", "delete")),
            (Method::DELETE, "/v2/a/blobs/uploads/1", ("image", "write")),
            (Method::GET, "/metrics", ("resource", "read")),
            (Method::GET, "/nothing/known", ("resource", "read")),
        ];
        for (method, path, expected) in cases {
            assert_eq!(scope(&method, path), Some(expected), "{method} {path}");
        }
    }

    #[test]
    fn nobody_listens_openly_without_a_secret() {
        let open: SocketAddr = ([0, 0, 0, 0], 8080).into();
        let own: SocketAddr = ([127, 0, 0, 1], 8080).into();
        assert_eq!(
            Auth::from_secret(None).check_listener(open),
            Err(OpenToAll(open))
        );
        assert_eq!(
            Auth::from_secret(Some("")).check_listener(open),
            Err(OpenToAll(open))
        );
        assert_eq!(Auth::from_secret(None).check_listener(own), Ok(()));
        assert_eq!(Auth::from_secret(Some("s")).check_listener(open), Ok(()));
    }
}
