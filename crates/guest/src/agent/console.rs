//! Words for the serial console: few, because a console byte costs a VM exit.

use std::fs::OpenOptions;
use std::io::Write;

/// One line on the console, if there is one.
pub(super) fn say(text: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(format!("warren-guest: {text}\r\n").as_bytes());
    }
}

/// One line for whoever starts the binary by hand.
pub(super) fn say_on_stderr(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
