//! The tables of a workload, with every kind of key and replica identity.

use laredo_core::TableName;
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::types::{COLUMNS, DEFINITIONS, identifier, literal};

/// The kind of a table, by the key and the replica identity of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadTableShape {
    /// Every type of [`COLUMNS`]. The composite primary key has another order than the columns, and
    /// some of its values are toasted.
    Wide,
    /// A primary key that is an identity column.
    Plain,
    /// `REPLICA IDENTITY USING INDEX`, with an index other than the primary key.
    ByIndex,
    /// `REPLICA IDENTITY FULL` without a primary key, so it needs `key_fields`.
    Full,
    /// A partitioned table, whose rows move from one partition to another.
    Partitioned,
}

/// A table of a workload. Every table has a number `n`, a text `category` (`a`, `ab`, `b` or NULL)
/// and a text `body`.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadTable {
    /// The kind of the table.
    pub shape: WorkloadTableShape,
    /// The schema of the table.
    pub schema: &'static str,
    /// The name of the table, without its schema.
    pub table: &'static str,
    /// The columns of the key, in key order.
    pub key: &'static [&'static str],
}

/// The tables of every workload.
pub const TABLES: &[WorkloadTable] = &[
    WorkloadTable {
        shape: WorkloadTableShape::Wide,
        schema: "Wïde \"s\"",
        table: "tåble \"with\" $quotes$ 'and' 🌍",
        key: &["näme", "tenant"],
    },
    WorkloadTable { shape: WorkloadTableShape::Plain, schema: "work", table: "plain", key: &["id"] },
    WorkloadTable { shape: WorkloadTableShape::ByIndex, schema: "work", table: "by_index", key: &["code", "region"] },
    WorkloadTable { shape: WorkloadTableShape::Full, schema: "work", table: "full", key: &["a", "b"] },
    WorkloadTable { shape: WorkloadTableShape::Partitioned, schema: "work", table: "parts", key: &["id", "region"] },
];

impl WorkloadTable {
    /// Returns the name of the table with its schema.
    #[must_use]
    pub fn name(&self) -> TableName {
        TableName::new(self.schema, self.table)
    }

    /// Returns the `key_fields` for the configuration. Empty if the table itself defines its key.
    #[must_use]
    pub fn key_fields(&self) -> &'static [&'static str] {
        if self.shape == WorkloadTableShape::Full { self.key } else { &[] }
    }

    /// Returns the SQL expressions of a random key out of a few.
    pub(super) fn random_key(&self, rng: &mut StdRng) -> Vec<String> {
        let number = rng.random_range(0..60_u32);
        match self.shape {
            WorkloadTableShape::Wide => {
                let name = match number % 10 {
                    // The value is too long to be stored in the row, so it is toasted.
                    0 => toasted(number, 2400),
                    1 => literal(&format!("\"ñ\" 🌍 {number}")),
                    _ => literal(&format!("name {number}")),
                };
                vec![name, rng.random_range(0..2).to_string()]
            }
            WorkloadTableShape::Plain => vec![number.to_string()],
            // 1.0 and 1.00 are the same key to PostgreSQL, but differ in their bytes.
            WorkloadTableShape::ByIndex => {
                let zeros = "0".repeat(rng.random_range(0..3));
                vec![format!("{number}.5{zeros}"), random_region(rng)]
            }
            WorkloadTableShape::Full => vec![format!("{number}::bigint"), literal(&format!("b{}", number % 3))],
            WorkloadTableShape::Partitioned => vec![number.to_string(), random_region(rng)],
        }
    }

    /// Returns the columns other than the key that a statement may set, each with an expression.
    pub(super) fn random_values(&self, rng: &mut StdRng, value_bytes_max: u32) -> Vec<(String, String)> {
        let mut values = vec![
            ("n".to_owned(), rng.random_range(-1000..1000).to_string()),
            ("category".to_owned(), ["'a'", "'ab'", "'b'", "NULL"][rng.random_range(0..4)].to_owned()),
            ("body".to_owned(), large(rng, value_bytes_max)),
        ];
        if self.shape == WorkloadTableShape::Wide {
            values.extend(COLUMNS.iter().map(|column| (identifier(column.name), column.value(rng))));
            values.push(("second_body".to_owned(), format!("convert_to({}, 'UTF8')", large(rng, value_bytes_max))));
        }
        values
    }

    /// Returns a statement that sets `n` of the marked row. No session changes that row, and its
    /// category `a` passes the filters of all tests.
    #[must_use]
    pub fn mark(&self, n: i32) -> String {
        let (columns, key) = self.mark_key();
        format!(
            "INSERT INTO {} ({columns}, n, category) VALUES ({key}, {n}, 'a') \
             ON CONFLICT ({columns}) DO UPDATE SET n = {n}, category = 'a'",
            self.name().quoted()
        )
    }

    /// Returns a statement that adds `rows` rows with `n` and a category, unless they exist. The
    /// sessions seldom change them.
    #[must_use]
    pub fn fill(&self, rows: u32) -> String {
        let key = match self.shape {
            WorkloadTableShape::Wide => "'fill ' || i, 0",
            WorkloadTableShape::Plain => "i",
            WorkloadTableShape::ByIndex | WorkloadTableShape::Full | WorkloadTableShape::Partitioned => "i, 'x'",
        };
        let (columns, _) = self.mark_key();
        format!(
            "INSERT INTO {} ({columns}, n, category) SELECT {key}, i, (ARRAY['a', 'ab', 'b'])[i % 3 + 1] \
             FROM generate_series(1000, {}) i ON CONFLICT ({columns}) DO NOTHING",
            self.name().quoted(),
            999 + rows
        )
    }

    /// Returns a condition that holds for every row except the marked one.
    pub(super) fn is_not_the_mark(&self) -> String {
        let (columns, key) = self.mark_key();
        format!("({columns}) <> ({key})")
    }

    /// Returns the columns of the key, and their values in the marked row.
    fn mark_key(&self) -> (String, &'static str) {
        let key = match self.shape {
            WorkloadTableShape::Wide => "'mark', 0",
            WorkloadTableShape::Plain => "-1",
            WorkloadTableShape::ByIndex | WorkloadTableShape::Full | WorkloadTableShape::Partitioned => "-1, 'x'",
        };
        let columns: Vec<String> = self.key.iter().map(|column| identifier(column)).collect();
        (columns.join(", "), key)
    }
}

/// Returns the SQL that must be run once in an empty database.
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

/// Returns a text that is usually short, sometimes stored out of line, and rarely of the largest
/// size.
fn large(rng: &mut StdRng, value_bytes_max: u32) -> String {
    let seed: u32 = rng.random();
    match rng.random_range(0..1000) {
        0..750 => literal(&format!("{seed:x}")),
        750..960 => toasted(seed, rng.random_range(2000..8000).min(value_bytes_max)),
        960..995 => toasted(seed, rng.random_range(8000..100_000).min(value_bytes_max)),
        // Values that compress well are stored in another way.
        995..997 => format!("repeat('{seed:x}', {})", value_bytes_max / 8),
        _ => toasted(seed, value_bytes_max),
    }
}

/// Returns an expression for a text of this many bytes that does not compress.
fn toasted(seed: u32, bytes: u32) -> String {
    let chunks = bytes.div_ceil(32);
    format!("(SELECT left(string_agg(md5('{seed} ' || i), ''), {bytes}) FROM generate_series(1, {chunks}) i)")
}
