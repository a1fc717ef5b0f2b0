//! `registries` and `[registry."…"]` of the configuration: which registries may be reached, and how.

use super::config::Config;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use warren_core::ports::images::{RegistryCredentials, Transport};
use warren_image::source::registry::{HostSettings, RegistrySettings, TlsSettings, check_registry};

/// A word that no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One path or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Paths {
    /// `ca = "file"`
    One(PathBuf),
    /// `ca = ["file", "file"]`
    Several(Vec<PathBuf>),
}

impl Default for Paths {
    fn default() -> Self {
        Paths::Several(Vec::new())
    }
}

/// `[registry."registry.example:5000"]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegistryTable {
    /// Asked first, in this order: hosts, or addresses with a path that goes in front of repositories' names.
    mirrors: Vec<String>,
    /// CAs to trust besides the system's: PEM.
    ca: Paths,
    /// Our certificate for it, with its chain: PEM.
    client_cert: Option<PathBuf>,
    /// Its key: PEM.
    client_key: Option<PathBuf>,
    /// It speaks plain HTTP.
    plain_http: bool,
    /// The user for requests that bring none.
    username: Option<String>,
    /// The user's password.
    password: Option<Secret>,
    /// A file that holds nothing but the password.
    password_file: Option<PathBuf>,
}

impl RegistryTable {
    /// What of it is wrong by itself, in words that go behind the registry's name.
    fn mistake(&self) -> Option<String> {
        let has_ca = self.ca != Paths::default();
        let mirrors = self.mirrors.iter().map(|mirror| mirror.parse());
        let mistake = match self {
            RegistryTable {
                client_cert: Some(_),
                client_key: None,
                ..
            } => "client_cert needs client_key",
            RegistryTable {
                client_cert: None,
                client_key: Some(_),
                ..
            } => "client_key needs client_cert",
            RegistryTable {
                plain_http: true,
                client_cert,
                ..
            } if has_ca || client_cert.is_some() => {
                "plain_http leaves no use for certificates: choose one"
            }
            RegistryTable {
                password: Some(_),
                password_file: Some(_),
                ..
            } => "choose one of password and password_file",
            RegistryTable {
                username: Some(_),
                password: None,
                password_file: None,
                ..
            } => "username needs password or password_file",
            RegistryTable {
                username: None,
                password,
                password_file,
                ..
            } if password.is_some() || password_file.is_some() => "a password needs username",
            _ => {
                return mirrors
                    .filter_map(
                        |mirror: Result<warren_image::source::registry::Mirror, String>| {
                            mirror.err()
                        },
                    )
                    .next();
            }
        };
        Some(mistake.to_owned())
    }

    fn host_settings(&self) -> Result<HostSettings, String> {
        let mirrors = self.mirrors.iter().map(|mirror| mirror.parse());
        let ca = match &self.ca {
            Paths::One(path) => vec![path.clone()],
            Paths::Several(paths) => paths.clone(),
        };
        Ok(HostSettings {
            mirrors: mirrors.collect::<Result<_, String>>()?,
            transport: match self.plain_http {
                true => Transport::PlainHttp,
                false => Transport::Https,
            },
            tls: TlsSettings {
                ca,
                client: self.client_cert.clone().zip(self.client_key.clone()),
            },
            credentials: self.credentials()?,
        })
    }

    fn credentials(&self) -> Result<Option<RegistryCredentials>, String> {
        let Some(username) = self.username.clone() else {
            return Ok(None);
        };
        let password = match (&self.password, &self.password_file) {
            (Some(Secret(password)), _) => password.clone(),
            (None, Some(path)) => std::fs::read_to_string(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))?
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
            (None, None) => String::new(),
        };
        Ok(Some(RegistryCredentials::Basic { username, password }))
    }
}

/// Whether the configuration's words about registries make sense; touches no file they name.
///
/// # Errors
/// A sentence that names the registry and the mistake.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    for (name, table) in &config.registry {
        check_registry(name).map_err(|why| anyhow::anyhow!("configuration: {why}"))?;
        if let Some(mistake) = table.mistake() {
            anyhow::bail!("configuration: registry {name:?}: {mistake}");
        }
    }
    Ok(())
}

/// How registries are reached, with everything that the configuration points to read once.
///
/// # Errors
/// A sentence that names the registry, and the file that is not what it should be.
pub(crate) fn settings(config: &Config) -> anyhow::Result<RegistrySettings> {
    let mut settings = RegistrySettings {
        allowed: config.registries.clone(),
        ..RegistrySettings::of_this_host()
    };
    for (name, table) in &config.registry {
        let host = table
            .host_settings()
            .map_err(|why| anyhow::anyhow!("configuration: registry {name:?}: {why}"))?;
        settings.hosts.insert(name.clone(), host);
    }
    settings
        .check()
        .map_err(|why| anyhow::anyhow!("configuration: {why}"))?;
    Ok(settings)
}

/// What is configured, for people: a line a registry.
pub(crate) fn in_words(config: &Config) -> Vec<String> {
    let mut lines = vec![match config.registries.as_slice() {
        [] => "any may be reached".to_owned(),
        only => format!("only {} may be reached", only.join(", ")),
    }];
    lines.extend(config.registry.iter().map(|(name, table)| {
        let mut words = Vec::new();
        if !table.mirrors.is_empty() {
            words.push(format!("asked after {}", table.mirrors.join(", ")));
        }
        if table.plain_http {
            words.push("plain HTTP".to_owned());
        }
        if table.ca != Paths::default() {
            words.push("a CA of its own".to_owned());
        }
        if table.client_cert.is_some() {
            words.push("a client certificate".to_owned());
        }
        if let Some(username) = &table.username {
            words.push(format!("as {username}"));
        }
        format!("{name}: {}", words.join(", "))
    }));
    lines
}
