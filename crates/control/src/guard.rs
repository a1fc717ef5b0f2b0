//! Keeps web pages and other machines out of a server that asks for no credential: the peer must be
//! this machine, `Host` must name it (so that no DNS name rebinds to us), and an `Origin` must be our own.

use hyper::{HeaderMap, Uri, header};
use std::net::{IpAddr, SocketAddr};
use warren_api::{Code, Problem};

/// Checks a request.
///
/// # Errors
/// A 403 problem that says which of the three it was.
pub(crate) fn check(
    peer: Option<SocketAddr>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), Box<Problem>> {
    let refuse = |why: &str| Err(Box::new(Problem::new(Code::ForeignOrigin, why)));
    // Without a secret every listener is on loopback; this also holds behind a forgetful redirect.
    if peer.is_some_and(|peer| !peer.ip().to_canonical().is_loopback()) {
        return refuse("without JWT_SECRET this server answers its own machine only");
    }
    let host = match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => single(headers, header::HOST),
    };
    let Some(host) = host.filter(|host| is_loopback_authority(host)) else {
        return refuse(
            "without JWT_SECRET this server answers to localhost, 127.0.0.1 and [::1] only",
        );
    };
    if headers.contains_key(header::ORIGIN) {
        let own = single(headers, header::ORIGIN)
            .and_then(|origin| {
                origin
                    .strip_prefix("http://")
                    .or(origin.strip_prefix("https://"))
            })
            .is_some_and(|origin| origin.eq_ignore_ascii_case(host));
        if !own {
            return refuse("without JWT_SECRET web pages of other origins may not use this server");
        }
    }
    Ok(())
}

/// Two of one header are as bad as a wrong one.
fn single(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn is_loopback_authority(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => (
                host,
                port.strip_prefix(':').or(port.is_empty().then_some("")),
            ),
            None => return false,
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        },
    };
    let port_fits = port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok());
    port_fits
        && (host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: Option<&str>, origin: Option<&str>, peer: [u8; 4]) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().expect("a header"));
        }
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().expect("a header"));
        }
        check(
            Some((peer, 5000).into()),
            &Uri::from_static("/health"),
            &headers,
        )
        .is_ok()
    }

    #[test]
    fn host_and_origin_matrix() {
        let own = [127, 0, 0, 1];
        for host in [
            "localhost",
            "localhost:8080",
            "127.0.0.1:8080",
            "127.9.8.7",
            "[::1]:8080",
            "[::1]",
            "LOCALHOST:1",
        ] {
            assert!(request(Some(host), None, own), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8080",
            "10.0.0.1",
            "localhost:x",
            "[::1",
            "[::1]x",
            "",
            "@localhost",
        ] {
            assert!(!request(Some(host), None, own), "{host}");
        }
        assert!(!request(None, None, own));
        let host = Some("127.0.0.1:8080");
        assert!(request(host, Some("http://127.0.0.1:8080"), own));
        for origin in [
            "null",
            "http://evil.example",
            "http://127.0.0.1:9999",
            "http://localhost:8080",
            "file://",
            "http://127.0.0.1:8080.evil.example",
        ] {
            assert!(!request(host, Some(origin), own), "{origin}");
        }
        assert!(!request(host, None, [192, 168, 1, 7]));
    }

    #[test]
    fn two_hosts_are_refused() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, "localhost".parse().expect("a header"));
        headers.append(header::HOST, "evil.example".parse().expect("a header"));
        assert!(check(None, &Uri::from_static("/"), &headers).is_err());
    }
}
