//! The HTTP client of everything that calls AWS, S3 included: TLS by rustls on ring as elsewhere in laredo, the system's
//! certificates, and the proxies that `HTTPS_PROXY` and its kin name.

use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpClient, HttpConnectorSettings, SharedHttpConnector};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use parking_lot::Mutex;

/// A host that takes longer to accept a connection is not there.
const CONNECT: Duration = Duration::from_secs(5);

/// A pool of connections that wait for an answer as long as their user does.
pub(crate) fn connector() -> Connector {
    with(HttpConnectorSettings::builder().connect_timeout(CONNECT).build())
}

fn with(settings: HttpConnectorSettings) -> Connector {
    let connector = Connector::builder().connector_settings(settings).proxy_config(ProxyConfig::from_env());
    connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build()
}

/// The SDK's way to the same: it asks with timeouts of its own, which differ for a call that is expected to find nobody.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// One pool for each pair of timeouts.
    pools: Mutex<Vec<(Timeouts, SharedHttpConnector)>>,
}

type Timeouts = (Option<Duration>, Option<Duration>);

impl HttpClient for Client {
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
