//! What is asked of a server, through its CLI and its REST API, and what it says of itself.

use super::http::{http, http_with};
use super::server::Server;
use std::ffi::OsStr;
use std::net::SocketAddr;

impl Server {
    /// Runs a command that must succeed; its stdout.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = self.run(arguments);
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        assert!(
            output.status.success(),
            "warren {} failed ({}):\n{}{}\n--- server:\n{}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A REST call; the answer's status and JSON.
    pub(crate) fn api(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> (u16, serde_json::Value) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let answer = http(
            address,
            method,
            path,
            body.map(|body| body.to_string()).as_deref(),
        )
        .expect("the server answers");
        (
            answer.status,
            serde_json::from_str(&answer.body).unwrap_or(serde_json::Value::Null),
        )
    }

    /// A REST call to a server that may die meanwhile: the status, or `None` without a whole answer.
    pub(crate) fn try_api(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Option<u16> {
        self.try_api_with(method, path, body, &[])
    }

    /// The same, with headers.
    pub(crate) fn try_api_with(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
        headers: &[(&str, &str)],
    ) -> Option<u16> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let body = body.map(|body| body.to_string());
        http_with(address, method, path, body.as_deref(), headers).map(|answer| answer.status)
    }

    /// What `warren fsck` finds, in its own words.
    pub(crate) fn differences(&self) -> Vec<String> {
        let (status, check) = self.api("GET", "/system/check", None);
        assert_eq!(status, 200, "{check}");
        let sentence = |one: &serde_json::Value| one["sentence"].as_str().map(str::to_owned);
        let all = check["differences"].as_array();
        all.into_iter().flatten().filter_map(sentence).collect()
    }
}
