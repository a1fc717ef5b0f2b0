//! `warren operations`: what takes the server long.

use super::{Outcome, Session, each, outcome};
use crate::cli::args::{OperationsArgs, OperationsCommand, OutputFormat};
use crate::cli::failure::CliError;
use crate::cli::output::{Detail, Field, Look, Row};
use crate::cli::text::{ago, bytes, shorten};
use time::OffsetDateTime;
use warren_api::{Operation, OperationState};

/// The longest subject and reason in a short table.
const SUBJECT: usize = 48;
const REASON: usize = 60;

fn cut(text: &str, limit: usize, detail: Detail) -> String {
    match detail {
        Detail::Short => shorten(text, limit),
        Detail::Untruncated | Detail::Wide => text.to_owned(),
    }
}

/// How far it is, in words.
fn state(operation: &Operation, detail: Detail) -> (String, Look) {
    let reason = || operation.error.as_ref().map(|error| error.message.as_str());
    match (operation.state, operation.phase) {
        (OperationState::Queued, _) => ("queued".to_owned(), Look::Waiting),
        (OperationState::Running, Some(phase)) => (phase.to_string(), Look::Waiting),
        (OperationState::Running, None) => ("running".to_owned(), Look::Waiting),
        (OperationState::Succeeded, _) => ("succeeded".to_owned(), Look::Good),
        (OperationState::Cancelled, _) => ("cancelled".to_owned(), Look::Plain),
        (OperationState::Failed, _) => {
            let reason = cut(reason().unwrap_or("no reason given"), REASON, detail);
            (format!("failed: {reason}"), Look::Bad)
        }
    }
}

fn progress(operation: &Operation) -> String {
    match (operation.bytes_done, operation.bytes_total) {
        (None, None) => String::new(),
        (None, Some(total)) => format!("0 B of {}", bytes(total)),
        (Some(done), None | Some(0)) => bytes(done),
        (Some(done), Some(total)) => {
            let percent = u128::from(done) * 100 / u128::from(total);
            format!("{} of {} ({percent} %)", bytes(done), bytes(total))
        }
    }
}

impl Row for Operation {
    fn heads(_: Detail) -> Vec<&'static str> {
        vec!["ID", "KIND", "SUBJECT", "STATE", "PROGRESS", "CREATED"]
    }

    fn cells(&self, detail: Detail) -> Vec<Field> {
        let (text, look) = state(self, detail);
        vec![
            Field::new(&self.id),
            Field::new(self.kind.to_string()),
            Field::new(cut(&self.subject, SUBJECT, detail)),
            Field::new(text).looking(look),
            Field::new(progress(self)),
            Field::new(ago(self.created_at, OffsetDateTime::now_utc())),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

/// `warren operations`
pub(super) async fn operations(session: &Session, args: OperationsArgs) -> Outcome {
    if let Some(OperationsCommand::Cancel { ids }) = args.command {
        return cancel(session, &ids).await;
    }
    let mut all = session.client.operations().await?;
    all.retain(|operation| args.all || operation.state.is_active());
    session.out.list(&all, Detail::Short)?;
    Ok(0)
}

async fn cancel(session: &Session, ids: &[String]) -> Outcome {
    let (done, failure) = each(session, ids, async |id: String| {
        let operation = session.client.cancel_operation(&id).await?;
        match operation.state {
            OperationState::Cancelled => Ok(operation),
            OperationState::Succeeded => Err(CliError::plain(format!(
                "{id}: it was done before it could be cancelled"
            ))),
            OperationState::Failed | OperationState::Queued | OperationState::Running => {
                let (words, _) = state(&operation, Detail::Wide);
                Err(CliError::plain(format!("{id}: {words}")))
            }
        }
    })
    .await;
    let done: Vec<Operation> = done.into_iter().map(|(_, operation)| operation).collect();
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Name => {
            for operation in &done {
                session.out.line(&operation.id)?;
            }
        }
        OutputFormat::Json | OutputFormat::Yaml | OutputFormat::Table | OutputFormat::Wide => {
            session.out.list(&done, Detail::Short)?;
        }
    }
    outcome(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::{OperationKind, OperationPhase};

    #[test]
    fn progress_says_what_is_known() {
        let mut operation = Operation {
            id: "op-1".into(),
            kind: OperationKind::Pull,
            subject: "web:1".into(),
            state: OperationState::Running,
            phase: Some(OperationPhase::Downloading),
            bytes_done: None,
            bytes_total: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
            started_at: None,
            ended_at: None,
            error: None,
        };
        assert_eq!(progress(&operation), "");
        operation.bytes_total = Some(2048);
        assert_eq!(progress(&operation), "0 B of 2.0 KiB");
        operation.bytes_done = Some(512);
        assert_eq!(progress(&operation), "512 B of 2.0 KiB (25 %)");
        operation.bytes_total = None;
        assert_eq!(progress(&operation), "512 B");
        assert_eq!(state(&operation, Detail::Short).0, "downloading");
    }
}
