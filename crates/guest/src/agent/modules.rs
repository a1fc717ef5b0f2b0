//! Loads the modules an initramfs carries for a distribution's kernel: `/lib/modules/order` names them, one
//! file a line, in the order in which they have to go in. A tuned kernel has none.

use std::ffi::CString;
use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use super::commandline::CommandLine;
use super::console;

const DIRECTORY: &str = "/lib/modules";

/// Loads them all. One that fails is named on the console; what needed it will fail in its own words.
pub(super) fn load_all(command_line: &CommandLine) {
    let directory = Path::new(DIRECTORY);
    let Ok(order) = std::fs::read_to_string(directory.join("order")) else {
        return;
    };
    for line in order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Err(error) = load(&directory.join(line), command_line) {
            console::say(&format!("module {line}: {error}"));
        }
    }
}

fn load(path: &Path, command_line: &CommandLine) -> std::io::Result<()> {
    let file = File::open(path)?;
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let name = name.split('.').next().unwrap_or_default();
    let parameters = CString::new(command_line.module_parameters(name))?;
    match rustix::system::finit_module(&file, &parameters, 0) {
        // Built in, or loaded already.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
