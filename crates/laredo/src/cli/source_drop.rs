//! `laredo source drop`: retires a source, whose server is stopped for good. It shows what the
//! source has left, asks, and then drops it: the slot, the publication, and the folders of its
//! tables.

use std::fmt;
use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use laredo_core::TableName;
use laredo_engine::{FolderKind, RetiredFolder};
use laredo_postgres::stream::SlotMode;
use laredo_postgres::{DatabaseRemains, RetirablePublication, RetirableSlot, SourceRetirement};

use super::args::SourceDropArgs;
use super::error::CliError;
use super::text_table::bytes;
use super::{print_message, print_output};
use crate::config::ServerConfig;
use crate::config::server::{DdlWatchConfig, PostgresSourceConfig, ServedTableConfig};
use crate::printable::printable;
use crate::serve::{connection, slot, table_folders};

/// A part of a source that is dropped.
enum RetirementStep {
    Slot { name: String, found: RetirableSlot },
    Publication { name: String, tables: usize },
    Folder { kind: FolderKind, folder: RetiredFolder },
}

/// The parts of a source, and what becomes of each. Folders are locked while this lives.
#[derive(Default)]
struct RetirementPlan {
    /// The parts that are dropped, in this order.
    steps: Vec<RetirementStep>,
    /// The parts that are kept, each with the reason.
    kept: Vec<String>,
    /// The parts that are not there.
    absent: Vec<String>,
}

/// The facts that decide if a publication is dropped.
struct PublicationUse<'a> {
    keep: bool,
    drop: bool,
    /// True if laredo may create the publication.
    create: bool,
    /// The tables of the source.
    tables: Vec<TableName>,
    /// The other sources of the configuration that read the publication.
    other_sources: Vec<&'a str>,
}

/// Retires the source that the arguments name. Exit code 0: dropped or not there, 1: the operator
/// did not agree.
pub(super) async fn run(args: &SourceDropArgs) -> Result<ExitCode, CliError> {
    let config = match ServerConfig::load(&args.config.loader()) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.render(io::stderr().is_terminal()));
            return Ok(ExitCode::from(2));
        }
    };
    let (name, source) = choose(&config, args.source.as_deref())?;
    let refused = |error: &dyn fmt::Display| CliError::NotRetired(error.to_string());
    let options = connection(source)?;
    let publication = source.publication.name.clone();
    let connected = SourceRetirement::connect(&options, slot(name, source), publication).await;
    let mut database = connected.map_err(|error| refused(&error))?;
    let found = database.inspect().await.map_err(|error| refused(&error))?;
    let mut plan = RetirementPlan::default();
    plan.add_database(args, &config, (name, source), found);
    plan.add_folders(&config, name)?;
    let heading = format!("source {name} of {}, database {}", options.address(), options.database);
    // Nothing is dropped that the operator cannot have seen.
    print_output(&format!("{heading}\n{}", plan.text())).map_err(|error| refused(&error))?;
    if plan.steps.is_empty() {
        print_output("nothing is there to drop\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !is_confirmed(name)? {
        print_message("nothing was dropped");
        return Ok(ExitCode::from(1));
    }
    plan.carry_out(&mut database).await
}

/// Returns the source of this name, or the only one.
fn choose<'a>(config: &'a ServerConfig, wanted: Option<&str>) -> Result<(&'a str, &'a PostgresSourceConfig), CliError> {
    let mut fitting = config.sources.iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
    match (fitting.next(), fitting.next()) {
        (Some((name, source)), None) => Ok((name, source)),
        _ => {
            let names: Vec<&str> = config.sources.keys().map(String::as_str).collect();
            Err(CliError::NotRetired(format!("name one source of the configuration: {}", names.join(", "))))
        }
    }
}

/// Asks the operator to type the name of the source.
fn is_confirmed(name: &str) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::NotRetired("standard input is not a terminal; confirm with --yes".to_owned()));
    }
    print_message(&format!("this cannot be undone; type {name} to drop it:"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(CliError::Input)?;
    Ok(answer.trim() == name)
}

impl RetirementPlan {
    /// Adds the objects of the database.
    fn add_database(
        &mut self,
        args: &SourceDropArgs,
        config: &ServerConfig,
        (name, source): (&str, &PostgresSourceConfig),
        found: DatabaseRemains,
    ) {
        match (slot(name, source), found.slot) {
            (SlotMode::Stateful { name }, Some(found)) => self.steps.push(RetirementStep::Slot { name, found }),
            (SlotMode::Stateful { name }, None) => self.absent.push(format!("replication slot {name}")),
            // A temporary slot ends with its server.
            (SlotMode::Ephemeral { .. }, _) => {}
        }
        let publication = source.publication.name.clone();
        let about = publication_use(args, config, (name, source));
        match found.publication {
            None => self.absent.push(format!("publication {publication}")),
            Some(found) => match reason_to_keep(&found, &about) {
                Some(reason) => self.kept.push(format!("publication {publication}: {reason}")),
                None => {
                    self.steps.push(RetirementStep::Publication { name: publication, tables: found.tables.len() });
                }
            },
        }
        if found.has_event_trigger {
            let reason = "other servers may use it; `laredo ddl remove` drops it";
            self.kept.push(format!("event trigger of `laredo ddl install`: {reason}"));
        } else if source.ddl.watch == DdlWatchConfig::Trigger {
            self.absent.push("event trigger of `laredo ddl install`".to_owned());
        }
    }

    /// Adds the folders of the source's tables, and locks them.
    fn add_folders(&mut self, config: &ServerConfig, source: &str) -> Result<(), CliError> {
        let tables = config.tables.iter().filter(|table| table.source == source);
        for (kind, path) in tables.flat_map(table_folders) {
            let folder = RetiredFolder::open(&path, kind);
            match folder.map_err(|error| CliError::NotRetired(error.to_string()))? {
                None => self.absent.push(folder_text(kind, &path)),
                Some(folder) => {
                    let kept = folder.foreign().iter();
                    self.kept.extend(kept.map(|path| format!("{}: it is not a file of laredo", path.display())));
                    // A folder that has only foreign files was retired before.
                    if folder.count() > 0 || folder.foreign().is_empty() {
                        self.steps.push(RetirementStep::Folder { kind, folder });
                    }
                }
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        let steps = self.steps.iter().map(|step| line("will drop", &step.details()));
        let kept = self.kept.iter().map(|part| line("will keep", part));
        let absent = self.absent.iter().map(|part| line("is not there", part));
        steps.chain(kept).chain(absent).collect()
    }

    /// Drops the parts, and prints the result of each. Nothing else is dropped after a slot that
    /// could not be: a server may have begun to use it.
    async fn carry_out(self, database: &mut SourceRetirement) -> Result<ExitCode, CliError> {
        let (mut left, mut is_stopped, mut results) = (Vec::new(), false, Vec::new());
        for step in self.steps {
            let part = step.to_string();
            if is_stopped {
                left.push(part);
                continue;
            }
            let is_slot = matches!(step, RetirementStep::Slot { .. });
            match step.carry_out(database).await {
                // Output that is no longer read does not end the work.
                Ok(result) => results.push(print_output(&line(result, &part))),
                Err(reason) => {
                    print_message(&format!("cannot drop {part}: {reason}"));
                    left.push(part);
                    is_stopped = is_slot;
                }
            }
        }
        results.extend(self.kept.iter().map(|part| print_output(&line("kept", part))));
        if !left.is_empty() {
            return Err(CliError::PartlyRetired(left.join("; ")));
        }
        results.into_iter().collect::<Result<(), CliError>>()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl RetirementStep {
    /// Drops the part. Returns the result in words.
    async fn carry_out(self, database: &mut SourceRetirement) -> Result<&'static str, String> {
        let dropped = match self {
            RetirementStep::Slot { .. } => database.drop_slot().await.map_err(|error| error.to_string())?,
            RetirementStep::Publication { .. } => {
                database.drop_publication().await.map_err(|error| error.to_string())?
            }
            RetirementStep::Folder { folder, .. } => {
                return match folder.remove().map_err(|error| error.to_string())? {
                    true => Ok("dropped"),
                    false => Ok("emptied"),
                };
            }
        };
        Ok(if dropped { "dropped" } else { "was not there" })
    }

    /// Returns the part with its size.
    fn details(&self) -> String {
        let about = match self {
            RetirementStep::Slot { found: RetirableSlot { wal_bytes: Some(kept) }, .. } => {
                format!("PostgreSQL keeps {} of WAL for it", bytes(*kept))
            }
            RetirementStep::Slot { found: RetirableSlot { wal_bytes: None }, .. } => "its WAL is lost".to_owned(),
            RetirementStep::Publication { tables, .. } => format!("tables: {tables}"),
            RetirementStep::Folder { folder, .. } => format!("files: {}, {}", folder.count(), bytes(folder.bytes())),
        };
        format!("{self} ({about})")
    }
}

impl fmt::Display for RetirementStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetirementStep::Slot { name, .. } => write!(f, "replication slot {name}"),
            RetirementStep::Publication { name, .. } => write!(f, "publication {name}"),
            RetirementStep::Folder { kind, folder } => f.write_str(&folder_text(*kind, folder.path())),
        }
    }
}

fn line(verb: &str, part: &str) -> String {
    format!("{verb:<13}  {}\n", printable(part))
}

fn folder_text(kind: FolderKind, path: &Path) -> String {
    match kind {
        FolderKind::Journal => format!("journal {}", path.display()),
        FolderKind::Snapshots => format!("snapshots {}", path.display()),
    }
}

/// Returns the facts about the publication of a source that the configuration has.
fn publication_use<'a>(
    args: &SourceDropArgs,
    config: &'a ServerConfig,
    (name, source): (&str, &PostgresSourceConfig),
) -> PublicationUse<'a> {
    let tables = config.tables.iter().filter(|table| table.source == name);
    let others = config.sources.iter().filter(|(other, about)| {
        // A source of another database may be counted, and then the publication is kept.
        *other != name && about.publication.name == source.publication.name
    });
    PublicationUse {
        keep: args.keep_publication,
        drop: args.drop_publication,
        create: source.publication.create,
        tables: tables.map(ServedTableConfig::name).collect(),
        other_sources: others.map(|(other, _)| other.as_str()).collect(),
    }
}

/// Returns the reason why a publication is kept. `None` if it is dropped.
fn reason_to_keep(found: &RetirablePublication, about: &PublicationUse<'_>) -> Option<String> {
    if about.keep {
        return Some("--keep-publication is given".to_owned());
    }
    if about.drop {
        return None;
    }
    let foreign: Vec<String> =
        found.tables.iter().filter(|table| !about.tables.contains(table)).map(TableName::to_string).collect();
    let reason = if !about.create {
        "publication.create is false, so laredo has not made it".to_owned()
    } else if found.has_all_tables {
        "it publishes all tables of the database".to_owned()
    } else if !foreign.is_empty() {
        format!("it publishes tables that the source does not have: {}", foreign.join(", "))
    } else if !about.other_sources.is_empty() {
        format!("other sources of the configuration name it: {}", about.other_sources.join(", "))
    } else if !found.other_slots.is_empty() {
        format!("other slots of the database may read it: {}", found.other_slots.join(", "))
    } else {
        return None;
    };
    Some(format!("{reason}; --drop-publication drops it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_kept_for_each_reason_unless_the_operator_decides() {
        let own = TableName::new("public", "own");
        let found =
            || RetirablePublication { has_all_tables: false, tables: vec![own.clone()], other_slots: Vec::new() };
        let about = || PublicationUse {
            keep: false,
            drop: false,
            create: true,
            tables: vec![own.clone()],
            other_sources: Vec::new(),
        };
        assert_eq!(reason_to_keep(&found(), &about()), None);
        let all = RetirablePublication { has_all_tables: true, ..found() };
        let more = RetirablePublication { tables: vec![own.clone(), TableName::new("public", "other")], ..found() };
        let read = RetirablePublication { other_slots: vec!["another".to_owned()], ..found() };
        let cases = [
            (found(), PublicationUse { create: false, ..about() }, "publication.create is false"),
            (all, about(), "all tables"),
            (more, about(), "does not have: public.other;"),
            (found(), PublicationUse { other_sources: vec!["second"], ..about() }, "name it: second;"),
            (read, about(), "may read it: another;"),
        ];
        for (found, about, expected) in cases {
            let reason = reason_to_keep(&found, &about).unwrap_or_default();
            assert!(reason.contains(expected), "{reason}");
            assert_eq!(reason_to_keep(&found, &PublicationUse { drop: true, ..about }), None, "{expected}");
        }
        assert!(reason_to_keep(&found(), &PublicationUse { keep: true, ..about() }).is_some());
    }
}
