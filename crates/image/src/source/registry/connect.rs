//! HTTP clients for registries: one for each host, kept, so that pulls share connections and the system's CAs are read
//! once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use warren_core::ports::images::{RegistryCredentials, Transport};

use super::RegistryError;
use super::client::Client;
use super::credentials::{Credentials, credentials_for};
use super::endpoint::{Endpoint, Patience};
use super::push::Pusher;
use super::settings::{HostSettings, RegistrySettings, Tls, TlsSettings};
use crate::source::reference::Reference;

/// A connection that is not made by then will not be.
const CONNECT_TIME: Duration = Duration::from_secs(15);

/// The way to all registries.
#[derive(Debug)]
pub(crate) struct Registries {
    settings: RegistrySettings,
    /// The file with credentials; the user's own when `None`.
    config: Option<PathBuf>,
    stall: Duration,
    clients: Mutex<HashMap<(String, Transport), reqwest::Client>>,
}

impl Registries {
    pub(crate) fn new(
        settings: RegistrySettings,
        config: Option<PathBuf>,
        stall: Duration,
    ) -> Self {
        Registries {
            settings,
            config,
            stall,
            clients: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> &RegistrySettings {
        &self.settings
    }

    /// For a pull: the mirrors, then the registry.
    pub(crate) async fn client(
        &self,
        reference: &Reference,
        transport: Transport,
        credentials: Option<RegistryCredentials>,
    ) -> Result<Client, RegistryError> {
        let registry = reference.registry();
        self.settings.allow(registry)?;
        let mut endpoints = Vec::new();
        let mirrors = self.settings.hosts.get(registry).map(|host| &host.mirrors);
        for mirror in mirrors.into_iter().flatten() {
            let repository = format!("{}{}", mirror.prefix, reference.repository());
            // A mirror sees its own credentials only, never those given for the registry.
            let made = self.endpoint(
                &mirror.host,
                repository,
                mirror.transport,
                None,
                Patience::Mirror,
            );
            match made.await {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => {
                    tracing::warn!(%mirror, %registry, %error, "a mirror cannot be used");
                }
            }
        }
        let repository = reference.repository().to_owned();
        let origin = self.endpoint(
            registry,
            repository,
            transport,
            credentials,
            Patience::Origin,
        );
        endpoints.push(origin.await?);
        Ok(Client::new(endpoints))
    }

    /// For a push: the registry itself.
    pub(crate) async fn pusher(
        &self,
        reference: &Reference,
        transport: Transport,
        credentials: Option<RegistryCredentials>,
    ) -> Result<Pusher, RegistryError> {
        let repository = reference.repository().to_owned();
        let registry = reference.registry();
        self.settings.allow(registry)?;
        let endpoint = self.endpoint(
            registry,
            repository,
            transport,
            credentials,
            Patience::Origin,
        );
        Ok(Pusher::new(endpoint.await?))
    }

    async fn endpoint(
        &self,
        registry: &str,
        repository: String,
        transport: Transport,
        given: Option<RegistryCredentials>,
        patience: Patience,
    ) -> Result<Endpoint, RegistryError> {
        let settings = self.settings.hosts.get(registry);
        let transport = match settings.map(|host| host.transport) {
            Some(Transport::PlainHttp) => Transport::PlainHttp,
            Some(Transport::Https) | None => transport,
        };
        let given = given.or_else(|| settings.and_then(|host| host.credentials.clone()));
        let credentials = match given {
            Some(given) => Ok(given.into()),
            None => self.configured_credentials(registry, &repository).await,
        };
        Ok(Endpoint::new(
            self.http(registry, transport, settings)?,
            registry,
            repository,
            transport,
            credentials,
            self.stall,
            patience,
        ))
    }

    async fn configured_credentials(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Credentials, RegistryError> {
        let config = self.config.clone();
        let (name, path) = (registry.to_owned(), repository.to_owned());
        tokio::task::spawn_blocking(move || credentials_for(&name, &path, config.as_deref()))
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|why| RegistryError::Credentials {
                registry: registry.to_owned(),
                why,
            })
    }

    fn http(
        &self,
        registry: &str,
        transport: Transport,
        settings: Option<&HostSettings>,
    ) -> Result<reqwest::Client, RegistryError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (registry.to_owned(), transport);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = self
            .tls(registry, settings)
            .load()
            .and_then(|tls| self.build(transport, tls))
            .map_err(|why| RegistryError::Settings {
                registry: registry.to_owned(),
                why,
            })?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn tls(&self, registry: &str, settings: Option<&HostSettings>) -> TlsSettings {
        match settings {
            Some(host) if !host.tls.is_empty() => host.tls.clone(),
            Some(_) | None => self
                .settings
                .certificate_directories
                .iter()
                .map(|directory| TlsSettings::in_directory(&directory.join(registry)))
                .find(|found| !found.is_empty())
                .unwrap_or_default(),
        }
    }

    fn build(&self, transport: Transport, tls: Tls) -> Result<reqwest::Client, String> {
        // Fails when the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let prepare = || -> Result<reqwest::ClientBuilder, String> {
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("warren/", env!("CARGO_PKG_VERSION")))
                .https_only(transport == Transport::Https)
                // Where a blob is redirected to is nobody's business there.
                .referer(false)
                .connect_timeout(self.stall.min(CONNECT_TIME))
                .no_proxy();
            for rule in self.settings.proxies.rules()? {
                builder = builder.proxy(rule);
            }
            if let Some(identity) = tls.identity.clone() {
                builder = builder.identity(identity);
            }
            Ok(builder)
        };
        let roots = tls.roots.iter().cloned();
        prepare()?
            .tls_certs_merge(roots.clone())
            .build()
            // A system without CAs of its own: then only ours are trusted, and there is always plain HTTP.
            .or_else(|_| {
                prepare()?
                    .tls_certs_only(roots)
                    .build()
                    .map_err(|error| error.to_string())
            })
    }
}

impl From<RegistryCredentials> for Credentials {
    fn from(given: RegistryCredentials) -> Self {
        match given {
            // docker's convention for a refresh token in a password's place.
            RegistryCredentials::Basic { username, password } if username == "<token>" => {
                Credentials::Identity(password)
            }
            RegistryCredentials::Basic { username, password } => {
                Credentials::Basic { username, password }
            }
            RegistryCredentials::Token(token) => Credentials::Token(token),
        }
    }
}
