//! `warren events` and `warren wait`.

use super::{Outcome, Session, each, outcome};
use crate::cli::args::{EventsArgs, OutputFormat, WaitArgs};
use crate::cli::failure::CliError;
use crate::cli::text::one_line;
use crate::cli::values::Filter;
use futures::StreamExt;
use std::time::{Duration, Instant};
use time::format_description::well_known::Rfc3339;
use warren_api::client::EventItem;
use warren_api::event::{Event, EventType};
use warren_api::instance::InstanceState;

/// One question to the server lasts this long at most; then it is asked again.
const ONE_WAIT: Duration = Duration::from_secs(50);

/// Whether an event passes: states are those it leads to; labels are not part of an event.
fn wanted(filters: &[Filter], event: &Event) -> bool {
    let states: Vec<_> = filters
        .iter()
        .filter_map(|filter| match filter {
            Filter::State(state) => Some(*state),
            Filter::Name(_) | Filter::Label(..) => None,
        })
        .collect();
    let names: Vec<_> = filters
        .iter()
        .filter_map(|filter| match filter {
            Filter::Name(text) => Some(text.as_str()),
            Filter::State(_) | Filter::Label(..) => None,
        })
        .collect();
    let by_state = states.is_empty() || event.to.is_some_and(|to| states.contains(&to.into()));
    let by_name = names.is_empty() || names.iter().any(|text| event.name.contains(text));
    by_state && by_name
}

/// An event as one line.
fn event_line(id: Option<u64>, event: &Event) -> String {
    let at = event.at.format(&Rfc3339).unwrap_or_default();
    let id = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let mut line = format!("{at}  {id:>6}  {}  ", event.name);
    match event.kind {
        EventType::Created => line.push_str("created"),
        EventType::Deleted => line.push_str("deleted"),
        EventType::StateChanged => match (event.from, event.to) {
            (Some(from), Some(to)) => line.push_str(&format!("{from} → {to}")),
            (_, Some(to)) => line.push_str(&to.to_string()),
            (_, None) => line.push_str("changed"),
        },
    }
    if let Some(code) = event.exit_code {
        line.push_str(&format!("  exit {code}"));
    }
    if let Some(error) = &event.error {
        line.push_str(&format!("  {error}"));
    }
    one_line(&line)
}

/// An event with its id, which goes on the wire beside it.
#[derive(serde::Serialize)]
struct Numbered<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(flatten)]
    event: &'a Event,
}

/// `warren events`
pub(super) async fn events(session: &Session, args: EventsArgs) -> Outcome {
    if args
        .filters
        .iter()
        .any(|filter| matches!(filter, Filter::Label(..)))
    {
        return Err(CliError::refused(
            "events have no labels",
            "filter by name=TEXT or state=STATE",
        ));
    }
    let format = session.out.format(OutputFormat::Table);
    let mut stream = session.client.events(args.since);
    while let Some(item) = stream.next().await {
        match item? {
            EventItem::Reset => session.out.warn(
                "events between the last one and the next are no longer known: `warren ps -a` shows how things are",
            ),
            EventItem::Event { id, event } if wanted(&args.filters, &event) => match format {
                OutputFormat::Table | OutputFormat::Wide => {
                    session.out.line(event_line(id, &event))?;
                }
                OutputFormat::Name => session.out.line(one_line(&event.name))?,
                OutputFormat::Json => session.out.json_line(&Numbered { id, event: &event })?,
                OutputFormat::Yaml => {
                    session.out.yaml_document(&Numbered { id, event: &event })?;
                }
            },
            EventItem::Event { .. } => {}
        }
    }
    Ok(0)
}

/// Waits for one instance and gives its exit code.
async fn wait_one(
    session: &Session,
    name: &str,
    deadline: Option<Instant>,
) -> Result<Option<i32>, CliError> {
    // By id: a name could go to another instance while we wait.
    let id = session.client.instance(name).await?.id;
    loop {
        let left = deadline.map_or(ONE_WAIT, |deadline| {
            deadline
                .saturating_duration_since(Instant::now())
                .min(ONE_WAIT)
        });
        let answer = session
            .client
            .wait_for_state(&id, InstanceState::Stopped, left)
            .await?;
        if answer.state == InstanceState::Stopped {
            return match (answer.exit_code, answer.state_error) {
                (None, Some(reason)) => Err(CliError::plain(format!(
                    "{name} stopped without an exit code: {reason}"
                ))),
                (code, _) => Ok(code),
            };
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(CliError::plain(format!(
                "{name} is still {} after the time given",
                answer.state
            )));
        }
        if !answer.timed_out {
            // A final state that is not Stopped, such as Standby.
            return Err(CliError::plain(format!(
                "{name} is {} and will not stop by itself",
                answer.state
            )));
        }
    }
}

/// `warren wait`
pub(super) async fn wait(session: &Session, args: WaitArgs) -> Outcome {
    let deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let (codes, failure) = each(session, &args.names, |name| async move {
        wait_one(session, &name, deadline).await
    })
    .await;
    for (_, code) in codes {
        let text = code.map_or_else(|| "-".to_owned(), |code| code.to_string());
        session.out.line(text)?;
    }
    outcome(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn event() -> Event {
        Event {
            at: datetime!(2026-01-01 00:00:00 UTC),
            kind: EventType::StateChanged,
            instance: "i".into(),
            name: "web\u{1b}[2J".into(),
            from: Some(InstanceState::Running),
            to: Some(InstanceState::Stopped),
            error: None,
            exit_code: Some(7),
        }
    }

    #[test]
    fn an_event_is_one_safe_line() {
        assert_eq!(
            event_line(Some(12), &event()),
            "2026-01-01T00:00:00Z      12  web\u{fffd}[2J  Running → Stopped  exit 7"
        );
    }

    #[test]
    fn filters_look_at_the_name_and_the_new_state() {
        use warren_core::state::StateName;
        assert!(wanted(&[], &event()));
        assert!(wanted(&[Filter::State(StateName::Stopped)], &event()));
        assert!(!wanted(&[Filter::State(StateName::Running)], &event()));
        assert!(!wanted(&[Filter::Name("db".into())], &event()));
        let created = Event {
            to: None,
            kind: EventType::Created,
            ..event()
        };
        assert!(!wanted(&[Filter::State(StateName::Stopped)], &created));
    }
}
