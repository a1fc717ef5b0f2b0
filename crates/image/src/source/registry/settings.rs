//! What the operator says about registries: mirrors, TLS, plain HTTP, credentials, proxies.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use reqwest::{Certificate, Identity, Url};
use warren_core::ports::images::{RegistryCredentials, Transport};

use super::RegistryError;
use crate::source::reference::{Reference, is_component, is_registry};

/// Everything that is said about registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Those that may be reached, by name (`registry.example`, with any port) or name and port; all when empty. Mirrors are
    /// the operator's own choice and need not be among them.
    pub allowed: Vec<String>,
    /// By registry as references have it: `docker.io`, `registry.example:5000`.
    pub hosts: BTreeMap<String, HostSettings>,
    /// Which way requests leave this host.
    pub proxies: Proxies,
    /// Directories of directories named like registries, with `*.crt` (CAs) and `client.cert`, `client.key` in them,
    /// as docker and containers have them. Read for registries whose `HostSettings` say nothing of TLS.
    pub certificate_directories: Vec<PathBuf>,
}

impl RegistrySettings {
    /// This host's: docker's and containers' directories of certificates, the environment's proxies.
    pub fn of_this_host() -> Self {
        RegistrySettings {
            allowed: Vec::new(),
            hosts: BTreeMap::new(),
            proxies: Proxies::from_environment(),
            certificate_directories: ["/etc/docker/certs.d", "/etc/containers/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
        }
    }

    /// Whether a registry may be reached.
    ///
    /// # Errors
    /// [`RegistryError::NotAllowed`].
    pub(crate) fn allow(&self, registry: &str) -> Result<(), RegistryError> {
        let host = match registry.rsplit_once(':') {
            // Not inside an IPv6 address.
            Some((host, port)) if !port.contains(']') => host,
            _ => registry,
        };
        let named = |allowed: &String| allowed == registry || allowed == host;
        if self.allowed.is_empty() || self.allowed.iter().any(named) {
            return Ok(());
        }
        Err(RegistryError::NotAllowed {
            registry: registry.to_owned(),
            allowed: self.allowed.join(", "),
        })
    }

    /// Reads what the settings point to.
    ///
    /// # Errors
    /// A sentence that names the registry and what is wrong there.
    pub fn check(&self) -> Result<(), String> {
        for (registry, host) in &self.hosts {
            check_registry(registry)?;
            host.tls
                .load()
                .map_err(|why| format!("registry {registry:?}: {why}"))?;
        }
        Ok(())
    }
}

/// One registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Asked first, in this order; the registry itself is asked when none of them has it. Pulls only.
    pub mirrors: Vec<Mirror>,
    /// Plain HTTP where the operator says so.
    pub transport: Transport,
    /// Whom to trust beyond the system's CAs, and who we are.
    pub tls: TlsSettings,
    /// Unless the request brings its own.
    pub credentials: Option<RegistryCredentials>,
}

/// PEM files for TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// CAs trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// Our certificate (with its chain) and its key, for registries that want one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Read from the files of [`TlsSettings`].
#[derive(Default)]
pub(super) struct Tls {
    pub(super) roots: Vec<Certificate>,
    pub(super) identity: Option<Identity>,
}

impl TlsSettings {
    pub(super) fn is_empty(&self) -> bool {
        self.ca.is_empty() && self.client.is_none()
    }

    /// What lies in a directory such as `/etc/docker/certs.d/registry.example:5000`; nothing when it is not there.
    pub(super) fn in_directory(directory: &Path) -> Self {
        let mut ca: Vec<PathBuf> = std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
            .collect();
        ca.sort();
        let pair = (directory.join("client.cert"), directory.join("client.key"));
        TlsSettings {
            ca,
            client: (pair.0.is_file() && pair.1.is_file()).then_some(pair),
        }
    }

    /// Reads the files; what is wrong with them in words otherwise.
    pub(super) fn load(&self) -> Result<Tls, String> {
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        let mut tls = Tls::default();
        for path in &self.ca {
            let found = Certificate::from_pem_bundle(&read(path)?)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| format!("{} holds no certificate in PEM form", path.display()))?;
            tls.roots.extend(found);
        }
        if let Some((certificate, key)) = &self.client {
            let mut pem = read(certificate)?;
            pem.push(b'\n');
            pem.extend(read(key)?);
            tls.identity = Some(Identity::from_pem(&pem).map_err(|_| {
                format!(
                    "{} and {} are not a certificate and its key in PEM form",
                    certificate.display(),
                    key.display()
                )
            })?);
        }
        Ok(tls)
    }
}

/// Another registry that has the same: `mirror.example`, `http://10.0.0.5:5000`, `https://harbor.example/hub`. A path
/// goes in front of the repositories' names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub(super) host: String,
    pub(super) prefix: String,
    pub(super) transport: Transport,
}

impl FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Https, text),
            Some(("https", rest)) => (Transport::Https, rest),
            Some(("http", rest)) => (Transport::PlainHttp, rest),
            Some(_) => {
                return Err(format!(
                    "the mirror {text:?} is neither a host name nor an http or https address"
                ));
            }
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_registry(host) {
            return Err(format!(
                "the mirror {text:?} has no host name with an optional port"
            ));
        }
        let path = path.trim_end_matches('/');
        if !path.is_empty() && !path.split('/').all(is_component) {
            return Err(format!(
                "the mirror {text:?} has a path that cannot begin a repository's name"
            ));
        }
        let prefix = match path {
            "" => String::new(),
            path => format!("{path}/"),
        };
        Ok(Mirror {
            host: host.to_ascii_lowercase(),
            prefix,
            transport,
        })
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Https => "https",
            Transport::PlainHttp => "http",
        };
        write!(
            f,
            "{scheme}://{}/{}",
            self.host,
            self.prefix.trim_end_matches('/')
        )
    }
}

/// Whether a text can be the registry of a reference, as settings name it.
///
/// # Errors
/// A sentence that says how to write it.
pub fn check_registry(name: &str) -> Result<(), String> {
    let whole: Option<Reference> = format!("{name}/x").parse().ok();
    match whole {
        Some(reference) if reference.registry() == name => Ok(()),
        Some(reference) if !matches!(reference.registry(), "docker.io") => Err(format!(
            "write the registry {name:?} as {:?}",
            reference.registry()
        )),
        _ => Err(format!(
            "{name:?} is not a registry: write its host name as references do, with a dot or a port, such as registry.example:5000; Docker Hub is docker.io"
        )),
    }
}

/// Proxies for the two kinds of requests, and whom to reach without.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http:` addresses.
    pub http: Option<String>,
    /// For `https:` addresses.
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached directly, separated by commas; loopback always is.
    pub none: String,
}

impl fmt::Debug for Proxies {
    /// Their addresses may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Proxies(http: {}, https: {}, none: {:?})",
            self.http.is_some(),
            self.https.is_some(),
            self.none
        )
    }
}

impl Proxies {
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or lower case.
    pub fn from_environment() -> Self {
        let get = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .iter()
                .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        };
        let all = get("ALL_PROXY");
        Proxies {
            http: get("HTTP_PROXY").or_else(|| all.clone()),
            https: get("HTTPS_PROXY").or(all),
            none: get("NO_PROXY").unwrap_or_default(),
        }
    }

    /// As the HTTP client takes them.
    pub(super) fn rules(&self) -> Result<Vec<reqwest::Proxy>, String> {
        let none =
            reqwest::NoProxy::from_string(&format!("localhost,127.0.0.0/8,::1,{}", self.none));
        let parse = |proxy: &String| {
            // curl's rule: an address without a scheme is an HTTP proxy's.
            let url = match proxy.contains("://") {
                true => proxy.clone(),
                false => format!("http://{proxy}"),
            };
            Url::parse(&url)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
                .ok_or_else(|| {
                    "the environment names a proxy that is not an http or https address".to_owned()
                })
        };
        let mut rules = Vec::new();
        if let Some(proxy) = &self.http {
            rules.push(reqwest::Proxy::http(parse(proxy)?));
        }
        if let Some(proxy) = &self.https {
            rules.push(reqwest::Proxy::https(parse(proxy)?));
        }
        rules
            .into_iter()
            .map(|rule| {
                Ok(rule
                    .map_err(|error| error.to_string())?
                    .no_proxy(none.clone()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed parse fails the test")]
    use super::*;

    #[test]
    fn mirrors_are_read() {
        for (text, host, prefix, transport) in [
            ("mirror.example", "mirror.example", "", Transport::Https),
            (
                "https://m.example:444/",
                "m.example:444",
                "",
                Transport::Https,
            ),
            (
                "http://10.0.0.5:5000",
                "10.0.0.5:5000",
                "",
                Transport::PlainHttp,
            ),
            (
                "https://h.example/hub/cache",
                "h.example",
                "hub/cache/",
                Transport::Https,
            ),
        ] {
            let mirror: Mirror = text.parse().unwrap();
            assert_eq!(
                (
                    mirror.host.as_str(),
                    mirror.prefix.as_str(),
                    mirror.transport
                ),
                (host, prefix, transport),
                "{text}"
            );
            assert_eq!(
                mirror.to_string().parse::<Mirror>().unwrap(),
                mirror,
                "{text}"
            );
        }
        for text in [
            "",
            "ftp://x",
            "https://",
            "user@host",
            "h.example/UP",
            "h.example/a//b",
            "h/?x",
        ] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }

    #[test]
    fn registries_are_named_as_references_name_them() {
        for good in [
            "docker.io",
            "localhost",
            "localhost:5000",
            "r.example",
            "[::1]:5000",
        ] {
            assert_eq!(check_registry(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "registry",
            "https://r.example",
            "r.example/x",
            "R.example",
            "index.docker.io",
        ] {
            assert!(check_registry(bad).is_err(), "{bad}");
        }
        assert!(
            check_registry("R.example")
                .unwrap_err()
                .contains("r.example")
        );
    }

    #[test]
    fn registries_are_allowed_by_host_or_by_host_and_port() {
        let settings = RegistrySettings {
            allowed: ["r.example", "localhost:5000", "[::1]"]
                .map(Into::into)
                .to_vec(),
            ..RegistrySettings::default()
        };
        for good in [
            "r.example",
            "r.example:444",
            "localhost:5000",
            "[::1]",
            "[::1]:5000",
        ] {
            settings.allow(good).unwrap();
        }
        for bad in [
            "docker.io",
            "localhost:5001",
            "localhost",
            "x.r.example",
            "[::2]",
        ] {
            let error = settings.allow(bad).unwrap_err().describe();
            assert_eq!(error.code, "registry_not_allowed", "{bad}");
        }
        RegistrySettings::default().allow("docker.io").unwrap();
    }

    #[test]
    fn proxies_must_be_addresses() {
        let with = |http: &str| Proxies {
            http: Some(http.into()),
            ..Proxies::default()
        };
        for good in ["http://p:3128", "p:3128", "https://user:pass@p.example"] {
            assert_eq!(with(good).rules().unwrap().len(), 1, "{good}");
        }
        for bad in ["socks5://p:1", "http://"] {
            assert!(with(bad).rules().is_err(), "{bad}");
        }
        assert!(!format!("{:?}", with("http://user:pass@p")).contains("pass"));
    }
}
