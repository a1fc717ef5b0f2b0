//! What people write on the command line, read into values: environment, labels, sizes, restart
//! policies, filters. Pure but for [`read_env_file`]. Called by clap and by the commands.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use warren_api::instance::Hypervisor;
use warren_core::restart::RestartWhen;
use warren_core::state::StateName;
use warren_core::units::{parse_duration, parse_size};

/// The largest environment file that is read: more than a kernel takes for environment and arguments.
const ENV_FILE_BYTES: u64 = 1 << 20;

/// No command asks a server more often.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);

/// Why a value on the command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ValueError {
    /// Not `NAME=VALUE`.
    #[error("{0:?} is not NAME=VALUE")]
    Pair(String),
    /// An empty name, or one with a character that no environment can hold.
    #[error("{0:?} is not a variable: write NAME=VALUE, or NAME to pass on your own value")]
    Variable(String),
    /// A size without a unit: it would mean bytes to one reader and mebibytes to another.
    #[error("{0:?} has no unit: write {0}M or {0}G")]
    Unitless(String),
    /// Not a size or not a duration.
    #[error(transparent)]
    Unit(#[from] warren_core::units::ParseUnitError),
    /// Neither a time nor how long ago.
    #[error("{0:?} is not a time: write 2026-01-31T12:00:00Z, or how long ago, such as 10m")]
    Moment(String),
    /// Too often.
    #[error("{0:?} is too short: at least {SHORTEST_PERIOD:?}")]
    Period(String),
    /// Not a restart policy.
    #[error("{0:?} is not a restart policy: use never, always, on-failure or on-failure:N")]
    Restart(String),
    /// Not a hypervisor.
    #[error(
        "{0:?} is not a hypervisor: use auto, qemu-microvm, qemu, cloud-hypervisor, firecracker or vz"
    )]
    Hypervisor(String),
    /// Not a filter of this command.
    #[error("{0:?} is not a filter: use state=STATE, label=KEY, label=KEY=VALUE or name=TEXT")]
    Filter(String),
    /// Not a state.
    #[error("{0}")]
    State(String),
    /// An environment file that cannot be read.
    #[error("environment file {path}: {problem}")]
    EnvFile {
        /// As the user wrote it.
        path: String,
        /// In words.
        problem: String,
    },
}

/// `-e NAME=VALUE`, or `-e NAME` for the caller's own value of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnvWord {
    /// Given.
    Set(String, String),
    /// Taken from the caller's environment; left out where it is not set there.
    Inherit(String),
}

/// Reads one `-e` argument or one line of an environment file.
pub(crate) fn parse_env(text: &str) -> Result<EnvWord, ValueError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let bad = name.is_empty()
        || name
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '\0');
    if bad || value.is_some_and(|value| value.contains('\0')) {
        return Err(ValueError::Variable(text.to_owned()));
    }
    Ok(match value {
        Some(value) => EnvWord::Set(name.to_owned(), value.to_owned()),
        None => EnvWord::Inherit(name.to_owned()),
    })
}

/// Reads `NAME=VALUE`; the value may be empty and may contain `=`.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), ValueError> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(ValueError::Pair(text.to_owned())),
    }
}

/// The lines of an environment file: `NAME=VALUE` or `NAME`; blank lines and lines starting with `#`
/// are skipped; values are taken as they are, quotes included (as `docker run --env-file` does).
pub(crate) fn parse_env_file(text: &str) -> Result<Vec<EnvWord>, ValueError> {
    text.trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(parse_env)
        .collect()
}

/// Reads an environment file from disk.
pub(crate) fn read_env_file(path: &Path) -> Result<Vec<EnvWord>, ValueError> {
    use std::io::Read;
    let problem = |problem: String| ValueError::EnvFile {
        path: path.display().to_string(),
        problem,
    };
    let file = std::fs::File::open(path).map_err(|error| problem(error.to_string()))?;
    let mut text = String::new();
    file.take(ENV_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| problem(error.to_string()))?;
    if text.len() as u64 > ENV_FILE_BYTES {
        return Err(problem("it is larger than 1 MiB".to_owned()));
    }
    parse_env_file(&text).map_err(|error| problem(error.to_string()))
}

/// Joins environment words, later ones winning; `own` looks up the caller's variables.
pub(crate) fn resolve_env(
    words: impl IntoIterator<Item = EnvWord>,
    own: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for word in words {
        match word {
            EnvWord::Set(name, value) => {
                env.insert(name, value);
            }
            EnvWord::Inherit(name) => {
                if let Some(value) = own(&name) {
                    env.insert(name, value);
                }
            }
        }
    }
    env
}

/// A size in bytes, with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// In mebibytes, rounded up: nobody gets less memory than was asked for.
    pub(crate) fn mebibytes(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

/// Reads a size that must have a unit: `512M`, `1.5GiB`.
pub(crate) fn parse_unit_size(text: &str) -> Result<Size, ValueError> {
    let size = parse_size(text)?;
    let trimmed = text.trim();
    if trimmed.ends_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Err(ValueError::Unitless(trimmed.to_owned()));
    }
    Ok(Size(size.0))
}

/// Reads a duration: `90s`, `5m`; a bare number is seconds.
pub(crate) fn parse_wait(text: &str) -> Result<Duration, ValueError> {
    Ok(parse_duration(text)?)
}

/// Reads the time between two rounds: a tenth of a second at least.
pub(crate) fn parse_period(text: &str) -> Result<Duration, ValueError> {
    match parse_duration(text)? {
        period if period >= SHORTEST_PERIOD => Ok(period),
        _ => Err(ValueError::Period(text.to_owned())),
    }
}

/// Reads a time: RFC 3339, or how long before `now` it was (`90s`, `10m`, `2h`).
pub(crate) fn moment(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, ValueError> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let wrong = || ValueError::Moment(text.to_owned());
    // A bare number would be seconds to one reader and a time to another.
    let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
    let ago = parse_duration(text).ok().filter(|_| has_unit);
    let ago = ago.and_then(|ago| time::Duration::try_from(ago).ok());
    now.checked_sub(ago.ok_or_else(wrong)?).ok_or_else(wrong)
}

/// [`moment`], as of now.
pub(crate) fn parse_moment(text: &str) -> Result<OffsetDateTime, ValueError> {
    moment(text, OffsetDateTime::now_utc())
}

/// `--restart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Restart {
    /// When.
    pub(crate) when: RestartWhen,
    /// At most so many times; 0 is no limit.
    pub(crate) attempts: u32,
}

/// Reads a restart policy; docker's `no` and `unless-stopped` are accepted (a stop is always final here).
pub(crate) fn parse_restart(text: &str) -> Result<Restart, ValueError> {
    let unlimited = |when| Ok(Restart { when, attempts: 0 });
    match text {
        "never" | "no" => unlimited(RestartWhen::Never),
        "always" | "unless-stopped" => unlimited(RestartWhen::Always),
        "on-failure" | "on_failure" => unlimited(RestartWhen::OnFailure),
        _ => {
            let wrong = || ValueError::Restart(text.to_owned());
            let count = text
                .strip_prefix("on-failure:")
                .or_else(|| text.strip_prefix("on_failure:"))
                .ok_or_else(wrong)?;
            let attempts = count.parse().map_err(|_| wrong())?;
            if attempts == 0 {
                return Err(wrong());
            }
            Ok(Restart {
                when: RestartWhen::OnFailure,
                attempts,
            })
        }
    }
}

/// Reads a hypervisor's name as the API has it.
pub(crate) fn parse_hypervisor(text: &str) -> Result<Hypervisor, ValueError> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| ValueError::Hypervisor(text.to_owned()))
}

/// `--filter` of `ps` and `events`. Several of one kind are alternatives for states and names, and all
/// required for labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    /// In this state.
    State(StateName),
    /// With this label, and this value where one is given.
    Label(String, Option<String>),
    /// With this text in its name.
    Name(String),
}

/// Reads a filter.
pub(crate) fn parse_filter(text: &str) -> Result<Filter, ValueError> {
    let wrong = || ValueError::Filter(text.to_owned());
    let (kind, value) = text.split_once('=').ok_or_else(wrong)?;
    match kind {
        _ if value.is_empty() => Err(wrong()),
        "state" | "status" => value.parse().map(Filter::State).map_err(ValueError::State),
        "label" | "tag" => Ok(match value.split_once('=') {
            Some((key, value)) => Filter::Label(key.to_owned(), Some(value.to_owned())),
            None => Filter::Label(value.to_owned(), None),
        }),
        "name" => Ok(Filter::Name(value.to_owned())),
        _ => Err(wrong()),
    }
}

/// Whether something with this state, name and these labels passes all filters.
pub(crate) fn passes(
    filters: &[Filter],
    state: StateName,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let mut states = (0, false);
    let mut names = (0, false);
    for filter in filters {
        match filter {
            Filter::State(wanted) => states = (states.0 + 1, states.1 || *wanted == state),
            Filter::Name(text) => names = (names.0 + 1, names.1 || name.contains(text.as_str())),
            Filter::Label(key, wanted) => {
                let found = labels.get(key);
                let fits = match wanted {
                    Some(wanted) => found == Some(wanted),
                    None => found.is_some(),
                };
                if !fits {
                    return false;
                }
            }
        }
    }
    (states.0 == 0 || states.1) && (names.0 == 0 || names.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (text, ago) in [
            ("90s", 90),
            ("10m", 600),
            ("2h", 7200),
            ("1970-01-12T13:46:39Z", 1),
            ("1970-01-12T15:46:39+02:00", 1),
        ] {
            let expected = now - Duration::from_secs(ago);
            assert_eq!(moment(text, now), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "10",
            "yesterday",
            "1970-01-12",
            "-5m",
            "999999999999999999h",
        ] {
            assert!(moment(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_words_are_set_or_inherited() {
        assert_eq!(
            parse_env("A=b=c"),
            Ok(EnvWord::Set("A".into(), "b=c".into()))
        );
        assert_eq!(parse_env("A="), Ok(EnvWord::Set("A".into(), String::new())));
        assert_eq!(parse_env("HOME"), Ok(EnvWord::Inherit("HOME".into())));
        for bad in ["", "=x", "A B=c", "A\0=c", "A=\0"] {
            assert!(parse_env(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn env_files_skip_comments_and_keep_values_as_they_are() {
        let words = parse_env_file("\u{feff}# c\n\nA=\"q\"\r\n  B=x # y\nC\n").expect("valid");
        assert_eq!(
            words,
            [
                EnvWord::Set("A".into(), "\"q\"".into()),
                EnvWord::Set("B".into(), "x # y".into()),
                EnvWord::Inherit("C".into()),
            ]
        );
        assert!(parse_env_file("=oops").is_err());
    }

    #[test]
    fn later_words_win_and_unset_ones_are_left_out() {
        let env = resolve_env(
            [
                EnvWord::Set("A".into(), "1".into()),
                EnvWord::Set("A".into(), "2".into()),
                EnvWord::Inherit("HERE".into()),
                EnvWord::Inherit("NOT".into()),
            ],
            |name| (name == "HERE").then(|| "yes".to_owned()),
        );
        let expected = BTreeMap::from([
            ("A".to_owned(), "2".to_owned()),
            ("HERE".to_owned(), "yes".to_owned()),
        ]);
        assert_eq!(env, expected);
    }

    #[test]
    fn a_missing_or_huge_env_file_is_named() {
        let error = read_env_file(Path::new("/nonexistent/env")).expect_err("missing");
        assert!(error.to_string().contains("/nonexistent/env"), "{error}");
        let error = read_env_file(Path::new("/dev/zero")).expect_err("endless");
        assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
    }

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(parse_unit_size("512M"), Ok(Size(512 << 20)));
        assert_eq!(parse_unit_size("1.5GiB"), Ok(Size(3 << 29)));
        assert_eq!(
            parse_unit_size("512"),
            Err(ValueError::Unitless("512".into()))
        );
        assert!(parse_unit_size("many").is_err());
        assert_eq!(Size((5 << 20) + 1).mebibytes(), 6);
    }

    #[test]
    fn restart_policies_are_read() {
        for (text, when, attempts) in [
            ("never", RestartWhen::Never, 0),
            ("no", RestartWhen::Never, 0),
            ("always", RestartWhen::Always, 0),
            ("on-failure", RestartWhen::OnFailure, 0),
            ("on-failure:3", RestartWhen::OnFailure, 3),
        ] {
            assert_eq!(
                parse_restart(text),
                Ok(Restart { when, attempts }),
                "{text}"
            );
        }
        for bad in [
            "",
            "sometimes",
            "on-failure:",
            "on-failure:0",
            "on-failure:-1",
        ] {
            assert!(parse_restart(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_need_a_name() {
        assert_eq!(parse_pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_pair("a").is_err());
        assert!(parse_pair("=a").is_err());
    }

    #[test]
    fn filters_select_by_state_name_and_label() {
        let labels = BTreeMap::from([("tier".to_owned(), "web".to_owned())]);
        let check = |texts: &[&str]| {
            let filters: Vec<Filter> = texts
                .iter()
                .map(|text| parse_filter(text).expect("valid"))
                .collect();
            passes(&filters, StateName::Running, "web-1", &labels)
        };
        assert!(check(&[]));
        assert!(check(&["state=running", "state=stopped"]));
        assert!(!check(&["state=stopped"]));
        assert!(check(&["label=tier", "label=tier=web", "name=web"]));
        assert!(!check(&["label=tier=db"]));
        assert!(!check(&["label=tier", "label=other"]));
        assert!(!check(&["name=db"]));
        for bad in ["", "state", "state=", "colour=red", "state=exploded"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
