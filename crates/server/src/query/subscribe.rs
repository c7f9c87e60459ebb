//! Subscriptions: the stream of a session, in messages of their own.

use std::sync::Arc;

use http::{Request, Response};
use laredo_proto::oam::SubscribeRequest;
use prost::Message as _;
use tonic::Status;
use tonic::body::Body;

use super::QueryCall;
use crate::grpc;
use crate::query_state::QueryMethod;
use crate::receive;
use crate::refusal;
use crate::request::SessionRequest;
use crate::response_task::ResponseTask;
use crate::server_state::ServerState;

/// Answers a request for a subscription with its stream. It counts as a client of the table, and is
/// cut for the same reasons as other streams.
pub(super) async fn subscribe(shared: Arc<ServerState>, request: Request<Body>) -> Result<Response<Body>, Status> {
    if let Some(refused) = grpc::refuse_other_content(&request) {
        return Ok(refused);
    }
    let task = request.extensions().get::<ResponseTask>().cloned().unwrap_or_default();
    let limits = grpc::body_limits(&request)?;
    let (parts, body) = request.into_parts();
    let message = receive::one_message(body, &limits).await?;
    let request = SubscribeRequest::decode(message);
    let request = request.map_err(|error| refusal::malformed("SubscribeRequest", error))?;
    let name = (request.schema.as_str(), request.table.as_str());
    let QueryCall { table, caller, scope, .. } =
        QueryCall::begin(&shared, &parts.extensions, QueryMethod::Subscribe, name)?;
    let ask = || Ok(SessionRequest::subscription(scope, request.replay_existing));
    let stream = grpc::open_session(shared.clone(), table, caller.clone(), ask, task)?;
    Ok(grpc::stream_response(shared, caller, stream, None))
}
