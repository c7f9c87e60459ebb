//! Replacing the rows of a table in place, without changing rows of other tables.
//!
//! Deleting all rows and inserting them again would run every `ON DELETE CASCADE` that refers to
//! the table. So the new rows are first written to a temporary table. If the table is unique by the
//! archive's key, rows that stay are updated, and only those that the archive lacks are deleted. A
//! foreign key's action, a trigger or a rule may still change a row of another table. Such a change
//! shows in PostgreSQL's own counts of the transaction, which is then rolled back unless the caller
//! allows it.

use std::collections::BTreeMap;

use laredo_core::{Oid, Schema, TableName};
use postgres_protocol::escape::escape_literal;

use super::RestoreError;
use crate::catalog::quoted;
use crate::transport::{SqlConnection, TextRow, TransportError};

/// A table whose rows are replaced by those of a temporary table.
#[derive(Debug)]
pub(super) struct TableReplacement {
    table: TableName,
    oid: Oid,
    /// The table as written after `FROM`: with its partitions, but without inheriting tables.
    target: String,
    /// The temporary table. It has the table's name, so that PostgreSQL's messages name a table
    /// that the operator knows.
    stage: String,
    columns: Vec<String>,
    key: Vec<String>,
    /// The columns with `GENERATED ALWAYS AS IDENTITY`, which PostgreSQL refuses to update.
    identities: Vec<String>,
    is_keyed: bool,
}

/// Another table whose rows a replacement has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TouchedTable {
    /// The name of the table, quoted if SQL requires it.
    pub name: String,
    /// The numbers of rows inserted, updated and deleted.
    pub counts: [u64; 3],
    /// The foreign keys that changed the rows, or else the triggers and rules that may have.
    pub causes: Vec<String>,
}

impl std::fmt::Display for TouchedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = self.counts.iter().zip(["inserted", "updated", "deleted"]).filter(|(count, _)| **count > 0);
        let counts: Vec<String> = counts.map(|(count, done)| format!("{count} {done}")).collect();
        write!(f, "{} ({}; {})", self.name, counts.join(", "), self.causes.join(", "))
    }
}

/// The SQLSTATEs for which one statement is not enough. They cover unique and exclusion constraints
/// that hold in the end but not after each row, a column that cannot be updated, and a rule.
const NEEDS_TWO: [&str; 4] = ["23505", "23P01", "428C9", "0A000"];

impl TableReplacement {
    /// Locks the table against other writers and creates the temporary table. `is_parted` is true
    /// for a partitioned table.
    pub(super) async fn begin(
        connection: &mut SqlConnection,
        table: &TableName,
        oid: Oid,
        schema: &Schema,
        is_parted: bool,
    ) -> Result<TableReplacement, RestoreError> {
        // A temporary table hides a catalog table of the same name.
        let stage = if table.table.starts_with("pg_") { "laredo_restored" } else { &table.table };
        let name = |index: &usize| schema.columns().get(*index).map(|column| column.name.clone());
        let mut replacement = TableReplacement {
            table: table.clone(),
            oid,
            target: format!("{}{}", if is_parted { "" } else { "ONLY " }, table.quoted()),
            stage: format!("pg_temp.{}", quoted(stage)),
            columns: schema.columns().iter().map(|column| column.name.clone()).collect(),
            key: schema.key().columns().iter().filter_map(name).collect(),
            identities: Vec::new(),
            is_keyed: false,
        };
        watch_counts(connection).await?;
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", replacement.target);
        connection.simple_query(&lock).await?;
        replacement.identities = replacement.read_identities(connection).await?;
        replacement.is_keyed = replacement.has_unique_key(connection).await?;
        // PostgreSQL's error names a column that the table lacks.
        let stage = format!(
            "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA; SET CONSTRAINTS ALL DEFERRED",
            replacement.stage,
            replacement.columns(),
            replacement.target
        );
        connection.simple_query(&stage).await?;
        Ok(replacement)
    }

    /// Returns the name of the temporary table, which takes the new rows.
    pub(super) fn stage(&self) -> &str {
        &self.stage
    }

    /// Makes the table's rows those of the temporary table, of which there are `expected`.
    ///
    /// # Errors
    /// Fails if PostgreSQL refuses, if rows of other tables would change and `allows_cascade` is
    /// not set, or if triggers keep rows away.
    pub(super) async fn apply(
        &self,
        connection: &mut SqlConnection,
        expected: u64,
        allows_cascade: bool,
    ) -> Result<Vec<TouchedTable>, RestoreError> {
        connection.simple_query(&format!("ANALYZE {}", self.stage)).await?;
        let mut before = counts(connection).await?;
        let done = match self.is_keyed {
            true => match self.update_by_key(connection).await {
                Err(TransportError::Server(error)) if NEEDS_TWO.contains(&error.code.as_str()) => {
                    connection.simple_query("ROLLBACK TO SAVEPOINT by_key").await?;
                    // PostgreSQL also counts changes that were rolled back.
                    before = counts(connection).await?;
                    self.delete_and_insert(connection).await
                }
                done => done,
            },
            false => self.delete_and_insert(connection).await,
        };
        done.map_err(|error| self.explained(error))?;
        // Deferred triggers run now, so that their changes are counted.
        connection.simple_query("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(|error| self.explained(error))?;
        let touched = self.touched(connection, &before).await?;
        if !touched.is_empty() && !allows_cascade {
            return Err(RestoreError::OtherTables { table: self.table.clone(), touched });
        }
        let sql = format!("SELECT count(*) FROM {}", self.target);
        let found: u64 = number(connection.simple_query(&sql).await?.first(), 0);
        match found == expected {
            true => Ok(touched),
            false => Err(RestoreError::Rows { table: self.table.clone(), expected, found }),
        }
    }

    /// Deletes the rows that are gone, updates those that differ, and inserts those that are new,
    /// in one statement. Foreign keys are checked after it, against the resulting rows.
    async fn update_by_key(&self, connection: &mut SqlConnection) -> Result<(), TransportError> {
        let (target, stage) = (&self.target, &self.stage);
        let same_key = self.pairs(self.key.iter(), " AND ", |column| format!("old.{column} = new.{column}"));
        let row = |side: &str| self.pairs(self.columns.iter(), ", ", |column| format!("{side}.{column}"));
        let assigned = self.columns.iter().filter(|column| !self.identities.contains(column));
        let assigned = self.pairs(assigned, ", ", |column| format!("{column} = new.{column}"));
        let columns = self.columns();
        let is_gone = "(SELECT count(*) FROM gone) >= 0";
        let (changed, is_changed) = match assigned.is_empty() {
            true => (String::new(), String::new()),
            // The comparison is of bytes: equal values may differ in scale or case, and some types
            // have no equality operator.
            false => (
                format!(
                    ", changed AS (UPDATE {target} AS old SET {assigned} FROM {stage} AS new \
                     WHERE {same_key} AND ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record AND {is_gone} RETURNING 1)",
                    row("old"),
                    row("new")
                ),
                " AND (SELECT count(*) FROM changed) >= 0".to_owned(),
            ),
        };
        let sql = format!(
            "SAVEPOINT by_key; \
             WITH gone AS (DELETE FROM {target} AS old WHERE NOT EXISTS (SELECT FROM {stage} AS new WHERE {same_key}) RETURNING 1)\
             {changed} \
             INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {stage} AS new \
             WHERE NOT EXISTS (SELECT FROM {target} AS old WHERE {same_key}) AND {is_gone}{is_changed}",
            self.table.quoted()
        );
        connection.simple_query(&sql).await.map(drop)
    }

    async fn delete_and_insert(&self, connection: &mut SqlConnection) -> Result<(), TransportError> {
        let columns = self.columns();
        let sql = format!(
            "DELETE FROM {}; INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {}",
            self.target,
            self.table.quoted(),
            self.stage
        );
        connection.simple_query(&sql).await.map(drop)
    }

    fn columns(&self) -> String {
        self.pairs(self.columns.iter(), ", ", ToOwned::to_owned)
    }

    /// Joins the result of `each` for each column, whose name is quoted.
    fn pairs<'a>(&self, of: impl Iterator<Item = &'a String>, between: &str, each: impl Fn(&str) -> String) -> String {
        of.map(|column| each(&quoted(column))).collect::<Vec<_>>().join(between)
    }

    async fn read_identities(&self, connection: &mut SqlConnection) -> Result<Vec<String>, TransportError> {
        let sql = format!(
            "SELECT attname FROM pg_attribute WHERE attrelid = {} AND attidentity = 'a' AND attnum > 0 AND NOT attisdropped",
            self.oid
        );
        let rows = connection.simple_query(&sql).await?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }

    /// Returns true if a unique index rules out two rows of one key. An identity column outside the
    /// key could not be updated, so it makes the result false.
    async fn has_unique_key(&self, connection: &mut SqlConnection) -> Result<bool, TransportError> {
        let is_updatable =
            self.identities.iter().all(|column| self.key.contains(column) || !self.columns.contains(column));
        if self.key.is_empty() || !is_updatable {
            return Ok(false);
        }
        let key: Vec<String> = self.key.iter().map(|column| escape_literal(column)).collect();
        let sql = format!(
            "SELECT 1 FROM pg_index i WHERE i.indrelid = {} AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
             AND (SELECT array_agg(a.attname::text COLLATE \"C\" ORDER BY a.attname::text COLLATE \"C\") FROM pg_attribute a \
                  WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) \
               = (SELECT array_agg(k COLLATE \"C\" ORDER BY k COLLATE \"C\") FROM unnest(ARRAY[{}]::text[]) k) LIMIT 1",
            self.oid,
            key.join(", ")
        );
        Ok(!connection.simple_query(&sql).await?.is_empty())
    }

    fn explained(&self, error: TransportError) -> RestoreError {
        match error {
            TransportError::Server(error) if matches!(error.code.as_str(), "23503" | "23001") => {
                RestoreError::ForeignKey { table: self.table.clone(), error: Box::new(error) }
            }
            error => RestoreError::Transport(error),
        }
    }

    /// Returns the other tables whose rows have changed since `before`, by PostgreSQL's counts.
    async fn touched(
        &self,
        connection: &mut SqlConnection,
        before: &ChangedRowCounts,
    ) -> Result<Vec<TouchedTable>, TransportError> {
        let own = self.partitions(connection).await?;
        let changed = |(oid, after): (Oid, [u64; 3])| {
            let before = before.get(&oid).copied().unwrap_or_default();
            let new: [u64; 3] = std::array::from_fn(|kind| after[kind].saturating_sub(before[kind]));
            (!own.contains(&oid) && new != [0; 3]).then_some((oid, new))
        };
        let changed: Vec<(Oid, [u64; 3])> = counts(connection).await?.into_iter().filter_map(changed).collect();
        let reached: Vec<Oid> = changed.iter().map(|(oid, _)| *oid).chain(own.iter().copied()).collect();
        let mut touched = Vec::new();
        for (oid, counts) in changed {
            let (name, causes) = self.causes(connection, oid, &own, &reached).await?;
            touched.push(TouchedTable { name, counts, causes });
        }
        Ok(touched)
    }

    /// Returns the table and its partitions.
    async fn partitions(&self, connection: &mut SqlConnection) -> Result<Vec<Oid>, TransportError> {
        let sql = format!("SELECT {0}::oid UNION SELECT relid::oid FROM pg_partition_tree({0})", self.oid);
        Ok(connection.simple_query(&sql).await?.iter().map(|row| number(Some(row), 0)).collect())
    }

    /// Returns a table's name, and the possible causes of changes to its rows.
    async fn causes(
        &self,
        connection: &mut SqlConnection,
        oid: Oid,
        own: &[Oid],
        reached: &[Oid],
    ) -> Result<(String, Vec<String>), TransportError> {
        let list = |oids: &[Oid]| oids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let action = |column: &str| {
            format!("CASE {column} WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' WHEN 'd' THEN 'SET DEFAULT' END")
        };
        let sql = format!(
            "SELECT format('%I.%I', n.nspname, c.relname), 0 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {oid}; \
             SELECT format('foreign key %I', conname) || coalesce(' ON DELETE ' || {deleted}, '') || coalesce(' ON UPDATE ' || {updated}, ''), 1 \
             FROM pg_constraint WHERE contype = 'f' AND conrelid = {oid} AND coalesce({deleted}, {updated}) IS NOT NULL \
             AND (confrelid IN ({reached}) OR confrelid IN (SELECT relid FROM pg_partition_ancestors({table}))) ORDER BY conname; \
             SELECT format('trigger %I on %s', tgname, tgrelid::regclass), 2 FROM pg_trigger \
             WHERE tgrelid IN ({own}) AND NOT tgisinternal AND tgenabled <> 'D' ORDER BY 1; \
             SELECT format('rule %I on %s', rulename, ev_class::regclass), 2 FROM pg_rewrite \
             WHERE ev_class IN ({own}) AND ev_type IN ('2', '3', '4') ORDER BY 1",
            deleted = action("confdeltype"),
            updated = action("confupdtype"),
            table = self.oid,
            own = list(own),
            reached = list(reached),
        );
        let rows = connection.simple_query(&sql).await?;
        let of = |kind: &str| -> Vec<String> {
            let of_kind = rows.iter().filter(|row| row.get(1).is_some_and(|found| found.as_deref() == Some(kind)));
            of_kind.filter_map(|row| row.first().cloned().flatten()).collect()
        };
        let mut causes = of("1");
        if causes.is_empty() {
            causes = of("2");
        }
        if causes.is_empty() {
            causes.push("a trigger of another table".to_owned());
        }
        Ok((of("0").pop().unwrap_or_default(), causes))
    }
}

/// The numbers of rows inserted, updated and deleted in this transaction, by table.
type ChangedRowCounts = BTreeMap<Oid, [u64; 3]>;

/// Reads the transaction's counts, without those of temporary tables.
async fn counts(connection: &mut SqlConnection) -> Result<ChangedRowCounts, TransportError> {
    let sql = "SELECT relid, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_xact_user_tables s JOIN pg_class c ON c.oid = s.relid \
               WHERE c.relpersistence <> 't' AND n_tup_ins + n_tup_upd + n_tup_del > 0";
    let row = |row: &TextRow| (number(Some(row), 0), [1, 2, 3].map(|column| number(Some(row), column)));
    Ok(connection.simple_query(sql).await?.iter().map(row).collect())
}

/// Makes sure that PostgreSQL counts changed rows, which is its default. Turns the counts on for
/// this transaction if an administrator has turned them off.
async fn watch_counts(connection: &mut SqlConnection) -> Result<(), RestoreError> {
    let found = connection.simple_query("SELECT 1 WHERE current_setting('track_counts') = 'on'").await?;
    if found.is_empty() {
        let turned_on = connection.simple_query("SET LOCAL track_counts = on").await;
        turned_on.map_err(RestoreError::Uncounted)?;
    }
    Ok(())
}

fn number<T: std::str::FromStr + Default>(row: Option<&TextRow>, column: usize) -> T {
    let text = row.and_then(|row| row.get(column)).and_then(Option::as_deref);
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}
