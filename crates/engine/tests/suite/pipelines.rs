//! A pipeline's filters and transforms yield the same rows for a new client and for a reader that
//! followed from the start.

use laredo_core::{Cell, Lsn};
use laredo_engine::journal::Journal;
use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_engine::{HashKey, PipelineOptions, Transform, ValueMask};
use laredo_testkit::{RunningEngine, SimChange, SimDatabase, SimRows, eventually, sim_table, wait_until_reached};
use laredo_values::{MatchCondition, Pattern, Predicate, Value};

use crate::support::{JournalTestReader, PATIENCE, insert, start};

/// A table with a pipeline, and a reader that follows it from the start.
struct PipelineTestEngine {
    database: SimDatabase,
    journal: Journal,
    reader: JournalTestReader,
    copies: u64,
    engine: RunningEngine,
}

impl PipelineTestEngine {
    async fn start(pipeline: PipelineOptions, first: Vec<SimChange>) -> PipelineTestEngine {
        let database = SimDatabase::new(1);
        database.commit(0, first);
        let mut options = sim_table("t0");
        options.pipeline = pipeline;
        let engine = start(&database, vec![options]).await;
        let journal = engine.journal(0).await;
        let reader = JournalTestReader::from_base(&journal);
        PipelineTestEngine { database, journal, reader, copies: 1, engine }
    }

    async fn commit(&mut self, changes: Vec<SimChange>) -> Lsn {
        let end = self.database.commit(0, changes);
        wait_until_reached(&self.journal, end).await;
        self.reader.read_on(&self.journal);
        end
    }

    /// Changes the table without an event in the stream, so that only a copy reveals the change.
    async fn rewrite(&mut self, changes: Vec<SimChange>) {
        self.database.change_silently(0, changes);
        self.database
            .inject_event(SourceEvent::Moved { table: TableIndex(0), reason: "rewritten".to_owned(), definition: None })
            .await;
        self.copies += 1;
        let is_copied = async || self.engine.copies(0) == self.copies;
        eventually(PATIENCE, is_copied).await.unwrap();
        self.reader.read_on(&self.journal);
    }

    fn source_rows(&self) -> SimRows {
        self.database.rows_at(0, Lsn(u64::MAX))
    }

    /// Returns the cells of the following reader's rows, after checking that a new reader has the
    /// same.
    fn cells(&self) -> Vec<Vec<Option<Vec<u8>>>> {
        let cells = |reader: &JournalTestReader| {
            let value = |cell: Cell<'_>| cell.value().map(<[u8]>::to_vec);
            let rows = reader.state.rows().map(|row| row.as_ref().cells().map(value).collect());
            let mut rows: Vec<Vec<_>> = rows.collect();
            rows.sort();
            rows
        };
        let newcomer = JournalTestReader::from_base(&self.journal);
        assert_eq!(newcomer.state.schema(), self.reader.state.schema());
        let stamped = newcomer.state.schema().columns().iter().any(|column| column.name == "written");
        assert_eq!(self.journal.head().checksum, (!stamped).then(|| newcomer.state.checksum()));
        assert_eq!(cells(&newcomer), cells(&self.reader), "a newcomer, and one who has followed");
        cells(&newcomer)
    }

    async fn stop(self) {
        self.engine.end().await;
    }
}

fn update(id: i64, body: &str) -> SimChange {
    SimChange::Update(id, body.to_owned())
}

fn rekey(old: i64, new: i64, body: &str) -> SimChange {
    SimChange::Rekey(old, new, body.to_owned())
}

/// Moves rows into and out of each filter in every possible way.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_shows_what_matches_and_nothing_else() {
    type BodyMatcher = fn(&str) -> bool;
    let filters: [(MatchCondition, BodyMatcher); 3] = [
        (MatchCondition::Equals(Value::String("keep".to_owned())), |body| body == "keep"),
        (MatchCondition::Prefix("ke".to_owned()), |body| body.starts_with("ke")),
        (MatchCondition::Regex(Pattern::new("^k.*p$").unwrap()), |body| body.starts_with('k') && body.ends_with('p')),
    ];
    let steps = [
        vec![insert(3, "keep"), insert(4, "other")],
        vec![update(1, "other"), update(2, "keep")],
        vec![SimChange::Touch(2), SimChange::Touch(1)],
        vec![rekey(2, 12, "keep"), rekey(3, 13, "other"), rekey(4, 14, "keep"), rekey(1, 11, "other")],
        vec![SimChange::Delete(12), SimChange::Delete(13)],
        vec![insert(5, "keep"), update(5, "other"), update(5, "keep"), SimChange::Delete(5)],
        vec![SimChange::Truncate, insert(1, "keep"), insert(2, "other"), insert(3, "keep")],
    ];
    for (test, matches) in filters {
        let filter = Predicate { field: "body".to_owned(), test };
        let pipeline = PipelineOptions { filters: vec![filter.clone()], transforms: Vec::new() };
        let mut followed = PipelineTestEngine::start(pipeline, vec![insert(1, "keep"), insert(2, "other")]).await;
        let check = |followed: &PipelineTestEngine, what: &str| {
            let wanted: SimRows = followed.source_rows().into_iter().filter(|(_, body)| matches(body)).collect();
            followed.cells();
            assert_eq!(followed.reader.rows(), wanted, "{filter:?} {what}");
        };
        check(&followed, "after the first copy");
        for step in &steps {
            followed.commit(step.clone()).await;
            check(&followed, &format!("after {step:?}"));
        }
        followed.rewrite(vec![update(1, "other"), update(2, "keep"), SimChange::Delete(3), insert(4, "keep")]).await;
        check(&followed, "after another copy");
        followed.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_renamed_columns_are_so_for_all_readers() {
    let rename = Transform::RenameFields(vec![("id".to_owned(), "key".to_owned())]);
    let drop = Transform::DropFields(vec!["body".to_owned()]);
    let pipeline = PipelineOptions { filters: Vec::new(), transforms: vec![rename, drop] };
    let mut followed = PipelineTestEngine::start(pipeline, vec![insert(1, "one")]).await;
    let names: Vec<String> = followed.journal.schema().columns().iter().map(|c| c.name.clone()).collect();
    assert_eq!(names, ["key"]);
    let check = |followed: &PipelineTestEngine| {
        let ids = followed.source_rows().into_keys();
        assert_eq!(followed.cells(), ids.map(|id| vec![Some(id.to_be_bytes().to_vec())]).collect::<Vec<_>>());
    };
    followed.commit(vec![insert(2, "two"), update(1, "more"), SimChange::Touch(1)]).await;
    check(&followed);
    followed.commit(vec![rekey(1, 3, "three"), SimChange::Delete(2), insert(4, "four")]).await;
    check(&followed);
    followed.rewrite(vec![update(3, "changed"), SimChange::Delete(4), insert(5, "five")]).await;
    check(&followed);
    followed.commit(vec![SimChange::Truncate, insert(6, "six")]).await;
    check(&followed);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_is_that_of_the_commit_which_wrote_the_row() {
    let transforms = vec![Transform::AddTimestamp("written".to_owned())];
    let mut followed =
        PipelineTestEngine::start(PipelineOptions { filters: Vec::new(), transforms }, vec![insert(1, "one")]).await;
    // The simulated database commits at the time given by its position. Copied rows carry the time
    // of the copy.
    let row = |id: i64, body: &str, at: u64| {
        [id.to_be_bytes().to_vec(), body.as_bytes().to_vec(), at.to_be_bytes().to_vec()].map(Some).to_vec()
    };
    assert_eq!(followed.cells(), [row(1, "one", 0)]);
    let second = followed.commit(vec![insert(2, "two"), insert(3, "three")]).await.0;
    let third = followed.commit(vec![rekey(3, 4, "four"), update(1, "more")]).await.0;
    let expected = [row(1, "more", third), row(2, "two", second), row(4, "four", third)];
    assert_eq!(followed.cells(), expected);
    followed.rewrite(vec![update(2, "rewritten")]).await;
    let expected = [row(1, "more", third), row(2, "rewritten", 0), row(4, "four", third)];
    assert_eq!(followed.cells(), expected, "a row that a new copy shows unchanged keeps its time");
    followed.stop().await;
}

/// Returns the transforms that hash the key and mask the body, except for its last character.
fn hash_and_mask() -> Vec<Transform> {
    let key = HashKey::new(b"a key of the tests").unwrap();
    let mask = ValueMask::Partial { keep_first: 0, keep_last: 1, with: '#' };
    vec![Transform::Hash(vec!["id".to_owned()], key), Transform::Mask(vec!["body".to_owned()], mask)]
}

fn masked(body: &str) -> String {
    let count = body.chars().count();
    let hidden = if count > 1 { count - 1 } else { count };
    body.chars().enumerate().map(|(i, char)| if i < hidden { '#' } else { char }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hashed_key_and_a_masked_column_are_so_for_new_and_following_readers() {
    let pipeline = PipelineOptions { filters: Vec::new(), transforms: hash_and_mask() };
    let mut followed = PipelineTestEngine::start(pipeline, vec![insert(1, "one"), insert(2, "x")]).await;
    let types: Vec<u32> = followed.journal.schema().columns().iter().map(|column| column.type_oid).collect();
    assert_eq!(types, [25, 25]);
    let mut known = std::collections::BTreeMap::new();
    let mut check = |followed: &PipelineTestEngine| {
        let rows = followed.cells();
        let mut bodies: Vec<String> = rows.iter().map(|row| text(row[1].as_deref())).collect();
        let mut expected: Vec<String> = followed.source_rows().values().map(|body| masked(body)).collect();
        bodies.sort();
        expected.sort();
        assert_eq!(bodies, expected);
        let hashes: std::collections::BTreeSet<String> = rows.iter().map(|row| text(row[0].as_deref())).collect();
        assert_eq!(hashes.len(), rows.len(), "different keys have different hashes");
        assert!(hashes.iter().all(|hash| hash.len() == 64));
        if let [(id, _)] = followed.source_rows().into_iter().collect::<Vec<_>>().as_slice() {
            let hash = known.entry(*id).or_insert_with(|| text(rows[0][0].as_deref())).clone();
            assert_eq!(hash, text(rows[0][0].as_deref()), "a key keeps its hash");
        }
    };
    check(&followed);
    followed.commit(vec![insert(3, "three"), update(1, "more"), SimChange::Touch(1), update(2, "xyz")]).await;
    check(&followed);
    followed.commit(vec![rekey(1, 4, "four"), rekey(3, 1, "again"), SimChange::Delete(2)]).await;
    check(&followed);
    followed.rewrite(vec![update(4, "silently"), SimChange::Delete(1), insert(6, "six")]).await;
    check(&followed);
    for _ in 0..2 {
        followed.commit(vec![SimChange::Truncate, insert(7, "seven")]).await;
        check(&followed);
    }
    followed.stop().await;
}

fn text(cell: Option<&[u8]>) -> String {
    String::from_utf8(cell.unwrap().to_vec()).unwrap()
}
