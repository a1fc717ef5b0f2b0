//! Which addresses are on this machine, and which references name the registry that a server is itself.

use reqwest::Url;
use std::net::IpAddr;

/// Whether `reference` names the registry at `server`.
pub(super) fn is_of(reference: &str, server: &Url) -> bool {
    let Some((registry, _)) = reference.split_once('/') else {
        return false;
    };
    // Without a port it is one of the world's registries, or the beginning of a name.
    if !registry.contains(':') {
        return false;
    }
    let Ok(named) = Url::parse(&format!("{}://{registry}", server.scheme())) else {
        return false;
    };
    named.port_or_known_default() == server.port_or_known_default()
        && (named.host() == server.host() || (is_here(&named) && is_here(server)))
}

/// Whether it is on this machine whatever its network is.
pub(super) fn is_here(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_reference_to_the_server_itself_is_known_as_one() {
        let own = |reference: &str, server: &str| is_of(reference, &Url::parse(server).unwrap());
        for reference in [
            "localhost:8080/app",
            "127.0.0.1:8080/team/app:1",
            "[::1]:8080/app",
        ] {
            assert!(own(reference, "http://127.0.0.1:8080"), "{reference}");
        }
        assert!(own("vms.example:443/app", "https://vms.example"));
        for reference in [
            "localhost:5000/app",
            "localhost/app",
            "nginx:8080",
            "registry.example:8080/app",
            "a b:8080/app",
        ] {
            assert!(!own(reference, "http://127.0.0.1:8080"), "{reference}");
        }
    }
}
