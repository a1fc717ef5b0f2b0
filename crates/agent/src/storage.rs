//! What everything takes on this host's file systems.

use crate::context::{Context, disk_path};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use warren_core::PortError;
use warren_core::ports::InstanceHome;
use warren_core::storage::{HostStorage, InstanceStorage};

/// Looks at images, instances and what is kept for them.
pub(crate) async fn of_host(
    context: &Context,
    homes: Vec<InstanceHome>,
    in_use: &[String],
) -> Result<HostStorage, PortError> {
    let set_aside = context.config.set_aside.clone();
    let look = move || -> io::Result<_> {
        let instances: Vec<InstanceStorage> =
            homes.iter().map(of_instance).collect::<io::Result<_>>()?;
        Ok((instances, all_below(&set_aside)?))
    };
    let (looked, images, templates) = tokio::join!(
        tokio::task::spawn_blocking(look),
        context.ports.images.upkeep().usage(in_use),
        context.ports.volumes.ready_made(),
    );
    let (instances, set_aside) = looked
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| PortError::io("looking at the instances' directories", error))?;
    Ok(HostStorage {
        images: images?,
        instances,
        templates: templates?.0,
        set_aside,
    })
}

/// One that is being deleted takes what is left of it.
fn of_instance(home: &InstanceHome) -> io::Result<InstanceStorage> {
    let mut storage = InstanceStorage {
        id: home.id.clone(),
        disk: 0,
        logs: 0,
        other: 0,
    };
    let disk = disk_path(home);
    each_file(&home.directory, &mut |path, bytes| {
        let name = path.file_name().and_then(|name| name.to_str());
        match name {
            _ if path == disk => storage.disk += bytes,
            // `workload.log`, and `workload.log.1` when it was turned over.
            Some(name) if name.split('.').nth(1) == Some("log") => storage.logs += bytes,
            Some(_) | None => storage.other += bytes,
        }
    })?;
    Ok(storage)
}

fn all_below(directory: &Path) -> io::Result<u64> {
    let mut sum = 0;
    each_file(directory, &mut |_, bytes| sum += bytes)?;
    Ok(sum)
}

/// Tells of every file below a directory, links not followed. What is gone meanwhile is nothing.
fn each_file(directory: &Path, tell: &mut dyn FnMut(&Path, u64)) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            each_file(&entry.path(), tell)?;
        } else {
            // st_blocks counts 512 bytes whatever the file system's blocks are.
            tell(&entry.path(), metadata.blocks() * 512);
        }
    }
    Ok(())
}
