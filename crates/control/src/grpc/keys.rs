//! Public keys for a VM's root: lines of `/root/.ssh/authorized_keys`, for whatever reads that file in the guest (sshd(8),
//! AUTHORIZED_KEYS FILE FORMAT). They are written once the VM runs, and are on its disk from then on.

use super::refusal::invalid;
use crate::app::{App, AppError, View};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tonic::Status;
use warren_core::ports::guest_files::{FileFault, MakeDirectory, Parents, ReadRange, WriteFile};
use warren_core::state::StateName;

const DIRECTORY: &str = "/root/.ssh";
const FILE: &str = "/root/.ssh/authorized_keys";
/// An image's own file that is longer is no list of keys.
const LONGEST_FILE: u64 = 1 << 20;
/// Keys at most, and the longest, bytes: RSA of 16384 bits takes 2.8 kB.
const MOST: usize = 64;
const LONGEST_KEY: usize = 8 << 10;
/// How the types of public keys begin.
const TYPES: [&str; 4] = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"];

/// Keys that were looked at.
pub(super) struct AuthorizedKeys(String);

impl AuthorizedKeys {
    /// # Errors
    /// INVALID_ARGUMENT for what is no public key: options before it, which could run commands, are none.
    pub(super) fn new(keys: &[String]) -> Result<Self, Status> {
        if keys.len() > MOST {
            return Err(invalid("ssh_keys", format!("there may be at most {MOST}")));
        }
        let mut lines = String::new();
        for key in keys {
            lines.push_str(public_key(key)?);
            lines.push('\n');
        }
        Ok(AuthorizedKeys(lines))
    }

    /// Puts them behind those that its image has.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when it does not run; what its guest says.
    pub(super) async fn put_into(&self, app: &App, view: &View) -> Result<(), Status> {
        if self.0.is_empty() {
            return Ok(());
        }
        if view.status.state.name() != StateName::Running {
            return Err(Status::failed_precondition(
                "ssh_keys: the VM was created and does not run, so its keys were not put into it",
            ));
        }
        self.write(app, view.intent.id.as_str())
            .await
            .map_err(Status::from)
            .map_err(|status| {
                let told = format!(
                    "ssh_keys: the VM was created, and its keys were not put into it: {}",
                    status.message()
                );
                Status::new(status.code(), told)
            })
    }

    async fn write(&self, app: &App, id: &str) -> Result<(), AppError> {
        let directory = MakeDirectory {
            path: DIRECTORY.to_owned(),
            mode: Some(0o700),
            owner: None,
            parents: Parents::Created,
        };
        app.make_directory(id, directory).await?;
        let mut content = present(app, id).await?;
        if content.last().is_some_and(|byte| *byte != b'\n') {
            content.push(b'\n');
        }
        content.extend_from_slice(self.0.as_bytes());
        let file = WriteFile {
            path: FILE.to_owned(),
            mode: Some(0o600),
            owner: None,
            parents: Parents::Expected,
        };
        let data = stream::iter([Ok(Bytes::from(content))]).boxed();
        app.write_file(id, file, data).await.map(drop)
    }
}

/// What the image has there; nothing where there is no such file.
async fn present(app: &App, id: &str) -> Result<Vec<u8>, AppError> {
    let range = ReadRange {
        offset: 0,
        length: Some(LONGEST_FILE),
    };
    let mut content = Vec::new();
    match app.read_file(id, FILE, range).await {
        Ok(mut file) => {
            while let Some(piece) = file.data.next().await {
                content.extend_from_slice(&piece?);
            }
        }
        Err(AppError::Port(error)) if FileFault::of(&error) == Some(FileFault::NotFound) => {}
        Err(error) => return Err(error),
    }
    Ok(content)
}

/// A type, base64, and perhaps a comment, on one line.
fn public_key(text: &str) -> Result<&str, Status> {
    let key = text.trim();
    let wrong = |problem: &str| {
        let shown: String = key.chars().take(40).collect();
        invalid("ssh_keys", format_args!("{shown:?} {problem}"))
    };
    if key.len() > LONGEST_KEY || key.chars().any(char::is_control) {
        return Err(wrong("is too long, or more than one line"));
    }
    let mut words = key.split(' ').filter(|word| !word.is_empty());
    let kind = words.next().unwrap_or_default();
    let body = words.next().unwrap_or_default();
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if !TYPES.iter().any(|start| kind.starts_with(start))
        || body.len() < 16
        || !body.bytes().all(is_base64)
    {
        return Err(wrong(
            "is no OpenSSH public key, such as \"ssh-ed25519 AAAA… me@example\"",
        ));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000 me";

    #[test]
    fn keys_become_lines() {
        let keys = [
            format!(" {KEY}\n"),
            KEY.replace("ssh-ed25519", "sk-ssh-ed25519@openssh.com"),
        ];
        let lines = AuthorizedKeys::new(&keys).unwrap().0;
        assert_eq!(lines.lines().count(), 2);
        assert!(lines.starts_with(KEY) && lines.ends_with('\n'));
        assert!(AuthorizedKeys::new(&[]).unwrap().0.is_empty());
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----";
        let two = format!("{KEY}\n{KEY}");
        let option = format!("command=\"reboot\" {KEY}");
        for text in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 short",
            private,
            &two,
            &option,
            &"x".repeat(9000),
        ] {
            let refused = AuthorizedKeys::new(&[text.to_owned()]).err().unwrap();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{text:?}");
        }
        let many = vec![KEY.to_owned(); MOST + 1];
        assert!(AuthorizedKeys::new(&many).is_err());
    }
}
