//! The orders that compare and reload the configuration.

use laredo_proto::oam::{ConfigChange, ConfigEffect, DiffConfigResponse, ReloadConfigRequest, ReloadConfigResponse};
use tokio::sync::oneshot;
use tonic::Status;

use crate::config_order::{self, ConfigOrder, ConfigOrderKind, ConfigOutcome};
use crate::refusal;
use crate::server_state::ServerState;

/// Compares the configuration that is read now with the running one.
pub(super) async fn diff(shared: &ServerState) -> Result<DiffConfigResponse, Status> {
    let ConfigOutcome { changes, problems, .. } = order(shared, ConfigOrderKind::Diff).await?;
    Ok(DiffConfigResponse { changes: changes.into_iter().map(change).collect(), problems })
}

/// Reads the configuration again, and applies it.
pub(super) async fn reload(shared: &ServerState, request: ReloadConfigRequest) -> Result<ReloadConfigResponse, Status> {
    let kind = ConfigOrderKind::Reload { skips_restart: request.skip_restart };
    let ConfigOutcome { is_applied, changes, problems } = order(shared, kind).await?;
    Ok(ReloadConfigResponse { applied: is_applied, changes: changes.into_iter().map(change).collect(), problems })
}

/// Gives an order, and waits for its outcome. The order is carried out even if its caller leaves.
async fn order(shared: &ServerState, kind: ConfigOrderKind) -> Result<ConfigOutcome, Status> {
    let orders = shared.config_orders.as_ref().ok_or_else(refusal::fixed_config)?;
    let (answer, answered) = oneshot::channel();
    orders.try_send(ConfigOrder { kind, answer }).map_err(|_| refusal::too_many_config_orders())?;
    answered.await.map_err(|_| refusal::stopping())
}

fn change(change: config_order::ConfigChange) -> ConfigChange {
    let config_order::ConfigChange { effect, table, key, before, after } = change;
    let effect = match effect {
        config_order::ConfigEffect::TableAdded => ConfigEffect::TableAdded,
        config_order::ConfigEffect::TableRemoved => ConfigEffect::TableRemoved,
        config_order::ConfigEffect::TableRestarted => ConfigEffect::TableRestarted,
        config_order::ConfigEffect::AtOnce => ConfigEffect::AtOnce,
        config_order::ConfigEffect::NeedsRestart => ConfigEffect::NeedsRestart,
    };
    ConfigChange { effect: effect.into(), table: table.unwrap_or_default(), key, before, after }
}
