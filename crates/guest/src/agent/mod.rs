//! The guest agent: PID 1 of a microVM. The `warren-guest` binary is [`run`] and nothing else.
//!
//! ```text
//! kernel ─► mounts, modules ─► channel: find port, serve hosts ─────────┐
//!                          └─► root: wait for disks, overlay, switch ───┤
//!                                           boot configuration ◄── host ┘
//!                                           configure ─► workload ─► exit ─► power off
//! ```
//!
//! One thread, one event loop: the two branches wait for devices at the same time. The agent uses no
//! program of the image. It powers the VM off when the workload is over and the host has acknowledged
//! its exit, or no host has been there for as long as the boot configuration says (60 s), or when told
//! to. It must never exit: the kernel panics then, which with `panic=-1` on its command line ends the VM.

mod capture;
mod command;
mod commandline;
mod console;
mod etc;
mod freeze;
mod login;
mod machine;
mod modules;
mod mounts;
mod network;
mod pollable;
mod port;
mod power;
mod process;
mod reaper;
mod sockets;
mod spawn;
mod stats;
mod system;
mod uevent;
mod users;

use std::sync::Arc;

use crate::serve::{self, Failure, LogStore, StatusCell};
use commandline::CommandLine;
use machine::AgentMachine;
use reaper::{Reaper, Scope};

/// What the agent binary does. Returns only where it is not PID 1, with an exit code.
#[must_use]
pub fn run() -> i32 {
    if std::env::args().nth(1).as_deref() == Some(login::FILE_SERVER) {
        return login::serve_files();
    }
    if std::process::id() != 1 {
        console::say_on_stderr(&format!(
            "warren-guest {}: this is PID 1 of a Warren microVM and does nothing elsewhere",
            env!("CARGO_PKG_VERSION")
        ));
        return 2;
    }
    std::panic::set_hook(Box::new(|panic| {
        console::say(&format!("agent panicked: {panic}"))
    }));
    let init_millis = system::uptime_millis();
    if let Err(error) = mounts::mount_early() {
        console::say(&format!("early mounts: {error}"));
    }
    let command_line = CommandLine::read();
    modules::load_all(&command_line);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(live(&command_line, init_millis)),
        Err(error) => console::say(&format!("event loop: {error}")),
    }
    power::off(None)
}

/// Everything between early mounts and power-off.
async fn live(command_line: &CommandLine, init_millis: u64) {
    let reaper = Arc::new(Reaper::new(Scope::EveryChild));
    if let Err(error) = reaper.start() {
        console::say(&format!("SIGCHLD: {error}"));
        return;
    }
    let status = Arc::new(StatusCell::default());
    let logs = Arc::new(LogStore::default());
    let machine = Arc::new(AgentMachine::new(
        Arc::clone(&status),
        Arc::clone(&logs),
        reaper,
        init_millis,
    ));

    let root_machine = Arc::clone(&machine);
    let root_command_line = command_line.clone();
    tokio::spawn(async move {
        let mounted = mounts::enter_root(&root_command_line).await;
        if let Err(error) = &mounted {
            let failure = Failure {
                stage: "root".to_owned(),
                message: error.to_string(),
            };
            console::say(&format!("root: {error}"));
            root_machine
                .status()
                .update(|status| status.failed = Some(failure));
        }
        root_machine.root_is_ready(mounted.map_err(|error| error.to_string()));
    });

    let channel_machine = Arc::clone(&machine);
    let key = command_line.attach_key;
    tokio::spawn(async move {
        let error = match port::open().await {
            Ok(port) => {
                channel_machine.port_is_ready();
                let (status, logs) = (Arc::clone(channel_machine.status()), logs);
                serve::serve(port, &key, Arc::clone(&channel_machine), status, logs)
                    .await
                    .err()
            }
            Err(error) => Some(error),
        };
        // Without a channel nobody can tell this guest what to do.
        console::say(&format!("channel: {error:?}"));
        channel_machine.power_off();
    });

    machine.powered_off().await;
    if let Some(report) = &status.get().exited {
        // For a host that was not there: the serial log keeps what the channel could not deliver.
        console::say(&format!("workload exited: {:?}", report.status));
    }
    power::off(machine.take_writable_root());
}
