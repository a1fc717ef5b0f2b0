//! One repository of one registry: requests to it, authenticated, in time, and asked again when that may help.

use std::error::Error as StdError;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use warren_core::ports::images::Transport;

use super::RegistryError;
use super::credentials::Credentials;
use super::error::{Again, Broken, Shown};
use super::token::{
    Authorization, Bearer, Challenge, Grant, Session, TokenAnswer, form, token_fields,
};

/// The first wait; each further one is twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// A registry may ask for longer than this; then the user is told.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A small document that has not come by then does not come.
const DOCUMENT_TIME: Duration = Duration::from_secs(120);
/// Of an answer that says no, as much is read for its words.
const WORDS: u64 = 16 << 10;
/// A token with what belongs to it.
const MAX_TOKEN: u64 = 1 << 20;

/// How often one is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// There is somebody else to ask.
    Mirror,
    /// There is not.
    Origin,
}

impl Patience {
    /// Attempts in all.
    pub(super) fn attempts(self) -> u32 {
        match self {
            Patience::Mirror => 2,
            Patience::Origin => 5,
        }
    }
}

/// Counts the failures of one request in a row.
#[derive(Debug)]
pub(super) struct Retries {
    failures: u32,
    patience: Patience,
}

impl Retries {
    pub(super) fn new(patience: Patience) -> Self {
        Retries {
            failures: 0,
            patience,
        }
    }

    /// There was progress: what failed before does not count.
    pub(super) fn forgive(&mut self) {
        self.failures = 0;
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to wait before the next attempt; the error when there shall be none.
    pub(super) fn after(&mut self, error: RegistryError) -> Result<Duration, RegistryError> {
        self.failures += 1;
        let most = match &error {
            // A name or port that is wrong stays so: the user is told soon.
            RegistryError::Unreachable {
                how: Broken::Name | Broken::Refused,
                ..
            } => self.patience.attempts().min(3),
            _ => self.patience.attempts(),
        };
        let delay = match error.again() {
            Again::Never => return Err(error),
            Again::Soon => backoff(self.failures, spread()),
            Again::After(delay) => delay.max(FIRST_DELAY),
        };
        if self.failures >= most || delay > LONGEST_DELAY {
            return Err(error);
        }
        tracing::debug!(%error, failures = self.failures, ?delay, "asking the registry again");
        Ok(delay)
    }
}

/// Doubling, with up to a quarter more, by `spread` of 256, so that many do not come back together.
fn backoff(failures: u32, spread: u32) -> Duration {
    let delay = FIRST_DELAY * 2u32.pow(failures.min(7) - 1);
    delay + delay * spread / 1024
}

fn spread() -> u32 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos() % 256)
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let at = httpdate::parse_http_date(text).ok()?;
            Some(at.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Endpoint {
    http: reqwest::Client,
    /// As references have it.
    registry: String,
    repository: String,
    transport: Transport,
    /// `https://host/v2/repository`.
    base: String,
    credentials: Mutex<Credentials>,
    /// Why there are none, if some were to be read. Told only when the registry wants some.
    unusable: Option<String>,
    session: Session,
    stall: Duration,
    patience: Patience,
}

impl Endpoint {
    pub(super) fn new(
        http: reqwest::Client,
        registry: &str,
        repository: String,
        transport: Transport,
        credentials: Result<Credentials, RegistryError>,
        stall: Duration,
        patience: Patience,
    ) -> Self {
        let host = match registry {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let scheme = match transport {
            Transport::Https => "https",
            Transport::PlainHttp => "http",
        };
        let (credentials, unusable) = match credentials {
            Ok(credentials) => (credentials, None),
            Err(RegistryError::Credentials { why, .. }) => (Credentials::Anonymous, Some(why)),
            Err(error) => (Credentials::Anonymous, Some(error.to_string())),
        };
        Endpoint {
            base: format!("{scheme}://{host}/v2/{repository}"),
            http,
            registry: registry.to_owned(),
            repository,
            transport,
            credentials: Mutex::new(credentials),
            unusable,
            session: Session::default(),
            stall,
            patience,
        }
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// Whether an address is this registry's own: others get no credentials.
    pub(super) fn owns(&self, url: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin())
    }

    /// The address of a path below the repository.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// One request that has no large body, once: the answer is a success.
    pub(super) async fn ask(
        &self,
        what: &str,
        request: impl Fn() -> RequestBuilder + Send + Sync,
    ) -> Result<Response, RegistryError> {
        let request = &request;
        let response = self
            .authenticated(|header| async move {
                self.in_time(authorized(request(), header).send()).await
            })
            .await?;
        match response.status() {
            status if status.is_success() => Ok(response),
            _ => Err(self.refusal(response, what).await),
        }
    }

    /// Sends with what the registry accepts, asks for a token when it wants one, and sends again.
    pub(super) async fn authenticated<F>(
        &self,
        send: impl Fn(Option<HeaderValue>) -> F,
    ) -> Result<Response, RegistryError>
    where
        F: Future<Output = Result<Response, RegistryError>>,
    {
        let mut asked = false;
        // Others may renew the authorization meanwhile, for purposes of theirs.
        for _ in 0..4 {
            let (number, header) = self.header().await?;
            let response = send(header).await?;
            if response.status() != StatusCode::UNAUTHORIZED || asked {
                return Ok(response);
            }
            let challenge = Challenge::of(response.headers());
            let _renewing = self.session.renewing.lock().await;
            if self.session.current().0 == number {
                self.renew(challenge).await?;
                asked = true;
            }
        }
        Err(self.denied(Shown::Refused))
    }

    /// The header for the next request, with a fresh token when the last one is at its end, and its number.
    async fn header(&self) -> Result<(u64, Option<HeaderValue>), RegistryError> {
        let (mut number, mut held) = self.session.current();
        if let Authorization::Bearer(bearer, challenge) = &held
            && bearer.until <= std::time::Instant::now()
        {
            let _renewing = self.session.renewing.lock().await;
            if self.session.current().0 == number {
                self.renew(Some(challenge.clone())).await?;
            }
            (number, held) = self.session.current();
        }
        let text = match (held, &self.credentials()) {
            (Authorization::Bearer(bearer, _), _) => Some(format!("Bearer {}", bearer.token)),
            (_, Credentials::Token(token)) => Some(format!("Bearer {token}")),
            (Authorization::Basic, Credentials::Basic { username, password }) => {
                use base64::Engine as _;
                let pair = format!("{username}:{password}");
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                Some(format!("Basic {encoded}"))
            }
            (Authorization::Basic | Authorization::None, _) => None,
        };
        let value = text.and_then(|text| HeaderValue::from_str(&text).ok());
        Ok((
            number,
            value.map(|mut value| {
                value.set_sensitive(true);
                value
            }),
        ))
    }

    fn credentials(&self) -> Credentials {
        let credentials = self.credentials.lock();
        credentials.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gets what a 401 asks for.
    async fn renew(&self, challenge: Option<Challenge>) -> Result<(), RegistryError> {
        let credentials = self.credentials();
        let authorization = match challenge.ok_or_else(|| self.denied(Shown::Refused))? {
            Challenge::Basic => match credentials {
                Credentials::Basic { .. } => Authorization::Basic,
                _ => return Err(self.denied(Shown::Refused)),
            },
            Challenge::Bearer { .. } if matches!(credentials, Credentials::Token(_)) => {
                return Err(self.denied(Shown::Refused));
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let wanted = scope
                    .clone()
                    .unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                let bearer = self
                    .token(&realm, service.as_deref(), &wanted, &credentials)
                    .await?;
                if let Some(refresh) = &bearer.refresh
                    && matches!(credentials, Credentials::Identity(_))
                {
                    *self
                        .credentials
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) =
                        Credentials::Identity(refresh.clone());
                }
                let challenge = Challenge::Bearer {
                    realm,
                    service,
                    scope,
                };
                Authorization::Bearer(bearer, challenge)
            }
        };
        self.session.replace(authorization);
        Ok(())
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credentials: &Credentials,
    ) -> Result<Bearer, RegistryError> {
        let mut url =
            Url::parse(realm).map_err(|_| self.wrong("its token server's address is no URL"))?;
        let request = match credentials {
            Credentials::Identity(token) => self
                .http
                .post(url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form(&token_fields(service, scope, Grant::Refresh(token)))),
            credentials => {
                url.query_pairs_mut()
                    .extend_pairs(token_fields(service, scope, Grant::Query));
                let request = self.http.get(url);
                match credentials {
                    Credentials::Basic { username, password } => {
                        request.basic_auth(username, Some(password))
                    }
                    Credentials::Anonymous | Credentials::Token(_) | Credentials::Identity(_) => {
                        request
                    }
                }
            }
        };
        let response = self.in_time(request.send()).await?;
        match response.status() {
            status if status.is_success() => {}
            // OAuth2 answers 400 to a refresh token that has ended (RFC 6749, 5.2).
            StatusCode::BAD_REQUEST if matches!(credentials, Credentials::Identity(_)) => {
                return Err(self.denied(Shown::Refused));
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.denied(Shown::Refused));
            }
            _ => return Err(self.unexpected(response, "the request for a token").await),
        }
        let bytes = self
            .body(response, MAX_TOKEN)
            .await?
            .ok_or_else(|| self.wrong("its token is too large"))?;
        serde_json::from_slice::<TokenAnswer>(&bytes)
            .ok()
            .and_then(TokenAnswer::bearer)
            .ok_or_else(|| self.wrong("its token server's answer has no token"))
    }

    /// Waits for the head of an answer.
    pub(super) async fn in_time(
        &self,
        sent: impl Future<Output = Result<Response, reqwest::Error>>,
    ) -> Result<Response, RegistryError> {
        match tokio::time::timeout(self.stall, sent).await {
            Ok(answer) => answer.map_err(|error| self.broken(error)),
            Err(_) => Err(self.stalled()),
        }
    }

    /// The next piece of an answer's body.
    pub(super) async fn piece(
        &self,
        response: &mut Response,
    ) -> Result<Option<bytes::Bytes>, RegistryError> {
        match tokio::time::timeout(self.stall, response.chunk()).await {
            Ok(piece) => piece.map_err(|error| self.broken(error)),
            Err(_) => Err(self.stalled()),
        }
    }

    /// A small body whole; `None` when it is larger than `limit`.
    pub(super) async fn body(
        &self,
        mut response: Response,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Ok(None);
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(piece) = self.piece(&mut response).await? {
                if (bytes.len() + piece.len()) as u64 > limit {
                    return Ok(None);
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(Some(bytes))
        };
        match tokio::time::timeout(DOCUMENT_TIME, read).await {
            Ok(body) => body,
            Err(_) => Err(self.stalled()),
        }
    }

    /// What an answer that is no success means. `what` is the path below the repository that was asked for.
    pub(super) async fn refusal(&self, response: Response, what: &str) -> RegistryError {
        match response.status() {
            StatusCode::UNAUTHORIZED => self.denied(match self.session.current().1 {
                // The token server knows the user; the registry does not want them here.
                Authorization::Bearer(..) => Shown::Accepted,
                Authorization::Basic | Authorization::None => Shown::Refused,
            }),
            StatusCode::FORBIDDEN => self.denied(Shown::Accepted),
            StatusCode::NOT_FOUND => RegistryError::NotFound {
                reference: self.name_of(what),
            },
            _ => self.unexpected(response, what).await,
        }
    }

    async fn unexpected(&self, response: Response, what: &str) -> RegistryError {
        let registry = self.registry.clone();
        let retry_after = retry_after(response.headers());
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited {
                registry,
                retry_after,
            },
            status => RegistryError::Status {
                registry,
                status: status.as_u16(),
                what: what.to_owned(),
                said: match self.body(response, WORDS).await {
                    Ok(Some(body)) => words(&body),
                    Ok(None) | Err(_) => String::new(),
                },
                retry_after,
            },
        }
    }

    /// What a path below the repository is called in references: `registry/repository:tag`, or `…@digest`.
    fn name_of(&self, path: &str) -> String {
        let name = path.rsplit('/').next().unwrap_or(path);
        let separator = match name {
            "" => "",
            digest if digest.contains(':') => "@",
            _ => ":",
        };
        format!("{}/{}{separator}{name}", self.registry, self.repository)
    }

    pub(super) fn denied(&self, shown: Shown) -> RegistryError {
        let registry = self.registry.clone();
        match (&self.unusable, self.credentials()) {
            (Some(why), _) => RegistryError::Credentials {
                registry,
                why: why.clone(),
            },
            (None, credentials) => RegistryError::Denied {
                registry,
                repository: self.repository.clone(),
                shown: match credentials {
                    Credentials::Anonymous => Shown::Nothing,
                    _ => shown,
                },
            },
        }
    }

    pub(super) fn wrong(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Wrong {
            registry: self.registry.clone(),
            why: why.into(),
        }
    }

    pub(super) fn stalled(&self) -> RegistryError {
        RegistryError::Stalled {
            registry: self.registry.clone(),
            waited: self.stall,
        }
    }

    /// What an error of the HTTP client means.
    pub(super) fn broken(&self, error: reqwest::Error) -> RegistryError {
        // An address may hold a signature.
        let error = error.without_url();
        let registry = self.registry.clone();
        if error.is_redirect() {
            return self.wrong("a redirect that leads nowhere, or from HTTPS to plain HTTP");
        }
        if let Some(tls) = cause::<rustls::Error>(&error) {
            use rustls::{AlertDescription, Error, InvalidMessage};
            match tls {
                Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                    return RegistryError::PlainHttp { registry };
                }
                Error::InvalidCertificate(_)
                | Error::NoCertificatesPresented
                | Error::AlertReceived(
                    AlertDescription::CertificateRequired
                    | AlertDescription::BadCertificate
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::UnknownCA
                    | AlertDescription::CertificateExpired
                    | AlertDescription::AccessDenied,
                ) => {
                    let why = tls.to_string();
                    return RegistryError::Certificate { registry, why };
                }
                _ => {}
            }
        }
        let refused = cause::<io::Error>(&error)
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        let how = if error.is_dns() {
            Broken::Name
        } else if refused {
            Broken::Refused
        } else if error.is_timeout() {
            Broken::Timeout
        } else if error.is_connect() {
            Broken::Connect
        } else {
            Broken::Midway
        };
        RegistryError::Unreachable {
            registry,
            transport: self.transport,
            how,
            source: error.into(),
        }
    }
}

/// Adds the header that was found for a request.
pub(super) fn authorized(request: RequestBuilder, header: Option<HeaderValue>) -> RequestBuilder {
    match header {
        Some(header) => request.header(AUTHORIZATION, header),
        None => request,
    }
}

/// The first cause of a kind, also inside I/O errors.
pub(super) fn cause<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a T> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error wraps is not its source, but itself.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(|error| error.get_ref());
        if let Some(found) = wrapped.and_then(|inner| cause(inner)) {
            return Some(found);
        }
        at = error.source();
    }
    None
}

/// A registry's own words (distribution-spec, "Error Codes"), made safe to show.
fn words(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else {
        return String::new();
    };
    let all: Vec<String> = errors
        .into_iter()
        .take(3)
        .map(|entry| match entry.message {
            message if message.is_empty() => entry.code,
            message => message,
        })
        .collect();
    let joined = all.join("; ");
    joined
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failure fails the test")]
    use super::*;

    fn status(status: u16, retry_after: Option<Duration>) -> RegistryError {
        RegistryError::Status {
            registry: "r".into(),
            status,
            what: "x".into(),
            said: String::new(),
            retry_after,
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(20));
        assert!((18..=20).contains(&after(&soon).unwrap().as_secs()));
        for wrong in ["", "-1", "soon"] {
            assert_eq!(after(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn attempts_are_counted_and_waits_are_bounded() {
        let mut retries = Retries::new(Patience::Origin);
        for n in 0..4 {
            let delay = retries.after(status(503, None)).unwrap();
            let least = FIRST_DELAY * 2u32.pow(n);
            assert!((least..=least * 5 / 4).contains(&delay), "{n}: {delay:?}");
        }
        assert!(retries.after(status(503, None)).is_err());
        let mut retries = Retries::new(Patience::Origin);
        let asked = Duration::from_secs(9);
        assert_eq!(retries.after(status(503, Some(asked))).unwrap(), asked);
        let too_long = Duration::from_secs(3600);
        assert!(retries.after(status(503, Some(too_long))).is_err());
        assert!(
            Retries::new(Patience::Origin)
                .after(status(404, None))
                .is_err()
        );
        assert!(
            Retries::new(Patience::Origin)
                .after(status(501, None))
                .is_err()
        );
        assert!(
            Retries::new(Patience::Origin)
                .after(status(408, None))
                .is_ok()
        );
    }

    #[test]
    fn a_registrys_words_are_made_safe() {
        let body =
            br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m"},{"code":"UNSUPPORTED"}]}"#;
        assert_eq!(words(body), "no[31m; UNSUPPORTED");
        assert_eq!(words(b"<html>"), "");
    }
}
