//! One method per served route.

mod host;
mod images;
mod instances;

pub use images::{LoadContent, LoadSource};
pub use instances::{CreateOptions, LogsQuery, UntilReady};

use super::stream::Source;
use super::{Client, ClientError, error};
use crate::instance::InstanceState;
use crate::problem::Problem;
use reqwest::{Method, RequestBuilder};
use std::time::Duration;

/// How long a create, start or stop may take before the server answers with what there is.
const LIFECYCLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a standby or a restore may take: gigabytes are written or read.
const STANDBY_TIMEOUT: Duration = Duration::from_secs(330);

/// What a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only these states.
    pub states: Vec<InstanceState>,
    /// Only with these labels.
    pub labels: Vec<(String, String)>,
    /// At most so many on a page.
    pub limit: Option<u32>,
    /// From an earlier page.
    pub page_token: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next one starts, when there is one.
    pub next: Option<String>,
}

/// The name of the header that holds the next page's token.
pub(crate) const NEXT_PAGE: &str = "x-next-page-token";

impl Client {
    async fn page<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &ListQuery,
    ) -> Result<Page<T>, ClientError> {
        let mut pairs: Vec<(&str, String)> = Vec::new();
        pairs.extend(
            query
                .states
                .iter()
                .map(|state| ("state", state.to_string())),
        );
        pairs.extend(
            query
                .labels
                .iter()
                .map(|(key, value)| ("labels", format!("{key}={value}"))),
        );
        pairs.extend(query.limit.map(|limit| ("limit", limit.to_string())));
        pairs.extend(query.page_token.clone().map(|token| ("page_token", token)));
        let request = self.request_with(Method::GET, segments, &pairs);
        let response = self.send(request.timeout(super::REQUEST_TIMEOUT)).await?;
        let next = response
            .headers()
            .get(NEXT_PAGE)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let body = self.body(response).await?;
        Ok(Page {
            items: error::decode(&body)?,
            next,
        })
    }

    async fn all<T: serde::de::DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &ListQuery,
    ) -> Result<Vec<T>, ClientError> {
        let mut query = query.clone();
        let mut items = Vec::new();
        loop {
            let page = self.page(segments, &query).await?;
            items.extend(page.items);
            match page.next {
                Some(next) if query.page_token.as_ref() != Some(&next) => {
                    query.page_token = Some(next);
                }
                _ => return Ok(items),
            }
        }
    }
}

fn problem(data: &str) -> ClientError {
    match error::decode::<Problem>(data.as_bytes()) {
        Ok(problem) => ClientError::Refused(Box::new(problem.into())),
        Err(error) => error,
    }
}

impl Source for RequestBuilder {
    fn accept_events(self, last_event_id: Option<&str>) -> RequestBuilder {
        let request = self.header("accept", "text/event-stream");
        match last_event_id {
            Some(id) => request.header("last-event-id", id),
            None => request,
        }
    }
}
