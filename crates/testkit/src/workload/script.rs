//! The statements of one session. Only the seed determines them, not the answers of the database.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use super::WorkloadOptions;
use super::tables::{TABLES, WorkloadTable};
use crate::types::identifier;

/// The transactions of one session, in order.
#[derive(Debug)]
pub struct SessionScript {
    rng: StdRng,
    value_bytes_max: u32,
    truncates: bool,
}

/// A transaction to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptTransaction {
    /// The statements, without BEGIN and COMMIT or ROLLBACK.
    pub statements: Vec<String>,
    /// True if the transaction ends with COMMIT rather than ROLLBACK.
    pub commits: bool,
}

impl SessionScript {
    /// Returns the script of one session of a workload.
    #[must_use]
    pub fn new(seed: u64, session: u64, options: &WorkloadOptions) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(session));
        Self { rng, value_bytes_max: options.value_bytes_max, truncates: options.truncates }
    }

    /// Returns the next transaction.
    pub fn next_transaction(&mut self) -> ScriptTransaction {
        let mut statements = Vec::new();
        for _ in 0..self.rng.random_range(1..6) {
            if self.rng.random_ratio(1, 6) {
                self.savepoint(&mut statements, 0);
            } else {
                statements.push(self.statement());
            }
        }
        ScriptTransaction { statements, commits: !self.rng.random_ratio(1, 15) }
    }

    /// Adds a subtransaction, perhaps with others inside. Two out of three are rolled back.
    fn savepoint(&mut self, statements: &mut Vec<String>, depth: u32) {
        statements.push(format!("SAVEPOINT s{depth}"));
        for _ in 0..self.rng.random_range(1..4) {
            if depth < 2 && self.rng.random_ratio(1, 4) {
                self.savepoint(statements, depth + 1);
            } else {
                statements.push(self.statement());
            }
        }
        let end = if self.rng.random_ratio(2, 3) { "ROLLBACK TO" } else { "RELEASE" };
        statements.push(format!("{end} SAVEPOINT s{depth}"));
    }

    fn statement(&mut self) -> String {
        let table = TABLES.choose(&mut self.rng).expect("there are tables");
        match self.rng.random_range(0..1000) {
            0..400 => self.upsert(table),
            400..700 => self.update(table),
            700..820 => self.delete(table),
            820..920 => self.change_key(table),
            920..970 => self.update_many(table),
            970..990 => self.bulk(),
            990..994 => self.delete_many(table),
            994.. if self.truncates => self.truncate(),
            _ => self.update(table),
        }
    }

    /// Inserts a row with all its columns, or overwrites some columns of the existing row.
    fn upsert(&mut self, table: &WorkloadTable) -> String {
        let key_columns = key_columns(table);
        let key = table.random_key(&mut self.rng);
        let (columns, values): (Vec<_>, Vec<_>) =
            table.random_values(&mut self.rng, self.value_bytes_max).into_iter().unzip();
        let mut set = columns.clone();
        // The key's bytes may change although the key stays the same.
        set.extend(key_columns.iter().cloned());
        set.shuffle(&mut self.rng);
        set.truncate(self.rng.random_range(1..5));
        let set: Vec<String> = set.iter().map(|column| format!("{column} = EXCLUDED.{column}")).collect();
        format!(
            "INSERT INTO {} ({}, {}) VALUES ({}, {}) ON CONFLICT ({}) DO UPDATE SET {}",
            table.name().quoted(),
            key_columns.join(", "),
            columns.join(", "),
            key.join(", "),
            values.join(", "),
            key_columns.join(", "),
            set.join(", ")
        )
    }

    /// Sets some columns of a row. The others, including large ones, stay.
    fn update(&mut self, table: &WorkloadTable) -> String {
        let mut values = table.random_values(&mut self.rng, self.value_bytes_max);
        values.shuffle(&mut self.rng);
        values.truncate(self.rng.random_range(1..4));
        let set: Vec<String> = values.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let key = table.random_key(&mut self.rng);
        format!("UPDATE {} SET {} WHERE {}", table.name().quoted(), set.join(", "), key_condition(table, &key))
    }

    fn delete(&mut self, table: &WorkloadTable) -> String {
        let key = table.random_key(&mut self.rng);
        format!("DELETE FROM {} WHERE {}", table.name().quoted(), key_condition(table, &key))
    }

    fn change_key(&mut self, table: &WorkloadTable) -> String {
        let (old, new) = (table.random_key(&mut self.rng), table.random_key(&mut self.rng));
        let name = table.name().quoted();
        let set: Vec<String> =
            key_columns(table).iter().zip(&new).map(|(column, value)| format!("{column} = {value}")).collect();
        format!(
            "UPDATE {name} SET {} WHERE {} AND NOT EXISTS (SELECT FROM {name} WHERE {})",
            set.join(", "),
            key_condition(table, &old),
            key_condition(table, &new)
        )
    }

    fn update_many(&mut self, table: &WorkloadTable) -> String {
        let remainder = self.rng.random_range(0..7);
        let category = ["'a'", "category", "'b'"].choose(&mut self.rng).copied().unwrap_or_default();
        let name = table.name().quoted();
        let others = table.is_not_the_mark();
        format!("UPDATE {name} SET n = n + 1, category = {category} WHERE n % 7 = {remainder} AND n <> 0 AND {others}")
    }

    fn delete_many(&mut self, table: &WorkloadTable) -> String {
        let remainder = self.rng.random_range(0..5);
        format!("DELETE FROM {} WHERE n % 5 = {remainder} AND {}", table.name().quoted(), table.is_not_the_mark())
    }

    /// Writes many rows at once, so that PostgreSQL streams the transaction before it commits.
    fn bulk(&mut self) -> String {
        let (first, seed) = (self.rng.random_range(100..2000), self.rng.random::<u32>());
        let count = self.rng.random_range(100..600);
        format!(
            "INSERT INTO work.plain (id, n, category, body) \
             SELECT i, i % 50, CASE i % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' END, repeat(md5('{seed} ' || i), 6) \
             FROM generate_series({first}, {first} + {count}) i \
             ON CONFLICT (id) DO UPDATE SET n = EXCLUDED.n, category = EXCLUDED.category"
        )
    }

    fn truncate(&mut self) -> String {
        let mut tables: Vec<&WorkloadTable> = TABLES.iter().collect();
        tables.shuffle(&mut self.rng);
        tables.truncate(self.rng.random_range(1..3));
        let names: Vec<String> = tables.iter().map(|table| table.name().quoted()).collect();
        format!("TRUNCATE {}", names.join(", "))
    }
}

fn key_columns(table: &WorkloadTable) -> Vec<String> {
    table.key.iter().map(|column| identifier(column)).collect()
}

fn key_condition(table: &WorkloadTable, key: &[String]) -> String {
    let equal = |(column, value): (&String, &String)| format!("{column} = {value}");
    key_columns(table).iter().zip(key).map(equal).collect::<Vec<_>>().join(" AND ")
}
