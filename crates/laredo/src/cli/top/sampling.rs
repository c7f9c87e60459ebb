//! The requests of `laredo top`, in a task of their own, so that no slow answer delays a key.

use laredo_core::TableName;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::{GetStatusRequest, GetStatusResponse};
use laredo_proto::replication::GetReplicationStatusResponse;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::super::args::TopArgs;
use super::super::connect::channel;
use super::super::error::{CliError, HEALTH_OPTION, OAM_OPTION, SERVER_OPTION};
use super::super::fanout::fetch_replication_status;
use super::super::status::{HealthAnswer, read_health};

/// The answers to one round of requests, or the reasons why there are none.
pub(super) struct TopSample {
    pub(super) health: Result<HealthAnswer, String>,
    pub(super) status: Result<GetStatusResponse, String>,
    /// The journal and the clients of the selected table; `None` without one.
    pub(super) table: Option<(TableName, Result<GetReplicationStatusResponse, String>)>,
}

/// Asks the server at intervals, and at once if another table is selected. Ends when the receiver
/// of the samples does.
pub(super) async fn sample_until_closed(
    args: TopArgs,
    mut selected: watch::Receiver<Option<TableName>>,
    samples: mpsc::Sender<TopSample>,
) {
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = selected.changed() => if changed.is_err() { return },
        }
        let table = selected.borrow_and_update().clone();
        if samples.send(sample(&args, table).await).await.is_err() {
            return;
        }
    }
}

async fn sample(args: &TopArgs, table: Option<TableName>) -> TopSample {
    let replication = async {
        let table = table?;
        let status = in_time(args, SERVER_OPTION, fetch_replication_status(&args.server, &args.tls, &table)).await;
        Some((table, status))
    };
    let (health, status, table) = tokio::join!(
        in_time(args, HEALTH_OPTION, read_health(&args.health, &args.tls)),
        in_time(args, OAM_OPTION, fetch_status(args)),
        replication,
    );
    TopSample { health: health.map(|(health, _)| health), status, table }
}

async fn fetch_status(args: &TopArgs) -> Result<GetStatusResponse, CliError> {
    let channel = channel(&args.oam, &args.tls, OAM_OPTION).await?;
    let mut client = LaredoOamServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.get_status(GetStatusRequest {}).await;
    let failed = |status: tonic::Status| CliError::ServerAnswer {
        server: args.oam.clone(),
        reason: status.message().to_owned(),
    };
    answer.map(tonic::Response::into_inner).map_err(failed)
}

/// The maximum size, in bytes, of an answer. Tens of thousands of tables fit.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Waits for an answer as long as the arguments allow. Returns the error's text.
async fn in_time<T>(
    args: &TopArgs,
    option: &'static str,
    answer: impl Future<Output = Result<T, CliError>>,
) -> Result<T, String> {
    let address = match option {
        HEALTH_OPTION => &args.health,
        SERVER_OPTION => &args.server,
        _ => &args.oam,
    };
    let answer = timeout(args.timeout, answer).await;
    let answer = answer.unwrap_or_else(|_| Err(CliError::timeout(address, args.timeout, option)));
    answer.map_err(|error| error.to_string())
}
