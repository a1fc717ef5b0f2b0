//! The stable codes of the API's own errors. Adapters add codes of their own (see
//! `warren_core::PortError`), so the wire carries text; these are the ones `control` gives.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// A stable, machine-readable reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// As on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The HTTP status it goes with.
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON, or not of the documented shape.
    InvalidBody = "invalid_body", 400;
    /// A field has a value that can never work.
    InvalidField = "invalid_field", 400;
    /// A query parameter is unknown or has a value that can never work.
    InvalidQuery = "invalid_query", 400;
    /// A part of the path is not what it stands for.
    InvalidPath = "invalid_path", 400;
    /// A header has a value that can never work.
    InvalidHeader = "invalid_header", 400;
    /// A page token is not one of ours.
    InvalidPageToken = "invalid_page_token", 400;
    /// The request is not a WebSocket handshake, and the route is one.
    UpgradeRequired = "upgrade_required", 400;
    /// No credential, or one that is not valid.
    Unauthorized = "unauthorized", 401;
    /// The credential does not allow this.
    Forbidden = "forbidden", 403;
    /// The request came from a web page or by a name that is not this machine's.
    ForeignOrigin = "foreign_origin", 403;
    /// There is no such route.
    RouteNotFound = "route_not_found", 404;
    /// There is no such instance.
    InstanceNotFound = "instance_not_found", 404;
    /// There is no such image.
    ImageNotFound = "image_not_found", 404;
    /// There is no such push.
    PushNotFound = "push_not_found", 404;
    /// There is no such operation, or it ended long ago.
    OperationNotFound = "operation_not_found", 404;
    /// The route exists, with other methods.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The request did not come in whole in time.
    RequestTimedOut = "request_timed_out", 408;
    /// The name is in use.
    NameTaken = "name_taken", 409;
    /// The id is in use.
    IdTaken = "id_taken", 409;
    /// The host port is published by another instance, or taken on the host.
    PortTaken = "port_taken", 409;
    /// Instances use the image.
    ImageInUse = "image_in_use", 409;
    /// A prefix of several ids.
    Ambiguous = "ambiguous", 409;
    /// Not in this state.
    WrongState = "wrong_state", 409;
    /// Somebody cancelled it.
    Cancelled = "cancelled", 409;
    /// The idempotency key was used for another request.
    IdempotencyMismatch = "idempotency_mismatch", 409;
    /// Somebody else changed the same thing at the same time, again and again.
    Contention = "contention", 409;
    /// The body is larger than this route takes.
    BodyTooLarge = "body_too_large", 413;
    /// The body's media type is not one this route takes.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// The host has no room.
    NoCapacity = "no_capacity", 429;
    /// Too many requests of this kind at once.
    TooManyRequests = "too_many_requests", 429;
    /// Our own mistake.
    Internal = "internal", 500;
    /// Part of the API, and not served yet.
    NotImplemented = "not_implemented", 501;
    /// The server is stopping, or what it depends on does not answer.
    Unavailable = "unavailable", 503;
    /// The record of intent may not be that of this host: `warren system recover` rebuilds it.
    RecordInDoubt = "record_in_doubt", 503;
    /// It did not happen in time; it may still happen.
    TimedOut = "timed_out", 503;
    /// The disk is full.
    DiskFull = "disk_full", 507;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_distinct_snake_case() {
        let texts: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for text in texts {
            assert!(
                text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{text}"
            );
        }
    }
}
