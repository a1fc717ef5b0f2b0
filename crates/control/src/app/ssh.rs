//! Ways into instances for SSH: one that the API has opened, and one that the keys in an instance open.

use super::{App, AppError};
use async_trait::async_trait;
use futures::StreamExt;
use std::sync::Arc;
use warren_api::Problem;
use warren_core::ports::guest_files::{FileContent, FileKind, ReadRange};
use warren_core::ports::guest_sockets::{GuestEndpoint, GuestListener, GuestSocket, ListenPlace};
use warren_core::ports::host_link::{ExecCommand, ExecSession};
use warren_core::{InstanceId, PortError, id::Prefixes};
use warren_ssh::{Door, Entrance, Guest, HostKey, Proof};

/// What separates a user from an instance in the name that somebody logs in with at the gateway: `user+instance`.
const SEPARATOR: char = '+';
/// Who logs in when no user is named.
const ROOT: &str = "root";
/// The most that is read of a guest's `/etc/passwd`, and of a user's keys.
const FILE_BYTES: u64 = 256 << 10;
/// What the gateway's own key is derived for: no instance has such an id.
const GATEWAY: &str = "gateway";

impl App {
    /// The key by which clients know an instance again.
    ///
    /// # Errors
    /// Missing or ambiguous.
    pub fn ssh_host_key(&self, wanted: &str) -> Result<HostKey, AppError> {
        let view = self.find(wanted, Prefixes::Accepted)?;
        Ok(self.host_key(view.intent.id.as_str()))
    }

    /// The key of the gateway, which has to show one before it hears which instance is meant.
    #[must_use]
    pub fn ssh_gateway_key(&self) -> HostKey {
        self.host_key(GATEWAY)
    }

    fn host_key(&self, subject: &str) -> HostKey {
        HostKey::derive(&self.0.settings.ssh_secret, subject)
    }

    /// A way into this instance for a caller that the API has let in: the login name is a user of the image.
    ///
    /// # Errors
    /// Missing, ambiguous, or a state that no wait will change.
    pub fn ssh_door(&self, wanted: &str) -> Result<(HostKey, Arc<dyn Door>), AppError> {
        let view = self.check_exec(wanted)?;
        let guest = self.guest(view.intent.id.clone());
        let key = self.host_key(view.intent.id.as_str());
        Ok((key, Arc::new(Opened(guest))))
    }

    /// The way into every instance for whoever has a key that it knows: the login name is `instance` or `user+instance`.
    #[must_use]
    pub fn ssh_gateway(&self) -> Arc<dyn Door> {
        Arc::new(Gateway(self.clone()))
    }

    fn guest(&self, id: InstanceId) -> Arc<AppGuest> {
        Arc::new(AppGuest {
            app: self.clone(),
            id,
        })
    }

    async fn authorized_keys(&self, id: &InstanceId, user: &str) -> Result<Vec<String>, PortError> {
        let home = match self.guest_text(id, "/etc/passwd").await {
            Ok((_, passwd)) => home_of(&passwd, user),
            Err(_) => None,
        };
        let home = home.or_else(|| (user == ROOT).then(|| ("/root".to_owned(), 0)));
        let Some((home, uid)) = home else {
            return Ok(Vec::new());
        };
        let path = format!("{}/.ssh/authorized_keys", home.trim_end_matches('/'));
        let (content, text) = self.guest_text(id, &path).await?;
        // As sshd_config(5)'s StrictModes: keys that somebody else could have written let nobody in.
        let info = content.info;
        if info.mode & 0o022 != 0 || (info.uid != uid && info.uid != 0) {
            tracing::debug!(%id, path, "keys that others may write are not used");
            return Ok(Vec::new());
        }
        Ok(text.lines().map(str::to_owned).collect())
    }

    async fn guest_text(
        &self,
        id: &InstanceId,
        path: &str,
    ) -> Result<(FileContent, String), PortError> {
        let range = ReadRange {
            offset: 0,
            length: Some(FILE_BYTES),
        };
        let mut content = self.0.host.files().read(id, path, range).await?;
        let mut bytes = Vec::new();
        if content.info.kind == FileKind::File {
            while let Some(piece) = content.data.next().await {
                bytes.extend_from_slice(&piece?);
            }
        }
        Ok((content, String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// Home and number of a user (passwd(5)).
fn home_of(passwd: &str, user: &str) -> Option<(String, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?);
        let home = fields.nth(2)?;
        (name == user && home.starts_with('/'))
            .then(|| Some((home.to_owned(), uid.parse().ok()?)))?
    })
}

/// One instance of this app.
struct AppGuest {
    app: App,
    id: InstanceId,
}

fn refused(error: AppError) -> PortError {
    match error {
        AppError::Port(error) => error,
        error => PortError::conflict("not_possible", Problem::from(&error).detail),
    }
}

#[async_trait]
impl Guest for AppGuest {
    async fn exec(&self, command: ExecCommand) -> Result<ExecSession, PortError> {
        let patience = self.app.0.settings.start_wait;
        let session = self.app.exec(self.id.as_str(), command, patience).await;
        session.map_err(refused)
    }

    async fn connect(&self, to: GuestEndpoint) -> Result<GuestSocket, PortError> {
        self.app.check_exec(self.id.as_str()).map_err(refused)?;
        self.app.0.host.sockets().connect(&self.id, to).await
    }

    async fn listen(&self, place: ListenPlace) -> Result<GuestListener, PortError> {
        self.app.check_exec(self.id.as_str()).map_err(refused)?;
        self.app.0.host.sockets().listen(&self.id, place).await
    }
}

struct Opened(Arc<AppGuest>);

#[async_trait]
impl Door for Opened {
    async fn find(&self, login: &str) -> Option<Entrance> {
        Some(Entrance {
            guest: Arc::clone(&self.0) as Arc<dyn Guest>,
            user: login.to_owned(),
            proof: Proof::Given,
        })
    }
}

struct Gateway(App);

#[async_trait]
impl Door for Gateway {
    async fn find(&self, login: &str) -> Option<Entrance> {
        let (user, wanted) = login.split_once(SEPARATOR).unwrap_or((ROOT, login));
        let view = self.0.find(wanted, Prefixes::Refused).ok()?;
        let id = view.intent.id.clone();
        let keys = self.0.authorized_keys(&id, user).await;
        let keys = keys.unwrap_or_else(|error| {
            tracing::debug!(%id, %error, "an instance has no keys to let anybody in");
            Vec::new()
        });
        Some(Entrance {
            guest: self.0.guest(id) as Arc<dyn Guest>,
            user: user.to_owned(),
            proof: Proof::Key(keys),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_name_alone() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/srv:/bin/false\nodd:x:no:1::/odd:\n";
        assert_eq!(home_of(passwd, "web"), Some(("/srv".to_owned(), 33)));
        for missing in ["33", "odd", "", "broken"] {
            assert_eq!(home_of(passwd, missing), None, "{missing}");
        }
    }
}
