//! The HTTP client for all calls to AWS, including S3. It uses rustls with ring, as elsewhere in
//! laredo, the system's certificates, and the proxies of `HTTPS_PROXY` and similar variables.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use http::Uri;
use parking_lot::Mutex;

/// The timeout for connecting. A host that takes longer is treated as unreachable.
const CONNECT: Duration = Duration::from_secs(5);
/// The variables with the addresses of the endpoints that hand out credentials, if they are not the
/// usual ones.
const ENDPOINTS: [&str; 2] = ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_EC2_METADATA_SERVICE_ENDPOINT"];

/// A connection pool that uses the environment's proxies, but not for the endpoints that hand out
/// credentials. A proxy could not reach the same ones, and would read the credentials.
#[derive(Debug)]
pub(crate) struct AwsConnector {
    proxied: Connector,
    direct: Connector,
    /// The hosts of [`ENDPOINTS`].
    endpoints: Vec<String>,
}

/// Returns a connection pool without a timeout for responses, which the caller has to limit.
pub(crate) fn connector() -> AwsConnector {
    with(&HttpConnectorSettings::builder().connect_timeout(CONNECT).build())
}

fn with(settings: &HttpConnectorSettings) -> AwsConnector {
    let pool = |proxies| {
        let connector = Connector::builder().connector_settings(settings.clone()).proxy_config(proxies);
        connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build()
    };
    let endpoints = ENDPOINTS.into_iter().filter_map(|name| plain_host(&std::env::var(name).ok()?)).collect();
    AwsConnector { proxied: pool(ProxyConfig::from_env()), direct: pool(ProxyConfig::disabled()), endpoints }
}

impl HttpConnector for AwsConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        match is_near(request.uri(), &self.endpoints) {
            true => self.direct.call(request),
            false => self.proxied.call(request),
        }
    }
}

/// Returns the host of an address without TLS.
fn plain_host(address: &str) -> Option<String> {
    let uri: Uri = address.parse().ok()?;
    (uri.scheme_str() == Some("http")).then_some(())?;
    uri.host().map(str::to_ascii_lowercase)
}

/// Returns true if an address is one of this machine, or of an endpoint that hands out credentials:
/// 169.254.169.254 and `fd00:ec2::254` (EC2), 169.254.170.2 (ECS), 169.254.170.23 and
/// `fd00:ec2::23` (EKS), or the host of one of [`ENDPOINTS`].
fn is_near(address: &str, endpoints: &[String]) -> bool {
    let Ok(uri) = address.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    if uri.scheme_str() == Some("http") && endpoints.contains(&host) {
        return true;
    }
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unicast_link_local() || is_metadata(address),
        Err(_) => {
            let name = host.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// Returns true if an address is in `fd00:ec2::/32`, which AWS uses inside of its machines.
fn is_metadata(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0xfd00, 0x0ec2, ..])
}

/// The HTTP client of the SDK, with the same settings. The SDK sets its own timeouts, which differ
/// for a host that may not exist.
#[derive(Debug, Default)]
pub(super) struct SdkHttpClient {
    /// The connection pools, one for each pair of timeouts.
    pools: Mutex<Vec<(HttpTimeouts, SharedHttpConnector)>>,
}

type HttpTimeouts = (Option<Duration>, Option<Duration>);

impl HttpClient for SdkHttpClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let timeouts = (settings.connect_timeout(), settings.read_timeout());
        let mut pools = self.pools.lock();
        if let Some((_, pool)) = pools.iter().find(|(of, _)| *of == timeouts) {
            return pool.clone();
        }
        let pool = SharedHttpConnector::new(with(settings));
        pools.push((timeouts, pool.clone()));
        pool
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_addresses_are_asked_without_a_proxy() {
        let endpoints: Vec<String> = ["http://agent.internal:8181/creds", "https://remote.example/creds", "no address"]
            .into_iter()
            .filter_map(plain_host)
            .collect();
        assert_eq!(endpoints, ["agent.internal"]);
        for (address, expected) in [
            ("http://169.254.169.254/latest/api/token", true),
            ("http://169.254.170.2/v2/credentials/1", true),
            ("http://169.254.170.23/v1/credentials", true),
            ("http://[fd00:ec2::254]/latest/api/token", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://[fe80::1]/", true),
            ("http://127.0.0.1:8080/creds", true),
            ("http://127.9.9.9/", true),
            ("http://[::1]:8080/creds", true),
            ("http://[::ffff:169.254.169.254]/", true),
            ("http://localhost:8080/creds", true),
            ("https://LOCALHOST./creds", true),
            ("http://agent.localhost/creds", true),
            ("http://Agent.internal:8181/creds", true),
            // A proxy does not see what TLS hides.
            ("https://agent.internal/creds", false),
            ("https://remote.example/creds", false),
            ("https://sts.us-east-1.amazonaws.com/", false),
            ("https://archives.s3.amazonaws.com/manifest.json", false),
            ("http://10.0.0.1/", false),
            ("http://169.253.169.254/", false),
            ("http://[fd00:ec3::254]/", false),
            ("http://notlocalhost/", false),
            ("http://localhost.example/", false),
            ("no address", false),
        ] {
            assert_eq!(is_near(address, &endpoints), expected, "{address}");
        }
    }
}
