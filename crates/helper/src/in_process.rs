//! Carries verbs out in the calling process, with whatever privileges it has.

use futures::future::BoxFuture;

use crate::blocking;
use crate::conntrack;
use crate::error::HelperError;
use crate::links::Links;
use crate::nft;
use crate::protocol::{Answer, Helper, OwnedDevice, OwnedKind, Reply, Transport, Verb};
use crate::sockets::bind_socket;
use crate::tap;
use crate::values::Installation;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The helper without a process of its own. Needs a Tokio runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct InProcess;

impl Helper for InProcess {
    fn call(&self, verb: Verb) -> BoxFuture<'_, Result<Answer, HelperError>> {
        Box::pin(carry_out(verb))
    }
}

async fn carry_out(verb: Verb) -> Result<Answer, HelperError> {
    let reply = match verb {
        Verb::EnsureBridge {
            installation,
            bridge,
            gateway,
            mtu,
        } => Reply::Bridge {
            owner: Links::open()?
                .ensure_bridge(&installation, &bridge, gateway, mtu)
                .await?,
        },
        Verb::DeleteBridge {
            installation,
            bridge,
        } => {
            Links::open()?.delete_bridge(&installation, &bridge).await?;
            Reply::Done
        }
        Verb::EnsureTap {
            installation,
            handle,
            bridge,
            mtu,
            owner,
        } => Reply::Tap {
            name: Links::open()?
                .ensure_tap(&installation, &handle, &bridge, mtu, owner)
                .await?,
        },
        Verb::OpenTap {
            installation,
            handle,
        } => {
            let name = Links::open()?.expect_tap(&installation, &handle).await?;
            return Ok(Answer {
                reply: Reply::Done,
                descriptors: vec![tap::attach(&name)?],
            });
        }
        Verb::DeleteTap {
            installation,
            handle,
        } => {
            Links::open()?.delete_tap(&installation, &handle).await?;
            Reply::Done
        }
        Verb::ApplyRules { rules } => {
            nft::apply(&rules).await?;
            Reply::Done
        }
        Verb::DeleteRules { installation } => {
            nft::delete(&installation).await?;
            Reply::Done
        }
        Verb::BindTcp { address, port } => {
            return bound(bind_socket(Transport::Tcp, address, port)?);
        }
        Verb::BindUdp { address, port } => {
            return bound(bind_socket(Transport::Udp, address, port)?);
        }
        Verb::EnableForwarding => {
            enable_forwarding()?;
            Reply::Done
        }
        Verb::ListDevices { installation } => Reply::Devices {
            devices: list(&installation).await?,
        },
        Verb::ListBlockingChains {
            installation,
            bridge,
        } => Reply::Blocking {
            chains: blocking::find(
                &nft::list_all().await?,
                &installation.table(),
                bridge.as_str(),
            ),
        },
        Verb::FlushConntrack { address } => {
            let flushed = tokio::task::spawn_blocking(move || conntrack::flush(address)).await;
            match flushed {
                Ok(Ok(count)) => tracing::debug!(%address, count, "forgot tracked connections"),
                Ok(Err(errno)) => {
                    tracing::debug!(%address, %errno, "could not forget tracked connections");
                }
                Err(error) => tracing::warn!(%address, %error, "conntrack task failed"),
            }
            Reply::Done
        }
    };
    Ok(reply.into())
}

fn bound(socket: std::os::fd::OwnedFd) -> Result<Answer, HelperError> {
    Ok(Answer {
        reply: Reply::Done,
        descriptors: vec![socket],
    })
}

/// Writes only when it is off, so that a host whose administrator has set it needs no right to.
fn enable_forwarding() -> Result<(), HelperError> {
    let fail = |error: std::io::Error| HelperError::io("switch IPv4 forwarding on", &error);
    if std::fs::read_to_string(FORWARDING).map_err(fail)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(FORWARDING, "1").map_err(fail)
}

async fn list(installation: &Installation) -> Result<Vec<OwnedDevice>, HelperError> {
    let mut devices = Links::open()?.owned(installation).await?;
    if let Some(published) = nft::published_ports(installation).await? {
        let table = installation.table();
        devices.push(OwnedDevice {
            name: table.clone(),
            kind: OwnedKind::Rules,
        });
        devices.extend(published.into_iter().map(|publish| OwnedDevice {
            name: table.clone(),
            kind: OwnedKind::Published(publish),
        }));
    }
    Ok(devices)
}
