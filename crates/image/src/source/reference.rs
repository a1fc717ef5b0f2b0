//! References as docker reads them: `nginx`, `localhost:5000/a/b:tag`, `quay.io/x@sha256:…`.
//!
//! Source: `distribution/reference`, its grammar and its rules for familiar names.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// A whole reference: registry, repository, and a tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What is wrong with a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// Host and port of the registry as written, `docker.io` by default.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, with `library/` where docker adds it.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What goes behind `/manifests/`.
    pub(crate) fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".into()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |why| ReferenceError {
            text: text.chars().take(300).collect(),
            why,
        };
        if text.len() > 4096 {
            return Err(wrong("it is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| wrong("what follows the @ is not a digest"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon behind the last slash begins a tag; before it, a port.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong(
                "the tag has other characters than letters, digits, _ . and -, or more than 128",
            ));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, path)
            }
            _ => ("docker.io", name),
        };
        if !is_registry(registry) {
            return Err(wrong(
                "the registry is not a host name with an optional port",
            ));
        }
        // Host names know no case.
        let registry = match registry.to_ascii_lowercase() {
            alias if alias == "index.docker.io" || alias == "registry-1.docker.io" => {
                "docker.io".to_owned()
            }
            registry => registry,
        };
        let repository = match path {
            path if registry == "docker.io" && !path.contains('/') => format!("library/{path}"),
            path => path.to_owned(),
        };
        if path.is_empty() {
            return Err(wrong("it names no repository"));
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(wrong(
                "a repository has lower-case letters, digits, and single . _ - or / between them",
            ));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Reference {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(word)
        && tag.len() <= 128
        && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

pub(crate) fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(|b| alphanumeric(*b));
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.split(|b| alphanumeric(*b)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

pub(crate) fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (
                "ipv6",
                port.strip_prefix(':').or((!port.is_empty()).then_some("")),
            )
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed parse fails the test")]
    use super::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let hex = "a".repeat(64);
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            (
                "localhost:5000/a/b:tag",
                "localhost:5000/a/b:tag".to_owned(),
            ),
            ("127.0.0.1:5000/web", "127.0.0.1:5000/web:latest".to_owned()),
            ("[::1]:5000/web", "[::1]:5000/web:latest".to_owned()),
            ("quay.io/x/y__z-1.2", "quay.io/x/y__z-1.2:latest".to_owned()),
            (
                "index.docker.io/nginx",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            (
                "Index.Docker.iO/l1.0",
                "docker.io/library/l1.0:latest".to_owned(),
            ),
            (
                "docker.iO/nginx",
                "docker.io/library/nginx:latest".to_owned(),
            ),
            (
                &format!("x@sha256:{hex}"),
                format!("docker.io/library/x@sha256:{hex}"),
            ),
            (
                &format!("x:1@sha256:{hex}"),
                format!("docker.io/library/x:1@sha256:{hex}"),
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(
                reference.to_string().parse::<Reference>().unwrap(),
                reference,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        for text in [
            "",
            ":tag",
            "NGINX",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:ta g",
            "a@sha256:1",
            "host:port/a",
            "a..b",
            "../x",
            "a/../b",
            "a___b",
            "-a",
            "user@host/x",
            "http://x/y",
            "a:b:c",
            "x.y:0/z",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
