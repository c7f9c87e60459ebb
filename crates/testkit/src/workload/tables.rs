//! The tables of a workload: each kind of key and replica identity that there is.

use laredo_core::TableName;
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::types::{COLUMNS, DEFINITIONS, identifier, literal};

/// What identifies the rows of a table, and how PostgreSQL tells which row changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Every type of [`COLUMNS`]; a composite primary key in another order than the columns, with values that are toasted.
    Wide,
    /// A primary key that is an identity column.
    Plain,
    /// `REPLICA IDENTITY USING INDEX`: not the primary key.
    ByIndex,
    /// `REPLICA IDENTITY FULL` without a primary key: needs `key_fields`.
    Full,
    /// Partitioned; rows move from one partition to another.
    Partitioned,
}

/// A table of a workload. All have a number `n`, a text `category` (`a`, `ab`, `b` or NULL) and a text `body`.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadTable {
    /// What it is for.
    pub shape: Shape,
    /// Its schema.
    pub schema: &'static str,
    /// Its name.
    pub table: &'static str,
    /// The columns of its key, in key order.
    pub key: &'static [&'static str],
}

/// The tables.
pub const TABLES: &[WorkloadTable] = &[
    WorkloadTable {
        shape: Shape::Wide,
        schema: "Wïde \"s\"",
        table: "tåble \"with\" $quotes$ 'and' 🌍",
        key: &["näme", "tenant"],
    },
    WorkloadTable { shape: Shape::Plain, schema: "work", table: "plain", key: &["id"] },
    WorkloadTable { shape: Shape::ByIndex, schema: "work", table: "by_index", key: &["code", "region"] },
    WorkloadTable { shape: Shape::Full, schema: "work", table: "full", key: &["a", "b"] },
    WorkloadTable { shape: Shape::Partitioned, schema: "work", table: "parts", key: &["id", "region"] },
];

impl WorkloadTable {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> TableName {
        TableName::new(self.schema, self.table)
    }

    /// What the configuration has to give as the key: empty where the table itself says it.
    #[must_use]
    pub fn key_fields(&self) -> &'static [&'static str] {
        if self.shape == Shape::Full { self.key } else { &[] }
    }

    /// The SQL expressions of one of a few keys.
    pub(super) fn random_key(&self, rng: &mut StdRng) -> Vec<String> {
        let number = rng.random_range(0..60_u32);
        match self.shape {
            Shape::Wide => {
                let name = match number % 10 {
                    // Too long for a row to hold it, so that it is toasted.
                    0 => toasted(number, 2400),
                    1 => literal(&format!("\"ñ\" 🌍 {number}")),
                    _ => literal(&format!("name {number}")),
                };
                vec![name, rng.random_range(0..2).to_string()]
            }
            Shape::Plain => vec![number.to_string()],
            // 1.0 and 1.00 are one key to PostgreSQL, and differ in their bytes.
            Shape::ByIndex => {
                let zeros = "0".repeat(rng.random_range(0..3));
                vec![format!("{number}.5{zeros}"), random_region(rng)]
            }
            Shape::Full => vec![format!("{number}::bigint"), literal(&format!("b{}", number % 3))],
            Shape::Partitioned => vec![number.to_string(), random_region(rng)],
        }
    }

    /// The columns that a statement may set besides the key, each with an expression for it.
    pub(super) fn random_values(&self, rng: &mut StdRng, value_bytes_max: u32) -> Vec<(String, String)> {
        let mut values = vec![
            ("n".to_owned(), rng.random_range(-1000..1000).to_string()),
            ("category".to_owned(), ["'a'", "'ab'", "'b'", "NULL"][rng.random_range(0..4)].to_owned()),
            ("body".to_owned(), large(rng, value_bytes_max)),
        ];
        if self.shape == Shape::Wide {
            values.extend(COLUMNS.iter().map(|column| (identifier(column.name), column.value(rng))));
            values.push(("second_body".to_owned(), format!("convert_to({}, 'UTF8')", large(rng, value_bytes_max))));
        }
        values
    }

    /// A statement that sets `n` of a row that no session touches, which all filters of tests let through (its category is `a`).
    #[must_use]
    pub fn mark(&self, n: i32) -> String {
        let (columns, key) = self.mark_key();
        format!(
            "INSERT INTO {} ({columns}, n, category) VALUES ({key}, {n}, 'a') \
             ON CONFLICT ({columns}) DO UPDATE SET n = {n}, category = 'a'",
            self.name().quoted()
        )
    }

    /// A statement that adds many rows which are seldom touched, where they are not there already: `rows` of them, with `n` and a category.
    #[must_use]
    pub fn fill(&self, rows: u32) -> String {
        let key = match self.shape {
            Shape::Wide => "'fill ' || i, 0",
            Shape::Plain => "i",
            Shape::ByIndex | Shape::Full | Shape::Partitioned => "i, 'x'",
        };
        let (columns, _) = self.mark_key();
        format!(
            "INSERT INTO {} ({columns}, n, category) SELECT {key}, i, (ARRAY['a', 'ab', 'b'])[i % 3 + 1] \
             FROM generate_series(1000, {}) i ON CONFLICT ({columns}) DO NOTHING",
            self.name().quoted(),
            999 + rows
        )
    }

    /// A condition that holds for every row but the marked one.
    pub(super) fn is_not_the_mark(&self) -> String {
        let (columns, key) = self.mark_key();
        format!("({columns}) <> ({key})")
    }

    /// The key's columns, and the marked row's values of them.
    fn mark_key(&self) -> (String, &'static str) {
        let key = match self.shape {
            Shape::Wide => "'mark', 0",
            Shape::Plain => "-1",
            Shape::ByIndex | Shape::Full | Shape::Partitioned => "-1, 'x'",
        };
        let columns: Vec<String> = self.key.iter().map(|column| identifier(column)).collect();
        (columns.join(", "), key)
    }
}

/// What has to be run once in an empty database.
#[must_use]
pub fn schema_sql() -> String {
    let wide = &TABLES[0];
    let columns: Vec<String> =
        COLUMNS.iter().map(|column| format!("{} {}", identifier(column.name), column.sql_type)).collect();
    format!(
        "CREATE SCHEMA work; CREATE SCHEMA {schema}; {DEFINITIONS}
         CREATE TABLE {wide} (gone int, tenant int, n int, category text,
             generated int GENERATED ALWAYS AS (n * 2) STORED, identity bigint GENERATED ALWAYS AS IDENTITY,
             \"näme\" text, body text, {columns}, second_body bytea, PRIMARY KEY (\"näme\", tenant));
         ALTER TABLE {wide} DROP COLUMN gone;
         ALTER TABLE {wide} ALTER second_body SET STORAGE EXTERNAL;
         CREATE TABLE work.plain (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n int, category text, body text);
         CREATE TABLE work.by_index (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, region text NOT NULL,
             category text, body text, code numeric NOT NULL);
         CREATE UNIQUE INDEX by_index_key ON work.by_index (code, region);
         ALTER TABLE work.by_index REPLICA IDENTITY USING INDEX by_index_key;
         CREATE TABLE work.full (n int, a bigint NOT NULL, category text, body text, b text NOT NULL, UNIQUE (a, b));
         ALTER TABLE work.full REPLICA IDENTITY FULL;
         CREATE TABLE work.parts (id int, n int, region text, category text, body text, PRIMARY KEY (id, region))
             PARTITION BY LIST (region);
         CREATE TABLE work.parts_x PARTITION OF work.parts FOR VALUES IN ('x');
         CREATE TABLE work.parts_y (body text, gone int, region text NOT NULL, id int NOT NULL, category text, n int);
         ALTER TABLE work.parts_y DROP COLUMN gone;
         ALTER TABLE work.parts ATTACH PARTITION work.parts_y FOR VALUES IN ('y');
         CREATE TABLE work.parts_rest PARTITION OF work.parts DEFAULT;",
        schema = identifier(wide.schema),
        wide = wide.name().quoted(),
        columns = columns.join(", "),
    )
}

fn random_region(rng: &mut StdRng) -> String {
    ["'x'", "'y'", "'z'"][rng.random_range(0..3)].to_owned()
}

/// A text that is mostly short, sometimes stored out of line, and now and then of the largest size.
fn large(rng: &mut StdRng, value_bytes_max: u32) -> String {
    let seed: u32 = rng.random();
    match rng.random_range(0..1000) {
        0..750 => literal(&format!("{seed:x}")),
        750..960 => toasted(seed, rng.random_range(2000..8000).min(value_bytes_max)),
        960..995 => toasted(seed, rng.random_range(8000..100_000).min(value_bytes_max)),
        // What compresses well takes another path.
        995..997 => format!("repeat('{seed:x}', {})", value_bytes_max / 8),
        _ => toasted(seed, value_bytes_max),
    }
}

/// An expression for a text of this many bytes that does not compress.
fn toasted(seed: u32, bytes: u32) -> String {
    let chunks = bytes.div_ceil(32);
    format!("(SELECT left(string_agg(md5('{seed} ' || i), ''), {bytes}) FROM generate_series(1, {chunks}) i)")
}
