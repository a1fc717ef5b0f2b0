//! Plays the guests of the fake hypervisor with the guest protocol's own double: `--hypervisors fake`
//! runs everything above the hypervisor for real, and no machine.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UnixStream;
use warren_core::ports::hypervisor::ProcessIdentity;
use warren_guest::double::{Behaviour, Double};
use warren_guest::protocol::AttachKey;
use warren_hypervisor::fake::{GuestLine, GuestSide, ServeGuest};

/// One double per started machine; it keeps its state between hosts, as a real guest does.
pub(crate) fn serve() -> ServeGuest {
    let guests: Arc<Mutex<HashMap<ProcessIdentity, Double>>> = Arc::default();
    Arc::new(move |side| match side.line {
        // A console that is open and says nothing.
        GuestLine::Console => drop(tokio::spawn(hold(side.stream))),
        GuestLine::Channel => {
            let mut known = guests.lock().unwrap_or_else(PoisonError::into_inner);
            let guest = known.entry(side.process.clone()).or_insert_with(|| {
                let guest = Double::new(Behaviour::default());
                let (over, power) = (guest.clone(), side.power.clone());
                let (guests, process) = (Arc::clone(&guests), side.process.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = over.powered_off() => power.off(),
                        () = power.ended() => over.cut_power(),
                    }
                    guests
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(&process);
                });
                guest
            });
            let guest = guest.clone();
            drop(known);
            tokio::spawn(async move {
                if let Err(error) = talk(&guest, side).await {
                    tracing::debug!(%error, "a fake guest's line ended");
                }
            });
        }
    })
}

async fn talk(guest: &Double, side: GuestSide) -> anyhow::Result<()> {
    let key = side
        .machine
        .boot_args
        .iter()
        .find_map(|word| word.strip_prefix("warren.attach="))
        .ok_or_else(|| anyhow::anyhow!("the machine was started without a key for its channel"))?;
    let key: AttachKey = key.parse()?;
    guest.serve(stream(side.stream)?, &key).await?;
    Ok(())
}

fn stream(descriptor: OwnedFd) -> std::io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(descriptor))
}

async fn hold(descriptor: OwnedFd) {
    use tokio::io::AsyncReadExt;
    if let Ok(mut stream) = stream(descriptor) {
        let mut buffer = [0; 64];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    }
}
