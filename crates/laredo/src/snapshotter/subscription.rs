//! The subscription to a table, made from the configuration.

use std::path::Path;

use anyhow::Context;
use laredo_client::{Subscription, SubscriptionBuilder};
use laredo_core::TableName;

use crate::config::snapshotter::SnapshotterSourceConfig;

/// Makes the subscription to the table of a source.
///
/// # Errors
/// A TLS file that cannot be read.
pub(super) fn subscription(source: &SnapshotterSourceConfig) -> anyhow::Result<SubscriptionBuilder> {
    let table = TableName::new(&source.schema, &source.table);
    let mut subscription = Subscription::builder(&source.server, table).client_id(&source.client_id);
    if let Some(token) = &source.token {
        // The configuration warns of a plain connection.
        subscription = subscription.token(token.expose()).allow_plaintext_token();
    }
    if let Some(tls) = &source.tls {
        if let Some(path) = &tls.ca_path {
            check_tls_file("ca_path", path)?;
            subscription = subscription.ca_file(path);
        }
        if let Some(identity) = &tls.identity {
            check_tls_file("cert_path", &identity.cert_path)?;
            check_tls_file("key_path", &identity.key_path)?;
            subscription = subscription.identity_files(&identity.cert_path, &identity.key_path);
        }
    }
    Ok(subscription)
}

/// Checks that a file can be read. The subscription reads it at each connection.
fn check_tls_file(key: &str, path: &Path) -> anyhow::Result<()> {
    std::fs::read(path).map(drop).with_context(|| format!("source.tls.{key}: cannot read {}", path.display()))
}
