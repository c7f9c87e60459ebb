//! A history that the database itself records: the change of each transaction to each row, in the
//! order of the commits. Triggers and a slot unknown to laredo record it.

use std::collections::{BTreeMap, HashMap};

use laredo_core::{Cell, KeyColumns, Lsn, Tuple, TupleBuf};
use laredo_testkit::workload::WorkloadTable;
use tokio_postgres::Client;

/// A row's change: the row before and after, each with all its cells.
type RecordedChange = (Option<Tuple>, Option<Tuple>);

/// The changes of one table, commit by commit.
#[derive(Debug, Default)]
pub(super) struct RecordedHistory {
    commits: BTreeMap<Lsn, Vec<RecordedChange>>,
}

/// Begins to record the changes of tables that are empty.
pub(super) async fn remember(sql: &Client, tables: &[&WorkloadTable]) {
    sql.batch_execute(
        "CREATE TABLE history (n bigserial, xid text DEFAULT pg_current_xact_id()::text, t text, old bytea, new bytea);
         CREATE FUNCTION note_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF TG_OP = 'INSERT' THEN INSERT INTO public.history (t, new) VALUES (TG_TABLE_NAME, record_send(NEW));
           ELSIF TG_OP = 'UPDATE' THEN
             INSERT INTO public.history (t, old, new) VALUES (TG_TABLE_NAME, record_send(OLD), record_send(NEW));
           ELSE INSERT INTO public.history (t, old) VALUES (TG_TABLE_NAME, record_send(OLD)); END IF;
           RETURN NULL; END $$;
         CREATE FUNCTION note_truncate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.history (t) VALUES (TG_TABLE_NAME); RETURN NULL; END $$",
    )
    .await
    .unwrap();
    sql.batch_execute("CREATE PUBLICATION oracle FOR TABLE history").await.unwrap();
    sql.batch_execute("SELECT pg_create_logical_replication_slot('oracle', 'pgoutput')").await.unwrap();
    for table in tables {
        let name = table.name().quoted();
        sql.batch_execute(&format!(
            "CREATE TRIGGER note_row AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION note_row();
             CREATE TRIGGER note_truncate AFTER TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION note_truncate()"
        ))
        .await
        .unwrap();
    }
}

/// Returns the recorded history of each table.
pub(super) async fn recall(sql: &Client) -> HashMap<String, RecordedHistory> {
    // The position of a commit is its end, which is the same on every slot.
    let commits = "SELECT xid::text, lsn::text
        FROM pg_logical_slot_get_binary_changes('oracle', NULL, NULL, 'proto_version', '1', 'publication_names', 'oracle')
        WHERE get_byte(data, 0) = ascii('C')";
    let commits = sql.query(commits, &[]).await.unwrap();
    let ends: HashMap<String, Lsn> =
        commits.iter().map(|row| (row.get(0), row.get::<_, &str>(1).parse().unwrap())).collect();
    let mut tables: HashMap<String, RecordedHistory> = HashMap::new();
    for row in sql.query("SELECT xid, t, old, new FROM history ORDER BY n", &[]).await.unwrap() {
        let (xid, table): (&str, String) = (row.get(0), row.get(1));
        let sent = |place: usize| row.get::<_, Option<&[u8]>>(place).map(tuple);
        let commit = tables.entry(table).or_default().commits.entry(ends[xid]).or_default();
        commit.push((sent(2), sent(3)));
    }
    tables
}

impl RecordedHistory {
    /// Calls `at` with the rows at each requested position, by the bytes of their keys. The
    /// positions must be in ascending order.
    pub(super) fn replay(
        &self,
        key: &KeyColumns,
        positions: &[Lsn],
        mut at: impl FnMut(Lsn, &BTreeMap<Vec<u8>, Tuple>),
    ) {
        let key_of = |row: &Tuple| key.key_of(row.as_ref()).as_ref().bytes().to_vec();
        let (mut rows, mut commits) = (BTreeMap::new(), self.commits.iter().peekable());
        for position in positions {
            while let Some((_, changes)) = commits.next_if(|(end, _)| *end <= position) {
                for (old, new) in changes {
                    match old {
                        Some(old) => drop(rows.remove(&key_of(old))),
                        None if new.is_none() => rows.clear(),
                        None => {}
                    }
                    if let Some(new) = new {
                        rows.insert(key_of(new), new.clone());
                    }
                }
            }
            at(*position, &rows);
        }
    }
}

/// Decodes the result of `record_send`: the number of columns, and for each column its type, its
/// length, and its bytes.
fn tuple(sent: &[u8]) -> Tuple {
    let number = |at: usize| i32::from_be_bytes(sent[at..at + 4].try_into().unwrap());
    let (mut row, mut at) = (TupleBuf::new(), 4);
    for _ in 0..number(0) {
        let length = number(at + 4);
        at += 8;
        match usize::try_from(length) {
            Ok(length) => {
                row.push(Cell::Value(&sent[at..at + length]));
                at += length;
            }
            Err(_) => row.push(Cell::Null),
        }
    }
    row.as_ref().to_tuple()
}
