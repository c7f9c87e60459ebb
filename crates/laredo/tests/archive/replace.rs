//! The rows of a table are replaced by those of an archive, while other tables refer to it.

use laredo_testkit::{Cluster, ClusterOptions};

use crate::handmade::HandmadeArchive;
use crate::pipeline::{laredo, refusal};

/// A table of ten rows that others may refer to, by its key and by a code.
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE, v text); \
    INSERT INTO t SELECT g, 'c' || g, 'now' FROM generate_series(1, 10) g;";
const COLUMNS: [(&str, &str, u32); 3] = [("id", "integer", 23), ("code", "text", 25), ("v", "text", 25)];

/// A database of its own for each case, in one cluster.
struct CaseDatabase<'c> {
    cluster: &'c Cluster,
    database: String,
}

impl<'c> CaseDatabase<'c> {
    fn new(cluster: &'c Cluster, number: usize, sql: &str) -> CaseDatabase<'c> {
        let database = format!("case_{number}");
        cluster.psql(&format!("CREATE DATABASE {database}")).unwrap();
        let case = CaseDatabase { cluster, database };
        case.sql(sql);
        case
    }

    fn sql(&self, sql: &str) -> String {
        self.cluster.psql_in(&self.database, sql).unwrap()
    }

    fn arguments<'a>(&self, archive: &'a HandmadeArchive, url: &'a str, how: &[&'a str]) -> Vec<&'a str> {
        let into = ["reconstruct", archive.place(), "--postgres", url, "--table", "public.t", "--replace"];
        [&into[..], how].concat()
    }

    /// Replaces the rows of `t`, and returns the command's messages.
    fn replace(&self, archive: &HandmadeArchive, how: &[&str]) -> String {
        let url = self.cluster.url(&self.database);
        let (code, out, said) = laredo(&self.arguments(archive, &url, how));
        assert_eq!((code, out.as_str()), (Some(0), ""), "{}: {said}", self.database);
        said
    }

    fn refusal(&self, archive: &HandmadeArchive) -> String {
        let url = self.cluster.url(&self.database);
        let said = refusal(&self.arguments(archive, &url, &[]));
        assert!(said.contains("nothing was restored: "), "{said}");
        said
    }
}

fn cluster() -> Cluster {
    Cluster::start(ClusterOptions::default()).unwrap()
}

/// Returns an archive that has the rows with these IDs, changed.
fn archive(ids: impl IntoIterator<Item = i32>) -> HandmadeArchive {
    let lines: Vec<String> = ids.into_iter().map(|id| format!(r#"{{"id":{id},"code":"c{id}","v":"then"}}"#)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    HandmadeArchive::new(&COLUMNS, 1, "0/1A2F620", &lines)
}

/// The SQL that connects another table `o` with `t`, so that rows of `o` change when a row of `t`
/// is deleted. The second text is the command's message about it.
const CONNECTED: [(&str, &str); 9] = [
    (
        "CREATE TABLE o (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE); INSERT INTO o SELECT id, id FROM t",
        "public.o (2 deleted; foreign key o_t_fkey ON DELETE CASCADE)",
    ),
    (
        "CREATE TABLE o (id int, t int REFERENCES t ON DELETE SET NULL); INSERT INTO o SELECT id, id FROM t",
        "public.o (2 updated; foreign key o_t_fkey ON DELETE SET NULL)",
    ),
    (
        "CREATE TABLE o (id int, t int DEFAULT 1 REFERENCES t ON DELETE SET DEFAULT); INSERT INTO o SELECT id, id FROM t",
        "public.o (2 updated; foreign key o_t_fkey ON DELETE SET DEFAULT)",
    ),
    (
        "CREATE TABLE between (id int PRIMARY KEY REFERENCES t ON DELETE CASCADE); INSERT INTO between SELECT id FROM t; \
         CREATE TABLE o (id int, t int REFERENCES between ON DELETE CASCADE); INSERT INTO o SELECT id, id FROM t",
        "public.o (2 deleted; foreign key o_t_fkey ON DELETE CASCADE)",
    ),
    (
        "CREATE TABLE o (id int, t int REFERENCES t ON DELETE CASCADE) PARTITION BY LIST (id); \
         CREATE TABLE o_1 PARTITION OF o DEFAULT; INSERT INTO o SELECT id, id FROM t",
        "public.o_1 (2 deleted; foreign key o_t_fkey ON DELETE CASCADE)",
    ),
    (
        "CREATE TABLE o (id int, t int); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN INSERT INTO public.o VALUES (OLD.id, OLD.id); RETURN NULL; END'; \
         CREATE TRIGGER audit AFTER DELETE ON t FOR EACH ROW EXECUTE FUNCTION f()",
        "public.o (2 inserted; trigger audit on public.t)",
    ),
    (
        "CREATE TABLE o (id int, t int); INSERT INTO o VALUES (0, 0); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN UPDATE public.o SET t = t + 1; RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER later AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f()",
        "public.o (8 updated; trigger later on public.t)",
    ),
    (
        "CREATE TABLE o (id int, t int); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN INSERT INTO public.o VALUES (1, 1); RETURN NULL; END'; \
         CREATE TRIGGER counted AFTER INSERT OR DELETE ON t FOR EACH STATEMENT EXECUTE FUNCTION f()",
        "public.o (2 inserted; trigger counted on public.t)",
    ),
    (
        "CREATE TABLE o (id int, t int); CREATE RULE noted AS ON DELETE TO t DO ALSO INSERT INTO o VALUES (OLD.id, OLD.id)",
        "public.o (10 inserted; rule noted on public.t)",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_other_tables_are_named_and_stay() {
    let (cluster, archive) = (cluster(), archive(1..=8));
    for (number, (connection, words)) in CONNECTED.into_iter().enumerate() {
        let case = CaseDatabase::new(&cluster, number, &format!("{TABLE} {connection}"));
        let tables = "SELECT (SELECT string_agg(t::text, ' ' ORDER BY id) FROM t), (SELECT string_agg(o::text, ' ' ORDER BY id) FROM o)";
        let before = case.sql(tables);
        let said = case.refusal(&archive);
        assert!(said.contains("would change rows of other tables: ") && said.contains(words), "{connection}: {said}");
        assert!(said.contains("--allow-cascade"), "{said}");
        assert_eq!(case.sql(tables), before, "{connection}");
        let said = case.replace(&archive, &["--allow-cascade"]);
        assert!(said.contains(&format!("rows of another table changed: {words}")), "{connection}: {said}");
        assert_eq!(case.sql("SELECT count(*), min(v), max(v), max(id) FROM t"), "8|then|then|8", "{connection}");
        assert_ne!(case.sql(tables), before, "{connection}");
    }
}

/// The command refuses none of these connections if no row of another table has to change.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_stay_are_not_deleted() {
    let (cluster, same, more) = (cluster(), archive(1..=10), archive(1..=20));
    for (number, (connection, _)) in CONNECTED.into_iter().take(5).enumerate() {
        let case = CaseDatabase::new(&cluster, number, &format!("{TABLE} {connection}"));
        let others = case.sql("SELECT string_agg(o::text, ' ' ORDER BY id) FROM o");
        for (archive, expected) in [(&same, "10|then|then|10"), (&more, "20|then|then|20"), (&more, "20|then|then|20")]
        {
            case.replace(archive, &[]);
            assert_eq!(case.sql("SELECT count(*), min(v), max(v), max(id) FROM t"), expected, "{connection}");
        }
        assert_eq!(case.sql("SELECT string_agg(o::text, ' ' ORDER BY id) FROM o"), others, "{connection}");
    }
    let case = CaseDatabase::new(&cluster, 100, &format!("{TABLE} {}", CONNECTED[0].0));
    case.sql("DELETE FROM o WHERE id > 8");
    case.replace(&archive(1..=8), &[]);
    assert_eq!(
        case.sql("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM o)"),
        "8|8",
        "nothing refers to what goes"
    );
    case.sql("UPDATE t SET code = 'other' WHERE id = 1; CREATE TABLE by_code (code text REFERENCES t (code) ON UPDATE CASCADE); \
        INSERT INTO by_code VALUES ('other')");
    let said = case.refusal(&archive(1..=8));
    assert!(said.contains("public.by_code (1 updated; foreign key by_code_code_fkey ON UPDATE CASCADE)"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn references_without_an_action_hold_in_the_end() {
    let cluster = cluster();
    for (number, action) in ["", "ON DELETE NO ACTION DEFERRABLE", "ON DELETE RESTRICT"].into_iter().enumerate() {
        let others =
            format!("CREATE TABLE o (t int REFERENCES t {action}); INSERT INTO o SELECT id FROM t WHERE id <= 5");
        let case = CaseDatabase::new(&cluster, number, &format!("{TABLE} {others}"));
        case.replace(&archive(1..=7), &[]);
        let said = case.refusal(&archive(3..=12));
        assert!(
            said.contains("a foreign key does not hold for the rows that public.t would have")
                && said.contains("o_t_fkey"),
            "{said}"
        );
        assert_eq!(
            case.sql("SELECT count(*), max(id), min(v), (SELECT count(*) FROM o) FROM t"),
            "7|7|then|5",
            "{action}"
        );
    }
    // The code moves to a row with another key. The reference finds it there in the end.
    let moved = HandmadeArchive::new(&COLUMNS, 1, "0/1A2F620", &[r#"{"id":11,"code":"c1","v":"then"}"#]);
    let others = "CREATE TABLE o (code text REFERENCES t (code)); INSERT INTO o VALUES ('c1')";
    let case = CaseDatabase::new(&cluster, 10, &format!("{TABLE} {others}"));
    case.replace(&moved, &[]);
    assert_eq!(case.sql("SELECT t.id, o.code FROM t JOIN o USING (code)"), "11|c1");
    // The table refers to another one itself.
    let others = "CREATE TABLE p (v text PRIMARY KEY); INSERT INTO p VALUES ('now'); ALTER TABLE t ADD FOREIGN KEY (v) REFERENCES p";
    let case = CaseDatabase::new(&cluster, 11, &format!("{TABLE} {others}"));
    let said = case.refusal(&archive(1..=2));
    assert!(said.contains("a foreign key does not hold") && said.contains("t_v_fkey"), "{said}");
    assert_eq!(case.sql("SELECT count(*) FROM t WHERE v = 'now'"), "10");
}

/// The rows of one archive are restored into tables of every kind.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_table_gets_the_rows() {
    let cluster = cluster();
    let lines = [
        r#"{"id":1,"code":"b","v":"then"}"#,
        r#"{"id":2,"code":"a","v":null}"#,
        r#"{"id":3,"code":"c","v":"1"}"#,
        r#"{"id":7,"code":"d","v":"1"}"#,
    ];
    let archive = HandmadeArchive::new(&COLUMNS, 1, "0/1A2F620", &lines);
    let rows = "INSERT INTO t (id, code, v) OVERRIDING SYSTEM VALUE VALUES (1, 'a', 'now'), (2, 'b', 'now'), (4, 'd', '1'), (5, 'e', NULL)";
    for (number, table) in [
        // Values of a unique column change places.
        "CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE, v text)",
        "CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE DEFERRABLE, v text)",
        "CREATE TABLE t (id int PRIMARY KEY, code text, v text, EXCLUDE USING btree (code WITH =))",
        "CREATE TABLE t (id int, code text, v text)",
        "CREATE TABLE t (id int, code text, v text, UNIQUE (id, code))",
        "CREATE TABLE t (id int UNIQUE, code text, v text)",
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text, v text)",
        "CREATE TABLE t (v text, upper text GENERATED ALWAYS AS (upper(v)) STORED, code varchar, id bigint PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY, code text, v text, of_ours int NOT NULL DEFAULT 7)",
        "CREATE TABLE t (id int PRIMARY KEY, code text, v text) PARTITION BY LIST (id); CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); \
         CREATE TABLE t2 PARTITION OF t DEFAULT",
        "CREATE TABLE root (id int PRIMARY KEY, code text, v text) PARTITION BY LIST (id); CREATE TABLE t PARTITION OF root DEFAULT",
        "CREATE TABLE t (id int PRIMARY KEY, code text, v text REFERENCES other ON DELETE CASCADE)",
    ]
    .into_iter()
    .enumerate()
    {
        let case = CaseDatabase::new(&cluster, number, "CREATE TABLE other (v text PRIMARY KEY); INSERT INTO other VALUES ('now'), ('then'), ('1')");
        case.sql(&format!("{table}; {rows}"));
        let expected = "1|b|then\n2|a|\n3|c|1\n7|d|1";
        for _ in 0..2 {
            case.replace(&archive, &[]);
            assert_eq!(case.sql("SELECT id, code, v FROM t ORDER BY id"), expected, "{table}");
        }
    }
    let case = CaseDatabase::new(
        &cluster,
        100,
        &format!("CREATE TABLE t (id int PRIMARY KEY, code text, v text, of_ours int DEFAULT 7); {rows}"),
    );
    case.sql("UPDATE t SET of_ours = id");
    case.replace(&archive, &[]);
    assert_eq!(
        case.sql("SELECT string_agg(of_ours::text, ' ' ORDER BY id) FROM t"),
        "1 2 7 7",
        "rows that stay keep the rest"
    );
}

/// The rows of child tables belong to other tables, and a row may refer to one of its own table.
#[tokio::test(flavor = "multi_thread")]
async fn heirs_keep_their_rows_and_trees_come_back() {
    let cluster = cluster();
    let heirs = "CREATE TABLE heir (more int) INHERITS (t); INSERT INTO heir VALUES (1, 'mine', 'mine', 1), (99, 'c99', 'mine', 2)";
    let case = CaseDatabase::new(&cluster, 0, &format!("{TABLE} {heirs}"));
    case.replace(&archive(1..=3), &[]);
    assert_eq!(case.sql("SELECT count(*) FROM ONLY t"), "3");
    assert_eq!(case.sql("SELECT string_agg(heir::text, ' ' ORDER BY id) FROM heir"), "(1,mine,mine,1) (99,c99,mine,2)");
    case.sql("DELETE FROM ONLY t");
    let url = cluster.url("case_0");
    let archive = archive(4..=6);
    let (code, _, said) = laredo(&["reconstruct", archive.place(), "--postgres", &url, "--table", "public.t"]);
    assert_eq!(code, Some(0), "the table itself is empty: {said}");

    let columns = [("id", "integer", 23), ("up", "integer", 23)];
    for (number, key) in ["PRIMARY KEY", "PRIMARY KEY DEFERRABLE"].into_iter().enumerate() {
        let tree = "INSERT INTO t VALUES (1, NULL), (2, 1), (3, 2), (4, 3)";
        let own = if number == 0 { "REFERENCES t ON DELETE CASCADE" } else { "" };
        let case =
            CaseDatabase::new(&cluster, 10 + number, &format!("CREATE TABLE t (id int {key}, up int {own}); {tree}"));
        let lines = [r#"{"id":2,"up":null}"#, r#"{"id":3,"up":2}"#, r#"{"id":4,"up":2}"#, r#"{"id":5,"up":4}"#];
        case.replace(&HandmadeArchive::new(&columns, 1, "0/1A2F620", &lines), &[]);
        assert_eq!(case.sql("SELECT id, up FROM t ORDER BY id"), "2|\n3|2\n4|2\n5|4");
    }
}

/// Some types have no equality, and some equal values differ in their bytes.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_compared_by_their_bytes() {
    let cluster = cluster();
    let columns = [("id", "integer", 23), ("doc", "json", 114), ("n", "numeric", 1700), ("at", "point", 600)];
    let lines = [
        r#"{"id":1,"doc":{"a":1},"n":"1.50","at":"(1,2)"}"#,
        r#"{"id":2,"doc":[1,null],"n":"2","at":"(3,4)"}"#,
        r#"{"id":3,"doc":null,"n":null,"at":null}"#,
    ];
    let case = CaseDatabase::new(
        &cluster,
        0,
        r#"CREATE TABLE t (id int PRIMARY KEY, doc json, n numeric, at point);
           INSERT INTO t VALUES (1, '{"a":2}', 1.5, '(1,2)'), (2, '[1,null]', 2.00, '(3,4)'), (3, 'null', 1, '(0,0)')"#,
    );
    case.replace(&HandmadeArchive::new(&columns, 1, "0/1A2F620", &lines), &[]);
    assert_eq!(case.sql("SELECT * FROM t ORDER BY id"), "1|{\"a\":1}|1.50|(1,2)\n2|[1,null]|2|(3,4)\n3|||");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_trigger_keeps_away_are_missed() {
    let cluster = cluster();
    let trigger = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'";
    for (number, events) in ["BEFORE INSERT", "BEFORE DELETE"].into_iter().enumerate() {
        let sql = format!("{TABLE} {trigger}; CREATE TRIGGER no {events} ON t FOR EACH ROW EXECUTE FUNCTION f()");
        let case = CaseDatabase::new(&cluster, number, &sql);
        let said = case.refusal(&archive(5..=12));
        assert!(said.contains("table public.t would have ") && said.contains("rows instead of 8"), "{said}");
        assert_eq!(case.sql("SELECT count(*), max(v) FROM t"), "10|now");
    }
}

/// Without PostgreSQL's counts, changes of other tables would go unnoticed.
#[tokio::test(flavor = "multi_thread")]
async fn where_changes_are_not_counted_nothing_is_replaced() {
    let cluster = Cluster::start(ClusterOptions::default().set("track_counts", "off")).unwrap();
    let case = CaseDatabase::new(&cluster, 0, &format!("{TABLE} {}", CONNECTED[0].0));
    let said = case.refusal(&archive(1..=8));
    assert!(said.contains(CONNECTED[0].1), "a superuser has them counted: {said}");
    case.sql("CREATE ROLE plain LOGIN; GRANT ALL ON t, o TO plain; GRANT ALL ON DATABASE case_0 TO plain");
    let archive = archive(1..=8);
    let url = cluster.url("case_0").replace("postgres@", "plain@");
    let said = refusal(&case.arguments(&archive, &url, &[]));
    assert!(said.contains("track_counts is off"), "{said}");
    assert_eq!(case.sql("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM o)"), "10|10");
}
