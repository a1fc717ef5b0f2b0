//! Commands about this program: contexts, versions, completion.

use super::{Outcome, session};
use crate::cli::args::{
    CompletionArgs, ContextArgs, ContextCommand, Global, OutputFormat, VersionArgs,
};
use crate::cli::context::{self, Context, Contexts, Target};
use crate::cli::output::{Detail, Field, Output, Row, Stream};
use serde::Serialize;

/// A context as lists show it: without its token.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    server: String,
    current: bool,
    has_token: bool,
}

impl Row for Entry {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["", "NAME", "SERVER", "TOKEN"]
    }

    fn cells(&self, _: Detail) -> Vec<Field> {
        vec![
            Field::new(if self.current { "*" } else { "" }),
            Field::new(&self.name),
            Field::new(&self.server),
            Field::new(if self.has_token { "yes" } else { "no" }),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// Where commands lead, as `context show` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    context: Option<String>,
    server: String,
    has_token: bool,
}

/// `warren context`
pub(super) fn context(args: ContextArgs, global: &Global, out: &Output) -> Outcome {
    let path = context::own_file_path()?;
    let mut contexts = Contexts::read(&path)?;
    match args.command {
        ContextCommand::Ls => {
            let entries: Vec<Entry> = contexts
                .contexts
                .iter()
                .map(|(name, context)| Entry {
                    name: name.clone(),
                    server: context.server.clone(),
                    current: contexts.current.as_ref() == Some(name),
                    has_token: context.token.is_some(),
                })
                .collect();
            out.list(&entries, Detail::Short)?;
        }
        ContextCommand::Add { name, url, select } => {
            let context = Context {
                server: url,
                token: global.token.clone().filter(|token| !token.is_empty()),
            };
            contexts.add(&name, context)?;
            if select {
                contexts.select(&name)?;
            }
            contexts.write(&path)?;
            out.line(name)?;
        }
        ContextCommand::Use { name, none: _ } => {
            match name {
                Some(name) => contexts.select(&name)?,
                None => contexts.current = None,
            }
            contexts.write(&path)?;
            let current = contexts.current.as_deref();
            out.line(current.unwrap_or(context::DEFAULT_SERVER))?;
            if global.server.is_some() {
                out.warn("WARREN_SERVER or --server is set and goes before any context");
            }
        }
        ContextCommand::Rm { names } => {
            for name in &names {
                contexts.get(name)?;
            }
            for name in &names {
                contexts.remove(name)?;
                out.line(name)?;
            }
            contexts.write(&path)?;
        }
        ContextCommand::Show { name } => show(name, &contexts, global, out)?,
    }
    Ok(0)
}

fn show(
    name: Option<String>,
    contexts: &Contexts,
    global: &Global,
    out: &Output,
) -> Result<(), crate::cli::failure::CliError> {
    let (context, target) = match name {
        Some(name) => {
            let found = contexts.get(&name)?;
            let target = Target {
                server: found.server.clone(),
                token: found.token.clone(),
            };
            (Some(name), target)
        }
        None => {
            let server = global.server.as_deref().filter(|s| !s.is_empty());
            let wanted = global.context.as_deref();
            let target = context::choose(server, global.token.as_deref(), wanted, contexts)?;
            let name = match server {
                Some(_) => None,
                None => wanted
                    .map(str::to_owned)
                    .or_else(|| contexts.current.clone()),
            };
            (name, target)
        }
    };
    let shown = Shown {
        context,
        server: target.server,
        has_token: target.token.is_some(),
    };
    match out.format(OutputFormat::Table) {
        OutputFormat::Json => out.json(&shown),
        OutputFormat::Yaml => out.yaml(&shown),
        OutputFormat::Name => out.line(shown.context.as_deref().unwrap_or("-")),
        OutputFormat::Table | OutputFormat::Wide => out.line(format!(
            "context: {}\nserver:  {}\ntoken:   {}",
            shown.context.as_deref().unwrap_or("none"),
            shown.server,
            if shown.has_token { "yes" } else { "no" }
        )),
    }
}

/// What `version` prints.
#[derive(Debug, Serialize)]
struct Versions {
    client: ClientVersion,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<ServerVersion>,
}

#[derive(Debug, Serialize)]
struct ClientVersion {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

#[derive(Debug, Serialize)]
struct ServerVersion {
    url: String,
    version: Option<String>,
}

/// `warren version`
pub(super) async fn version(args: VersionArgs, global: &Global, out: &Output) -> Outcome {
    let client = ClientVersion {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    let mut failure = None;
    let mut server = None;
    if !args.client {
        let asked = async {
            let session = session(global, out.clone())?;
            session.client.health().await?;
            Ok(ServerVersion {
                url: session
                    .client
                    .base()
                    .as_str()
                    .trim_end_matches('/')
                    .to_owned(),
                version: None,
            })
        };
        match asked.await {
            Ok(version) => server = Some(version),
            Err(error) => failure = Some(error),
        }
    }
    let versions = Versions { client, server };
    match out.format(OutputFormat::Table) {
        OutputFormat::Json => out.json(&versions)?,
        OutputFormat::Yaml => out.yaml(&versions)?,
        OutputFormat::Name => out.line(versions.client.version)?,
        OutputFormat::Table | OutputFormat::Wide => {
            out.line(format!(
                "client: warren {} ({}/{})",
                versions.client.version, versions.client.os, versions.client.arch
            ))?;
            if let Some(server) = &versions.server {
                let version = server.version.as_deref().unwrap_or("of an unknown version");
                out.line(format!("server: warren {version} at {}", server.url))?;
            }
        }
    }
    match failure {
        None => Ok(0),
        Some(error) => Err(error),
    }
}

/// `warren completion`
pub(super) fn completion(args: CompletionArgs, out: &Output) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut crate::cli::command(),
        "warren",
        &mut script,
    );
    out.bytes(Stream::Stdout, &script)?;
    Ok(0)
}
