//! Taking stock: everything on this host that carries this installation's name, found by looking at the
//! host and not by remembering what was made.
//!
//! | looked at | for |
//! |---|---|
//! | the network port's `owned` | TAPs, bridge ports, the bridge, rules, published ports |
//! | `/proc` | VMMs, network guards, their stacks; children that were not collected |
//! | the data directory | instances' directories, records, disks, logs, sockets; halves of files |
//! | mounts, loop devices, control groups | what nothing of Warren makes, and would keep a data directory busy |
//!
//! Looks only; [`remove`] takes away what somebody has judged to be a leak. Called by the agent while a
//! server runs, and by `warren fsck` while none does.

mod files;
mod kernel;
mod processes;

use crate::context::{AgentConfig, Ports};
use std::path::Path;
use warren_core::inventory::{Item, Kind, Part};
use warren_core::ports::InstanceHome;
use warren_core::{Handle, InstallationId, PortError};

/// Everything that is there, sorted.
///
/// # Errors
/// When a part of the host cannot be looked at: half an inventory would hide what it is for.
pub async fn take_inventory(config: &AgentConfig, ports: &Ports) -> Result<Vec<Item>, PortError> {
    let (installation, instances) = (config.installation.clone(), config.instances.clone());
    let data = config.data.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let mut items = files::in_data_directory(&data, &instances)?;
        items.extend(processes::of_installation(&installation, &instances)?);
        items.extend(kernel::around(&data, &installation)?);
        Ok::<_, std::io::Error>(items)
    });
    let mut items = looked
        .await
        .map_err(|error| PortError::bug("inventory_failed", "internal error").with_source(error))?
        .map_err(|error| PortError::io("looking at the host", error))?;
    items.extend(ports.network.owned().await?);
    items.sort();
    items.dedup();
    Ok(items)
}

/// Takes one thing away that should not be there. Depends on nothing but the thing itself.
///
/// # Errors
/// The adapter's; an item that is not for a program to remove is refused.
pub async fn remove(config: &AgentConfig, ports: &Ports, item: &Item) -> Result<(), PortError> {
    match (&item.part, item.kind) {
        (Part::Machine { handle }, _) => {
            let home = home_of(config, handle);
            for driver in &ports.hypervisors {
                driver.destroy(&home).await?;
            }
            Ok(())
        }
        (Part::Network { handle }, _) => ports.network.sweep(handle).await,
        (Part::Unfinished, Kind::File | Kind::Socket) => {
            let path = Path::new(&item.name);
            if !path.starts_with(&config.data) {
                return Err(not_ours(item));
            }
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(PortError::io("removing a half-written file", error))
                }
                Ok(()) | Err(_) => Ok(()),
            }
        }
        _ => Err(not_ours(item)),
    }
}

fn not_ours(item: &Item) -> PortError {
    PortError::unsupported(
        "not_repairable",
        format!("{} {} is not for a program to remove", item.kind, item.name),
    )
}

fn home_of(config: &AgentConfig, handle: &Handle) -> InstanceHome {
    InstanceHome {
        id: handle
            .as_str()
            .parse()
            .expect("every handle has the form of an id"),
        handle: handle.clone(),
        installation: config.installation.clone(),
        directory: config.instances.join(handle.as_str()),
    }
}

/// The instance in whose directory a path lies, or which it is.
fn handle_in(instances: &Path, path: &Path) -> Option<Handle> {
    let rest = path.strip_prefix(instances).ok()?;
    let first = rest.components().next()?;
    first.as_os_str().to_str()?.parse().ok()
}

/// How things of an installation are called outside its data directory.
fn name_prefixes(installation: &InstallationId) -> [String; 2] {
    [
        format!("warren-{installation}"),
        format!("warren_{installation}"),
    ]
}

#[cfg(test)]
mod tests;
