//! How a test says that this machine cannot run it: included by path wherever tests may have to.

use std::io::Write as _;

/// Says so loudly, and appends `test: reason` to the file that `WARREN_SKIP_FILE` names: what `scripts/count-tests` finds there
/// does not count as passed. `test` is the test's name, with as many of its modules as tell it from others.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("SKIP {test}: {reason}");
    if let Some(file) = std::env::var_os("WARREN_SKIP_FILE") {
        // In one piece: other tests append meanwhile.
        std::fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .and_then(|mut file| file.write_all(format!("{test}: {reason}\n").as_bytes()))
            .expect("the file that counts skips can be written");
    }
}
