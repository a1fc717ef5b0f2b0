//! What a guest writes, on its way to a person's terminal: colours pass, everything that could drive
//! the terminal (titles, clipboard, cursor, answers typed back) does not. Pure; a byte machine that
//! keeps its place between chunks. Called by `logs` and by `run` without a terminal of its own.

/// The longest colour sequence that is passed on; a longer one is dropped.
const LONGEST_SEQUENCE: usize = 64;

/// Where the machine is (ECMA-48 §5.4 and §8.3.89, xterm's string commands).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Ordinary text.
    Text,
    /// After 0xC2, which may begin a C1 control in UTF-8.
    C2,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate byte: one more byte ends it.
    Intermediate,
    /// Inside `ESC [`: parameters, ended by a byte from 0x40 to 0x7e.
    Control,
    /// Inside a string command (`ESC ]`, `P`, `X`, `^`, `_`), ended by BEL or `ESC \`.
    String,
    /// After ESC inside a string command.
    StringEscape,
}

/// Takes out every escape sequence but colours (SGR), and every control character but newline, carriage
/// return, tab and backspace.
#[derive(Debug)]
pub(crate) struct EscapeFilter {
    place: Place,
    held: Vec<u8>,
}

impl EscapeFilter {
    /// At the start of a stream.
    pub(crate) fn new() -> Self {
        EscapeFilter {
            place: Place::Text,
            held: Vec::new(),
        }
    }

    /// The part of `chunk` that may be shown.
    pub(crate) fn filter(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(chunk.len());
        for &byte in chunk {
            self.step(byte, &mut shown);
        }
        shown
    }

    fn step(&mut self, byte: u8, shown: &mut Vec<u8>) {
        self.place = match self.place {
            Place::Text => self.text(byte, shown),
            Place::C2 => match byte {
                // U+009B is CSI, U+0090, U+0098, U+009D..U+009F begin strings; all C1 are dropped.
                0x9b => {
                    self.held.clear();
                    self.held.extend_from_slice(b"\x1b[");
                    Place::Control
                }
                0x90 | 0x98 | 0x9d..=0x9f => Place::String,
                0x80..=0x9f => Place::Text,
                _ => {
                    shown.push(0xc2);
                    self.text(byte, shown)
                }
            },
            Place::Escape => match byte {
                b'[' => {
                    self.held.clear();
                    self.held.extend_from_slice(b"\x1b[");
                    Place::Control
                }
                b']' | b'P' | b'X' | b'^' | b'_' => Place::String,
                0x20..=0x2f => Place::Intermediate,
                0x1b => Place::Escape,
                b'\n' | b'\r' => self.text(byte, shown),
                _ => Place::Text,
            },
            Place::Intermediate => match byte {
                0x20..=0x2f => Place::Intermediate,
                0x1b => Place::Escape,
                _ => Place::Text,
            },
            Place::Control => match byte {
                0x20..=0x3f => {
                    if self.held.len() <= LONGEST_SEQUENCE {
                        self.held.push(byte);
                    }
                    Place::Control
                }
                0x1b => Place::Escape,
                b'm' => {
                    let plain = self.held[2..]
                        .iter()
                        .all(|b| b.is_ascii_digit() || matches!(b, b';' | b':'));
                    if plain && self.held.len() <= LONGEST_SEQUENCE {
                        shown.extend_from_slice(&self.held);
                        shown.push(b'm');
                    }
                    Place::Text
                }
                0x40..=0x7e => Place::Text,
                _ => self.text(byte, shown),
            },
            Place::String => match byte {
                0x07 => Place::Text,
                0x1b => Place::StringEscape,
                // A string command that never ends must not swallow the rest of a log.
                b'\n' => self.text(byte, shown),
                _ => Place::String,
            },
            Place::StringEscape => match byte {
                b'\\' => Place::Text,
                0x1b => Place::StringEscape,
                b'\n' => self.text(byte, shown),
                _ => Place::String,
            },
        };
    }

    fn text(&mut self, byte: u8, shown: &mut Vec<u8>) -> Place {
        match byte {
            0x1b => return Place::Escape,
            0xc2 => return Place::C2,
            b'\n' | b'\r' | b'\t' | 0x08 => shown.push(byte),
            0x00..=0x1f | 0x7f => {}
            _ => shown.push(byte),
        }
        Place::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        String::from_utf8(EscapeFilter::new().filter(text.as_bytes())).expect("UTF-8 stays UTF-8")
    }

    #[test]
    fn text_and_colours_pass() {
        for text in [
            "plain\ttext\r\n",
            "\x1b[31mred\x1b[0m",
            "\x1b[38;5;200mx\x1b[m",
            "näïve ¢ © 名前 🦀",
        ] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn what_drives_a_terminal_is_taken_out() {
        for (hostile, left) in [
            ("a\x1b]0;title\x07b", "ab"),
            ("a\x1b]52;c;aGk=\x1b\\b", "ab"),
            ("a\x1b[2J\x1b[Hb", "ab"),
            ("a\x1b[6nb", "ab"),
            ("a\x1b[?1049hb", "ab"),
            ("a\x1b[>4;1mb", "ab"),
            ("a\x1bcb", "ab"),
            ("a\x1b(0b", "ab"),
            ("a\x1bP$q\"p\x1b\\b", "ab"),
            ("a\u{9b}2Jb\u{9d}0;x\x07c", "abc"),
            ("bell\x07\x0e\x7f", "bell"),
            ("\x1b]unfinished\nnext", "\nnext"),
        ] {
            assert_eq!(shown(hostile), left, "{hostile:?}");
        }
    }

    #[test]
    fn sequences_split_over_chunks_are_still_seen() {
        let text = "a\x1b]0;t\x07b\x1b[1mc\u{9b}2Jd¢";
        let mut filter = EscapeFilter::new();
        let piecewise: Vec<u8> = text
            .as_bytes()
            .iter()
            .flat_map(|byte| filter.filter(std::slice::from_ref(byte)))
            .collect();
        assert_eq!(piecewise, "ab\x1b[1mcd¢".as_bytes());
    }

    #[test]
    fn an_endless_colour_is_dropped_and_not_kept() {
        let mut filter = EscapeFilter::new();
        assert!(filter.filter(b"\x1b[").is_empty());
        for _ in 0..1_000 {
            assert!(filter.filter(b"1;1;1;1;1;").is_empty());
        }
        assert!(filter.held.len() <= LONGEST_SEQUENCE + 1);
        assert_eq!(filter.filter(b"mx"), b"x");
    }
}
