//! Parsing of requests. It has no side effects, and treats its input as hostile.

use std::sync::Arc;

use laredo_core::{DefinitionVersion, Lsn, Schema, ScopedMark, Sequence, SourceIdentity};
use laredo_engine::journal::ResumeRequest;
use laredo_proto::replication::{RowEncoding, SyncRequest};
use laredo_values::{Predicate, Value};
use prost_types::value::Kind;
use tonic::Status;

use crate::access::{RowScope, split_fingerprint};
use crate::refusal;
use crate::view::{ConditionOrigins, StreamFormat};

mod filters;

/// The maximum length of names in requests, in bytes.
const CLIENT_ID_MAX: usize = 1024;

/// A client's request, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionRequest {
    pub(crate) client_id: String,
    pub(crate) format: StreamFormat,
    /// The client's own conditions, and after them those of its grant. Once the stream begins, it
    /// shares one copy with the streams of the same filter, whose order may differ.
    pub(crate) predicates: Arc<[Predicate]>,
    /// The origins of the conditions.
    pub(crate) origins: ConditionOrigins,
    /// The part of the table that the client may read.
    pub(crate) scope: RowScope,
    /// True if the client's rows, if it has any, were selected by this scope.
    pub(crate) continues_scope: bool,
    /// The client's position. The server's own source is filled in later.
    pub(crate) resume: ResumeRequest,
    /// True if a subscriber is sent only changes, and not the rows that exist.
    pub(crate) skips_rows: bool,
    /// True if the client knows laredo's protocol extensions.
    pub(crate) is_ours: bool,
    /// True if heartbeats and the end of a snapshot carry the checksum of the contents.
    pub(crate) wants_checksums: bool,
    /// True if the client discarded its rows because their checksum differed from the server's.
    pub(crate) contents_differed: bool,
    /// True if the client answers checks of its rows.
    pub(crate) answers_checks: bool,
}

impl SessionRequest {
    /// Checks a request of a client that may read a part of the table. Conditions on hidden columns
    /// are checked when the table's columns are known.
    ///
    /// # Errors
    /// Returns an error with the name of the first malformed field. Returns PERMISSION_DENIED for a
    /// condition on a masked column.
    pub(crate) fn new(request: SyncRequest, scope: RowScope) -> Result<SessionRequest, Status> {
        if request.client_id.len() > CLIENT_ID_MAX {
            return Err(refusal::malformed("client_id", format!("it is longer than {CLIENT_ID_MAX} bytes")));
        }
        if request.last_known_sequence < 0 {
            return Err(refusal::malformed("last_known_sequence", "it is negative"));
        }
        let position = match request.last_known_source_position.as_str() {
            "" => None,
            text => Some(text.parse::<Lsn>().map_err(|e| refusal::malformed("last_known_source_position", e))?),
        };
        let is_ours = !request.accept.is_empty() || !request.instance_id.is_empty() || request.source.is_some();
        let encoding = encoding(&request.accept)?;
        // The limits are for the client's own conditions. Those of its grant are the operator's.
        let mut predicates = filters::predicates(request.filters)?;
        for Predicate { field, .. } in &predicates {
            // The condition would reveal the values.
            if !scope.columns.hides(field) && scope.columns.mask_of(field).is_some() {
                return Err(refusal::masked_column(field));
            }
        }
        let origins = ConditionOrigins::new(predicates.len(), scope.predicates.len());
        predicates.extend(scope.predicates.iter().cloned());
        let (instance, instance_scope) = split_fingerprint(&request.instance_id);
        let (snapshot_id, snapshot_scope) = split_fingerprint(&request.last_snapshot_id);
        let sent = [(&instance, &instance_scope), (&snapshot_id, &snapshot_scope)];
        let continues_scope = continues(&scope, sent, position.is_some());
        let resume = ResumeRequest {
            instance,
            sequence: Sequence::from_wire(request.last_known_sequence),
            snapshot_id,
            position,
            mark: request.mark.map(ScopedMark::from).unwrap_or_default(),
            source: request.source.map(SourceIdentity::from),
            definition: DefinitionVersion(request.definition),
            whole_transactions: encoding == RowEncoding::PostgresBinary,
            // The server's own knowledge is filled in when the stream begins.
            ..ResumeRequest::default()
        };
        // Checksums are of whole and unfiltered binary rows, so only a client that receives those
        // can use them.
        let is_whole = predicates.is_empty() && scope.is_whole();
        let wants_checksums = request.wants_checksums && encoding == RowEncoding::PostgresBinary && is_whole;
        let contents_differed = request.contents_differed;
        Ok(SessionRequest {
            client_id: request.client_id,
            format: encoding.into(),
            predicates: predicates.into(),
            origins,
            scope,
            continues_scope,
            resume,
            skips_rows: false,
            is_ours,
            wants_checksums,
            contents_differed,
            answers_checks: request.answers_checks,
        })
    }

    /// Returns the request of a subscriber that may read a part of the table. A subscriber has no
    /// position: its stream begins with the rows that exist, or with the next transaction.
    pub(crate) fn subscription(scope: RowScope, replays_rows: bool) -> SessionRequest {
        SessionRequest {
            client_id: String::new(),
            format: StreamFormat::Events,
            predicates: scope.predicates.clone().into(),
            origins: ConditionOrigins::new(0, scope.predicates.len()),
            scope,
            continues_scope: true,
            resume: ResumeRequest::default(),
            skips_rows: !replays_rows,
            is_ours: false,
            wants_checksums: false,
            contents_differed: false,
            answers_checks: false,
        }
    }

    /// Checks that the client's own conditions are on columns that its grant shows, if the grant
    /// hides any. Must be called before the conditions are bound to the columns or shared.
    ///
    /// # Errors
    /// PERMISSION_DENIED for a column that is hidden, or that the table does not have.
    pub(crate) fn check_filters(&self, schema: &Schema) -> Result<(), Status> {
        if self.scope.columns.hidden().is_empty() {
            return Ok(());
        }
        let is_shown = |field: &str| {
            !self.scope.columns.hides(field) && schema.columns().iter().any(|column| column.name == field)
        };
        let own = self.predicates.iter().enumerate().filter(|(index, _)| self.origins.own_index(*index).is_some());
        match own.map(|(_, predicate)| &predicate.field).find(|field| !is_shown(field)) {
            Some(field) => Err(refusal::unshown_column(field)),
            None => Ok(()),
        }
    }

    /// Replaces the conditions by the copy that all streams of the same filter share.
    pub(crate) fn share_conditions(&mut self, shared: &Arc<[Predicate]>) {
        self.origins = self.origins.in_order_of(&self.predicates, shared);
        self.predicates = shared.clone();
    }

    /// Returns the reason why this client's rows cannot be compared with the server's on request,
    /// if there is one.
    pub(crate) fn comparison_obstacle(&self) -> Option<&'static str> {
        match (self.format, self.predicates.is_empty()) {
            (StreamFormat::Structs | StreamFormat::Events, _) => {
                Some("it reads rows as Structs, which have no checksum")
            }
            (StreamFormat::Batches, _) if !self.scope.is_whole() => {
                Some("its grant is for a part of the table, and such a stream has no checksum")
            }
            (StreamFormat::Batches, false) => Some("it has filters of its own, and such a stream has no checksum"),
            (StreamFormat::Batches, true) if !(self.wants_checksums && self.answers_checks) => {
                Some("its version of the library does not answer checks")
            }
            (StreamFormat::Batches, true) => None,
        }
    }
}

/// Returns true if a client's rows were selected by the scope, according to the names that it sent
/// back with their fingerprints.
///
/// Under access rules, the rows of a client that has a position and names nothing may be of any
/// scope. A client without either has no rows.
fn continues(scope: &RowScope, sent: [(&String, &String); 2], has_position: bool) -> bool {
    let (mut named, fingerprint) = (sent.into_iter().filter(|(id, _)| !id.is_empty()).peekable(), scope.fingerprint());
    match named.peek() {
        None => !(scope.is_ruled && has_position),
        Some(_) => named.all(|(_, sent)| *sent == fingerprint),
    }
}

/// Returns the first encoding in the list that this server supports, or Structs if the list is
/// empty.
fn encoding(accept: &[i32]) -> Result<RowEncoding, Status> {
    if accept.is_empty() {
        return Ok(RowEncoding::Struct);
    }
    let known = accept.iter().find_map(|number| RowEncoding::try_from(*number).ok());
    known.ok_or_else(|| refusal::malformed("accept", "it names no row encoding that this server can send"))
}

/// Converts a value. Returns `None` for one without a kind, which is an error in protobuf.
pub(crate) fn value(value: prost_types::Value) -> Option<Value> {
    Some(match value.kind? {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(value) => Value::Bool(value),
        Kind::NumberValue(value) => Value::Number(value),
        Kind::StringValue(value) => Value::String(value),
        Kind::ListValue(list) => Value::List(list.values.into_iter().map(self::value).collect::<Option<_>>()?),
        Kind::StructValue(object) => {
            let field = |(name, v): (String, prost_types::Value)| Some((name, self::value(v)?));
            Value::Object(object.fields.into_iter().map(field).collect::<Option<_>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use laredo_core::{Column, KeyColumns};
    use laredo_engine::{CellReplacement, ValueMask};
    use laredo_proto::replication::{FieldPredicate, field_predicate};
    use laredo_values::MatchCondition;

    use super::*;
    use crate::view::ColumnRules;

    fn refused(request: SyncRequest) -> String {
        let status = SessionRequest::new(request, RowScope::default()).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    }

    fn filter(field: &str, r#match: Option<field_predicate::Match>) -> SyncRequest {
        let field = field.to_owned();
        SyncRequest { filters: vec![FieldPredicate { field, r#match }], ..SyncRequest::default() }
    }

    #[test]
    fn what_is_malformed_is_named() {
        let position = SyncRequest { last_known_source_position: "16-B3".to_owned(), ..SyncRequest::default() };
        assert!(refused(position).contains("`last_known_source_position`"));
        let sequence = SyncRequest { last_known_sequence: -1, ..SyncRequest::default() };
        assert!(refused(sequence).contains("`last_known_sequence`"));
        assert!(refused(SyncRequest { accept: vec![77], ..SyncRequest::default() }).contains("`accept`"));
        let client_id = "x".repeat(CLIENT_ID_MAX + 1);
        assert!(refused(SyncRequest { client_id, ..SyncRequest::default() }).contains("`client_id`"));
        assert!(refused(filter("", None)).contains("`filters[0].field`"));
        assert!(refused(filter("a", None)).contains("`filters[0].match`"));
        let empty = field_predicate::Match::Equals(prost_types::Value { kind: None });
        assert!(refused(filter("a", Some(empty))).contains("`filters[0].equals`"));
    }

    #[test]
    fn the_first_encoding_that_is_known_is_taken() {
        let encoding_of = |accept: Vec<i32>| whole(SyncRequest { accept, ..SyncRequest::default() }).format;
        assert_eq!(encoding_of(vec![]), StreamFormat::Structs);
        assert_eq!(encoding_of(vec![99, 1, 0]), StreamFormat::Batches);
        assert_eq!(encoding_of(vec![0, 1]), StreamFormat::Structs);
    }

    #[test]
    fn rows_are_compared_where_the_stream_has_a_checksum_and_the_client_answers() {
        let asked = SyncRequest {
            accept: vec![RowEncoding::PostgresBinary.into()],
            wants_checksums: true,
            answers_checks: true,
            ..SyncRequest::default()
        };
        let obstacle = |request: SyncRequest| whole(request).comparison_obstacle().unwrap_or_default();
        assert_eq!(obstacle(asked.clone()), "");
        assert!(obstacle(SyncRequest { accept: vec![], ..asked.clone() }).contains("Structs"));
        let prefix = Some(field_predicate::Match::Prefix("b".to_owned()));
        assert!(obstacle(SyncRequest { filters: filter("a", prefix).filters, ..asked.clone() }).contains("filters"));
        assert!(obstacle(SyncRequest { answers_checks: false, ..asked.clone() }).contains("version"));
        assert!(obstacle(SyncRequest { wants_checksums: false, ..asked }).contains("version"));
    }

    #[test]
    fn only_who_asks_gets_the_extensions() {
        assert!(!whole(SyncRequest::default()).is_ours);
        let instance_id = "a".to_owned();
        assert!(whole(SyncRequest { instance_id, ..SyncRequest::default() }).is_ours);
    }

    fn mask(text: &str) -> CellReplacement {
        CellReplacement::Mask(ValueMask::Fixed(text.to_owned()))
    }

    /// Returns the scope of one tenant, without one column and with a mask of another.
    fn of_tenant(tenant: &str) -> RowScope {
        let test = MatchCondition::Equals(Value::String(tenant.to_owned()));
        RowScope {
            predicates: vec![Predicate { field: "tenant_id".to_owned(), test }],
            columns: ColumnRules::new(vec!["secret".to_owned()], vec![("phone".to_owned(), mask("***"))]),
            is_ruled: true,
        }
    }

    #[test]
    fn a_filter_on_a_hidden_column_is_refused_like_one_on_an_unknown_column() {
        let column = |name: &str| Column {
            name: name.to_owned(),
            type_oid: 25,
            type_modifier: -1,
            type_name: "text".to_owned(),
            not_null: false,
            is_text: false,
        };
        let columns = ["tenant_id", "name", "secret"].map(column).to_vec();
        let schema = Schema::new(columns, KeyColumns::new([0]), Default::default());
        let check = |name: &str, scope: RowScope| {
            let prefix = Some(field_predicate::Match::Prefix("x".to_owned()));
            let checked = SessionRequest::new(filter(name, prefix), scope).unwrap().check_filters(&schema);
            checked.map_err(|refused| (refused.code(), refused.message().replace(name, "NAME")))
        };
        let hidden = check("secret", of_tenant("a")).unwrap_err();
        assert_eq!(hidden.0, tonic::Code::PermissionDenied);
        assert_eq!(check("unknown", of_tenant("a")).unwrap_err(), hidden);
        assert_eq!(check("name", of_tenant("a")), Ok(()));
        assert_eq!(check("tenant_id", of_tenant("a")), Ok(()));
        assert_eq!(check("unknown", RowScope::default()), Ok(()), "nothing is hidden");
    }

    #[test]
    fn the_conditions_of_a_grant_are_added_to_those_of_the_client() {
        let equals = Some(field_predicate::Match::Prefix("x".to_owned()));
        let request = SessionRequest::new(filter("name", equals.clone()), of_tenant("a")).unwrap();
        let fields: Vec<&str> = request.predicates.iter().map(|predicate| predicate.field.as_str()).collect();
        assert_eq!(fields, ["name", "tenant_id"]);
        let refused = SessionRequest::new(filter("phone", equals), of_tenant("a")).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("masks column `phone`"), "{refused}");
        let checked = SyncRequest {
            accept: vec![RowEncoding::PostgresBinary.into()],
            wants_checksums: true,
            answers_checks: true,
            ..SyncRequest::default()
        };
        let granted = RowScope { predicates: vec![of_tenant("a").predicates[0].clone(); 40], ..of_tenant("a") };
        let request = SessionRequest::new(SyncRequest::default(), granted).unwrap();
        assert_eq!(request.predicates.len(), 40, "the limits of a filter are for the client's own conditions");
        let only_columns = RowScope { predicates: Vec::new(), ..of_tenant("a") };
        let masked = ColumnRules::new(Vec::new(), vec![("phone".to_owned(), mask("***"))]);
        let only_masked = RowScope { columns: masked, ..only_columns.clone() };
        for scope in [of_tenant("a"), only_columns, only_masked] {
            let request = SessionRequest::new(checked.clone(), scope).unwrap();
            assert!(!request.wants_checksums && request.comparison_obstacle().unwrap().contains("grant"));
        }
    }

    #[test]
    fn only_rows_of_the_same_scope_are_continued() {
        let journal = laredo_engine::journal::InstanceId("abc.1".to_owned());
        let ruled = RowScope { is_ruled: true, ..RowScope::default() };
        let masked = |text: &str| RowScope {
            columns: ColumnRules::new(Vec::new(), vec![("phone".to_owned(), mask(text))]),
            ..RowScope { is_ruled: true, ..RowScope::default() }
        };
        let scopes =
            [RowScope::default(), ruled, of_tenant("a"), of_tenant("b"), masked("***"), masked("another mask")];
        for (i, held) in scopes.iter().enumerate() {
            for (j, now) in scopes.iter().enumerate() {
                let instance_id = held.name_instance(&journal).0;
                let last_snapshot_id = held.name_instance(&journal).snapshot_id(Sequence(7));
                let by_instance = SyncRequest { instance_id: instance_id.clone(), ..SyncRequest::default() };
                let by_snapshot = SyncRequest { last_snapshot_id: last_snapshot_id.clone(), ..SyncRequest::default() };
                let by_both = SyncRequest { instance_id, last_snapshot_id, ..SyncRequest::default() };
                for request in [by_instance, by_snapshot, by_both] {
                    let request = SessionRequest::new(request, now.clone()).unwrap();
                    assert_eq!(request.continues_scope, i.max(1) == j.max(1), "{held:?} {now:?}");
                    let resume = &request.resume;
                    let own = [resume.instance.as_str(), resume.snapshot_id.as_str()];
                    assert!(own.iter().all(|id| ["", "abc.1", "abc.1-7"].contains(id)), "{own:?}");
                }
            }
        }
        let mixed = SyncRequest {
            instance_id: of_tenant("a").name_instance(&journal).0,
            last_snapshot_id: of_tenant("b").name_instance(&journal).snapshot_id(Sequence(7)),
            ..SyncRequest::default()
        };
        assert!(!SessionRequest::new(mixed, of_tenant("a")).unwrap().continues_scope);
        let unnamed = SyncRequest { last_known_source_position: "0/1".to_owned(), ..SyncRequest::default() };
        let continues = |scope: &RowScope| SessionRequest::new(unnamed.clone(), scope.clone()).unwrap().continues_scope;
        assert_eq!(scopes.each_ref().map(continues), [true, false, false, false, false, false]);
        let fresh = scopes.iter().map(|scope| SessionRequest::new(SyncRequest::default(), scope.clone()).unwrap());
        assert!(fresh.into_iter().all(|request| request.continues_scope), "a client without rows begins as ever");
    }

    fn whole(request: SyncRequest) -> SessionRequest {
        SessionRequest::new(request, RowScope::default()).unwrap()
    }
}
