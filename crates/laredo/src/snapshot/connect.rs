//! The subscription to a table, made from the configuration.

use std::path::Path;

use anyhow::Context;
use laredo_client::{Subscription, SubscriptionBuilder};
use laredo_core::TableName;

use crate::config::snapshotter::SourceConfig;

/// Makes the subscription to the table of a source.
///
/// # Errors
/// A TLS file that cannot be read.
pub(super) fn subscription(source: &SourceConfig) -> anyhow::Result<SubscriptionBuilder> {
    let table = TableName::new(&source.schema, &source.table);
    let mut subscription = Subscription::builder(&source.server, table).client_id(&source.client_id);
    if let Some(token) = &source.token {
        subscription = subscription.token(token.expose());
    }
    if let Some(tls) = &source.tls {
        if let Some(path) = &tls.ca_path {
            subscription = subscription.ca_pem(read("ca_path", path)?);
        }
        if let Some(identity) = &tls.identity {
            let certificate = read("cert_path", &identity.cert_path)?;
            subscription = subscription.identity_pem(certificate, read("key_path", &identity.key_path)?);
        }
    }
    Ok(subscription)
}

fn read(key: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("source.tls.{key}: cannot read {}", path.display()))
}
