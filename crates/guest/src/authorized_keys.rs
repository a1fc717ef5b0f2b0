//! The keys that somebody may log in with: lines of `~/.ssh/authorized_keys`, for sshd(8) in the image and for Warren's own gateway.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Adds those of `keys` that are not there yet, behind what is; nothing else of the file changes. `home` is as seen from `root`.
pub(crate) fn add(root: &Path, home: &str, keys: &[String]) -> io::Result<()> {
    let directory = root.join(home.trim_start_matches('/')).join(".ssh");
    let file = directory.join("authorized_keys");
    let mut content = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let lines = content.split(|byte| *byte == b'\n');
    let present: Vec<&[u8]> = lines.map(<[u8]>::trim_ascii).collect();
    let missing = keys.iter().filter(|key| !present.contains(&key.as_bytes()));
    let missing: Vec<&String> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    if content.last().is_some_and(|byte| *byte != b'\n') {
        content.push(b'\n');
    }
    for key in missing {
        content.extend_from_slice(key.as_bytes());
        content.push(b'\n');
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)?;
    let fresh = directory.join(".authorized_keys.warren");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?
        .write_all(&content)?;
    fs::rename(&fresh, &file)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_added_once_and_what_was_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let keys = ["a key".to_owned(), "another".to_owned()];
        let file = root.path().join("root/.ssh/authorized_keys");
        add(root.path(), "/root", &[]).unwrap();
        assert!(!file.exists());
        add(root.path(), "/root", &keys).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "a key\nanother\n");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        fs::write(&file, "# mine\n another \nno end").unwrap();
        for _ in 0..2 {
            add(root.path(), "/root", &keys).unwrap();
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text, "# mine\n another \nno end\na key\n");
        }
    }
}
