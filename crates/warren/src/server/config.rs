//! The server's configuration: defaults, then a file, then the environment, then flags. The names that
//! the dataplane API has always read from the environment (`PORT`, `DATA_DIR`, `BRIDGE_NAME`, …) work
//! as they are; everything else is `WARREN_…`.

use super::image_limits::ImageLimits;
use super::push_limits::PushLimits;
use super::registries::{self, RegistryTable};
use clap::Args;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use warren_core::ports::hypervisor::HypervisorKind;
use warren_core::units::parse_size;

/// Read when it is there and no other file is named.
const SYSTEM_FILE: &str = "/etc/warren/config.toml";

/// What decides how the guests' instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accel {
    /// KVM where a throw-away guest has run on it, else TCG.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

/// How guests are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkChoice {
    /// A bridge where we may, else user mode where that works.
    Auto,
    /// A bridge, TAPs and NAT: needs CAP_NET_ADMIN.
    Bridge,
    /// A user-mode stack per guest: needs no privileges.
    User,
    /// No interface.
    None,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether something is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The address to listen on. Anything but loopback needs `jwt_secret`.
    pub(crate) listen: IpAddr,
    /// The port (`PORT`).
    pub(crate) port: u16,
    /// Whether the gRPC API `container.ContainerService` is served.
    pub(crate) container_service: Switch,
    /// Its port (`CONTAINER_SERVICE_PORT`), on the same address. Where none is named it is 50064, and a server that
    /// cannot have that goes on without.
    pub(crate) container_service_port: Option<u16>,
    /// Where the SSH gateway listens, which lets holders of an instance's keys in; nowhere when absent.
    pub(crate) ssh_listen: Option<SocketAddr>,
    /// One more name under which `grpc.health.v1.Health` answers (`SERVICE_NAME`).
    pub(crate) service_name: String,
    /// Everything Warren keeps (`DATA_DIR`).
    pub(crate) data_dir: PathBuf,
    /// The guests' bridge (`BRIDGE_NAME`).
    pub(crate) bridge_name: String,
    /// The guests' network (`SUBNET_CIDR`).
    pub(crate) subnet_cidr: String,
    /// The bridge's address in it (`SUBNET_GATEWAY`).
    pub(crate) subnet_gateway: Ipv4Addr,
    /// Where guests' names that are not ours are resolved (`DNS_SERVER`).
    pub(crate) dns_server: IpAddr,
    /// Signs and checks bearer tokens, HS256 (`JWT_SECRET`).
    pub(crate) jwt_secret: Option<String>,
    /// A containerd's socket (`CONTAINERD_SOCKET`): images that it has are taken from it before a registry is asked.
    pub(crate) containerd_socket: Option<PathBuf>,
    /// How guests are connected.
    pub(crate) network: NetworkChoice,
    /// How guests' instructions are executed.
    pub(crate) accel: Accel,
    /// Which hypervisors may be used, best first.
    pub(crate) hypervisors: Vec<HypervisorKind>,
    /// QEMU's binary; looked up on PATH when absent.
    pub(crate) qemu: Option<PathBuf>,
    /// A guest kernel of one's own: a vmlinux or bzImage.
    pub(crate) kernel: Option<PathBuf>,
    /// Registries that images may be pulled from and pushed to, by host name; empty means any.
    pub(crate) registries: Vec<String>,
    /// What one image may ask of this host.
    pub(crate) image_limits: ImageLimits,
    /// How much room images may take, such as `50GB`, before those go that no instance uses and that were not used for
    /// longest; as much as there is when absent.
    pub(crate) image_budget: Option<String>,
    /// How single registries are reached: mirrors, CAs, plain HTTP, credentials.
    pub(crate) registry: BTreeMap<String, RegistryTable>,
    /// What may be pushed to this host.
    pub(crate) push_limits: PushLimits,
    /// Virtual processors that may be promised per real one.
    pub(crate) vcpu_overcommit: u32,
    /// Guest memory that may be promised, in percent of what guests may have. Above 100, the host may run out of it.
    pub(crate) memory_overcommit_percent: u32,
    /// Instances that may be on their way up at the same time; who asks for more is answered 429 with `Retry-After`.
    pub(crate) start_limit: usize,
    /// What is logged: a level, or `target=level` pairs.
    pub(crate) log: String,
    /// How.
    pub(crate) log_format: LogFormat,
    /// Where traces go, with OTLP over HTTP, such as `http://127.0.0.1:4318`; nowhere when absent, unless
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` says so.
    pub(crate) otlp_endpoint: Option<String>,
}

/// The data directory when nothing says otherwise.
pub(crate) fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/warren");
    }
    let home = || {
        std::env::var_os("HOME")
            .map_or_else(|| PathBuf::from("/"), PathBuf::from)
            .join(".local/share")
    };
    std::env::var_os("XDG_DATA_HOME")
        .map_or_else(home, PathBuf::from)
        .join("warren")
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            container_service: Switch::On,
            container_service_port: None,
            ssh_listen: None,
            service_name: warren_control::grpc::HEALTH_NAME.to_owned(),
            data_dir: default_data_dir(),
            bridge_name: "vmbr0".to_owned(),
            subnet_cidr: "192.168.100.0/24".to_owned(),
            subnet_gateway: Ipv4Addr::new(192, 168, 100, 1),
            dns_server: IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
            jwt_secret: None,
            containerd_socket: None,
            network: NetworkChoice::Auto,
            accel: Accel::Auto,
            hypervisors: vec![HypervisorKind::QemuMicrovm],
            qemu: None,
            kernel: None,
            registries: Vec::new(),
            image_limits: ImageLimits::default(),
            image_budget: None,
            registry: BTreeMap::new(),
            push_limits: PushLimits::default(),
            vcpu_overcommit: 16,
            memory_overcommit_percent: 100,
            start_limit: 256,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
        }
    }
}

/// The flags of `warren server`. Each is stronger than the environment, which is stronger than the file.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub(crate) struct ServerFlags {
    /// Read this configuration file (TOML) instead of /etc/warren/config.toml
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Listen on this address [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<IpAddr>,
    /// Listen on this port (PORT) [default: 8080]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// Serve the gRPC API container.ContainerService too [default: on]
    #[arg(long, value_enum, value_name = "WHETHER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    container_service: Option<Switch>,
    /// Serve it on this port (CONTAINER_SERVICE_PORT) [default: 50064, if that is free]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    container_service_port: Option<u16>,
    /// Let holders of keys log in to instances by SSH here, such as 0.0.0.0:2222 [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_listen: Option<SocketAddr>,
    /// Keep everything here (DATA_DIR) [default: /var/lib/warren as root, else ~/.local/share/warren]
    #[arg(long, value_name = "DIRECTORY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// How guests are connected [default: auto]
    #[arg(long, value_enum, value_name = "MODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkChoice>,
    /// How guests' instructions are executed [default: auto]
    #[arg(long, value_enum, value_name = "HOW")]
    #[serde(skip_serializing_if = "Option::is_none")]
    accel: Option<Accel>,
    /// Hypervisors to use, best first: qemu-microvm, fake [default: qemu-microvm]
    #[arg(long, value_delimiter = ',', value_parser = parse_kind, value_name = "NAME,…")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hypervisors: Vec<HypervisorKind>,
    /// Boot guests with this kernel (vmlinux or bzImage)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<PathBuf>,
    /// Pull from and push to these registries only [default: any]
    #[arg(long, value_delimiter = ',', value_name = "HOST,…")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    registries: Vec<String>,
    /// Let images take so much room, such as 50GB, before those go that were not used for longest [default: any]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    image_budget: Option<String>,
    /// What to log: error, warn, info, debug, trace, or target=level pairs
    #[arg(long, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// How to log
    #[arg(long, value_enum, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
    /// Send traces to this collector, OTLP over HTTP (OTEL_EXPORTER_OTLP_ENDPOINT) [default: none]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_endpoint: Option<String>,
}

fn parse_kind(text: &str) -> Result<HypervisorKind, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| format!("{text:?} is not a hypervisor: use qemu-microvm or fake"))
}

/// The names of seed clients' environments.
const PLAIN_NAMES: [&str; 10] = [
    "PORT",
    "CONTAINER_SERVICE_PORT",
    "SERVICE_NAME",
    "DATA_DIR",
    "BRIDGE_NAME",
    "SUBNET_CIDR",
    "SUBNET_GATEWAY",
    "CONTAINERD_SOCKET",
    "JWT_SECRET",
    "DNS_SERVER",
];

/// `WARREN_…` names that are not the server's: the command line's, the scripts' and the tests'.
const OTHER_NAMES: [&str; 26] = [
    "server",
    "token",
    "context",
    "config",
    "cache_dir",
    "guest_agent",
    "bin",
    "skip_file",
    "run_dir",
    "log_file",
    "env_file",
    "stop_seconds",
    "seed",
    "kills",
    "cycles",
    "seeds",
    "crash_at",
    "crash_orders",
    "crash_trace",
    "crash_machines",
    "crash_each_time",
    "crash_state",
    "crash_seconds",
    "cloud_hypervisor",
    "firecracker",
    "registry_password",
];

/// The settings by name.
fn settings() -> Vec<String> {
    match serde_json::to_value(Config::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    }
}

/// `WARREN_…` variables that nobody reads: most likely mistyped.
pub(crate) fn unread_variables() -> Vec<String> {
    let known = settings();
    std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| {
            name.strip_prefix("WARREN_").is_some_and(|rest| {
                let rest = rest.to_ascii_lowercase();
                !known.contains(&rest) && !OTHER_NAMES.contains(&rest.as_str())
            })
        })
        .collect()
}

impl Config {
    /// Puts the sources together.
    ///
    /// # Errors
    /// A sentence that names the source and the setting.
    pub(crate) fn load(flags: &ServerFlags) -> anyhow::Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        let named = flags
            .config
            .clone()
            .or_else(|| std::env::var_os("WARREN_CONFIG").map(PathBuf::from));
        match &named {
            Some(path) => {
                anyhow::ensure!(
                    path.is_file(),
                    "there is no configuration file {}",
                    path.display()
                );
                figment = figment.merge(Toml::file_exact(path));
            }
            None if Path::new(SYSTEM_FILE).is_file() => {
                figment = figment.merge(Toml::file_exact(SYSTEM_FILE))
            }
            None => {}
        }
        let known = settings();
        let config: Config = figment
            .merge(
                Env::raw()
                    .only(&PLAIN_NAMES)
                    .filter(|name| !empty(name.as_str())),
            )
            .merge(
                Env::prefixed("WARREN_")
                    .filter(move |name| known.iter().any(|known| name == known.as_str())),
            )
            .merge(Serialized::defaults(flags))
            .extract()
            .map_err(|error| anyhow::anyhow!("configuration: {error}"))?;
        anyhow::ensure!(
            !config.hypervisors.is_empty(),
            "configuration: name at least one hypervisor"
        );
        config.image_budget()?;
        anyhow::ensure!(
            config.start_limit > 0,
            "configuration: start_limit must be at least 1"
        );
        anyhow::ensure!(
            config.data_dir.is_absolute(),
            "configuration: data_dir must be an absolute path"
        );
        anyhow::ensure!(
            config
                .jwt_secret
                .as_ref()
                .is_none_or(|secret| !secret.is_empty()),
            "configuration: JWT_SECRET is set and empty: unset it, or give it a value"
        );
        if let Some(kernel) = &config.kernel {
            anyhow::ensure!(
                kernel.is_file(),
                "configuration: there is no guest kernel {}: name a vmlinux or bzImage, or leave it to `./dev kernel`",
                kernel.display()
            );
        }
        config.image_limits.check()?;
        registries::check(&config)?;
        Ok(config)
    }
}

impl Config {
    /// `image_budget` in bytes.
    ///
    /// # Errors
    /// A sentence, when it is no size.
    pub(crate) fn image_budget(&self) -> anyhow::Result<Option<u64>> {
        let budget = self.image_budget.as_deref().map(parse_size).transpose();
        let budget =
            budget.map_err(|error| anyhow::anyhow!("configuration: image_budget: {error}"))?;
        Ok(budget.map(|size| size.0))
    }
}

/// An empty variable counts as unset, but for the secret: there it would silently open the API.
fn empty(name: &str) -> bool {
    name != "JWT_SECRET"
        && name != "jwt_secret"
        && std::env::var_os(name.to_ascii_uppercase()).is_some_and(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    #![expect(clippy::result_large_err, reason = "figment's own signature")]
    use super::*;
    use warren_core::ports::images::{RegistryCredentials, Transport};

    #[test]
    fn the_environment_is_stronger_than_the_file_and_flags_than_both() {
        figment::Jail::expect_with(|jail| {
            jail.create_file(
                "w.toml",
                "port = 1\nbridge_name = \"br7\"\ndns_server = \"9.9.9.9\"",
            )?;
            jail.set_env("PORT", "2");
            jail.set_env("SUBNET_CIDR", "10.9.0.0/16");
            jail.set_env("WARREN_LOG", "debug");
            jail.set_env("WARREN_SERVER", "http://elsewhere");
            let mut flags = ServerFlags {
                config: Some("w.toml".into()),
                ..ServerFlags::default()
            };
            let config = Config::load(&flags).unwrap();
            assert_eq!(
                (
                    config.port,
                    config.bridge_name.as_str(),
                    config.log.as_str()
                ),
                (2, "br7", "debug")
            );
            assert_eq!(config.subnet_cidr, "10.9.0.0/16");
            flags.port = Some(3);
            assert_eq!(Config::load(&flags).unwrap().port, 3);
            Ok(())
        });
    }

    #[test]
    fn the_container_service_is_configured_as_its_clients_know_it() {
        figment::Jail::expect_with(|jail| {
            let mut flags = ServerFlags::default();
            let config = Config::load(&flags).unwrap();
            assert_eq!(config.container_service, Switch::On);
            assert_eq!(config.container_service_port, None);
            assert_eq!(config.service_name, "container-grpc");
            jail.set_env("CONTAINER_SERVICE_PORT", "50065");
            jail.set_env("SERVICE_NAME", "vms");
            jail.set_env("WARREN_CONTAINER_SERVICE", "off");
            let config = Config::load(&flags).unwrap();
            assert_eq!(config.container_service, Switch::Off);
            assert_eq!(config.container_service_port, Some(50065));
            assert_eq!(config.service_name, "vms");
            flags.container_service = Some(Switch::On);
            flags.container_service_port = Some(1);
            let config = Config::load(&flags).unwrap();
            assert_eq!(config.container_service, Switch::On);
            assert_eq!(config.container_service_port, Some(1));
            jail.set_env("CONTAINER_SERVICE_PORT", "many");
            let error = Config::load(&ServerFlags::default()).unwrap_err();
            let error = error.to_string().to_lowercase();
            assert!(error.contains("container_service_port"), "{error}");
            Ok(())
        });
    }

    #[test]
    fn registries_are_configured_one_by_one() {
        figment::Jail::expect_with(|jail| {
            jail.create_file("password", "hush\n")?;
            jail.create_file(
                "w.toml",
                r#"
                registries = ["registry.example", "docker.io"]
                [registry."docker.io"]
                mirrors = ["https://mirror.example/hub", "http://10.0.0.5:5000"]
                [registry."registry.example:5000"]
                username = "warren"
                password_file = "password"
                [registry."plain.example:5000"]
                plain_http = true
                "#,
            )?;
            let flags = ServerFlags {
                config: Some("w.toml".into()),
                ..ServerFlags::default()
            };
            let config = Config::load(&flags).unwrap();
            let settings = registries::settings(&config).unwrap();
            assert_eq!(settings.hosts.len(), 3);
            assert_eq!(settings.hosts["docker.io"].mirrors.len(), 2);
            assert_eq!(
                settings.hosts["registry.example:5000"].credentials,
                Some(RegistryCredentials::Basic {
                    username: "warren".into(),
                    password: "hush".into()
                })
            );
            assert_eq!(
                settings.hosts["plain.example:5000"].transport,
                Transport::PlainHttp
            );
            assert!(!format!("{config:?}{settings:?}").contains("hush"));
            Ok(())
        });
    }

    #[test]
    fn a_mistake_about_a_registry_is_named() {
        for (table, word) in [
            ("[registry.\"https://r.example\"]", "not a registry"),
            ("[registry.\"r.example\"]\nmiror = 1", "miror"),
            (
                "[registry.\"r.example\"]\nmirrors = [\"ftp://x\"]",
                "ftp://x",
            ),
            (
                "[registry.\"r.example\"]\nclient_cert = \"c\"",
                "client_key",
            ),
            (
                "[registry.\"r.example\"]\nplain_http = true\nca = \"c\"",
                "choose one",
            ),
            ("[registry.\"r.example\"]\npassword = \"p\"", "username"),
            ("[registry.\"r.example\"]\nusername = \"u\"", "password"),
            ("[registry.\"r.example\"]\nca = \"none.pem\"", "none.pem"),
            (
                "[registry.\"r.example\"]\nusername = \"u\"\npassword_file = \"none\"",
                "none",
            ),
        ] {
            figment::Jail::expect_with(|jail| {
                jail.create_file("w.toml", table)?;
                let flags = ServerFlags {
                    config: Some("w.toml".into()),
                    ..ServerFlags::default()
                };
                let error = Config::load(&flags)
                    .and_then(|config| registries::settings(&config))
                    .unwrap_err()
                    .to_string();
                assert!(error.contains(word), "{table}: {error}");
                assert!(error.starts_with("configuration: "), "{error}");
                Ok(())
            });
        }
    }

    #[test]
    fn a_mistake_is_named() {
        figment::Jail::expect_with(|jail| {
            jail.create_file("w.toml", "prot = 1")?;
            let flags = ServerFlags {
                config: Some("w.toml".into()),
                ..ServerFlags::default()
            };
            assert!(
                Config::load(&flags)
                    .unwrap_err()
                    .to_string()
                    .contains("prot")
            );
            jail.create_file("w.toml", "kernel = '/nowhere/vmlinux'")?;
            let error = Config::load(&flags).unwrap_err().to_string();
            assert!(error.contains("/nowhere/vmlinux"), "{error}");
            jail.create_file("w.toml", "start_limit = 0")?;
            let error = Config::load(&flags).unwrap_err().to_string();
            assert!(error.contains("start_limit"), "{error}");
            jail.create_file("w.toml", "image_budget = \"much\"")?;
            let error = Config::load(&flags).unwrap_err().to_string();
            assert!(
                error.contains("image_budget") && error.contains("10GB"),
                "{error}"
            );
            jail.create_file("w.toml", "image_budget = \"1GB\"")?;
            let config = Config::load(&flags).unwrap();
            assert_eq!(config.image_budget().unwrap(), Some(1 << 30));
            jail.set_env("PORT", "eighty");
            let error = Config::load(&ServerFlags::default())
                .unwrap_err()
                .to_string();
            assert!(error.to_lowercase().contains("port"), "{error}");
            Ok(())
        });
    }
}
