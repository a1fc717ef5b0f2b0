//! Private CAs, client certificates, and plain HTTP where it was asked for and nowhere else.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use warren_core::ports::images::{PullRequest, Transport};
use warren_image::source::registry::{HostSettings, RegistrySettings, TlsSettings};

use crate::Host;
use crate::server::{Image, Server, layer};

/// A CA of a test's own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name or address, and its key, both PEM.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn issue_der(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (certificate.der().clone(), key.into())
    }

    /// For a server at a name or address that asks nobody for a certificate.
    pub(crate) fn server(&self, name: &str) -> rustls::ServerConfig {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (certificate, key) = self.issue_der(name);
        rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap()
    }

    /// For a server that wants a certificate of this CA from everybody.
    fn strict_server(&self, name: &str) -> rustls::ServerConfig {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build();
        let (certificate, key) = self.issue_der(name);
        rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(vec![certificate], key)
            .unwrap()
    }
}

/// Settings for one registry.
pub(crate) fn settings(host: &str, settings: HostSettings) -> RegistrySettings {
    RegistrySettings {
        hosts: [(host.to_owned(), settings)].into(),
        ..RegistrySettings::default()
    }
}

fn trusting(host: &str, ca: &Path) -> RegistrySettings {
    let tls = TlsSettings {
        ca: vec![ca.to_owned()],
        client: None,
    };
    settings(
        host,
        HostSettings {
            tls,
            ..HostSettings::default()
        },
    )
}

fn secure(server: &Server) -> PullRequest {
    PullRequest {
        reference: format!("{}/web:1", server.host()),
        ..PullRequest::default()
    }
}

fn image() -> Image {
    Image::of(&[layer("a", 20_000)])
}

#[tokio::test]
async fn a_private_ca_is_trusted_where_it_is_configured() {
    let authority = Authority::new();
    let server = Server::tls(authority.server("127.0.0.1")).await;
    server.put_image("web", "1", &image());
    let started = Instant::now();
    let error = Host::new()
        .refused(secure(&server), "registry_certificate")
        .await;
    // Not asked again: it would say the same.
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(error.message.contains("UnknownIssuer"), "{error}");
    assert!(
        error
            .sentence()
            .contains(&format!("[registry.\"{}\"]", server.host()))
    );
    let files = tempfile::tempdir().unwrap();
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let host = Host::with(trusting(&server.host(), &ca), None);
    host.pull(secure(&server)).await.unwrap();
    // For that registry, and for no other.
    let other = Server::tls(authority.server("127.0.0.1")).await;
    other.put_image("web", "1", &image());
    assert_eq!(
        host.pull(secure(&other)).await.unwrap_err().code,
        "registry_certificate"
    );
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let server = Server::tls(authority.server("elsewhere.example")).await;
    let files = tempfile::tempdir().unwrap();
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let host = Host::with(trusting(&server.host(), &ca), None);
    host.refused(secure(&server), "registry_certificate").await;
}

#[tokio::test]
async fn directories_of_certificates_are_read_as_docker_has_them() {
    let authority = Authority::new();
    let server = Server::tls(authority.strict_server("127.0.0.1")).await;
    server.put_image("web", "1", &image());
    let files = tempfile::tempdir().unwrap();
    let directory = files.path().join(server.host());
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("ca.crt"), authority.pem()).unwrap();
    let registries = RegistrySettings {
        certificate_directories: vec![files.path().join("none"), files.path().to_owned()],
        ..RegistrySettings::default()
    };
    // The server is trusted, and does not trust us.
    let host = Host::with(registries.clone(), None);
    host.refused(secure(&server), "registry_certificate").await;
    let (certificate, key) = authority.issue("client");
    std::fs::write(directory.join("client.cert"), certificate).unwrap();
    std::fs::write(directory.join("client.key"), key).unwrap();
    let host = Host::with(registries, None);
    host.pull(secure(&server)).await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_configured() {
    let authority = Authority::new();
    let server = Server::tls(authority.strict_server("127.0.0.1")).await;
    server.put_image("web", "1", &image());
    let files = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = ["ca", "certificate", "key"].map(|name| files.path().join(name));
    let issued = authority.issue("client");
    std::fs::write(&ca, authority.pem()).unwrap();
    std::fs::write(&certificate, &issued.0).unwrap();
    std::fs::write(&key, &issued.1).unwrap();
    let tls = TlsSettings {
        ca: vec![ca],
        client: Some((certificate.clone(), key)),
    };
    let with = |tls| {
        settings(
            &server.host(),
            HostSettings {
                tls,
                ..HostSettings::default()
            },
        )
    };
    with(tls.clone()).check().unwrap();
    Host::with(with(tls.clone()), None)
        .pull(secure(&server))
        .await
        .unwrap();
    // What is no key is told when the settings are read, and when they are used.
    std::fs::write(&certificate, "nothing").unwrap();
    let why = with(tls.clone()).check().unwrap_err();
    assert!(
        why.contains(&server.host()) && why.contains("certificate"),
        "{why}"
    );
    let host = Host::with(with(tls), None);
    host.refused(secure(&server), "registry_settings_invalid")
        .await;
}

#[tokio::test]
async fn plain_http_is_spoken_only_where_it_was_asked_for() {
    let server = Server::plain().await;
    server.put_image("web", "1", &image());
    let error = Host::new()
        .refused(secure(&server), "registry_plain_http")
        .await;
    assert!(error.sentence().contains("--plain-http"));
    assert!(server.seen().is_empty());
    let registries = settings(
        &server.host(),
        HostSettings {
            transport: Transport::PlainHttp,
            ..HostSettings::default()
        },
    );
    Host::with(registries, None)
        .pull(secure(&server))
        .await
        .unwrap();
}

#[tokio::test]
async fn tls_is_not_left_by_a_redirect() {
    let authority = Authority::new();
    let server = Server::tls(authority.server("127.0.0.1")).await;
    let elsewhere = Server::plain().await;
    let image = image();
    server.put_image("web", "1", &image);
    elsewhere.put_image("web", "1", &image);
    let to = elsewhere.host();
    server.rule(usize::MAX, move |seen| {
        let moved = [(header::LOCATION, format!("http://{to}{}", seen.path))];
        seen.path
            .contains("/blobs/")
            .then(|| (StatusCode::TEMPORARY_REDIRECT, moved).into_response())
    });
    let files = tempfile::tempdir().unwrap();
    let ca = files.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let host = Host::with(trusting(&server.host(), &ca), None);
    host.refused(secure(&server), "image_damaged").await;
    assert!(elsewhere.seen().is_empty());
}
