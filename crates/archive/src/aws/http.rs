//! The HTTP client for all calls to AWS, including S3. It uses rustls with ring, as elsewhere in
//! laredo, the system's certificates, and the proxies of `HTTPS_PROXY` and similar variables.

use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpClient, HttpConnectorSettings, SharedHttpConnector};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use parking_lot::Mutex;

/// The timeout for connecting. A host that takes longer is treated as unreachable.
const CONNECT: Duration = Duration::from_secs(5);

/// Returns a connection pool without a timeout for responses, which the caller has to limit.
pub(crate) fn connector() -> Connector {
    with(HttpConnectorSettings::builder().connect_timeout(CONNECT).build())
}

fn with(settings: HttpConnectorSettings) -> Connector {
    let connector = Connector::builder().connector_settings(settings).proxy_config(ProxyConfig::from_env());
    connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build()
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
        let pool = SharedHttpConnector::new(with(settings.clone()));
        pools.push((timeouts, pool.clone()));
        pool
    }
}
