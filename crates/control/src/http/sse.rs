//! Server-Sent Events: logs, events, progress. A stream that is complete ends with the comment `end`;
//! one that was cut does not, and its client goes on with `Last-Event-ID`.

use super::Http;
use super::extract::{Id, NoParams, Params, bad_query};
use super::reply::{Failure, Reply};
use crate::app::{EventStreamItem, JobUpdate, PushStep};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;
use time::format_description::well_known::Rfc3339;
use warren_api::event::RESET;
use warren_api::image::events as image_events;
use warren_api::push::PUSH;
use warren_api::sse::END;
use warren_api::{Code, LogEntry};
use warren_core::Timestamp;
use warren_core::ports::host_link::{Follow, LogPeriod, LogQuery, LogSource};

/// Proxies and clients give up on silence.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
struct Frame<'a> {
    id: Option<u64>,
    event: Option<&'a str>,
    data: &'a str,
}

impl Frame<'_> {
    /// Every line end of the data starts another `data` line: nothing of it can be taken for a field.
    fn encode(&self) -> Bytes {
        let mut text = String::with_capacity(self.data.len() + 32);
        if let Some(event) = self.event {
            writeln!(text, "event: {event}").expect("a String takes everything");
        }
        if let Some(id) = self.id {
            writeln!(text, "id: {id}").expect("a String takes everything");
        }
        for line in self.data.split(['\n', '\r']) {
            writeln!(text, "data: {line}").expect("a String takes everything");
        }
        text.push('\n');
        Bytes::from(text)
    }
}

fn json_frame<T: Serialize>(event: Option<&str>, id: Option<u64>, value: &T) -> Bytes {
    let data = serde_json::to_string(value).expect("our own schemas are JSON");
    Frame {
        id,
        event,
        data: &data,
    }
    .encode()
}

fn respond(http: &Http, frames: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let stopping = http.app.stopping().clone();
    let ticks = tokio::time::interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    let first = stream::once(async { Bytes::from_static(b": ok\n\n") });
    let rest = stream::unfold(
        Some((Box::pin(frames), ticks, stopping)),
        |parts| async move {
            let (mut frames, mut ticks, stopping) = parts?;
            tokio::select! {
                frame = frames.next() => match frame {
                    Some(frame) => Some((frame, Some((frames, ticks, stopping)))),
                    None => Some((Bytes::from(format!(": {END}\n\n")), None)),
                },
                _ = ticks.tick() => Some((
                    Bytes::from_static(b": keep-alive\n\n"),
                    Some((frames, ticks, stopping)),
                )),
                () = stopping.cancelled() => None,
            }
        },
    );
    let body = Body::from_stream(first.chain(rest).map(Ok::<_, std::convert::Infallible>));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    headers
        .get("last-event-id")
        .filter(|value| !value.is_empty())
        .map(|value| {
            value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or_else(|| {
                    Failure::new(
                        Code::InvalidHeader,
                        "Last-Event-ID must be the number of an event",
                    )
                })
        })
        .transpose()
}

pub(super) fn image_updates(http: &Http, updates: BoxStream<'static, JobUpdate>) -> Response {
    respond(
        http,
        updates.map(|update| match update {
            JobUpdate::Progress(step) => json_frame(Some(image_events::PROGRESS), None, &step),
            JobUpdate::Done(images) => json_frame(Some(image_events::IMAGES), None, &images),
            JobUpdate::Failed(problem) => json_frame(Some(image_events::PROBLEM), None, &problem),
        }),
    )
}

pub(super) fn push_steps(http: &Http, steps: BoxStream<'static, PushStep>) -> Response {
    respond(
        http,
        steps.map(|step| match step {
            PushStep::Progress(step) => json_frame(Some(image_events::PROGRESS), None, &step),
            PushStep::Done(push) => json_frame(Some(PUSH), None, &push),
            PushStep::Failed(problem) => json_frame(Some(image_events::PROBLEM), None, &problem),
        }),
    )
}

/// Follow what happens
///
/// Each event's id is a number that rises; `Last-Event-ID` goes on after it. An event named `reset` says that
/// events before it are lost: list again.
#[utoipa::path(get, path = "/events", operation_id = "followEvents", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,15}$", description = "Go on after this one")),
    responses((status = 200, description = "Events, without end", content_type = "text/event-stream", body = warren_api::Event)))]
pub(super) async fn events(State(http): State<Http>, _: NoParams, headers: HeaderMap) -> Reply {
    let events = http.app.events(last_event_id(&headers)?).await?;
    let frames = events.map(|item| match item {
        EventStreamItem::Event(id, event) => json_frame(None, Some(id), &event),
        EventStreamItem::Reset(id) => json_frame(Some(RESET), Some(id), &serde_json::json!({})),
    });
    Ok(respond(&http, frames))
}

fn source(text: &str) -> Option<LogSource> {
    match text {
        "workload" | "app" => Some(LogSource::Workload),
        "console" => Some(LogSource::Console),
        "vmm" => Some(LogSource::Vmm),
        _ => None,
    }
}

fn flag(params: &mut Params, name: &str) -> Result<bool, Failure> {
    match params.one(name)?.as_deref() {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1" | "") => Ok(true),
        Some(_) => Err(bad_query(name, "must be true or false")),
    }
}

fn time(params: &mut Params, name: &str) -> Result<Option<Timestamp>, Failure> {
    let Some(text) = params.one(name)? else {
        return Ok(None);
    };
    match Timestamp::parse(&text, &Rfc3339) {
        Ok(time) => Ok(Some(time)),
        Err(_) => Err(bad_query(
            name,
            "must be a time, such as 2026-01-31T12:00:00Z",
        )),
    }
}

/// Read or follow an instance's logs
///
/// One event per line; the data is the line, or with `format=json` the line with its time and stream.
#[utoipa::path(get, path = "/instances/{id}/logs", operation_id = "getInstanceLogs", tag = "instances",
    params(("id" = String, Path, description = "Id, name or prefix"),
        ("follow" = Option<bool>, Query, description = "Stay for more"),
        ("tail" = Option<u64>, Query, maximum = 1000000, description = "Only the last so many lines"),
        ("since" = Option<String>, Query, format = DateTime, description = "Only lines that were written at this time or later"),
        ("until" = Option<String>, Query, format = DateTime, description = "Only lines that were written before this time; following ends then"),
        ("source" = Option<String>, Query, pattern = "^(workload|app|console|vmm)$", description = "The workload (`workload`, `app`), the serial `console`, or the `vmm`"),
        ("format" = Option<String>, Query, pattern = "^(text|json)$", description = "What the data is"),
        ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,15}$", description = "Go on after this line")),
    responses((status = 200, description = "Lines", content_type = "text/event-stream", body = String)))]
pub(super) async fn logs(
    State(http): State<Http>,
    Id(id): Id,
    mut params: Params,
    headers: HeaderMap,
) -> Reply {
    let after = last_event_id(&headers)?;
    let follow = flag(&mut params, "follow")?;
    let tail = params.parsed::<u64>("tail", "a number of lines")?;
    let period = LogPeriod {
        since: time(&mut params, "since")?,
        until: time(&mut params, "until")?,
    };
    let source = match params.one("source")? {
        None => LogSource::default(),
        Some(text) => source(&text)
            .ok_or_else(|| bad_query("source", "must be workload, app, console or vmm"))?,
    };
    let as_json = match params.one("format")?.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(_) => return Err(bad_query("format", "must be text or json")),
    };
    params.finish()?;
    let query = LogQuery {
        source,
        // Where a reader goes on, it has had its tail.
        tail: tail.filter(|_| after.is_none()),
        after,
        period,
        follow: if follow { Follow::Yes } else { Follow::No },
    };
    let lines = http.app.logs(&id, query).await?;
    let frames = lines.map(move |line| {
        let id = Some(line.seq);
        if as_json {
            json_frame(None, id, &LogEntry::from(line))
        } else {
            Frame {
                id,
                event: None,
                data: line.text.trim_end_matches('\r'),
            }
            .encode()
        }
    });
    Ok(respond(&http, frames))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::sse::{Item, Message, Parser};

    #[test]
    fn no_line_of_a_guest_becomes_a_field() {
        let frame = Frame {
            id: Some(3),
            event: None,
            data: "a\rid: 9\nevent: problem\n\nb",
        };
        let items = Parser::default().push(&frame.encode()).expect("small");
        assert_eq!(
            items,
            [Item::Message(Message {
                event: "message".into(),
                data: "a\nid: 9\nevent: problem\n\nb".into(),
                id: Some("3".into()),
            })]
        );
    }
}
