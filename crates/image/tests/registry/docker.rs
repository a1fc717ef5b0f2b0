//! Debian's docker-registry at the other end, with passwords on and TLS by a private CA.

use std::path::Path;
use std::process::Command;

use warren_core::ErrorClass;
use warren_core::ports::images::{PullRequest, RegistryCredentials};
use warren_image::source::registry::{HostSettings, RegistrySettings, TlsSettings};

use crate::Host;
use crate::server::layer;
use crate::support::registry::Registry;
use crate::support::{have, run, write_layout};
use crate::tls::{Authority, settings};

/// A registry with one user, `user`, whose password is `pass`, and a certificate by an authority of its own.
pub(crate) struct Guarded(Registry);

impl Guarded {
    pub(crate) fn start(work: &Path) -> Self {
        // bcrypt of "pass", as htpasswd -B writes it.
        let passwords = "user:$2b$05$ad79W07l4UVJGHRm.mxOn.4GLKPYdtxr.yHNQC/d0fejVsNyta2Qa\n";
        let htpasswd = work.join("htpasswd");
        std::fs::write(&htpasswd, passwords).unwrap();
        let authority = Authority::new();
        let issued = authority.issue("127.0.0.1");
        let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| work.join(name));
        std::fs::write(&certificate, issued.0).unwrap();
        std::fs::write(&key, issued.1).unwrap();
        std::fs::write(work.join("ca.crt"), authority.pem()).unwrap();
        let auth = format!(
            "auth: {{ htpasswd: {{ realm: r, path: {} }} }}\n",
            htpasswd.display()
        );
        Guarded(Registry::start_with(
            work,
            &auth,
            Some((&certificate, &key)),
        ))
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    /// What a server's configuration says of it.
    pub(crate) fn settings(
        &self,
        work: &Path,
        credentials: Option<(&str, &str)>,
    ) -> RegistrySettings {
        let tls = TlsSettings {
            ca: vec![work.join("ca.crt")],
            client: None,
        };
        let credentials = credentials.map(|(username, password)| RegistryCredentials::Basic {
            username: username.into(),
            password: password.into(),
        });
        settings(
            &self.host(),
            HostSettings {
                tls,
                credentials,
                ..HostSettings::default()
            },
        )
    }

    /// Puts an OCI layout's image there.
    fn push(&self, work: &Path, layout: &Path, name: &str) {
        run(Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-creds=user:pass",
            ])
            .arg(format!("--dest-cert-dir={}", work.display()))
            .arg(format!("oci:{}:t", layout.display()))
            .arg(format!("docker://{}/{name}", self.host())));
    }

    fn request(&self, name: &str) -> PullRequest {
        PullRequest {
            reference: format!("{}/{name}", self.host()),
            ..PullRequest::default()
        }
    }
}

pub(crate) const TOOLS: [&str; 2] = ["docker-registry", "skopeo"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_registry_with_passwords_and_a_private_ca_is_pulled_from() {
    if !have(
        "a_real_registry_with_passwords_and_a_private_ca_is_pulled_from",
        &TOOLS,
    ) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    let registry = Guarded::start(work);
    let layout = work.join("layout");
    let digest = write_layout(&layout, "t", &[layer("a", 300_000), layer("b", 1000)]);
    registry.push(work, &layout, "team/web:1");
    let unknown = Host::new();
    unknown
        .refused(registry.request("team/web:1"), "registry_certificate")
        .await;
    let nobody = Host::with(registry.settings(work, None), None);
    let error = nobody
        .refused(registry.request("team/web:1"), "registry_denied")
        .await;
    assert_eq!(error.class, ErrorClass::Denied);
    let login = format!("docker login {}", registry.host());
    assert!(error.sentence().contains(&login), "{}", error.sentence());
    let stranger = Host::with(registry.settings(work, Some(("user", "wrong"))), None);
    let error = stranger
        .refused(registry.request("team/web:1"), "registry_denied")
        .await;
    assert!(
        error.message.contains("does not accept the credentials"),
        "{error}"
    );
    let host = Host::with(registry.settings(work, Some(("user", "pass"))), None);
    let record = host.pull(registry.request("team/web:1")).await.unwrap();
    assert_eq!(record.digest, digest.to_string());
}
