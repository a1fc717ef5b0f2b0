//! `warren server` and what else runs on the host itself: `doctor`, `fsck`, `system`.

mod clock;
mod config;
mod data_dir;
mod doctor;
mod fake_guests;
mod image_limits;
mod images;
mod open_files;
mod push_limits;
mod quantity;
mod record;
mod registries;
mod telemetry;
mod upkeep;
mod wire;

use clock::SystemClock;
use config::ServerFlags;

use crate::cli::Global;
use anyhow::Context;
use config::{Config, Switch};
use data_dir::DataDir;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use warren_control::{App, Auth, ContainerService, Settings};
use warren_core::placement::Overcommit;
use warren_core::ports::Store;
use warren_crashpoint::reached;
use warren_store::Older;

/// How long background work may take to end after the listeners have.
const BACKGROUND_GRACE: Duration = Duration::from_secs(5);

/// Where clients of `container.ContainerService` look for it.
const CONTAINER_SERVICE_PORT: u16 = 50064;

/// The least that a key of HS256 should have (RFC 7518, 3.2), bytes.
const SECRET: usize = 32;

/// A program on the host: its runtime has as many threads as the machine has processors.
fn block_on(program: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime did not start")
        .and_then(|runtime| {
            let outcome = runtime.block_on(program);
            // A hung thread must not keep the process.
            runtime.shutdown_timeout(Duration::from_secs(1));
            outcome
        });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is done on the host itself, without a server in between.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum HostCommand {
    /// Run the server
    ///
    /// Serves the REST API and runs instances on this machine. Settings come from /etc/warren/config.toml (or
    /// --config), the environment and these options; the last one named wins. Instances outlive the server: stop
    /// it, upgrade it, start it again, and it takes over what runs.
    #[command(after_help = SERVER_EXAMPLES)]
    Server(ServerFlags),
    /// Tell what this machine can do, what was chosen, and why
    ///
    /// Tries the hypervisor (by running a few instructions in a throw-away guest), finds the guest kernel, looks
    /// at network and data directory, and says what to do about what is missing. Needs no server. Fails when
    /// anything is a problem.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(ServerFlags),
    #[command(after_help = upkeep::FSCK_EXAMPLES)]
    Fsck(upkeep::FsckArgs),
}

/// What is done to the installation on this host itself.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum SystemCommand {
    /// Remove this installation's network from the host
    ///
    /// Takes away the bridge, the firewall table and whatever device is left. Refused while a server runs or
    /// instances exist. Images and settings stay; the next server makes the network again.
    #[command(
        after_help = "Examples:\n  warren system clean\n  DATA_DIR=/srv/warren warren system clean"
    )]
    Clean(ServerFlags),
    #[command(after_help = upkeep::RECOVER_EXAMPLES)]
    Recover(upkeep::RecoverArgs),
    #[command(after_help = upkeep::BACKUP_EXAMPLES)]
    Backup(upkeep::BackupArgs),
    #[command(after_help = upkeep::RESTORE_EXAMPLES)]
    Restore(upkeep::RestoreArgs),
}

const SERVER_EXAMPLES: &str = "\
Examples:
  warren server                                  On this machine only, port 8080
  PORT=9000 DATA_DIR=/srv/warren warren server   By environment
  JWT_SECRET=… warren server --listen 0.0.0.0    For other machines: every request needs a token
  warren server --network user                   Without privileges
  warren server --container-service off          REST only, without the gRPC API
  warren server --ssh-listen 0.0.0.0:2222        ssh -p 2222 USER+NAME@HOST, for keys in NAME's authorized_keys

The gRPC API container.ContainerService is on port 50064, with health and reflection:
  grpcurl -plaintext localhost:50064 list
  grpcurl -plaintext -d '{\"user_id\": \"me\", \"image\": \"ubuntu:22.04\"}' localhost:50064 container.ContainerService/CreateVM
It is on the port of REST as well, with gRPC-Web and Connect's unary calls.
With JWT_SECRET set, add -H \"authorization: Bearer TOKEN\"; the token's subject is the user_id.

Environment: PORT, CONTAINER_SERVICE_PORT, SERVICE_NAME, DATA_DIR, BRIDGE_NAME, SUBNET_CIDR, SUBNET_GATEWAY, DNS_SERVER,
JWT_SECRET, CONTAINERD_SOCKET; every setting of the file also as WARREN_<NAME>, such as WARREN_NETWORK=user.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  warren doctor
  warren doctor -o json
  warren doctor --accel kvm    What would happen with that setting";

/// Puts the configuration together; what is wrong with it is told.
fn configure(flags: &ServerFlags) -> Result<Config, ExitCode> {
    let config = Config::load(flags).map_err(|error| {
        anstream::eprintln!("error: {error:#}");
        ExitCode::from(2)
    })?;
    for name in config::unread_variables() {
        anstream::eprintln!(
            "warning: {name} is set but is not a setting (see warren server --help)"
        );
    }
    Ok(config)
}

impl HostCommand {
    /// Carries it out.
    pub(crate) fn run(self, global: &Global) -> ExitCode {
        let flags = match &self {
            HostCommand::Server(flags) | HostCommand::Doctor(flags) => flags,
            HostCommand::Fsck(args) => &args.server,
        };
        let config = match configure(flags) {
            Ok(config) => config,
            Err(code) => return code,
        };
        match self {
            HostCommand::Server(_) => {
                block_on(async {
                    // reqwest is built without a provider of its own.
                    let _ = rustls::crypto::ring::default_provider().install_default();
                    let telemetry = Telemetry::start(&config)?;
                    let served = serve(config).await;
                    telemetry.flush().await;
                    served
                })
            }
            HostCommand::Doctor(_) => block_on(doctor::run(config, global.prints_json())),
            HostCommand::Fsck(args) => upkeep::fsck(&args, config, global),
        }
    }
}

impl SystemCommand {
    /// Carries it out.
    pub(crate) fn run(self, global: &Global) -> ExitCode {
        let flags = match &self {
            SystemCommand::Clean(flags) => flags,
            SystemCommand::Recover(args) => &args.server,
            SystemCommand::Backup(args) => &args.server,
            SystemCommand::Restore(args) => &args.server,
        };
        let config = match configure(flags) {
            Ok(config) => config,
            Err(code) => return code,
        };
        match self {
            SystemCommand::Clean(_) => block_on(clean_up(config)),
            SystemCommand::Recover(args) => upkeep::recover(&args, config, global),
            SystemCommand::Backup(args) => upkeep::backup(&args, config, global),
            SystemCommand::Restore(args) => upkeep::restore(&args, config, global),
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let auth = Auth::from_secret(config.jwt_secret.as_deref());
    let address = SocketAddr::new(config.listen, config.port);
    auth.check_listener(address)?;
    let open_files = open_files::raise_limit();
    tracing::debug!(open_files, "the limit of open files");
    // First: who cannot listen leaves nothing behind.
    let listeners = bind(address, "--port").await?;
    let container_service = bind_container_service(&config).await?;
    let ssh_listener = match config.ssh_listen {
        Some(address) => Some(bind_ssh(address).await?),
        None => None,
    };
    let data = DataDir::open(&config.data_dir)?;
    let stopping = CancellationToken::new();
    let record::Opened { store, doubt } = record::open(&data, Older::BringUpToDate)
        .await
        .map_err(|error| anyhow::anyhow!("{}", error.sentence()))?;
    reached("start.record-opened");
    let clock = Arc::new(SystemClock::going_on(data.uptime()));
    let host = wire::host(&config, &data, clock.clone())?;
    reached("start.instances-adopted");
    let mut settings = Settings::new(data.installation.clone(), data.uploads());
    settings.doubt = doubt;
    settings.ssh_secret = data.host_secret()?;
    settings.starts = config.start_limit;
    settings.container_service = match config.container_service {
        Switch::On => ContainerService::Served,
        Switch::Off => ContainerService::Unserved,
    };
    settings.overcommit = Overcommit {
        vcpus: config.vcpu_overcommit,
        memory_percent: config.memory_overcommit_percent,
    };
    let app = App::start(
        store.clone() as Arc<dyn Store>,
        host,
        clock.clone(),
        settings,
        stopping.clone(),
    )
    .await
    .map_err(|error| anyhow::anyhow!("{}", error.sentence()))?;
    tracing::info!(%address, data = %config.data_dir.display(), installation = %data.installation, "listening");
    if config.jwt_secret.is_none() {
        tracing::info!(
            "no JWT_SECRET is set: everybody on this machine may use the API, nobody else"
        );
    }
    if config
        .jwt_secret
        .as_ref()
        .is_some_and(|secret| secret.len() < SECRET)
    {
        tracing::warn!(
            "JWT_SECRET is shorter than {SECRET} bytes: whoever sees a token can guess it"
        );
    }
    tokio::spawn(stop_on_signal(stopping.clone())?);
    let gateway = ssh_listener.map(|listener| {
        let key = app.ssh_gateway_key().fingerprint();
        tracing::info!(address = ?listener.local_addr(), key, "the SSH gateway is listening");
        tokio::spawn(warren_control::serve_ssh(listener, app.clone()))
    });
    let timekeeping = tokio::spawn(clock.keep(stopping.clone()));
    let served = tokio::try_join!(
        warren_control::serve(listeners, app.clone(), auth.clone(), stopping.clone()),
        warren_control::serve_container_service(
            container_service,
            app.clone(),
            auth,
            &config.service_name,
            stopping.clone(),
        ),
    );
    stopping.cancel();
    if let Some(gateway) = gateway {
        // Its connections end with the word to stop. A panic of it would be in the log.
        drop(gateway.await);
    }
    if tokio::time::timeout(BACKGROUND_GRACE, app.stopped())
        .await
        .is_err()
    {
        tracing::warn!("background work did not end in time; it goes on at the next start");
    }
    store
        .close()
        .await
        .map_err(|error| anyhow::anyhow!("{}", error.sentence()))?;
    // A panic of it would be in the log; there is nothing more to be done about it.
    drop(timekeeping.await);
    served?;
    tracing::info!("stopped; running instances go on");
    Ok(ExitCode::SUCCESS)
}

/// The gRPC API's listeners; none where it is switched off, or where its usual port is taken: two servers on one machine
/// are no mistake. A port that somebody has named must be had.
async fn bind_container_service(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    if config.container_service == Switch::Off {
        return Ok(Vec::new());
    }
    let port = config.container_service_port;
    let address = SocketAddr::new(config.listen, port.unwrap_or(CONTAINER_SERVICE_PORT));
    match bind(address, "--container-service-port").await {
        Ok(listeners) => {
            let address = listeners[0].local_addr().unwrap_or(address);
            tracing::info!(%address, "the gRPC API container.ContainerService is listening");
            Ok(listeners)
        }
        Err(error) if port.is_some() => Err(error),
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the gRPC API container.ContainerService is not served"
            );
            Ok(Vec::new())
        }
    }
}

async fn bind_ssh(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: stop what does, or choose another --ssh-listen")
    })
}

/// Loopback is two addresses: clients that say `localhost` may try either first.
async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<Vec<TcpListener>> {
    let taken = |address: SocketAddr| {
        format!(
            "cannot listen on {address}: stop what does (`ss -ltnp 'sport = :{}'` shows it), or choose another {option}",
            address.port()
        )
    };
    let mut listeners = vec![
        TcpListener::bind(address)
            .await
            .with_context(|| taken(address))?,
    ];
    if address.ip() == std::net::Ipv4Addr::LOCALHOST {
        let port = listeners[0]
            .local_addr()
            .map_or(address.port(), |bound| bound.port());
        let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        match TcpListener::bind(six).await {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                return Err(error).with_context(|| taken(six));
            }
            Err(error) => tracing::debug!(%error, "no IPv6 loopback"),
        }
    }
    Ok(listeners)
}

fn stop_on_signal(stopping: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: finishing requests; a second signal ends at once");
        stopping.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    })
}

/// Removes what this installation has on the host beyond its data: bridge, rules, leftover TAPs.
async fn clean_up(config: Config) -> anyhow::Result<ExitCode> {
    if !config.data_dir.join("installation").exists() {
        anstream::println!(
            "there is no Warren installation in {}: nothing to clean",
            config.data_dir.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    // Taking the lock makes sure that no server runs on it.
    let data = DataDir::open(&config.data_dir)?;
    let running: Vec<String> = warren_agent::recorded_instances(&data.instances())
        .map_err(|error| anyhow::anyhow!("{}", error.sentence()))?
        .into_iter()
        .map(|record| record.intent.spec.name)
        .collect();
    anyhow::ensure!(
        running.is_empty(),
        "instances are still here ({}): start the server and remove them first (`warren rm -f NAME`)",
        running.join(", ")
    );
    let network = wire::network(&config, &data.place())?;
    network
        .tear_down()
        .await
        .map_err(|error| anyhow::anyhow!("{}", error.sentence()))?;
    anstream::println!("removed the network of installation {}", data.installation);
    Ok(ExitCode::SUCCESS)
}

/// The hidden program that guards one guest's user-mode network. Before any thread is started.
pub(crate) fn network_guard(configuration: &str) -> ExitCode {
    warren_network::run_guard(configuration)
}

pub(crate) use wire::NETWORK_GUARD;
