//! Changes of definitions that end with the original definition.

use laredo_core::TableName;
use laredo_testkit::Cluster;

/// The key of all the tables of [`KINDS`].
pub const KEY: &[&str] = &["id"];

/// A change of definitions that is undone again, with rows written in between. It can be run any
/// number of times.
#[derive(Debug)]
pub struct ReversibleChange {
    /// The tables that the change affects.
    pub tables: &'static [&'static str],
    /// The statements that create the tables.
    pub setup: &'static str,
    /// The statements of the change.
    pub change: &'static str,
}

impl ReversibleChange {
    /// Returns the steps of the change. Each is a transaction: a single statement or a block.
    pub fn steps(&self) -> Vec<String> {
        let (mut steps, mut block) = (Vec::new(), String::new());
        for statement in self.change.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
            block += &format!("{statement};");
            if !block.starts_with("BEGIN") || statement == "COMMIT" {
                steps.push(std::mem::take(&mut block));
            }
        }
        steps
    }
}

/// Returns the tables of [`KINDS`], each with an integer `v` in addition to its key.
pub fn tables() -> Vec<TableName> {
    KINDS.iter().flat_map(|change| change.tables).map(|name| name.parse().unwrap()).collect()
}

/// Creates the tables of [`KINDS`], each with fifty rows.
pub fn create_tables(cluster: &Cluster) {
    for change in KINDS {
        cluster.psql(change.setup).unwrap();
    }
    for table in tables() {
        let fill = format!("INSERT INTO {} (id, v) SELECT g, 0 FROM generate_series(1, 50) g", table.quoted());
        cluster.psql(&fill).unwrap();
    }
}

/// Twelve kinds of change, each with tables of its own.
pub const KINDS: &[ReversibleChange] = &[
    ReversibleChange {
        tables: &["public.detached"],
        setup: "CREATE TABLE detached (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
            CREATE TABLE detached_1 PARTITION OF detached FOR VALUES FROM (0) TO (100);
            CREATE TABLE detached_2 PARTITION OF detached DEFAULT",
        change: "BEGIN; ALTER TABLE detached DETACH PARTITION detached_1; UPDATE detached_1 SET v = v + 1 WHERE id < 20;
            DELETE FROM detached_1 WHERE id = 20 + (SELECT max(v) FROM detached_1);
            ALTER TABLE detached ATTACH PARTITION detached_1 FOR VALUES FROM (0) TO (100); COMMIT",
    },
    ReversibleChange {
        tables: &["public.layered"],
        setup: "CREATE TABLE layered (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
            CREATE TABLE layered_1 PARTITION OF layered FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
            CREATE TABLE layered_11 PARTITION OF layered_1 DEFAULT",
        change: "ALTER TABLE layered DETACH PARTITION layered_1; UPDATE layered_1 SET v = v + 1;
            ALTER TABLE layered ATTACH PARTITION layered_1 FOR VALUES FROM (0) TO (100);
            BEGIN; ALTER TABLE layered_1 DETACH PARTITION layered_11; UPDATE layered_11 SET v = v + 10 WHERE id = 5;
            ALTER TABLE layered_1 ATTACH PARTITION layered_11 DEFAULT; COMMIT",
    },
    ReversibleChange {
        tables: &["public.renamed"],
        setup: "CREATE TABLE renamed (id int PRIMARY KEY, v int)",
        change: "BEGIN; ALTER TABLE renamed RENAME TO elsewhere; UPDATE elsewhere SET v = v + 1 WHERE id < 30;
            ALTER TABLE elsewhere RENAME TO renamed; COMMIT;
            ALTER TABLE renamed RENAME TO elsewhere; DELETE FROM elsewhere WHERE id = (SELECT max(id) FROM elsewhere);
            ALTER TABLE elsewhere RENAME TO renamed",
    },
    ReversibleChange {
        tables: &["public.moved"],
        setup: "CREATE SCHEMA aside; CREATE TABLE moved (id int PRIMARY KEY, v int)",
        change: "ALTER TABLE moved SET SCHEMA aside; UPDATE aside.moved SET v = v + 1; ALTER TABLE aside.moved SET SCHEMA public",
    },
    ReversibleChange {
        tables: &["public.left", "public.right"],
        setup: "CREATE TABLE \"left\" (id int PRIMARY KEY, v int); CREATE TABLE \"right\" (id int PRIMARY KEY, v int)",
        change: "ALTER TABLE \"left\" RENAME TO middle; ALTER TABLE \"right\" RENAME TO \"left\"; ALTER TABLE middle RENAME TO \"right\";
            UPDATE \"left\" SET v = v + 1; DELETE FROM \"right\" WHERE id = (SELECT max(id) FROM \"right\");
            ALTER TABLE \"left\" RENAME TO middle; ALTER TABLE \"right\" RENAME TO \"left\"; ALTER TABLE middle RENAME TO \"right\"",
    },
    ReversibleChange {
        tables: &["public.this", "public.that"],
        setup: "CREATE TABLE this (id int PRIMARY KEY, v int); CREATE TABLE that (id int PRIMARY KEY, v int)",
        change: "INSERT INTO that VALUES (1000 + (SELECT max(id) FROM that), 7);
            BEGIN; ALTER TABLE this RENAME TO middle; ALTER TABLE that RENAME TO this; ALTER TABLE middle RENAME TO that; COMMIT;
            UPDATE this SET v = v + 1; DELETE FROM that WHERE id = (SELECT max(id) FROM that)",
    },
    ReversibleChange {
        tables: &["app.served"],
        setup: "CREATE SCHEMA app; CREATE TABLE app.served (id int PRIMARY KEY, v int)",
        change: "CREATE SCHEMA app_new; CREATE TABLE app_new.served (LIKE app.served INCLUDING ALL);
            ALTER PUBLICATION laredo_test_pub ADD TABLE app_new.served;
            INSERT INTO app_new.served SELECT id, v + 100 FROM app.served WHERE id < 40 + 3;
            BEGIN; ALTER SCHEMA app RENAME TO app_old; ALTER SCHEMA app_new RENAME TO app; COMMIT;
            INSERT INTO app.served SELECT max(id) + 1, 5 FROM app.served; UPDATE app_old.served SET v = -1;
            DROP SCHEMA app_old CASCADE",
    },
    ReversibleChange {
        tables: &["public.labeled"],
        setup: "CREATE TYPE color AS ENUM ('red', 'blue'); CREATE TABLE labeled (id int PRIMARY KEY, v int, c color DEFAULT 'red')",
        change: "ALTER TYPE color RENAME VALUE 'red' TO 'RED'; UPDATE labeled SET v = v + 1 WHERE id % 2 = 0;
            ALTER TYPE color RENAME VALUE 'RED' TO 'red'",
    },
    ReversibleChange {
        tables: &["public.composed"],
        setup: "CREATE TYPE couple AS (a int, b text); CREATE TABLE composed (id int PRIMARY KEY, v int, p couple DEFAULT (1, 'b'))",
        change: "ALTER TYPE couple DROP ATTRIBUTE b; ALTER TYPE couple ADD ATTRIBUTE b text; UPDATE composed SET p = (2, 'c') WHERE id = 3",
    },
    ReversibleChange {
        tables: &["public.computed"],
        setup: "CREATE TABLE computed (id int PRIMARY KEY, v int)",
        change: "ALTER TABLE computed ALTER v TYPE int USING v + 1; ALTER TABLE computed ALTER v TYPE int USING v * 2 % 1000",
    },
    ReversibleChange {
        tables: &["public.emptied"],
        setup: "CREATE TABLE emptied (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
            CREATE TABLE emptied_1 PARTITION OF emptied FOR VALUES FROM (0) TO (10);
            CREATE TABLE emptied_2 PARTITION OF emptied DEFAULT",
        change: "UPDATE emptied SET v = v + 1; TRUNCATE emptied_1; INSERT INTO emptied VALUES (3, 3);
            DROP TABLE IF EXISTS emptied_3; CREATE TABLE emptied_3 (LIKE emptied INCLUDING ALL); INSERT INTO emptied_3 VALUES (-5, 1);
            ALTER TABLE emptied ATTACH PARTITION emptied_3 FOR VALUES FROM (-10) TO (0)",
    },
    ReversibleChange {
        tables: &["public.unpublished"],
        setup: "CREATE TABLE unpublished (id int PRIMARY KEY, v int)",
        change: "ALTER PUBLICATION laredo_test_pub DROP TABLE unpublished; UPDATE unpublished SET v = v + 1;
            ALTER PUBLICATION laredo_test_pub ADD TABLE unpublished",
    },
];

/// Changes of the tables of the workload, while it writes to them.
pub const UNDER_LOAD: &[ReversibleChange] = &[
    ReversibleChange {
        tables: &["work.parts"],
        setup: "",
        change: "BEGIN; ALTER TABLE work.parts DETACH PARTITION work.parts_x; UPDATE work.parts_x SET n = n + 1 WHERE id % 2 = 0;
            ALTER TABLE work.parts ATTACH PARTITION work.parts_x FOR VALUES IN ('x'); COMMIT",
    },
    ReversibleChange {
        tables: &["work.parts"],
        setup: "",
        change: "DROP TABLE IF EXISTS work.parts_w; CREATE TABLE work.parts_w (LIKE work.parts INCLUDING ALL);
            INSERT INTO work.parts_w (id, region, n, category) SELECT i, 'w', i, 'a' FROM generate_series(1, 30) i;
            ALTER TABLE work.parts ATTACH PARTITION work.parts_w FOR VALUES IN ('w'); UPDATE work.parts SET n = n + 1 WHERE region = 'w'",
    },
    ReversibleChange { tables: &["work.parts"], setup: "", change: "TRUNCATE work.parts_y" },
    ReversibleChange {
        tables: &["work.plain", "work.by_index", "work.full", "work.parts"],
        setup: "",
        change: "ALTER SCHEMA work RENAME TO work_away; UPDATE work_away.plain SET n = n + 1 WHERE id % 3 = 0;
            DELETE FROM work_away.full WHERE a % 7 = 0 AND n <> 0; ALTER SCHEMA work_away RENAME TO work",
    },
    ReversibleChange {
        tables: &["work.by_index"],
        setup: "",
        change: "ALTER PUBLICATION laredo_test_pub DROP TABLE work.by_index; UPDATE work.by_index SET category = 'b' WHERE n % 3 = 0;
            ALTER PUBLICATION laredo_test_pub ADD TABLE work.by_index",
    },
    ReversibleChange {
        tables: &["work.plain"],
        setup: "",
        change: "ALTER TABLE work.plain ALTER n TYPE int USING n + 1; UPDATE work.plain SET n = n - 1 WHERE id % 2 = 0",
    },
];
