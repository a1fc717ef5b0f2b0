//! Coming again when a server is busy: it did nothing yet, and says when to ask again.

use super::ClientError;
use crate::code::Code;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::sync::Arc;
use std::time::Duration;

/// The shortest pause, whatever the server says.
const SHORTEST: Duration = Duration::from_millis(100);

/// Whoever is told before each pause: why, and how long it takes.
type Notice = Arc<dyn Fn(&ClientError, Duration) + Send + Sync>;

/// For how long a client comes again when it is told that there are too many requests.
#[derive(Clone)]
pub struct Patience {
    limit: Duration,
    notice: Notice,
}

impl Patience {
    /// Pauses for `limit` altogether, for each request; `notice` is told before each pause.
    pub fn new(
        limit: Duration,
        notice: impl Fn(&ClientError, Duration) + Send + Sync + 'static,
    ) -> Self {
        Patience {
            limit,
            notice: Arc::new(notice),
        }
    }

    /// How long to wait before the same request is sent again; `None` when the refusal is to be told.
    pub(super) fn pause(
        &self,
        error: &ClientError,
        asked: Option<Duration>,
        waited: Duration,
    ) -> Option<Duration> {
        // A host without room (`no_capacity`) has none a moment later either.
        if error.code() != Some(Code::TooManyRequests.as_str()) {
            return None;
        }
        let pause = asked?.max(SHORTEST);
        if waited.saturating_add(pause) > self.limit {
            return None;
        }
        (self.notice)(error, pause);
        Some(pause)
    }
}

/// `Retry-After` in seconds (RFC 9110, 10.2.3). Our server never sends a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Refused;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn refused(code: Code) -> ClientError {
        ClientError::Refused(Box::new(Refused {
            status: code.status(),
            code: code.as_str().to_owned(),
            sentence: "no".to_owned(),
            details: Vec::new(),
            request_id: None,
        }))
    }

    #[test]
    fn only_a_busy_server_is_asked_again_and_not_for_ever() {
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let patience = Patience::new(Duration::from_secs(10), move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let busy = refused(Code::TooManyRequests);
        let second = Duration::from_secs(1);
        let pause = |error, asked, waited| patience.pause(error, asked, waited);
        assert_eq!(pause(&busy, Some(second), Duration::ZERO), Some(second));
        assert_eq!(pause(&busy, Some(Duration::ZERO), second), Some(SHORTEST));
        assert_eq!(pause(&busy, Some(second), second * 9), Some(second));
        assert_eq!(told.load(Ordering::Relaxed), 3);
        assert_eq!(pause(&busy, Some(second), second * 10), None);
        assert_eq!(pause(&busy, Some(Duration::MAX), second), None);
        assert_eq!(pause(&busy, None, Duration::ZERO), None);
        for other in [Code::NoCapacity, Code::Unavailable, Code::Internal] {
            let refusal = refused(other);
            assert_eq!(patience.pause(&refusal, Some(second), Duration::ZERO), None);
        }
        assert_eq!(
            told.load(Ordering::Relaxed),
            3,
            "who does not wait is not told"
        );
    }
}
