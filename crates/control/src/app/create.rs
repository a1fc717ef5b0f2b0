//! Creating an instance: validate, find its image, admit, reserve everything in one transaction, hand over.

use super::board::{Held, demand};
use super::idempotency::Keyed;
use super::{App, AppError, CONTENTION_TRIES, View, Waiting};
use crate::keys;
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use warren_api::convert::NewInstance;
use warren_api::{Code, CreateInstanceRequest};
use warren_core::event::EventKind;
use warren_core::host::{HostReport, NetworkMode};
use warren_core::id::slug;
use warren_core::image::ImageRecord;
use warren_core::instance::{Desired, HypervisorChoice, InstanceIntent, NetworkChoice};
use warren_core::network::{NetworkError, PortMapping};
use warren_core::placement::{Demand, NoRoom, capacity, place};
use warren_core::ports::InstanceHome;
use warren_core::ports::network::AttachmentSpec;
use warren_core::ports::store::{Commit, Guard, Transaction, Write};
use warren_core::{ErrorClass, Handle, InstanceId, PortError};
use warren_crashpoint::reached;

/// The one tenant there is.
pub const TENANT: &str = "default";

/// When a create returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When the instance has started or failed, or after a while.
    Started,
    /// When it is recorded.
    Recorded,
}

/// A create.
#[derive(Debug, Clone)]
pub struct Creation {
    /// Whose.
    pub tenant: String,
    /// What.
    pub request: CreateInstanceRequest,
    /// When it returns.
    pub until: Until,
    /// Its idempotency key, recorded together with the instance.
    pub key: Option<Keyed>,
}

/// What a key of the transaction stands for, so that a refusal can name it.
enum Claim {
    Id,
    Name,
    Slug,
    Address,
    Port(PortMapping),
    Key,
}

fn entropy<const N: usize>() -> Result<[u8; N], PortError> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(|e| {
        PortError::bug("no_entropy", "the system's random numbers cannot be read").with_source(e)
    })?;
    Ok(bytes)
}

fn name_taken(name: &str) -> AppError {
    AppError::Taken {
        code: Code::NameTaken,
        sentence: format!("the name {name:?} is in use: choose another, or remove that instance"),
    }
}

fn id_taken(id: &InstanceId) -> AppError {
    AppError::Taken {
        code: Code::IdTaken,
        sentence: format!(
            "the id {id:?} is in use: choose another, or remove that instance",
            id = id.as_str()
        ),
    }
}

fn port_taken(port: &PortMapping, holder: Option<&str>) -> AppError {
    let by = holder.map_or_else(
        || "another instance".to_owned(),
        |name| format!("the instance {name:?}"),
    );
    AppError::Taken {
        code: Code::PortTaken,
        sentence: format!(
            "the host port {}/{} is published by {by}: choose another",
            port.host_port, port.protocol
        ),
    }
}

impl App {
    /// Creates an instance and, unless told otherwise, waits until it has started or failed.
    ///
    /// # Errors
    /// [`AppError`]. A start that fails is not one: the instance says so itself.
    pub async fn create(&self, creation: Creation) -> Result<View, AppError> {
        let until = creation.until;
        let new: NewInstance = creation.request.clone().try_into()?;
        let place = self.place_on_the_way_up()?;
        let app = self.clone();
        let view = self
            .detached(async move {
                let view = app.record_new(creation, new).await?;
                app.hold_until_up(place, &view);
                Ok(view)
            })
            .await?;
        match until {
            Until::Recorded => Ok(view),
            Until::Started => self.wait_started(view).await,
        }
    }

    /// Until the newest run has started or is over.
    pub(super) async fn wait_started(&self, view: View) -> Result<View, AppError> {
        let id = view.intent.id.clone();
        let before = view.status.exit.clone();
        let waited = self
            .wait_until(&id, self.0.settings.start_wait, move |view| {
                view.is_current()
                    && match view.status.state.name() {
                        warren_core::state::StateName::Running
                        | warren_core::state::StateName::Paused => true,
                        _ => {
                            view.has_ended()
                                && (view.status.failure.is_some() || view.status.exit != before)
                        }
                    }
            })
            .await;
        match waited {
            Waiting::Done(view) | Waiting::TimedOut(view) => Ok(view),
            // Somebody deleted it meanwhile, or it ended and removed itself: it was created all the same.
            Waiting::Gone => Ok(view),
        }
    }

    pub(super) async fn image_for(&self, wanted: &str) -> Result<ImageRecord, AppError> {
        let found = self.0.host.images().find(wanted).await?;
        found.ok_or_else(|| AppError::Missing {
            code: Code::ImageNotFound,
            sentence: format!("the image {wanted} is not here: run `warren pull {wanted}`"),
        })
    }

    async fn record_new(&self, creation: Creation, new: NewInstance) -> Result<View, AppError> {
        // Held from here on: the image may not go between the question and the commit.
        let _placing = self.0.placing.read().await;
        // A record that is in doubt does not know which names, addresses and ports are taken.
        self.must_not_doubt()?;
        let image = self.image_for(&new.spec.image).await?;
        if let Some(platform) = &new.platform
            && *platform != image.platform
        {
            return Err(AppError::field(
                "platform",
                format!("the image {} is for {}", image.name, image.platform),
            ));
        }
        let report = self.known_host().await?;
        check_host(&new, &report)?;
        let id = match &new.id {
            Some(id) => id.clone(),
            None => InstanceId::from_entropy(entropy()?),
        };
        let handle = Handle::from_entropy(entropy()?);
        let mut refused = Refused::default();
        for attempt in 0..CONTENTION_TRIES {
            let reservation = self.0.board.reserve(|held| {
                check_free(held, &creation.tenant, &new, &id)?;
                self.check_room(held, &report, demand(&new.spec), None)?;
                let slug = label(held, &new, &handle, &refused);
                let address = allocate(held, &report, &new, &handle, &refused)?;
                Ok::<_, AppError>(InstanceIntent {
                    id: id.clone(),
                    handle: handle.clone(),
                    tenant: creation.tenant.clone(),
                    spec: new.spec.clone(),
                    slug,
                    image_digest: image.digest.clone(),
                    image_config: image.config.clone(),
                    generation: 1,
                    desired: Desired::Running,
                    run: 1,
                    address,
                    stop_grace_seconds: new.stop_grace_seconds,
                    created_at: self.0.clock.now(),
                })
            })?;
            if attempt == 0 {
                self.preflight(&reservation.intent).await?;
            }
            let (transaction, claims) = self.claim(&reservation.intent, creation.key.as_ref());
            let _shared = self.0.link.read().await;
            match self.0.store.commit(transaction).await? {
                Commit::Done(revision) => {
                    reached("create.intent-committed");
                    let view = reservation.recorded(revision);
                    tracing::info!(instance = %id, name = view.intent.spec.name, image = image.name, "an instance was recorded");
                    self.hand_over(&view.intent).await;
                    reached("create.handed-over");
                    return Ok(view);
                }
                Commit::Refused { guard } => match claims.get(guard) {
                    Some(Claim::Id) => return Err(id_taken(&id)),
                    Some(Claim::Name) => return Err(name_taken(&new.spec.name)),
                    Some(Claim::Port(port)) => return Err(port_taken(port, None)),
                    Some(Claim::Slug) => refused.slug = true,
                    Some(Claim::Address) => refused.addresses.extend(reservation.intent.address),
                    Some(Claim::Key) | None => {
                        return Err(AppError::coded(
                            Code::Contention,
                            "the idempotency key is being used by another request: try once more",
                        ));
                    }
                },
            }
        }
        Err(AppError::coded(
            Code::Contention,
            "others took the same addresses again and again: try once more",
        ))
    }

    /// Whether the host has room for `asked` beside everybody but `except`.
    pub(super) fn check_room(
        &self,
        held: &Held,
        report: &HostReport,
        asked: Demand,
        except: Option<&InstanceId>,
    ) -> Result<(), AppError> {
        let room = capacity(report.cpus, report.memory, self.0.settings.overcommit);
        place(room, held.promised(except), asked).map_err(|no: NoRoom| {
            AppError::coded(
                Code::NoCapacity,
                format!("{no}: stop or remove an instance, or ask for less"),
            )
        })
    }

    async fn preflight(&self, intent: &InstanceIntent) -> Result<(), AppError> {
        let spec = &intent.spec;
        if spec.network == NetworkChoice::Disabled || spec.ports.is_empty() {
            return Ok(());
        }
        let spec = AttachmentSpec {
            home: InstanceHome {
                id: intent.id.clone(),
                handle: intent.handle.clone(),
                installation: self.0.settings.installation.clone(),
                // Nothing is made yet; where it will be is the host's business.
                directory: PathBuf::new(),
            },
            names: vec![intent.slug.clone()],
            address: None,
            ports: spec.ports.clone(),
        };
        Ok(self.0.host.preflight(spec).await?)
    }

    /// What makes the intent durable, and all that it holds with it.
    fn claim(&self, intent: &InstanceIntent, key: Option<&Keyed>) -> (Transaction, Vec<Claim>) {
        let holder = keys::encode(&intent.id);
        let mut claims = vec![
            (Claim::Id, keys::instance(&intent.id), keys::encode(intent)),
            (
                Claim::Name,
                keys::name(&intent.tenant, &intent.spec.name),
                holder.clone(),
            ),
            (Claim::Slug, keys::slug(&intent.slug), holder.clone()),
        ];
        claims.extend(
            intent
                .address
                .map(|address| (Claim::Address, keys::address(address), holder.clone())),
        );
        claims.extend(
            intent
                .spec
                .ports
                .iter()
                .map(|port| (Claim::Port(port.clone()), keys::port(port), holder.clone())),
        );
        claims.extend(key.map(|keyed| {
            let record = self.key_record(keyed, Some(intent.id.clone()));
            (Claim::Key, keyed.store_key(), keys::encode(&record))
        }));
        let mut transaction = Transaction::default();
        let mut meanings = Vec::new();
        for (claim, key, value) in claims {
            transaction.guards.push(Guard::Absent(key.clone()));
            transaction.writes.push(Write::Put(key, value));
            meanings.push(claim);
        }
        transaction
            .writes
            .push(self.event(intent, EventKind::Created));
        (transaction, meanings)
    }
}

/// What the store refused although the board has nobody who holds it.
#[derive(Default)]
struct Refused {
    slug: bool,
    addresses: BTreeSet<Ipv4Addr>,
}

/// Friendlier than a guard, which has the last word.
fn check_free(
    held: &Held,
    tenant: &str,
    new: &NewInstance,
    id: &InstanceId,
) -> Result<(), AppError> {
    if held.has(id) {
        return Err(id_taken(id));
    }
    if held.holder(&keys::name(tenant, &new.spec.name)).is_some() {
        return Err(name_taken(&new.spec.name));
    }
    for port in &new.spec.ports {
        if let Some(holder) = held.holder(&keys::port(port)) {
            return Err(port_taken(port, Some(holder)));
        }
    }
    Ok(())
}

/// The DNS label, which is the instance's alone.
fn label(held: &Held, new: &NewInstance, handle: &Handle, refused: &Refused) -> String {
    let label = slug(&new.spec.name);
    if refused.slug || held.holder(&keys::slug(&label)).is_some() {
        return format!("{label}-{handle}");
    }
    label
}

fn allocate(
    held: &Held,
    report: &HostReport,
    new: &NewInstance,
    handle: &Handle,
    refused: &Refused,
) -> Result<Option<Ipv4Addr>, AppError> {
    let Some(subnet) = &report.network.subnet else {
        return Ok(None);
    };
    if new.spec.network == NetworkChoice::Disabled {
        return Ok(None);
    }
    let is_taken = |address| held.has_address(address) || refused.addresses.contains(&address);
    subnet
        .allocate(handle, is_taken)
        .map(Some)
        .map_err(|e: NetworkError| AppError::coded(Code::NoCapacity, e.to_string()))
}

/// What can be told from the host's report alone.
fn check_host(new: &NewInstance, report: &HostReport) -> Result<(), AppError> {
    if let HypervisorChoice::Only(kind) = new.spec.hypervisor
        && !report.hypervisors.iter().any(|usable| usable.kind == kind)
    {
        let reason = report
            .unusable
            .iter()
            .find(|(name, _)| *name == kind.to_string())
            .map_or("it is not installed", |(_, reason)| reason.as_str());
        return Err(PortError::unsupported(
            "hypervisor_unavailable",
            format!("this host cannot use {kind}: {reason}"),
        )
        .with_hint("see `warren doctor`, or leave the choice to the host")
        .into());
    }
    if report.network.mode == NetworkMode::None && !new.spec.ports.is_empty() {
        return Err(PortError::new(
            ErrorClass::Unsupported,
            "no_guest_network",
            format!("this host has no guest network: {}", report.network.reason),
        )
        .into());
    }
    Ok(())
}
