//! Text for people: ages, sizes, and what may be shown of text that others wrote. Pure.

use time::{Duration, OffsetDateTime};
use warren_core::ByteSize;

/// What stands for a character that must not reach a terminal.
const REPLACEMENT: char = '\u{fffd}';

/// Whether a character can move a cursor, change a terminal's state, or make text read as what it is
/// not (Unicode's bidirectional controls and line separators, invisible marks).
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}

/// One line that a terminal shows as it is: names, labels and messages come from others.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if is_dangerous(c) => REPLACEMENT,
            c => c,
        })
        .collect()
}

/// At most `limit` characters of a line, the last one an ellipsis where something is missing.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// A size with one decimal and a binary unit.
pub(crate) fn bytes(n: u64) -> String {
    ByteSize(n).to_string()
}

fn plural(n: i64, unit: &str) -> String {
    if n == 1 {
        format!("1 {unit}")
    } else {
        format!("{n} {unit}s")
    }
}

/// A span of time in its largest unit: "3 minutes".
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.whole_seconds().max(0);
    match seconds {
        0 => "less than a second".to_owned(),
        1..60 => plural(seconds, "second"),
        60..3_600 => plural(seconds / 60, "minute"),
        3_600..86_400 => plural(seconds / 3_600, "hour"),
        86_400..1_209_600 => plural(seconds / 86_400, "day"),
        1_209_600..5_184_000 => plural(seconds / 604_800, "week"),
        5_184_000..63_072_000 => plural(seconds / 2_592_000, "month"),
        _ => plural(seconds / 31_536_000, "year"),
    }
}

/// How long ago something was; a clock that is a little ahead of ours is "just now".
pub(crate) fn ago(then: OffsetDateTime, now: OffsetDateTime) -> String {
    let passed = now - then;
    if passed < Duration::seconds(-60) {
        format!("in {}", span(-passed))
    } else if passed < Duration::SECOND {
        "just now".to_owned()
    } else {
        format!("{} ago", span(passed))
    }
}

/// `sha256:` and twelve digits of a digest.
pub(crate) fn short_digest(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) => {
            let hex: String = hex.chars().take(12).collect();
            one_line(&format!("{algorithm}:{hex}"))
        }
        None => one_line(&shorten(digest, 19)),
    }
}

/// A command as a shell would take it: words with anything special are quoted.
pub(crate) fn shell_words(words: &[String]) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| {
            let plain = !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b));
            if plain {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn ages_use_their_largest_unit() {
        let now = datetime!(2026-01-02 00:00 UTC);
        for (seconds, text) in [
            (0, "just now"),
            (-5, "just now"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3 * 60 + 7, "3 minutes ago"),
            (3_600, "1 hour ago"),
            (86_400, "1 day ago"),
            (13 * 86_400, "13 days ago"),
            (15 * 86_400, "2 weeks ago"),
            (90 * 86_400, "3 months ago"),
            (800 * 86_400, "2 years ago"),
            (-3_600, "in 1 hour"),
        ] {
            assert_eq!(ago(now - Duration::seconds(seconds), now), text);
        }
    }

    #[test]
    fn hostile_names_cannot_drive_a_terminal() {
        let line = one_line("a\x1b]0;owned\x07b\nc\u{202e}d\u{9b}");
        assert_eq!(line, "a\u{fffd}]0;owned\u{fffd}b c\u{fffd}d\u{fffd}");
        assert_eq!(one_line("naïve 名前"), "naïve 名前");
    }

    #[test]
    fn long_text_is_cut_at_characters() {
        assert_eq!(shorten("äöüß", 4), "äöüß");
        assert_eq!(shorten("äöüßx", 4), "äöü…");
    }

    #[test]
    fn digests_are_shown_short() {
        assert_eq!(
            short_digest("sha256:0123456789abcdef0123"),
            "sha256:0123456789ab"
        );
    }

    #[test]
    fn commands_are_quoted_where_a_shell_needs_it() {
        let words = ["sh", "-c", "exit 7", "it's", ""].map(str::to_owned);
        assert_eq!(shell_words(&words), r"sh -c 'exit 7' 'it'\''s' ''");
    }
}
