//! Contexts: the servers a person works with, each with its URL and token, in one file that only they
//! can read. Also decides which server a command talks to. Never sends a context's token to another
//! server than that context's.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a server listens unless told otherwise.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// The most that is read of a contexts file.
const FILE_BYTES: u64 = 1 << 20;

/// Why contexts cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    /// Neither `XDG_CONFIG_HOME` nor `HOME`.
    #[error("there is no place for contexts: neither XDG_CONFIG_HOME nor HOME is set")]
    NoHome,
    /// Reading or writing.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Not what we wrote.
    #[error("{path} is not a contexts file: {problem}")]
    Format {
        /// Which file.
        path: String,
        /// Where and why.
        problem: String,
    },
    /// No such context.
    #[error("there is no context {0:?}")]
    Unknown(String),
    /// It exists already.
    #[error("there is a context {0:?} already")]
    Exists(String),
    /// A name that could be mistaken for something else.
    #[error("{0:?} is not a context's name: use letters, digits, '-', '_' and '.'")]
    Name(String),
    /// Not a URL of a server.
    #[error(
        "{0:?} is not a server's URL: it starts with http:// or https://, such as {DEFAULT_SERVER}"
    )]
    Url(String),
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Its URL.
    pub(crate) server: String,
    /// What it wants to see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

/// All of them, and the one in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one in use; none means the default server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// By name.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// Where the file is, from the two variables that say so.
pub(crate) fn file_path(
    config_home: Option<&Path>,
    home: Option<&Path>,
) -> Result<PathBuf, ContextError> {
    // The XDG base directory specification: relative paths are to be ignored.
    let base = match (config_home.filter(|path| path.is_absolute()), home) {
        (Some(config), _) => config.to_owned(),
        (None, Some(home)) if !home.as_os_str().is_empty() => home.join(".config"),
        (None, _) => return Err(ContextError::NoHome),
    };
    Ok(base.join("warren").join("contexts.toml"))
}

/// [`file_path`] with this process's environment.
pub(crate) fn own_file_path() -> Result<PathBuf, ContextError> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    file_path(
        variable("XDG_CONFIG_HOME").as_deref(),
        variable("HOME").as_deref(),
    )
}

impl Contexts {
    /// Reads the file; one that is not there holds nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, ContextError> {
        use std::io::Read;
        let failed = |source| ContextError::File {
            path: path.display().to_string(),
            source,
        };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Contexts::default());
            }
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        file.take(FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(failed)?;
        toml::from_str(&text).map_err(|error| ContextError::Format {
            path: path.display().to_string(),
            problem: error.message().to_owned(),
        })
    }

    /// Replaces the file in one step, readable by its owner alone: it holds tokens.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ContextError> {
        let failed = |source| ContextError::File {
            path: path.display().to_string(),
            source,
        };
        let text = toml::to_string_pretty(self).map_err(|error| ContextError::Format {
            path: path.display().to_string(),
            problem: error.to_string(),
        })?;
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(failed)?;
        }
        let fresh = path.with_extension(format!("toml.{}", std::process::id()));
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&fresh, path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&fresh);
            failed(error)
        })
    }

    /// Adds a context.
    pub(crate) fn add(&mut self, name: &str, context: Context) -> Result<(), ContextError> {
        let fits = !name.is_empty()
            && name.len() <= 63
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !name.starts_with(['-', '.']);
        if !fits {
            return Err(ContextError::Name(name.to_owned()));
        }
        check_server(&context.server)?;
        if self.contexts.contains_key(name) {
            return Err(ContextError::Exists(name.to_owned()));
        }
        self.contexts.insert(name.to_owned(), context);
        Ok(())
    }

    /// Makes a context the one in use.
    pub(crate) fn select(&mut self, name: &str) -> Result<(), ContextError> {
        self.get(name)?;
        self.current = Some(name.to_owned());
        Ok(())
    }

    /// Takes a context away; if it was in use, none is.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), ContextError> {
        if self.contexts.remove(name).is_none() {
            return Err(ContextError::Unknown(name.to_owned()));
        }
        if self.current.as_deref() == Some(name) {
            self.current = None;
        }
        Ok(())
    }

    /// A context by name.
    pub(crate) fn get(&self, name: &str) -> Result<&Context, ContextError> {
        self.contexts
            .get(name)
            .ok_or_else(|| ContextError::Unknown(name.to_owned()))
    }
}

/// Refuses what is no server's URL, before anything is sent anywhere.
pub(crate) fn check_server(url: &str) -> Result<(), ContextError> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    match rest {
        Some(rest)
            if !rest.is_empty()
                && !rest.starts_with('/')
                && !url.contains(|c: char| c.is_whitespace() || c.is_control()) =>
        {
            Ok(())
        }
        _ => Err(ContextError::Url(url.to_owned())),
    }
}

/// The server a command talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its URL, without a slash at its end.
    pub(crate) server: String,
    /// What it wants to see.
    pub(crate) token: Option<String>,
}

/// Decides: `--server` or `WARREN_SERVER` first (both arrive as `server`), then the context, then the
/// default. An explicit token is always used; a context's only for that context's own server.
pub(crate) fn choose(
    server: Option<&str>,
    token: Option<&str>,
    context: Option<&str>,
    contexts: &Contexts,
) -> Result<Target, ContextError> {
    let token = token.filter(|token| !token.is_empty()).map(str::to_owned);
    let server = server.filter(|server| !server.is_empty());
    let target = match (server, context.or(contexts.current.as_deref())) {
        (Some(server), _) => Target {
            server: server.to_owned(),
            token,
        },
        (None, Some(name)) => {
            let context = contexts.get(name)?;
            Target {
                server: context.server.clone(),
                token: token.or_else(|| context.token.clone()),
            }
        }
        (None, None) => Target {
            server: DEFAULT_SERVER.to_owned(),
            token,
        },
    };
    check_server(&target.server)?;
    Ok(Target {
        server: target.server.trim_end_matches('/').to_owned(),
        token: target.token,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn lab() -> Contexts {
        let mut contexts = Contexts::default();
        let context = Context {
            server: "https://lab:8443/".to_owned(),
            token: Some("secret".to_owned()),
        };
        contexts.add("lab", context).unwrap();
        contexts
    }

    #[test]
    fn the_more_explicit_choice_wins_and_tokens_stay_with_their_server() {
        let mut contexts = lab();
        let default = choose(None, None, None, &contexts).unwrap();
        assert_eq!(
            (default.server.as_str(), default.token),
            (DEFAULT_SERVER, None)
        );
        contexts.select("lab").unwrap();
        let current = choose(None, None, None, &contexts).unwrap();
        assert_eq!(current.server, "https://lab:8443");
        assert_eq!(current.token.as_deref(), Some("secret"));
        let elsewhere = choose(Some("http://other:1"), None, None, &contexts).unwrap();
        assert_eq!(elsewhere.token, None);
        let own = choose(None, Some("mine"), None, &contexts).unwrap();
        assert_eq!(own.token.as_deref(), Some("mine"));
        assert!(choose(None, None, Some("nowhere"), &contexts).is_err());
        assert!(choose(Some("localhost:8080"), None, None, &contexts).is_err());
    }

    #[test]
    fn the_file_round_trips_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/warren/contexts.toml");
        assert_eq!(Contexts::read(&path).unwrap(), Contexts::default());
        let mut contexts = lab();
        contexts.select("lab").unwrap();
        contexts.write(&path).unwrap();
        contexts.write(&path).unwrap();
        assert_eq!(Contexts::read(&path).unwrap(), contexts);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
        std::fs::write(&path, "surprise = 1").unwrap();
        let error = Contexts::read(&path).unwrap_err().to_string();
        assert!(error.contains("contexts.toml"), "{error}");
    }

    #[test]
    fn removing_the_one_in_use_leaves_none_in_use() {
        let mut contexts = lab();
        contexts.select("lab").unwrap();
        contexts.remove("lab").unwrap();
        assert_eq!(contexts, Contexts::default());
        assert!(contexts.remove("lab").is_err());
        assert!(contexts.select("lab").is_err());
    }

    #[test]
    fn names_and_urls_are_checked() {
        let mut contexts = lab();
        let context = |server: &str| Context {
            server: server.to_owned(),
            token: None,
        };
        assert!(contexts.add("lab", context(DEFAULT_SERVER)).is_err());
        for name in ["", "a b", "../x", "-a", ".a"] {
            assert!(
                contexts.add(name, context(DEFAULT_SERVER)).is_err(),
                "{name}"
            );
        }
        for url in ["", "http://", "ftp://x", "http:///x", "http://a b"] {
            assert!(contexts.add("new", context(url)).is_err(), "{url}");
        }
    }

    #[test]
    fn the_path_follows_the_xdg_specification() {
        let path = |config: Option<&str>, home: Option<&str>| {
            file_path(config.map(Path::new), home.map(Path::new))
                .map(|path| path.display().to_string())
                .ok()
        };
        assert_eq!(
            path(Some("/c"), Some("/h")).as_deref(),
            Some("/c/warren/contexts.toml")
        );
        assert_eq!(
            path(Some("relative"), Some("/h")).as_deref(),
            Some("/h/.config/warren/contexts.toml")
        );
        assert_eq!(path(None, None), None);
    }
}
