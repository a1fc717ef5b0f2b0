//! The person's terminal: raw mode and back, its size, what is typed, and the keys that leave a guest.
//! Never leaves a terminal raw: the guard puts it back on every way out, panics included.

use rustix::termios::{self, OptionalActions, Termios};
use std::io::{IsTerminal, Read};
use tokio::sync::mpsc;

/// Ctrl-P, then Ctrl-Q: leave the guest running.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Chunks that wait between the thread that reads and the task that sends.
const CHUNKS: usize = 4;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Rows.
    pub(crate) rows: u16,
    /// Columns.
    pub(crate) columns: u16,
}

impl Size {
    /// The size of the terminal at stdout or stdin; 24 × 80 where neither says.
    pub(crate) fn current() -> Self {
        for size in [
            termios::tcgetwinsize(std::io::stdout()),
            termios::tcgetwinsize(std::io::stdin()),
        ]
        .into_iter()
        .flatten()
        {
            if size.ws_row > 0 && size.ws_col > 0 {
                return Size {
                    rows: size.ws_row,
                    columns: size.ws_col,
                };
            }
        }
        Size {
            rows: 24,
            columns: 80,
        }
    }
}

/// Stdin as a raw terminal for as long as this lives.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Turns stdin raw: every key, Ctrl-C included, is the guest's.
    ///
    /// # Errors
    /// Where stdin is no terminal.
    pub(crate) fn enter() -> std::io::Result<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(RawMode { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether stdin is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// What comes in on stdin, until its end. A thread of its own reads: a runtime's blocking task would
/// keep the process from ending while it waits for a key.
pub(crate) fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let reader = move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0u8; 16 * 1024];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    };
    // Without the thread the channel closes at once, which reads as an empty stdin.
    let _ = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(reader);
    receiver
}

/// What typed bytes mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// For the guest.
    Forward(Vec<u8>),
    /// These for the guest, and then leave it.
    Detach(Vec<u8>),
}

/// Looks for the detach keys; a Ctrl-P is held back until the next key shows what it was.
#[derive(Debug, Default)]
pub(crate) struct DetachKeys {
    held: bool,
}

impl DetachKeys {
    /// Sorts what was typed.
    pub(crate) fn sort(&mut self, typed: &[u8]) -> Typed {
        let mut forward = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if self.held {
                self.held = false;
                if byte == DETACH[1] {
                    return Typed::Detach(forward);
                }
                forward.push(DETACH[0]);
            }
            if byte == DETACH[0] {
                self.held = true;
            } else {
                forward.push(byte);
            }
        }
        Typed::Forward(forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_chunks() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.sort(b"ls\x10"), Typed::Forward(b"ls".to_vec()));
        assert_eq!(keys.sort(b"\x11more"), Typed::Detach(Vec::new()));
    }

    #[test]
    fn a_ctrl_p_that_was_not_the_first_half_reaches_the_guest() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.sort(b"\x10"), Typed::Forward(Vec::new()));
        assert_eq!(keys.sort(b"a"), Typed::Forward(b"\x10a".to_vec()));
        assert_eq!(keys.sort(b"\x10\x10\x11"), Typed::Detach(b"\x10".to_vec()));
        let mut keys = DetachKeys::default();
        assert_eq!(keys.sort(b"\x11"), Typed::Forward(b"\x11".to_vec()));
    }

    #[test]
    fn a_size_is_always_known() {
        let size = Size::current();
        assert!(size.rows > 0 && size.columns > 0);
    }
}
