//! The Query service. It exists so that its clients learn why it does not answer.

use futures::stream::Empty;
use laredo_proto::oam::laredo_query_service_server::{LaredoQueryService, LaredoQueryServiceServer};
use laredo_proto::oam::*;
use tonic::{Request, Response, Status};

use crate::refusal;

/// Returns the service, over gRPC.
pub(crate) fn service() -> LaredoQueryServiceServer<QueryService> {
    LaredoQueryServiceServer::new(QueryService)
}

pub(crate) struct QueryService;

type QueryResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl LaredoQueryService for QueryService {
    type SubscribeStream = Empty<Result<SubscribeResponse, Status>>;

    async fn lookup(&self, _: Request<LookupRequest>) -> QueryResult<LookupResponse> {
        Err(refusal::no_queries())
    }

    async fn lookup_all(&self, _: Request<LookupAllRequest>) -> QueryResult<LookupAllResponse> {
        Err(refusal::no_queries())
    }

    async fn get_row(&self, _: Request<GetRowRequest>) -> QueryResult<GetRowResponse> {
        Err(refusal::no_queries())
    }

    async fn list_rows(&self, _: Request<ListRowsRequest>) -> QueryResult<ListRowsResponse> {
        Err(refusal::no_queries())
    }

    async fn count_rows(&self, _: Request<CountRowsRequest>) -> QueryResult<CountRowsResponse> {
        Err(refusal::no_queries())
    }

    async fn subscribe(&self, _: Request<SubscribeRequest>) -> QueryResult<Self::SubscribeStream> {
        Err(refusal::no_queries())
    }
}
