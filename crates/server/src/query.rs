//! The Query service: rows of tables for callers that ask rather than follow.
//!
//! A call is answered from one state of the rows (`query_state`), under the caller's grant. A row
//! that the grant does not select is treated as if it did not exist.

mod pages;
mod subscribe;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::Empty;
use http::Extensions;
use laredo_core::{Lsn, Tuple, TupleBuf};
use laredo_proto::oam::laredo_query_service_server::{LaredoQueryService, LaredoQueryServiceServer};
use laredo_proto::oam::*;
use laredo_values::Value;
use prost::Message as _;
use prost_types::Struct;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tower::Service;

use crate::access::{Caller, RowScope, admitted};
use crate::query_state::{KeyedRows, ListingOwner, LookupProblem, QueryMethod, QueryState, QueryTable};
use crate::refusal;
use crate::request;
use crate::server_state::ServerState;
use crate::table::ServedTable;
use crate::view::{ConditionOrigins, RowSelection, row_struct};

use pages::{PageToken, RowPage};

/// The maximum size in bytes of the rows of one response. Most clients accept messages of 4 MiB.
const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;
/// The whole numbers up to this one are doubles of the same value.
const DOUBLE_MAX: u64 = 1 << 53;

/// The path of the method whose messages are already encoded.
const SUBSCRIBE_PATH: &str = "/laredo.v1.LaredoQueryService/Subscribe";

/// The Query service, over gRPC.
#[derive(Clone)]
pub(crate) struct QueryService {
    shared: Arc<ServerState>,
    unary: LaredoQueryServiceServer<QueryMethods>,
}

impl NamedService for QueryService {
    const NAME: &'static str = <LaredoQueryServiceServer<QueryMethods> as NamedService>::NAME;
}

/// Returns the service.
pub(crate) fn service(shared: Arc<ServerState>) -> QueryService {
    let unary = LaredoQueryServiceServer::new(QueryMethods { shared: shared.clone() });
    QueryService { shared, unary }
}

type QueryResponseFuture = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for QueryService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = QueryResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> QueryResponseFuture {
        if request.uri().path() != SUBSCRIBE_PATH {
            return self.unary.call(request);
        }
        let shared = self.shared.clone();
        Box::pin(async move { Ok(subscribe::subscribe(shared, request).await.unwrap_or_else(Status::into_http)) })
    }
}

/// The methods of one response each.
pub(crate) struct QueryMethods {
    shared: Arc<ServerState>,
}

/// A call that may be answered.
struct QueryCall {
    shared: Arc<ServerState>,
    table: Arc<ServedTable>,
    caller: Caller,
    scope: RowScope,
}

/// The rows of one state that the caller may read.
#[derive(Clone)]
struct VisibleRows {
    table: Arc<ServedTable>,
    state: Arc<QueryState>,
    selection: Arc<RowSelection>,
    origins: ConditionOrigins,
}

type QueryResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl LaredoQueryService for QueryMethods {
    type SubscribeStream = Empty<Result<SubscribeResponse, Status>>;

    async fn lookup(&self, request: Request<LookupRequest>) -> QueryResult<LookupResponse> {
        let (call, request) = self.begin(request, QueryMethod::Lookup, |r| (&r.schema, &r.table))?;
        let rows = call.visible(call.state(&request.at_least).await?)?;
        let index = call.index(&rows.state, &request.index_name, true)?;
        let values = values("key_values", request.key_values)?;
        let mut found = index.find(&values).map_err(|problem| not_found_by("key_values", &problem))?;
        let row = rows.next_shown(&mut found)?;
        if row.is_some() && rows.next_shown(&mut found)?.is_some() {
            return Err(refusal::several_rows(&request.index_name));
        }
        let source_position = rows.position(request.wants_position);
        Ok(Response::new(LookupResponse { found: row.is_some(), row, source_position }))
    }

    async fn lookup_all(&self, request: Request<LookupAllRequest>) -> QueryResult<LookupAllResponse> {
        let (call, request) = self.begin(request, QueryMethod::LookupAll, |r| (&r.schema, &r.table))?;
        let rows = call.visible(call.state(&request.at_least).await?)?;
        let index = call.index(&rows.state, &request.index_name, false)?.clone();
        let values = values("key_values", request.key_values)?;
        let source_position = rows.position(request.wants_position);
        let all = call.shared.project(move || all_rows(&rows, &index, &values)).await??;
        Ok(Response::new(LookupAllResponse { rows: all, source_position }))
    }

    async fn get_row(&self, request: Request<GetRowRequest>) -> QueryResult<GetRowResponse> {
        let (call, request) = self.begin(request, QueryMethod::GetRow, |r| (&r.schema, &r.table))?;
        let rows = call.visible(call.state(&request.at_least).await?)?;
        let (field, values) = match request.key_values.is_empty() {
            true => ("primary_key", vec![whole_number(request.primary_key)]),
            false => ("key_values", values("key_values", request.key_values)?),
        };
        let mut found = rows.state.rows.primary().find(&values).map_err(|problem| not_found_by(field, &problem))?;
        let row = rows.next_shown(&mut found)?;
        let source_position = rows.position(request.wants_position);
        Ok(Response::new(GetRowResponse { found: row.is_some(), row, source_position }))
    }

    async fn list_rows(&self, request: Request<ListRowsRequest>) -> QueryResult<ListRowsResponse> {
        let (call, request) = self.begin(request, QueryMethod::ListRows, |r| (&r.schema, &r.table))?;
        let size = pages::page_size(request.page_size)?;
        let newest = call.state(&request.at_least).await?;
        let owner = ListingOwner { group: call.caller.group(), scope: call.scope.clone() };
        let (state, token, total) = match request.page_token.as_str() {
            "" => (newest, None, None),
            text => {
                let token = PageToken::parse(text)?;
                let pinned = call.query()?.find_listing(token.listing, &owner);
                let (state, total) = pinned.ok_or_else(|| refusal::listing_over(call.table.name()))?;
                if !state.has_reached(position_of(&request.at_least)?) {
                    return Err(refusal::listing_older(call.table.name(), state.position, &request.at_least));
                }
                (state, Some(token), Some(total))
            }
        };
        let rows = call.visible(state)?;
        let listed = rows.clone();
        let after = token.as_ref().map(|token| token.after.clone());
        let read = move || -> Result<(RowPage, u64), Status> {
            let page = RowPage::read(&listed, after.as_deref(), size)?;
            Ok((page, total.unwrap_or_else(|| listed.count())))
        };
        let (page, total) = call.shared.project(read).await??;
        let next_page_token = match (page.next_after, token) {
            (None, _) => String::new(),
            (Some(after), Some(PageToken { listing, .. })) => PageToken { listing, after }.to_text()?,
            (Some(after), None) => {
                let listing = call.query()?.begin_listing(owner, rows.state.clone(), total);
                PageToken { listing, after }.to_text()?
            }
        };
        let (total_count, source_position) = (count(total), rows.position(request.wants_position));
        Ok(Response::new(ListRowsResponse { rows: page.rows, next_page_token, total_count, source_position }))
    }

    async fn count_rows(&self, request: Request<CountRowsRequest>) -> QueryResult<CountRowsResponse> {
        let (call, request) = self.begin(request, QueryMethod::CountRows, |r| (&r.schema, &r.table))?;
        let rows = call.visible(call.state(&request.at_least).await?)?;
        let source_position = rows.position(request.wants_position);
        let counted = match rows.selection.filter().is_none() {
            true => rows.count(),
            false => call.shared.project(move || rows.count()).await?,
        };
        Ok(Response::new(CountRowsResponse { count: count(counted), source_position }))
    }

    async fn subscribe(&self, _: Request<SubscribeRequest>) -> QueryResult<Self::SubscribeStream> {
        Err(Status::unimplemented("Subscribe is served on the raw frames, not here"))
    }
}

/// Returns the position that a request asks for; zero if it asks for none.
fn position_of(at_least: &str) -> Result<Lsn, Status> {
    match at_least {
        "" => Ok(Lsn::ZERO),
        text => text.parse().map_err(|error| refusal::malformed("at_least", error)),
    }
}

impl QueryMethods {
    fn begin<T>(
        &self,
        request: Request<T>,
        method: QueryMethod,
        name: impl FnOnce(&T) -> (&String, &String),
    ) -> Result<(QueryCall, T), Status> {
        let call = {
            let (schema, table) = name(request.get_ref());
            QueryCall::begin(&self.shared, request.extensions(), method, (schema, table))?
        };
        Ok((call, request.into_inner()))
    }
}

impl QueryCall {
    /// Checks that the caller may read the table, and that the table answers queries.
    fn begin(
        shared: &Arc<ServerState>,
        extensions: &Extensions,
        method: QueryMethod,
        (schema, table): (&str, &str),
    ) -> Result<QueryCall, Status> {
        let caller = admitted(extensions)?;
        let (table, scope) = shared.readable_table(&caller, schema, table)?;
        let call = QueryCall { shared: shared.clone(), table, caller, scope };
        call.query()?.count_request(method);
        Ok(call)
    }

    fn query(&self) -> Result<&QueryTable, Status> {
        self.table.query().ok_or_else(|| refusal::no_queries(self.table.name()))
    }

    /// Waits for a state at a position, or for any state, and returns it.
    async fn state(&self, at_least: &str) -> Result<Arc<QueryState>, Status> {
        let (query, name, position) = (self.query()?, self.table.name(), position_of(at_least)?);
        if let Some(error) = self.table.failure() {
            return Err(refusal::failed(name, &error, self.scope.is_whole()));
        }
        let within = self.shared.waits.ready;
        tokio::select! {
            biased;
            () = self.shared.streams_ended() => Err(refusal::stopping()),
            reached = query.reach(position, within) => reached.map_err(|there| match there {
                Some(there) => refusal::not_reached(name, position, there.position, within),
                None => refusal::not_ready(self.table.handle(), self.scope.is_whole()),
            }),
        }
    }

    /// Returns the rows of a state that the caller may read.
    fn visible(&self, state: Arc<QueryState>) -> Result<VisibleRows, Status> {
        let RowScope { predicates, columns, .. } = &self.scope;
        let origins = ConditionOrigins::new(0, predicates.len());
        let selection = RowSelection::bind(predicates, columns, state.rows.schema());
        let selection = Arc::new(selection.map_err(|error| refusal::view(&error, &origins))?);
        Ok(VisibleRows { table: self.table.clone(), state, selection, origins })
    }

    /// Returns the rows by an index, or by the table's key if the name is empty. An index with a
    /// hidden column is unknown, and the values of a masked column cannot be tried out.
    fn index<'a>(&self, state: &'a QueryState, name: &str, is_for_one: bool) -> Result<&'a KeyedRows, Status> {
        if name.is_empty() {
            return Ok(state.rows.primary());
        }
        let columns = &self.scope.columns;
        let shown = |index: &&crate::query_state::QueryIndex| !index.options.fields.iter().any(|f| columns.hides(f));
        let Some(index) = state.rows.index(name).filter(shown) else {
            let known = state.rows.indexes().iter().filter(shown).map(|index| index.options.name.as_str());
            return Err(refusal::unknown_index(self.table.name(), name, &known.collect::<Vec<_>>()));
        };
        if let Some(field) = index.options.fields.iter().find(|field| columns.mask_of(field).is_some()) {
            return Err(refusal::masked_index(name, field));
        }
        if is_for_one && !index.options.unique {
            return Err(refusal::ambiguous_index(name));
        }
        index.rows.as_ref().map_err(|problem| refusal::unusable_index(self.table.name(), name, problem))
    }
}

impl VisibleRows {
    /// Returns a row as the caller may read it, or `None` if it may not.
    fn show(&self, row: &Tuple, scratch: &mut TupleBuf) -> Result<Option<Struct>, Status> {
        if !self.selection.matches(row.as_ref()) {
            return Ok(None);
        }
        let shown = self.selection.show(row.as_ref(), scratch);
        let row = row_struct(self.selection.schema(), shown, self.table.views().hex_cells());
        row.map(Some).map_err(|error| refusal::view(&error, &self.origins))
    }

    /// Returns the next row that the caller may read.
    fn next_shown<'a>(&self, rows: &mut impl Iterator<Item = &'a Tuple>) -> Result<Option<Struct>, Status> {
        let mut scratch = TupleBuf::new();
        for row in rows {
            if let Some(shown) = self.show(row, &mut scratch)? {
                return Ok(Some(shown));
            }
        }
        Ok(None)
    }

    /// Returns the number of rows that the caller may read. Takes long if it has conditions.
    fn count(&self) -> u64 {
        let rows = &self.state.rows;
        let counted = match self.selection.filter() {
            None => rows.len(),
            Some(filter) => rows.primary().iter().filter(|row| filter.matches(row.as_ref())).count(),
        };
        counted as u64
    }

    /// Returns the position of the state, if the request wants it.
    fn position(&self, is_wanted: bool) -> String {
        if is_wanted { self.state.position.to_string() } else { String::new() }
    }
}

fn all_rows(rows: &VisibleRows, index: &KeyedRows, values: &[Value]) -> Result<Vec<Struct>, Status> {
    let (mut all, mut bytes, mut scratch) = (Vec::new(), 0, TupleBuf::new());
    for row in index.find(values).map_err(|problem| not_found_by("key_values", &problem))? {
        if let Some(shown) = rows.show(row, &mut scratch)? {
            bytes += shown.encoded_len();
            if bytes > RESPONSE_BYTES_MAX && !all.is_empty() {
                return Err(refusal::too_many_rows(RESPONSE_BYTES_MAX));
            }
            all.push(shown);
        }
    }
    Ok(all)
}

/// Converts the values of a key.
fn values(field: &str, values: Vec<prost_types::Value>) -> Result<Vec<Value>, Status> {
    let value = |(index, value)| {
        request::value(value).ok_or_else(|| refusal::malformed(&format!("{field}[{index}]"), "it has no value"))
    };
    values.into_iter().enumerate().map(value).collect()
}

/// Returns a whole number as a value. A number that no double has is its digits.
#[expect(clippy::cast_precision_loss, reason = "the number is a double")]
fn whole_number(number: i64) -> Value {
    match number.unsigned_abs() <= DOUBLE_MAX {
        true => Value::Number(number as f64),
        false => Value::String(number.to_string()),
    }
}

/// Returns the error for a key that the table cannot have.
fn not_found_by(field: &str, problem: &LookupProblem) -> Status {
    use laredo_values::LookupValueError;
    match problem {
        LookupProblem::Incomparable(reason) => refusal::incomparable_key(reason),
        LookupProblem::Value(LookupValueError::Value { index, .. }) if field == "key_values" => {
            refusal::malformed(&format!("{field}[{index}]"), problem)
        }
        LookupProblem::Value(_) if field == "primary_key" => {
            refusal::malformed(field, format!("{problem}; give the values of the key in `key_values`"))
        }
        LookupProblem::Value(_) => refusal::malformed(field, problem),
    }
}

fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
