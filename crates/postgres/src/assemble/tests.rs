use laredo_engine::source::TableIndex;
use laredo_engine::spool::SpoolEntry;

use super::*;
use crate::message_bytes::{self as bytes, SentCell};
use crate::relation_identity::{RelationIdentity, ReplicaIdentity};

/// A stream that follows `public.users` (table 0, OID 10) and `public.orders` (table 1, OID 20).
struct AssemblerHarness {
    assembler: PgoutputAssembler,
    events: VecDeque<SourceEvent>,
    routes: TableRoutes,
}

impl AssemblerHarness {
    fn new() -> AssemblerHarness {
        let tables = ["users", "orders"].map(|table| TableName::new("public", table));
        let options = SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() };
        let mut assembler = PgoutputAssembler::new(tables, Arc::new(options));
        assembler.connected(Lsn(50), Xid(1000));
        AssemblerHarness { assembler, events: VecDeque::new(), routes: TableRoutes::new() }
    }

    fn take(&mut self, message: impl AsRef<[u8]>) -> &mut AssemblerHarness {
        self.assembler.take_message(message.as_ref(), &mut self.events).unwrap();
        self
    }

    fn refuse(&mut self, message: impl AsRef<[u8]>) -> String {
        let refused = self.assembler.take_message(message.as_ref(), &mut self.events);
        refused.unwrap_err().to_string()
    }

    fn users(&mut self, xid: Option<u32>) -> &mut AssemblerHarness {
        self.take(bytes::relation(xid, 10, "users", b'd', &["*id", "note"]))
    }

    /// Begins a copy of the table with this index.
    fn route(&mut self, table: usize, oid: u32, replica_identity: u8, key: &[&str]) -> &mut AssemblerHarness {
        let key = key.iter().map(|name| (*name).to_owned()).collect();
        let replica_identity = ReplicaIdentity::from_byte(replica_identity).unwrap();
        let identity = RelationIdentity { oid, replica_identity, key };
        let copies = self.routes.get(&TableIndex(table)).map_or(1, |route| route.copies + 1);
        self.routes.retain(|_, route| route.identity.oid != oid);
        self.routes.insert(TableIndex(table), TableRoute { copies, identity });
        self.assembler.reroute(&self.routes, &mut self.events);
        self
    }

    fn reported(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events).into_iter().map(event_text).collect()
    }
}

fn event_text(event: SourceEvent) -> String {
    match event {
        SourceEvent::Commit(commit) => {
            let tables = commit.tables.into_iter().map(|(table, mut spool)| {
                let mut entries = Vec::new();
                let read = spool.for_each_entry::<io::Error>(|entry| {
                    entries.push(entry_text(entry));
                    Ok(())
                });
                read.unwrap();
                format!("{}: {}", table.0, entries.join(" "))
            });
            let tables: Vec<_> = tables.collect();
            format!("{} at {}: {}", commit.xid.0, commit.end, tables.join("; "))
        }
        SourceEvent::Connected { server_started } => format!("connected to {server_started}"),
        SourceEvent::Progress(lsn) => format!("progress {lsn}"),
        SourceEvent::Current { .. } => unreachable!("only a stream looks at the end of the WAL"),
        SourceEvent::Moved { table, reason, .. } => format!("moved {}: {reason}", table.0),
        SourceEvent::Broken { table, error } => format!("broken {}: {error}", table.0),
        SourceEvent::Redefined { table, .. } => format!("redefined {}", table.0),
        SourceEvent::Restarted { reason, .. } => format!("restarted: {reason}"),
        SourceEvent::Forked { reason, .. } => format!("forked: {reason}"),
        SourceEvent::Promoted { server } => format!("promoted to {}", server.identity.timeline),
    }
}

fn entry_text(entry: SpoolEntry<'_>) -> String {
    let row = |row: laredo_core::TupleRef<'_>| {
        let cells = row.cells().map(|cell| match cell {
            laredo_core::Cell::Null => "-".to_owned(),
            laredo_core::Cell::Unchanged => "?".to_owned(),
            laredo_core::Cell::Value(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        });
        cells.collect::<Vec<_>>().join(",")
    };
    match entry {
        SpoolEntry::Shape(shape) => {
            let names: Vec<_> = shape.columns.iter().map(|c| c.0.as_str()).collect();
            format!("[{}]", names.join(","))
        }
        SpoolEntry::Change(RawChange::Insert { new }) => format!("+{}", row(new)),
        SpoolEntry::Change(RawChange::Update { old: None, new }) => format!("={}", row(new)),
        SpoolEntry::Change(RawChange::Update { old: Some(old), new }) => format!("{}={}", row(old), row(new)),
        SpoolEntry::Change(RawChange::Delete { old }) => format!("-{}", row(old)),
        SpoolEntry::Change(RawChange::Truncate) => "0".to_owned(),
    }
}

fn insert(xid: Option<u32>, cells: [&str; 2]) -> Vec<u8> {
    bytes::insert(xid, 10, &cells.map(SentCell::Text))
}

#[test]
fn a_transaction_is_reported_at_its_commit() {
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::begin(7, 100)).users(None).take(insert(None, ["1", "a"]));
    assert!(stream.reported().is_empty());
    stream.take(bytes::commit(100));
    assert_eq!(stream.reported(), ["7 at 0/6C: 0: [id,note] +1,a"]);
}

#[test]
fn old_rows_come_as_they_were_sent() {
    use SentCell::{Null, Text, Unchanged};
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::begin(7, 100)).users(None);
    let key = [Text("1"), Null];
    let update = |old, new: [SentCell<'_>; 2]| bytes::update(None, 10, old, &new);
    // In this order: a plain update; an unchanged large value; an old key although the key stayed;
    // a large key that stayed; a changed key; a whole old row.
    stream.take(update(None, [Text("1"), Text("b")]));
    stream.take(update(None, [Text("1"), Unchanged]));
    stream.take(update(Some((b'K', &key)), [Text("1"), Text("c")]));
    stream.take(update(Some((b'K', &key)), [Unchanged, Text("d")]));
    stream.take(update(Some((b'K', &key)), [Text("2"), Unchanged]));
    stream.take(update(Some((b'O', &[Text("2"), Text("d")])), [Text("2"), Null]));
    stream.take(bytes::delete(None, 10, b'K', &key));
    stream.take(bytes::commit(100));
    assert_eq!(stream.reported(), ["7 at 0/6C: 0: [id,note] =1,b =1,? 1,-=1,c 1,-=?,d 1,-=2,? 2,d=2,- -1,-"]);
}

#[test]
fn streamed_transactions_interleave_and_are_reported_in_commit_order() {
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::stream_start(7, true)).users(Some(7));
    stream.take(insert(Some(7), ["1", "seven"])).take(bytes::stream_stop());
    stream.take(bytes::stream_start(8, true)).users(Some(8));
    stream.take(insert(Some(8), ["2", "eight"])).take(bytes::stream_stop());
    // A transaction that is not streamed commits in between.
    stream.take(bytes::begin(9, 90)).users(None).take(insert(None, ["3", "nine"])).take(bytes::commit(90));
    stream.take(bytes::stream_start(7, false));
    stream.take(insert(Some(7), ["4", "seven"])).take(bytes::stream_stop());
    stream.take(bytes::stream_commit(8, 100)).take(bytes::stream_commit(7, 110));
    assert_eq!(
        stream.reported(),
        [
            "9 at 0/62: 0: [id,note] +3,nine",
            "8 at 0/6C: 0: [id,note] +2,eight",
            "7 at 0/76: 0: [id,note] +1,seven +4,seven"
        ]
    );
}

#[test]
fn what_was_rolled_back_is_not_reported() {
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::stream_start(7, true)).users(Some(7)).take(insert(Some(7), ["1", "kept"]));
    stream.take(insert(Some(71), ["2", "gone"])).take(bytes::stream_stop());
    stream.take(bytes::stream_abort(7, 71));
    stream.take(bytes::stream_start(7, false));
    stream.take(insert(Some(72), ["3", "kept"])).take(bytes::truncate(Some(73), &[10]));
    stream.take(bytes::stream_stop()).take(bytes::stream_abort(7, 73));
    // All of another transaction.
    stream.take(bytes::stream_start(8, true)).users(Some(8)).take(insert(Some(8), ["4", "gone"]));
    stream.take(bytes::stream_stop()).take(bytes::stream_abort(8, 8));
    stream.take(bytes::stream_commit(7, 100));
    assert_eq!(stream.reported(), ["7 at 0/6C: 0: [id,note] +1,kept +3,kept"]);
    assert!(stream.assembler.take_truncated().is_empty());
    assert!(stream.refuse(bytes::stream_commit(8, 110)).contains("has not begun"));
}

#[test]
fn a_streamed_transaction_sees_its_own_tables() {
    let wide = |xid| bytes::relation(xid, 10, "users", b'd', &["*id", "note", "more"]);
    let three = ["1", "b", "c"].map(SentCell::Text);
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::stream_start(7, true)).take(wide(Some(7)));
    stream.take(bytes::insert(Some(7), 10, &three)).take(bytes::stream_stop());
    // Other transactions see the old definition until this transaction commits. The new definition
    // is then not announced again.
    stream.take(bytes::begin(8, 100)).users(None).take(insert(None, ["2", "a"])).take(bytes::commit(100));
    stream.take(bytes::stream_start(7, false)).take(bytes::insert(Some(7), 10, &three)).take(bytes::stream_stop());
    stream.take(bytes::begin(9, 110)).take(insert(None, ["3", "a"])).take(bytes::commit(110));
    assert_eq!(stream.reported().len(), 2);
    stream.take(bytes::stream_commit(7, 120));
    assert_eq!(stream.reported(), ["7 at 0/80: 0: [id,note,more] +1,b,c +1,b,c"]);
    // The announcement to transaction 8 was the later one.
    stream.take(bytes::begin(10, 130)).take(insert(None, ["4", "a"])).take(bytes::commit(130));
    assert_eq!(stream.reported(), ["10 at 0/8A: 0: [id,note] +4,a"]);
}

#[test]
fn what_a_streamed_transaction_was_reported_holds_for_all_once_it_commits() {
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::stream_start(7, true)).users(Some(7)).take(insert(Some(7), ["1", "a"]));
    stream.take(bytes::stream_stop());
    stream.take(bytes::begin(8, 100));
    assert!(stream.refuse(insert(None, ["2", "b"])).contains("not announced"));

    let mut stream = AssemblerHarness::new();
    stream.take(bytes::stream_start(7, true)).users(Some(7)).take(insert(Some(7), ["1", "a"]));
    stream.take(bytes::stream_stop()).take(bytes::stream_commit(7, 100));
    stream.take(bytes::begin(8, 110)).take(insert(None, ["2", "b"])).take(bytes::commit(110));
    assert_eq!(stream.reported().len(), 2);
}

#[test]
fn a_table_that_changes_within_a_transaction_is_announced_within_its_rows() {
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::begin(7, 100)).users(None).take(insert(None, ["1", "a"]));
    stream.take(bytes::relation(None, 10, "users", b'd', &["*id"]));
    stream.take(bytes::insert(None, 10, &[SentCell::Text("2")])).take(bytes::commit(100));
    assert_eq!(stream.reported(), ["7 at 0/6C: 0: [id,note] +1,a [id] +2"]);
    assert!(stream.assembler.take_announced() && !stream.assembler.take_announced());
}

#[test]
fn truncate_empties_every_table_that_is_ours() {
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::begin(7, 100)).users(None);
    stream.take(bytes::relation(None, 20, "orders", b'd', &["*id"]));
    stream.take(bytes::relation(None, 30, "other", b'd', &["*id"]));
    stream.take(insert(None, ["1", "a"])).take(bytes::truncate(None, &[20, 30, 10]));
    assert!(stream.assembler.take_truncated().is_empty(), "not before it commits");
    stream.take(bytes::commit(100));
    assert_eq!(stream.reported(), ["7 at 0/6C: 0: [id,note] +1,a 0; 1: [id] 0"]);
    let truncated: Vec<_> = stream.assembler.take_truncated().into_iter().collect();
    assert_eq!(truncated, [(10, 7), (20, 7), (30, 7)]);
    stream.take(bytes::begin(8, 110));
    assert!(stream.refuse(bytes::truncate(None, &[99])).contains("table 99"));
}

#[test]
fn transactions_without_our_tables_are_progress() {
    let mut stream = AssemblerHarness::new();
    assert_eq!(stream.assembler.progress().map(event_text).as_deref(), Some("progress 0/32"), "where it begins");
    assert!(stream.assembler.progress().is_none(), "said once");
    stream.take(bytes::begin(7, 100)).take(bytes::commit(100));
    stream.take(bytes::begin(8, 110)).take(bytes::relation(None, 30, "other", b'd', &["*id"]));
    stream.take(bytes::insert(None, 30, &[SentCell::Text("1")])).take(bytes::commit(110));
    assert!(stream.reported().is_empty());
    assert_eq!(stream.assembler.progress().map(event_text).as_deref(), Some("progress 0/76"));
    assert!(stream.assembler.progress().is_none(), "said once");
}

#[test]
fn a_keepalive_inside_a_transaction_is_no_progress() {
    let mut stream = AssemblerHarness::new();
    stream.take(bytes::begin(7, 100)).users(None);
    stream.assembler.keepalive(Lsn(500)).unwrap();
    assert_eq!(
        stream.assembler.progress().map(event_text).as_deref(),
        Some("progress 0/32"),
        "no further than it began"
    );
    stream.take(insert(None, ["1", "a"])).take(bytes::commit(100));
    assert_eq!(stream.reported().len(), 1, "it is not taken for one that was reported already");
    stream.assembler.keepalive(Lsn(60)).unwrap();
    assert!(stream.assembler.progress().is_none(), "never backwards");
    // A streamed transaction commits later than the position that PostgreSQL has read.
    stream.take(bytes::stream_start(8, true)).users(Some(8)).take(insert(Some(8), ["2", "b"]));
    stream.assembler.keepalive(Lsn(500)).unwrap();
    assert_eq!(stream.assembler.progress().map(event_text).as_deref(), Some("progress 0/1F4"));
}

#[test]
fn a_new_connection_repeats_nothing_and_keeps_nothing_half() {
    let mut stream = AssemblerHarness::new();
    let first = [bytes::begin(7, 100), insert(None, ["1", "a"]), bytes::commit(100)];
    stream.users(None);
    first.iter().for_each(|message| _ = stream.take(message));
    stream.take(bytes::stream_start(9, true)).users(Some(9)).take(insert(Some(9), ["2", "b"]));
    stream.take(bytes::stream_stop());
    stream.take(bytes::begin(8, 110)).take(insert(None, ["3", "c"]));
    assert_eq!(stream.reported().len(), 1);

    let position = stream.assembler.position();
    stream.assembler.connected(position, Xid(1000));
    assert!(stream.refuse(bytes::commit(110)).contains("no transaction is open"));
    stream.users(None);
    first.iter().for_each(|message| _ = stream.take(message));
    assert!(stream.reported().is_empty(), "reported before");
    stream.take(bytes::stream_start(9, true)).users(Some(9)).take(insert(Some(9), ["2", "b"]));
    stream.take(bytes::stream_stop()).take(bytes::stream_commit(9, 120));
    assert_eq!(stream.reported(), ["9 at 0/80: 0: [id,note] +2,b"]);
}

#[test]
fn a_table_with_another_identity_has_moved() {
    let mut stream = AssemblerHarness::new();
    stream.users(None).users(None);
    assert!(stream.reported().is_empty(), "the first announcement is compared by the catalog check");
    stream.take(bytes::relation(None, 10, "users", b'i', &["id", "*note"]));
    assert_eq!(
        stream.reported(),
        [
            "moved 0: the rows of public.users were identified by (id) of the primary key, and are now identified by (note) of an index"
        ]
    );
    stream.take(bytes::relation(None, 11, "users", b'i', &["id", "*note"]));
    assert_eq!(stream.reported(), ["moved 0: public.users is another table now: its OID was 10 and is 11"]);
    // Rows of the new relation are not rows of the table until a copy begins under it.
    let insert = bytes::insert(None, 11, &[SentCell::Null, SentCell::Text("a")]);
    stream.take(bytes::begin(8, 90)).take(&insert).take(bytes::commit(90));
    assert_eq!(stream.reported(), [""; 0]);
    stream.route(0, 11, b'i', &["note"]).take(bytes::begin(9, 95)).take(&insert).take(bytes::commit(95));
    assert_eq!(stream.reported(), ["9 at 0/67: 0: [id,note] +-,a"]);
    // A streamed transaction reports the move when it commits, before its rows.
    stream.take(bytes::stream_start(7, true)).take(bytes::relation(Some(7), 11, "users", b'f', &["*id", "*note"]));
    stream.take(bytes::insert(Some(7), 11, &[SentCell::Null, SentCell::Null])).take(bytes::stream_stop());
    assert!(stream.reported().is_empty());
    stream.take(bytes::stream_commit(7, 100));
    let reported = stream.reported();
    assert!(reported[0].starts_with("moved 0: ") && reported[1].starts_with("7 at"), "{reported:?}");
}

#[test]
fn a_table_is_followed_by_its_number_whatever_it_is_named() {
    let other = |xid| bytes::relation(xid, 10, "x", b'd', &["*id", "note"]);
    let renamed_and_back = |stream: &mut AssemblerHarness| {
        for (name, xid, at) in [("x", 7, 100), ("users", 8, 110)] {
            stream.take(bytes::begin(xid, at)).take(bytes::relation(None, 10, name, b'd', &["*id", "note"]));
            stream.take(insert(None, ["1", "a"])).take(bytes::commit(at));
        }
        assert_eq!(stream.reported(), ["7 at 0/6C: 0: [id,note] +1,a", "8 at 0/76: 0: [id,note] +1,a"]);
    };
    let mut stream = AssemblerHarness::new();
    stream.take(other(None)).take(bytes::begin(6, 90)).take(insert(None, ["1", "a"])).take(bytes::commit(90));
    assert_eq!(stream.reported(), [""; 0], "a number that is not known");
    renamed_and_back(stream.users(None));
    // The OID is known from a copy, of this run or an earlier one. A new connection announces the
    // relation under the other name first.
    let mut stream = AssemblerHarness::new();
    renamed_and_back(stream.route(0, 10, b'd', &["id"]));
    stream.assembler.connected(Lsn(120), Xid(1000));
    stream.take(bytes::stream_start(9, true)).take(other(Some(9))).take(insert(Some(9), ["2", "b"]));
    stream.take(bytes::stream_stop()).take(bytes::stream_commit(9, 130));
    assert_eq!(stream.reported(), ["9 at 0/8A: 0: [id,note] +2,b"]);
}

#[test]
fn a_table_announced_before_it_had_the_name_is_followed_once_it_is_copied() {
    let mut stream = AssemblerHarness::new();
    let insert = bytes::insert(None, 11, &[SentCell::Text("1"), SentCell::Text("a")]);
    stream.route(0, 10, b'd', &["id"]).users(None).take(bytes::relation(None, 11, "new", b'd', &["*id", "note"]));
    stream.take(bytes::begin(7, 100)).take(&insert).take(bytes::commit(100));
    // A transaction that is open did not write this relation.
    stream.take(bytes::stream_start(8, true)).take(self::insert(Some(8), ["2", "b"]));
    stream.take(bytes::stream_stop());
    // The schema of the new relation was renamed, so the relation is not announced again.
    stream.route(0, 11, b'd', &["id"]);
    stream.take(bytes::begin(9, 110)).take(&insert).take(bytes::commit(110)).take(bytes::stream_commit(8, 120));
    assert_eq!(stream.reported(), ["9 at 0/76: 0: [id,note] +1,a"]);
}

#[test]
fn tables_that_swap_names_keep_their_rows() {
    let named = |oid, name| bytes::relation(None, oid, name, b'd', &["*id", "note"]);
    let mut stream = AssemblerHarness::new();
    stream.route(0, 10, b'd', &["id"]).route(1, 20, b'd', &["id"]);
    stream.take(named(10, "users")).take(named(20, "orders")).take(named(10, "orders")).take(named(20, "users"));
    let moved = |table, name, was, is| {
        format!("moved {table}: public.{name} is another table now: its OID was {was} and is {is}")
    };
    assert_eq!(stream.reported(), [moved(1, "orders", 20, 10), moved(0, "users", 10, 20)]);
    stream.take(bytes::begin(7, 100)).take(insert(None, ["1", "a"])).take(bytes::commit(100));
    assert_eq!(stream.reported(), ["7 at 0/6C: 0: [id,note] +1,a"], "it is what was copied");
    // One table is copied under the OID of the other, which then has to be copied as well.
    stream.route(0, 20, b'd', &["id"]);
    assert_eq!(stream.reported(), ["moved 1: the table that was followed as public.orders has another name now"]);
    stream.route(1, 10, b'd', &["id"]);
    stream.take(bytes::begin(8, 110)).take(insert(None, ["1", "a"])).take(bytes::commit(110));
    assert_eq!(stream.reported(), ["8 at 0/76: 1: [id,note] +1,a"]);
}

#[test]
fn an_identity_that_was_copied_is_no_news() {
    let by = |replica_identity, columns: &[&str]| bytes::relation(None, 10, "users", replica_identity, columns);
    let mut stream = AssemblerHarness::new();
    stream.route(0, 10, b'd', &["id"]);
    assert!(stream.take(by(b'd', &["*id", "note"])).reported().is_empty());
    // The catalog check saw the change before the stream announced it.
    stream.route(0, 10, b'f', &[]);
    assert!(stream.take(by(b'f', &["*id", "*note"])).reported().is_empty());
    assert_eq!(stream.take(by(b'd', &["*id", "note"])).reported().len(), 1);
}

#[test]
fn a_table_without_identity_is_broken_and_only_that_one() {
    for (identity, columns, what) in [
        (b'd', ["id", "note"], "has lost its primary key"),
        (b'i', ["id", "note"], "has lost the index"),
        (b'n', ["id", "note"], "has REPLICA IDENTITY NOTHING"),
    ] {
        let mut stream = AssemblerHarness::new();
        stream.users(None);
        stream.take(bytes::relation(None, 20, "orders", b'd', &["*id"]));
        stream.take(bytes::relation(None, 10, "users", identity, &columns));
        let reported = stream.reported();
        assert!(reported.len() == 1 && reported[0].starts_with("broken 0: public.users"), "{reported:?}");
        assert!(reported[0].contains(what) && reported[0].contains("ADD PRIMARY KEY"), "{reported:?}");
        stream.users(None);
        assert!(stream.reported()[0].starts_with("moved 0"), "once fixed, it has to be copied");
    }
}

#[test]
fn ids_are_widened_past_the_wrap() {
    let mut stream = AssemblerHarness::new();
    stream.assembler.connected(Lsn(50), Xid(0x1_ffff_fff0));
    stream.users(None);
    for (xid, at) in [(0xffff_fffe, 100), (5, 110)] {
        stream.take(bytes::begin(xid, at)).take(insert(None, ["1", "a"])).take(bytes::commit(at));
    }
    let reported = stream.reported();
    assert!(reported[0].starts_with(&format!("{} at", 0x1_ffff_fffe_u64)), "{reported:?}");
    assert!(reported[1].starts_with(&format!("{} at", 0x2_0000_0005_u64)), "{reported:?}");
}

#[test]
fn messages_out_of_order_are_refused() {
    let refuse = |messages: &[Vec<u8>]| {
        let mut stream = AssemblerHarness::new();
        let (last, first) = messages.split_last().unwrap();
        first.iter().for_each(|message| _ = stream.take(message));
        stream.refuse(last)
    };
    let (begin, block) = (bytes::begin(7, 100), bytes::stream_start(7, true));
    for messages in [
        vec![begin.clone(), begin.clone()],
        vec![begin.clone(), block.clone()],
        vec![begin.clone(), bytes::stream_commit(7, 100)],
        vec![begin.clone(), bytes::stream_abort(7, 7)],
        vec![begin.clone(), bytes::stream_stop()],
        vec![block.clone(), begin],
        vec![block.clone(), block.clone()],
        vec![block.clone(), bytes::commit(100)],
        vec![block, bytes::stream_stop(), bytes::stream_start(7, true)],
        vec![bytes::stream_start(7, false)],
        vec![bytes::commit(100)],
        vec![bytes::stream_stop()],
        vec![insert(None, ["1", "a"])],
    ] {
        assert!(refuse(&messages).starts_with("pgoutput sent"), "{}", refuse(&messages));
    }
    let relation = bytes::relation(None, 10, "users", b'd', &["*id", "note"]);
    let narrow = bytes::insert(None, 10, &[SentCell::Null]);
    assert_eq!(
        refuse(&[bytes::begin(7, 100), relation, narrow]),
        "pgoutput sent a row of 1 cells for public.users, which has 2 columns"
    );
}
