//! Parsing of requests. It has no side effects, and treats its input as hostile.

use std::sync::Arc;

use laredo_core::{DefinitionVersion, Lsn, Sequence};
use laredo_engine::ScopedMark;
use laredo_engine::journal::ResumeRequest;
use laredo_engine::source::SourceIdentity;
use laredo_proto::replication::{self as wire, RowEncoding, SyncRequest};
use laredo_values::{Predicate, Value};
use prost_types::value::Kind;
use tonic::Status;

use crate::refusal;

mod filters;

/// The maximum length of names in requests, in bytes.
const CLIENT_ID_MAX: usize = 1024;

/// A client's request, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionRequest {
    pub(crate) client_id: String,
    pub(crate) encoding: RowEncoding,
    /// The filter. The streams with the same filter share one copy of it.
    pub(crate) predicates: Arc<[Predicate]>,
    /// The client's position. The server's own source is filled in later.
    pub(crate) resume: ResumeRequest,
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
    /// Checks a request.
    ///
    /// # Errors
    /// Returns an error with the name of the first malformed field.
    pub(crate) fn new(request: SyncRequest) -> Result<SessionRequest, Status> {
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
        let predicates = filters::predicates(request.filters)?;
        let resume = ResumeRequest {
            instance: request.instance_id,
            sequence: Sequence::from_wire(request.last_known_sequence),
            snapshot_id: request.last_snapshot_id,
            position,
            mark: request.mark.map(ScopedMark::from).unwrap_or_default(),
            source: request.source.map(identity_from_wire),
            definition: DefinitionVersion(request.definition),
            whole_transactions: encoding == RowEncoding::PostgresBinary,
            // The server's own knowledge is filled in when the stream begins.
            ..ResumeRequest::default()
        };
        // Checksums are of unfiltered binary rows, so only a client that receives those can use
        // them.
        let wants_checksums =
            request.wants_checksums && encoding == RowEncoding::PostgresBinary && predicates.is_empty();
        let contents_differed = request.contents_differed;
        Ok(SessionRequest {
            client_id: request.client_id,
            encoding,
            predicates,
            resume,
            is_ours,
            wants_checksums,
            contents_differed,
            answers_checks: request.answers_checks,
        })
    }

    /// Returns the reason why this client's rows cannot be compared with the server's on request,
    /// if there is one.
    pub(crate) fn comparison_obstacle(&self) -> Option<&'static str> {
        match (self.encoding, self.predicates.is_empty()) {
            (RowEncoding::Struct, _) => Some("it reads rows as Structs, which have no checksum"),
            (RowEncoding::PostgresBinary, false) => {
                Some("it has filters of its own, and such a stream has no checksum")
            }
            (RowEncoding::PostgresBinary, true) if !(self.wants_checksums && self.answers_checks) => {
                Some("its version of the library does not answer checks")
            }
            (RowEncoding::PostgresBinary, true) => None,
        }
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

fn identity_from_wire(source: wire::SourceIdentity) -> SourceIdentity {
    SourceIdentity {
        system_identifier: source.system_identifier,
        database: source.database,
        timeline: source.timeline,
        history: source.history.iter().map(|s| (s.timeline, Lsn(s.switched_at))).collect(),
        // Only a source itself knows the other fields, and clients are not asked for them.
        ..SourceIdentity::default()
    }
}

/// Converts a source's identity to the form that clients receive.
pub(crate) fn identity_to_wire(source: &SourceIdentity) -> wire::SourceIdentity {
    let switch = |(timeline, at): &(u32, Lsn)| wire::TimelineSwitch { timeline: *timeline, switched_at: at.0 };
    wire::SourceIdentity {
        system_identifier: source.system_identifier.clone(),
        database: source.database.clone(),
        timeline: source.timeline,
        history: source.history.iter().map(switch).collect(),
    }
}

#[cfg(test)]
mod tests {
    use laredo_proto::replication::{FieldPredicate, field_predicate};

    use super::*;

    fn refused(request: SyncRequest) -> String {
        let status = SessionRequest::new(request).unwrap_err();
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
        let encoding_of =
            |accept: Vec<i32>| SessionRequest::new(SyncRequest { accept, ..SyncRequest::default() }).unwrap().encoding;
        assert_eq!(encoding_of(vec![]), RowEncoding::Struct);
        assert_eq!(encoding_of(vec![99, 1, 0]), RowEncoding::PostgresBinary);
        assert_eq!(encoding_of(vec![0, 1]), RowEncoding::Struct);
    }

    #[test]
    fn rows_are_compared_where_the_stream_has_a_checksum_and_the_client_answers() {
        let asked = SyncRequest {
            accept: vec![RowEncoding::PostgresBinary.into()],
            wants_checksums: true,
            answers_checks: true,
            ..SyncRequest::default()
        };
        let obstacle =
            |request: SyncRequest| SessionRequest::new(request).unwrap().comparison_obstacle().unwrap_or_default();
        assert_eq!(obstacle(asked.clone()), "");
        assert!(obstacle(SyncRequest { accept: vec![], ..asked.clone() }).contains("Structs"));
        let prefix = Some(field_predicate::Match::Prefix("b".to_owned()));
        assert!(obstacle(SyncRequest { filters: filter("a", prefix).filters, ..asked.clone() }).contains("filters"));
        assert!(obstacle(SyncRequest { answers_checks: false, ..asked.clone() }).contains("version"));
        assert!(obstacle(SyncRequest { wants_checksums: false, ..asked }).contains("version"));
    }

    #[test]
    fn only_who_asks_gets_the_extensions() {
        assert!(!SessionRequest::new(SyncRequest::default()).unwrap().is_ours);
        let instance_id = "a".to_owned();
        assert!(SessionRequest::new(SyncRequest { instance_id, ..SyncRequest::default() }).unwrap().is_ours);
    }
}
