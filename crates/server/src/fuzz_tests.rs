//! The fuzz target of the request that opens a stream.

mod sync_requests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use http_body_util::Full;
    use laredo_core::{Cell, Column, KeyColumns, Schema, TupleBuf};
    use laredo_fuzz::{FuzzTarget, outcome};
    use laredo_proto::frame;
    use laredo_proto::replication::{FieldPredicate, SyncRequest, field_predicate};
    use prost::Message;
    use prost_types::{ListValue, Value, value::Kind};

    use crate::access::RowScope;
    use crate::peer::ClientGroup;
    use crate::receive::{BodyLimits, RequestMemory, opening};
    use crate::request::SessionRequest;
    use crate::view::{ColumnRules, RowSelection};

    const COLUMNS: [(&str, u32, &str); 6] = [
        ("id", 20, "bigint"),
        ("name", 25, "text"),
        ("data", 3802, "jsonb"),
        ("tags", 1007, "integer[]"),
        ("at", 1184, "timestamp with time zone"),
        ("span", 3904, "int4range"),
    ];

    fn schema() -> Arc<Schema> {
        let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            type_name: type_name.to_owned(),
            not_null: false,
            is_text: false,
        };
        Arc::new(Schema::new(COLUMNS.map(column).to_vec(), KeyColumns::new([0]), Default::default()))
    }

    fn row() -> TupleBuf {
        let cells: [&[u8]; 6] = [
            &7_i64.to_be_bytes(),
            b"name",
            b"\x01{\"a\": 1}",
            &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7],
            &7_i64.to_be_bytes(),
            &[1],
        ];
        cells.map(Cell::Value).into_iter().collect()
    }

    fn text(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    fn seeds() -> Vec<Vec<u8>> {
        let on = |field: &str, operand| FieldPredicate { field: field.to_owned(), r#match: Some(operand) };
        let list = vec![text("7"), Value { kind: Some(Kind::NumberValue(7.0)) }];
        let filters = vec![
            on("id", field_predicate::Match::In(ListValue { values: list.clone() })),
            on("name", field_predicate::Match::Prefix("na".to_owned())),
            on("at", field_predicate::Match::Equals(text("2000-01-01T00:00:00.000007Z"))),
            on(
                "tags",
                field_predicate::Match::Equals(Value { kind: Some(Kind::ListValue(ListValue { values: list })) }),
            ),
            on("span", field_predicate::Match::Equals(text("empty"))),
        ];
        let request = SyncRequest {
            schema: "public".to_owned(),
            table: "t".to_owned(),
            client_id: "c".to_owned(),
            accept: vec![1],
            last_known_source_position: "0/16B374D8".to_owned(),
            instance_id: "j.1".to_owned(),
            last_snapshot_id: "j.1-7".to_owned(),
            filters,
            wants_checksums: true,
            ..SyncRequest::default()
        };
        let whole = frame::to_bytes(&request).to_vec();
        // A client of version 0.4 wraps its request, and sends acknowledgements after it.
        let inner = request.encode_to_vec();
        let mut wrapped = vec![10];
        prost::encoding::encode_varint(inner.len() as u64, &mut wrapped);
        wrapped.extend_from_slice(&inner);
        let mut open = Vec::new();
        frame::prefix(wrapped.len(), &mut open);
        open.extend_from_slice(&wrapped);
        frame::prefix(3, &mut open);
        open.extend_from_slice(&[18, 1, b'x']);
        vec![whole, open]
    }

    /// Reads a request, checks it, and binds its filters to a table. A grant never widens.
    #[test]
    fn any_request_is_refused_or_selects_rows_within_its_grant() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (schema, row) = (schema(), row());
        let columns = ColumnRules::new(vec!["name".to_owned()], Vec::new());
        let hidden = RowScope { columns, is_ruled: true, ..RowScope::default() };
        let limits = BodyLimits::new(Duration::from_secs(10), RequestMemory::default(), ClientGroup::default());
        FuzzTarget::new("sync_requests", seeds()).run(|input| {
            let body = Full::new(Bytes::copy_from_slice(input));
            let opened = runtime.block_on(opening(body, &limits)).map_err(outcome)?;
            let names_hidden = opened.request.filters.iter().any(|filter| filter.field == "name");
            if let Ok(granted) = SessionRequest::new(opened.request.clone(), hidden.clone()) {
                let is_refused = granted.check_filters(&schema).is_err();
                assert!(!names_hidden || is_refused, "a condition would reveal a hidden column");
                assert!(!granted.wants_checksums, "a part of a table has no checksum");
            }
            let request = SessionRequest::new(opened.request, RowScope::default()).map_err(outcome)?;
            let selection =
                RowSelection::bind(&request.predicates, &ColumnRules::default(), &schema).map_err(outcome)?;
            let is_old = opened.acknowledgements.is_some();
            Ok(u64::from(selection.matches(row.as_ref())) + 2 * u64::from(is_old) + 4 * request.predicates.len() as u64)
        });
    }
}
