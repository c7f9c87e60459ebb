//! `laredo status`.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;

use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderValue};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::args::StatusArgs;
use super::connect::TlsArgs;
use super::error::{CliError, HEALTH_OPTION, deepest};
use super::print_output;
use super::text_table::{self, bytes, grouped};
use crate::printable::printable;

const PATH: &str = "/health/ready";
/// The maximum size, in bytes, of an answer. Tens of thousands of tables fit.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The time since the last check of a definition, in ms, from which it is reported. The server
/// checks each definition every ten seconds.
const UNVERIFIED_MS: u64 = 30_000;

/// The answer of `/health/ready`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct HealthAnswer {
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) tables: Vec<HealthTable>,
    /// Tables that are not served, each with the reason.
    #[serde(default)]
    not_served: Vec<String>,
    /// Sources that a strict start waits for, each with the reason.
    #[serde(default)]
    waiting_for: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) sources: Vec<HealthSource>,
}

/// The server's answer about a source.
#[derive(Debug, Default, Deserialize)]
pub(super) struct HealthSource {
    source: String,
    /// The state; empty in the answer of an older server.
    #[serde(default)]
    state: String,
    reason: Option<String>,
    state_age_ms: Option<u64>,
    next_attempt_ms: Option<u64>,
}

/// The state of a table. Values that the server does not know are missing.
#[derive(Debug, Default, Deserialize)]
pub(super) struct HealthTable {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) state: String,
    pub(super) rows: Option<u64>,
    position: Option<String>,
    /// The time since the newest applied commit.
    pub(super) lag_ms: Option<u64>,
    pub(super) clients: Option<u64>,
    error: Option<String>,
    /// The time until the next attempt, for a table that is being retried.
    next_attempt_ms: Option<u64>,
    #[serde(default)]
    problems: Vec<HealthProblem>,
    reason: Option<String>,
    copy: Option<HealthCopy>,
    /// The time that the table has waited for its turn to be copied.
    copy_waiting_ms: Option<u64>,
    /// The time since the definition was last checked in the catalog.
    definition_verified_age_ms: Option<u64>,
    definition_error: Option<String>,
    #[serde(default)]
    verify: HealthVerification,
}

/// A problem of a table.
#[derive(Debug, Default, Deserialize)]
struct HealthProblem {
    reason: String,
    detail: String,
}

/// The verifications of a table.
#[derive(Debug, Default, Deserialize)]
struct HealthVerification {
    /// The number of rows that differed in the newest verification.
    differing: Option<u64>,
}

/// The progress of a copy.
#[derive(Debug, Default, Deserialize)]
struct HealthCopy {
    rows: u64,
    #[serde(default)]
    bytes: u64,
    /// The estimated number of rows, which may be far off; 0 if the database has no estimate.
    #[serde(default)]
    rows_estimated: u64,
    /// The time that the copy has held its lock and its snapshot.
    elapsed_ms: Option<u64>,
    left_ms: Option<u64>,
}

/// Asks the server, and prints the answer. The exit code is 1 if the server is not ready.
pub(super) async fn run(args: StatusArgs) -> Result<ExitCode, CliError> {
    let asked = tokio::time::timeout(args.timeout, read_health(&args.health, &args.tls)).await;
    let (health, json) =
        asked.map_err(|_| CliError::timeout(&with_path(&args.health), args.timeout, HEALTH_OPTION))??;
    match print_output(&if args.json { format!("{json}\n") } else { health_text(&health) }) {
        // If the reader has closed the output, the exit code alone carries the result.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed?,
    }
    Ok(ExitCode::from(u8::from(!health.ready)))
}

/// Asks the server. Returns its answer, and the JSON that it was.
pub(super) async fn read_health(server: &str, tls: &TlsArgs) -> Result<(HealthAnswer, serde_json::Value), CliError> {
    let url = with_path(server);
    let (status, body) = fetch_health(&url, tls).await?;
    parse_health(&body)
        .map_err(|reason| CliError::NotHealth { url, reason: format!("it answers {status}, and {reason}") })
}

/// Returns the address with the path `/health/ready`, unless it has a path already.
fn with_path(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    match rest.split_once('/') {
        None => format!("{url}{PATH}"),
        Some((_, "")) => format!("{}{PATH}", url.trim_end_matches('/')),
        Some(_) => url.to_owned(),
    }
}

async fn fetch_health(url: &str, tls: &TlsArgs) -> Result<(StatusCode, Vec<u8>), CliError> {
    let unreachable = |reason: String| CliError::Unreachable { server: url.to_owned(), reason, option: HEALTH_OPTION };
    let uri = url.parse().map_err(|e: http::uri::InvalidUri| unreachable(e.to_string()))?;
    let mut request = http::Request::new(Empty::default());
    *request.uri_mut() = uri;
    if let Some(token) = tls.token() {
        let authorization = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| CliError::Token)?;
        request.headers_mut().insert(AUTHORIZATION, authorization);
    }
    let answer = match tls.read(url)? {
        None => client(HttpConnector::new()).request(request).await,
        Some(tls) => {
            let config = tls.client_config().map_err(|e| unreachable(e.to_string()))?;
            let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
            client(connector).request(request).await
        }
    };
    let answer = answer.map_err(|e| unreachable(deepest(&e)))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| unreachable(deepest(&*e)))?;
    if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) {
        let reason = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
        return Err(CliError::ServerAnswer { server: url.to_owned(), reason });
    }
    Ok((status, body.to_bytes().to_vec()))
}

fn client<C: Connect + Clone>(connector: C) -> Client<C, Empty<&'static [u8]>> {
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Parses the answer. Also returns its JSON, which prints as one line.
pub(super) fn parse_health(body: &[u8]) -> Result<(HealthAnswer, serde_json::Value), String> {
    let json: serde_json::Value = serde_json::from_slice(body).map_err(|_| "the response is not JSON".to_owned())?;
    let health = HealthAnswer::deserialize(&json).map_err(|e| format!("unexpected response: {e}"))?;
    Ok((health, json))
}

fn health_text(health: &HealthAnswer) -> String {
    let verdict = match (health.ready, health.not_served.len()) {
        (true, 0) => "ready".to_owned(),
        (true, 1) => "ready, 1 table is not served".to_owned(),
        (true, count) => format!("ready, {count} tables are not served"),
        (false, _) => "not ready".to_owned(),
    };
    let sources: String = health.sources.iter().filter_map(source_line).collect();
    if health.sources.is_empty() && !health.waiting_for.is_empty() {
        let lines = health.waiting_for.iter().map(|(source, what)| format!("source {source}: {what}"));
        let lines: Vec<String> = lines.map(|line| printable(&line)).collect();
        return format!("{verdict}, the server is starting\n{}\n", lines.join("\n"));
    }
    if health.tables.is_empty() {
        return format!("{verdict}, no tables\n{sources}");
    }
    let rows = health.tables.iter().map(|table| {
        [
            format!("{}.{}", table.schema, table.table),
            table.state.clone(),
            table.rows.map_or_else(String::new, grouped),
            table.position.clone().unwrap_or_default(),
            table.lag_ms.map_or_else(String::new, duration),
            table.clients.map_or_else(String::new, grouped),
            detail(table),
        ]
    });
    let headings = ["TABLE", "STATE", "ROWS", "POSITION", "LAG", "CLIENTS", "DETAIL"];
    format!("{verdict}\n{sources}\n{}", text_table::table(headings, &[2, 4, 5], rows.collect()))
}

/// Returns a line about a source that is not followed, or `None` for a source that is.
pub(super) fn source_line(source: &HealthSource) -> Option<String> {
    if matches!(source.state.as_str(), "" | "following") {
        return None;
    }
    let age = source.state_age_ms.map(|age| format!(" for {}", duration(age))).unwrap_or_default();
    let reason = source.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let next = source.next_attempt_ms.map(|next| format!(" (next attempt in {})", duration(next))).unwrap_or_default();
    Some(printable(&format!("source {} is {}{age}{next}{reason}", source.source, source.state)) + "\n")
}

/// Returns the progress of a table, and what is wrong with it.
pub(super) fn detail(table: &HealthTable) -> String {
    let copy = table.copy.as_ref().map(|copy| {
        let mut text = format!("copied {}", grouped(copy.rows));
        // If the copy has reached the estimate, the rest is unknown.
        let is_judged = copy.rows < copy.rows_estimated;
        if is_judged {
            text += &format!(" of about {}", grouped(copy.rows_estimated));
        }
        text += &format!(" rows, {}", bytes(copy.bytes));
        if let Some(ms) = copy.elapsed_ms {
            text += &format!(", for {}", duration(ms));
        }
        if let Some(ms) = copy.left_ms.filter(|_| is_judged) {
            text += &format!(", about {} left", duration(ms));
        }
        text
    });
    let waiting = table.copy_waiting_ms.map(|ms| format!("waiting for its turn for {}", duration(ms)));
    let unverified = table.definition_verified_age_ms.filter(|age| *age >= UNVERIFIED_MS).map(|age| {
        let error = table.definition_error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        format!("definition not verified for {}{error}", duration(age))
    });
    let differing = table.verify.differing.filter(|differing| *differing > 0);
    let differing = differing.map(|rows| format!("verification found {} rows that differed", grouped(rows)));
    let next = table.next_attempt_ms.map(|ms| format!("next attempt in {}", duration(ms)));
    // The other problems have fields of their own.
    let is_news = |problem: &&HealthProblem| {
        matches!(problem.reason.as_str(), "drained" | "stale" | "journal_not_kept" | "stream_down")
    };
    let problems = table.problems.iter().filter(is_news).map(|problem| Some(problem.detail.clone()));
    let parts = [table.error.clone(), next, table.reason.clone(), waiting, copy, unverified, differing];
    parts.into_iter().chain(problems).flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Formats a duration in the unit that leaves up to four digits, or else in hours.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{} s", ms / 1000),
        600_000..36_000_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_columns() {
        let body = br#"{"ready": false, "since": 1, "tables": [
            {"schema": "public", "table": "t", "state": "live", "rows": 1234, "position": "0/200", "lag_ms": 12, "clients": 3, "definition_verified_age_ms": 9000},
            {"schema": "public", "table": "big", "state": "copying", "reason": "first copy", "rows": 0, "lag_ms": null,
             "copy": {"rows": 5000, "bytes": 1048576, "rows_estimated": 20000, "elapsed_ms": 30000, "left_ms": 12400}},
            {"schema": "public", "table": "later", "state": "copying", "reason": "first copy", "rows": 0, "copy_waiting_ms": 700},
            {"schema": "app", "table": "x", "state": "failed", "lag_ms": 61000, "error": "no key\nset one",
             "definition_verified_age_ms": 45000, "definition_error": "a lock"}]}"#;
        let (health, json) = parse_health(body).unwrap();
        assert_eq!(
            health_text(&health),
            "not ready\n\n\
             TABLE         STATE     ROWS  POSITION    LAG  CLIENTS  DETAIL\n\
             public.t      live     1,234  0/200     12 ms        3\n\
             public.big    copying      0                            \
             first copy; copied 5,000 of about 20,000 rows, 1.0 MiB, for 30 s, about 12 s left\n\
             public.later  copying      0                            first copy; waiting for its turn for 700 ms\n\
             app.x         failed                     61 s           no key\\nset one; definition not verified for 45 s (a lock)\n"
        );
        assert_eq!(json["since"], 1);
        let (health, _) = parse_health(br#"{"ready": true}"#).unwrap();
        assert_eq!(health_text(&health), "ready, no tables\n");
    }

    #[test]
    fn a_source_that_is_not_followed_has_a_line() {
        let body = br#"{"ready": false, "tables": [], "sources": [{"source": "a", "state": "following"},
            {"source": "b", "state": "refused", "reason": "wrong password", "state_age_ms": 12000, "next_attempt_ms": 800}]}"#;
        let (health, _) = parse_health(body).unwrap();
        let expected = "not ready, no tables\nsource b is refused for 12 s (next attempt in 800 ms): wrong password\n";
        assert_eq!(health_text(&health), expected);
    }

    #[test]
    fn what_is_not_from_laredo_is_refused() {
        assert_eq!(parse_health(b"<html>").unwrap_err(), "the response is not JSON");
        assert!(parse_health(b"{\"ok\":true}").unwrap_err().contains("missing field `ready`"));
    }

    #[test]
    fn the_path_is_added_where_there_is_none() {
        assert_eq!(with_path("http://h:1"), "http://h:1/health/ready");
        assert_eq!(with_path("http://h:1/"), "http://h:1/health/ready");
        assert_eq!(with_path("http://h:1/up"), "http://h:1/up");
    }
}
