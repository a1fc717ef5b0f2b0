//! The commands, carried out: each one asks the server through the API's client and shows the answer.

mod attached;
mod commit;
mod copy;
mod debug;
mod delivery;
mod execs;
mod export;
mod images;
mod instances;
mod logs;
mod operations;
mod request;
mod run;
mod save;
mod settings;
mod ssh;
mod stats;
mod storage;
mod top;
mod usage;
mod watch;

use super::args::{Command, DebugCommand, Global, ImageCommand, SystemCommand};
use super::context::{self, Contexts};
use super::failure::{CliError, OWN_FAILURE};
use super::output::Output;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use warren_api::client::{Client, Patience};

/// For how long a command comes again when the server is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every command works with.
pub(crate) struct Session {
    /// The server.
    pub(crate) client: Client,
    /// Where words and data go.
    pub(crate) out: Output,
}

/// A command's outcome: the exit code, or why there is none of its own.
pub(crate) type Outcome = Result<u8, CliError>;

/// The server that options, environment and contexts lead to.
fn session(global: &Global, out: Output) -> Result<Session, CliError> {
    let words = out.clone();
    let said = AtomicBool::new(false);
    let patience = Patience::new(PATIENCE, move |error, _| {
        if !said.swap(true, Ordering::Relaxed) {
            let limit = PATIENCE.as_secs();
            words.note(format!("{error} (trying for up to {limit} s)"));
        }
    });
    Ok(Session {
        client: client_of(global)?.with_patience(patience),
        out,
    })
}

/// A client of the server that options, environment and contexts lead to.
///
/// # Errors
/// Contexts that cannot be read, an address that is none.
pub(crate) fn client_of(global: &Global) -> Result<Client, CliError> {
    let explicit = global.server.as_deref().is_some_and(|s| !s.is_empty());
    let contexts = match context::own_file_path() {
        // Where the server is given, a broken or missing contexts file does not matter.
        Err(_) => Contexts::default(),
        Ok(_) if explicit => Contexts::default(),
        Ok(path) => Contexts::read(&path)?,
    };
    let target = context::choose(
        global.server.as_deref(),
        global.token.as_deref(),
        global.context.as_deref(),
        &contexts,
    )?;
    Ok(Client::new(&target.server, target.token)?)
}

/// The exit code of Warren's own failures in a command.
pub(crate) fn own_failure(command: &Command) -> u8 {
    match command {
        Command::Run(_) | Command::Exec(_) | Command::Attach(_) => OWN_FAILURE,
        // As ssh's own.
        Command::Ssh(_) => 255,
        _ => 1,
    }
}

/// Carries out a command.
pub(crate) async fn execute(command: Command, global: &Global, out: &Output) -> Outcome {
    let with_server = || session(global, out.clone());
    match command {
        Command::Run(args) => run::run(&with_server()?, *args).await,
        Command::Exec(args) => attached::exec(&with_server()?, args).await,
        Command::Attach(args) => attached::attach(&with_server()?, args).await,
        Command::Execs(args) => execs::execs(&with_server()?, args).await,
        Command::Cp(args) => copy::copy(&with_server()?, args).await,
        Command::Ssh(args) => ssh::ssh(with_server, args, global, out).await,
        Command::Ps(args) => instances::ps(&with_server()?, args).await,
        Command::Logs(args) => logs::logs(&with_server()?, args).await,
        Command::Inspect(args) => instances::inspect(&with_server()?, args).await,
        Command::Stats(args) => stats::stats(&with_server()?, args).await,
        Command::Top(args) => top::top(&with_server()?, args).await,
        Command::Events(args) => watch::events(&with_server()?, args).await,
        Command::Start(args) => instances::start(&with_server()?, args).await,
        Command::Stop(args) => instances::stop(&with_server()?, args).await,
        Command::Restart(args) => instances::restart(&with_server()?, args).await,
        Command::Pause(args) => instances::pause(&with_server()?, args).await,
        Command::Resume(args) => instances::resume(&with_server()?, args).await,
        Command::Standby(args) => instances::standby(&with_server()?, args).await,
        Command::Restore(args) => instances::restore(&with_server()?, args).await,
        Command::Wait(args) => watch::wait(&with_server()?, args).await,
        Command::Rm(args) => instances::rm(&with_server()?, args).await,
        Command::Images(args) => images::images(&with_server()?, args).await,
        Command::Pull(args) => images::pull(&with_server()?, args).await,
        Command::Load(args) => images::load(&with_server()?, args).await,
        Command::Commit(args) => commit::commit(&with_server()?, args).await,
        Command::Push(args) => images::push(&with_server()?, args).await,
        Command::Save(args) => save::save(&with_server()?, args).await,
        Command::Rmi(args) => images::rmi(&with_server()?, args).await,
        Command::Image {
            command: ImageCommand::Verify(args),
        } => storage::verify(&with_server()?, args).await,
        Command::Image {
            command: ImageCommand::Export(args),
        } => export::export(&with_server()?, args).await,
        Command::Prune(args) => storage::prune(&with_server()?, args).await,
        Command::Debug {
            command: DebugCommand::Bundle(args),
        } => debug::bundle(&with_server()?, args).await,
        Command::Operations(args) => operations::operations(&with_server()?, args).await,
        Command::System {
            command: SystemCommand::Df(args),
        } => storage::df(&with_server()?, args).await,
        Command::Context(args) => settings::context(args, global, out),
        Command::Version(args) => settings::version(args, global, out).await,
        Command::Completion(args) => settings::completion(args, out),
        // `main` carries these out before there is a client.
        Command::Host(_)
        | Command::System {
            command: SystemCommand::Host(_),
        } => Ok(0),
    }
}

/// Does the same to each name, all at the same time; reports every failure and goes on. Results come in
/// the order of the names, those that failed left out.
async fn each<T, F, Fut>(
    session: &Session,
    names: &[String],
    action: F,
) -> (Vec<(String, T)>, Option<CliError>)
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<T, CliError>>,
{
    let outcomes = futures::future::join_all(names.iter().map(|name| action(name.clone()))).await;
    let mut done = Vec::new();
    let mut failures = Vec::new();
    for (name, outcome) in names.iter().zip(outcomes) {
        match outcome {
            Ok(value) => done.push((name.clone(), value)),
            Err(error) => failures.push(error),
        }
    }
    let failed = failures.len();
    let failure = match (failed, names.len()) {
        (0, _) => None,
        (1, 1) => failures.pop(),
        (_, all) => {
            for error in &failures {
                session.out.error(error);
            }
            Some(CliError::Several { failed, all })
        }
    };
    (done, failure)
}

/// The outcome of [`each`]: 0, or the failure.
fn outcome(failure: Option<CliError>) -> Outcome {
    match failure {
        None => Ok(0),
        Some(error) => Err(error),
    }
}
