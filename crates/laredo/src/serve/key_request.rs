//! The request for an issuer's keys over HTTP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderValue, LOCATION};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::config::server::is_key_url;
use crate::program::client_tls;

/// The time limit of a request, from the connection to the last byte of the answer.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// The maximum size of an answer in bytes. A set with a hundred keys has less.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// The bounds of the time for which an answer is used without another request.
const USE_TIME_MIN: Duration = Duration::from_secs(60);
const USE_TIME_MAX: Duration = Duration::from_secs(60 * 60);
/// The time for an answer that names none.
const USE_TIME: Duration = Duration::from_secs(5 * 60);
/// The path under an issuer at which OpenID Connect describes it.
const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";

type EmptyBody = Empty<&'static [u8]>;

/// The address of an issuer's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyAddress {
    /// The address of the keys themselves.
    Keys(String),
    /// An issuer, whose description has the address of its keys.
    Issuer(String),
}

/// A request for an issuer's keys, which can be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyRequest {
    pub(super) address: KeyAddress,
    /// The authorities that the server is checked against; `None` for the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// The file with the bearer token to send.
    pub(super) token_file: Option<PathBuf>,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) struct KeyAnswer {
    pub(super) body: Vec<u8>,
    /// The time until the next request.
    pub(super) use_time: Duration,
}

/// The description of an issuer, as far as laredo reads it.
#[derive(Deserialize)]
struct IssuerDescription {
    issuer: String,
    jwks_uri: String,
}

impl KeyRequest {
    /// Returns the address that is configured, for logs.
    pub(super) fn address(&self) -> &str {
        match &self.address {
            KeyAddress::Keys(address) | KeyAddress::Issuer(address) => address,
        }
    }

    /// Requests the keys.
    ///
    /// # Errors
    /// A sentence with the address and the cause.
    pub(super) async fn send(&self) -> Result<KeyAnswer, String> {
        match &self.address {
            KeyAddress::Keys(address) => self.get(address).await,
            KeyAddress::Issuer(issuer) => {
                let address = format!("{}{DISCOVERY_PATH}", issuer.trim_end_matches('/'));
                let answer = self.get(&address).await?;
                let description: IssuerDescription = serde_json::from_slice(&answer.body)
                    .map_err(|error| format!("{address} does not describe an issuer ({error}); set jwks_url"))?;
                if description.issuer != *issuer {
                    let found = description.issuer;
                    return Err(format!("{address} describes the issuer {found:?}; correct issuer, or set jwks_url"));
                }
                self.get(&description.jwks_uri).await
            }
        }
    }

    /// Requests an address. Redirects are not followed: they could lead away from TLS.
    async fn get(&self, address: &str) -> Result<KeyAnswer, String> {
        if !is_key_url(address) {
            return Err(format!("{address:?} is not an https:// address, so keys are not read there; set jwks_url"));
        }
        let getting = tokio::time::timeout(REQUEST_TIME_MAX, self.exchange(address)).await;
        let answer = getting.unwrap_or_else(|_| Err(format!("no answer within {} s", REQUEST_TIME_MAX.as_secs())));
        answer.map_err(|reason| format!("cannot read {address}: {reason}"))
    }

    async fn exchange(&self, address: &str) -> Result<KeyAnswer, String> {
        let uri: Uri = address.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let is_plain = uri.scheme_str() == Some("http");
        let mut request = Request::new(EmptyBody::new());
        *request.uri_mut() = uri;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = self.authorization().await? {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        match is_plain {
            true => answer(HttpConnector::new(), request).await,
            false => {
                let ca_pem = match &self.ca_file {
                    Some(file) => Some(read_file(file).await?),
                    None => None,
                };
                let tls = client_tls(ca_pem.as_deref()).map_err(|error| error.to_string())?.with_no_client_auth();
                let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
                answer(connector, request).await
            }
        }
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let token = read_file(file).await?;
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.trim_ascii()].concat())
            .map_err(|_| format!("{} does not hold a token", file.display()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

async fn read_file(file: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(file).await.map_err(|error| format!("cannot read {}: {error}", file.display()))
}

async fn answer<C>(connector: C, request: Request<EmptyBody>) -> Result<KeyAnswer, String>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let client: Client<C, EmptyBody> = Client::builder(TokioExecutor::new()).build(connector);
    let response = client.request(request).await.map_err(|error| innermost(&error))?;
    let (head, body) = response.into_parts();
    if head.status.is_redirection() {
        let target = head.headers.get(LOCATION).and_then(|target| target.to_str().ok()).unwrap_or("another address");
        return Err(format!("it redirects to {target:?}, which is not followed; set jwks_url to the right address"));
    }
    if !head.status.is_success() {
        return Err(format!("it answers {}", head.status));
    }
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| format!("{} (at most {ANSWER_BYTES_MAX} bytes are read)", innermost(&*error)))?;
    Ok(KeyAnswer { body: body.to_bytes().to_vec(), use_time: use_time(&head.headers) })
}

/// Returns the time for which an answer may be used, within the bounds.
fn use_time(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives =
        values.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_ascii_lowercase());
    let age = directives.find_map(|directive| directive.strip_prefix("max-age=")?.parse().ok());
    age.map_or(USE_TIME, Duration::from_secs).clamp(USE_TIME_MIN, USE_TIME_MAX)
}

/// Returns the innermost cause. The errors around it say only that the request failed.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
pub(super) mod tests;
