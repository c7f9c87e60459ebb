//! `laredo query`: rows of a table by the Query service.

use std::process::ExitCode;

use laredo_core::TableName;
use laredo_proto::oam::laredo_query_service_client::LaredoQueryServiceClient;
use laredo_proto::oam::{CountRowsRequest, ListRowsRequest, LookupAllRequest, LookupRequest};
use prost_types::Struct;
use prost_types::value::Kind;
use serde_json::{Value, json};
use tonic::{Code, Response, Status};

use super::args::QueryArgs;
use super::connect::{ServerChannel, channel};
use super::error::{CliError, OAM_OPTION};
use super::print_output;

/// The number of rows that are requested at once.
const PAGE_SIZE: i32 = 1000;
/// The maximum size of a response in bytes. A row may be large.
const ANSWER_BYTES_MAX: usize = 1 << 30;
/// The whole numbers up to this one are printed without a fraction.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

type QueryServiceClient = LaredoQueryServiceClient<ServerChannel>;

/// Runs the command: asks the server, and prints the rows.
pub(super) async fn run(args: QueryArgs) -> Result<ExitCode, CliError> {
    let client = QueryServiceClient::new(channel(&args.oam, &args.tls, OAM_OPTION).await?);
    let client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
    if args.count {
        let counted = count(&args, client).await?;
        print_output(&format!("{counted}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.values.is_empty() {
        let printed = list(&args, client).await?;
        return Ok(ExitCode::from(u8::from(printed == 0 && !args.conditions.is_empty())));
    }
    let rows = find(&args, client).await?;
    print_rows(&rows)?;
    Ok(ExitCode::from(u8::from(rows.is_empty())))
}

async fn count(args: &QueryArgs, mut client: QueryServiceClient) -> Result<i64, CliError> {
    let (TableName { schema, table }, at_least) = (args.table.clone(), args.at_least.clone());
    let request = CountRowsRequest { schema, table, at_least, wants_position: false };
    Ok(answer(args, client.count_rows(request)).await?.count)
}

async fn find(args: &QueryArgs, mut client: QueryServiceClient) -> Result<Vec<Struct>, CliError> {
    let (TableName { schema, table }, at_least) = (args.table.clone(), args.at_least.clone());
    let value = |text: &String| prost_types::Value { kind: Some(Kind::StringValue(text.clone())) };
    let key_values = args.values.iter().map(value).collect();
    let Some(index_name) = args.index.clone() else {
        let request = LookupRequest { schema, table, key_values, at_least, ..LookupRequest::default() };
        return Ok(answer(args, client.lookup(request)).await?.row.into_iter().collect());
    };
    let request = LookupAllRequest { schema, table, index_name, key_values, at_least, wants_position: false };
    Ok(answer(args, client.lookup_all(request)).await?.rows)
}

/// Prints all rows that meet the conditions, page by page. Returns their number.
async fn list(args: &QueryArgs, mut client: QueryServiceClient) -> Result<usize, CliError> {
    let (mut page_token, mut printed) = (String::new(), 0);
    loop {
        let (TableName { schema, table }, at_least) = (args.table.clone(), args.at_least.clone());
        let request =
            ListRowsRequest { schema, table, page_size: PAGE_SIZE, page_token, at_least, wants_position: false };
        let page = answer(args, client.list_rows(request)).await?;
        let mut rows = Vec::new();
        for row in page.rows {
            if meets(args, &row)? {
                rows.push(row);
            }
        }
        print_rows(&rows)?;
        printed += rows.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(printed);
        }
    }
}

/// Returns true if the row meets all conditions.
///
/// # Errors
/// A condition on a column that the rows do not have.
fn meets(args: &QueryArgs, row: &Struct) -> Result<bool, CliError> {
    for (column, wanted) in &args.conditions {
        let Some(value) = row.fields.get(column) else {
            let columns = row.fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(CliError::NoColumn { table: args.table.clone(), column: column.clone(), columns });
        };
        let text = match value_json(value) {
            Value::String(text) => text,
            value => value.to_string(),
        };
        if text != *wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits for an answer.
async fn answer<T>(args: &QueryArgs, asked: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CliError> {
    let in_time = tokio::time::timeout(args.timeout, asked).await;
    let answered = in_time.map_err(|_| CliError::timeout(&args.oam, args.timeout, OAM_OPTION))?;
    answered.map(Response::into_inner).map_err(|status| {
        let server = args.oam.clone();
        match (status.code(), status.message()) {
            // Another program listens there, or the fan-out port.
            (Code::Unimplemented, "") => CliError::NotOam(server),
            (code, "") => CliError::ServerAnswer { server, reason: code.description().to_owned() },
            (_, reason) => CliError::ServerAnswer { server, reason: reason.to_owned() },
        }
    })
}

fn print_rows(rows: &[Struct]) -> Result<(), CliError> {
    let lines = rows.iter().map(|row| format!("{}\n", row_json(row)));
    print_output(&lines.collect::<String>())
}

fn row_json(row: &Struct) -> Value {
    row.fields.iter().map(|(name, value)| (name.clone(), value_json(value))).collect()
}

fn value_json(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => json!(flag),
        #[expect(clippy::cast_possible_truncation, reason = "the number is whole, and not too large")]
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() <= WHOLE_MAX => {
            json!(*number as i64)
        }
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_json).collect(),
        Some(Kind::StructValue(object)) => row_json(object),
    }
}
