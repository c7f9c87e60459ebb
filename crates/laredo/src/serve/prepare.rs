//! The engines of the sources. A lenient start leaves the sources to their engines. Any other start
//! first checks and prepares all sources at the same time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use futures::future::join_all;
use laredo_core::Schema;
use laredo_engine::source::{SourceError, TableRequest};
use laredo_engine::{Clock, Engine, PipelineError, TableOptions};
use laredo_postgres::{PostgresOptions, PostgresSource};
use laredo_server::AwaitedSources;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::options;
use crate::config::ServerConfig;
use crate::program::ProgramFailure;

/// A source and its tables, as the configuration describes them.
pub(super) struct SourcePlan<'a> {
    pub(super) name: &'a str,
    source: PostgresOptions,
    pub(super) tables: Vec<TableOptions>,
}

/// A reason why a source is not ready.
enum SourceObstacle {
    /// Problems that the operator must fix, each a sentence.
    Definite(Vec<String>),
    /// A source that stayed unreachable for the `reconnect.max_attempts` that are allowed.
    Away(String),
    /// An unreachable source that is not waited for, because another source has failed.
    Unknown,
}

/// Checks every source and its tables. Prepares them, which may change publications, only if all
/// checks pass. An unreachable source is tried again, unless another source has failed: then all
/// known problems are reported at once.
pub(super) async fn prepare(
    config: &ServerConfig,
    folder: &Path,
    clock: &Clock,
    waiting: &watch::Sender<AwaitedSources>,
) -> Result<BTreeMap<String, Engine<PostgresSource>>, ProgramFailure> {
    let (plans, malformed) = plans(config, folder, &mut StdRng::from_os_rng());
    let broken = CancellationToken::new();
    if !malformed.is_empty() {
        broken.cancel();
    }
    let checked =
        join_all(plans.iter().map(|plan| {
            plan.retry_until_reached(waiting, &broken, async || plan.check().instrument(plan.span()).await)
        }));
    collect(&plans, checked.await, malformed)?;
    let prepared = join_all(plans.iter().map(|plan| {
        plan.retry_until_reached(waiting, &broken, async move || {
            let source = PostgresSource::new(plan.source.clone());
            Engine::new(plan.name, source, plan.tables.clone(), clock.clone()).prepared().await
        })
    }));
    let engines = collect(&plans, prepared.await, Vec::new())?;
    Ok(plans.iter().map(|plan| plan.name.to_owned()).zip(engines).collect())
}

/// Returns the engines of all sources. It neither connects to a source nor waits for one.
///
/// # Errors
/// A connection string that cannot be parsed, or a key of a hash that cannot be read.
pub(super) fn unprepared(
    config: &ServerConfig,
    folder: &Path,
    clock: &Clock,
) -> Result<BTreeMap<String, Engine<PostgresSource>>, ProgramFailure> {
    let (plans, malformed) = plans(config, folder, &mut StdRng::from_os_rng());
    if !malformed.is_empty() {
        return Err(ProgramFailure::Misconfigured(malformed));
    }
    let engine = |plan: SourcePlan<'_>| {
        let source = PostgresSource::new(plan.source).tolerating_broken_tables();
        let engine = Engine::new(plan.name, source, plan.tables, clock.clone());
        (plan.name.to_owned(), engine)
    };
    Ok(plans.into_iter().map(engine).collect())
}

/// Returns the sources of a configuration, and the problems of those that no plan can be made of.
pub(super) fn plans<'a>(
    config: &'a ServerConfig,
    folder: &Path,
    random: &mut StdRng,
) -> (Vec<SourcePlan<'a>>, Vec<String>) {
    let (mut plans, mut malformed) = (Vec::new(), Vec::new());
    for (name, source) in &config.sources {
        let tables = config.tables.iter().filter(|table| table.source == *name);
        let mut known = Vec::new();
        for table in tables {
            match options::table(table, folder, random) {
                Ok(table) => known.push(table),
                Err(error) => malformed.push(error),
            }
        }
        match options::postgres(name, source, folder, random) {
            Ok(source) => plans.push(SourcePlan { name, source, tables: known }),
            Err(error) => malformed.push(format!("sources.{name}.connection: {error}")),
        }
    }
    (plans, malformed)
}

/// Returns the results of all sources, or else every problem.
fn collect<T>(
    plans: &[SourcePlan<'_>],
    reached: Vec<Result<T, SourceObstacle>>,
    malformed: Vec<String>,
) -> Result<Vec<T>, ProgramFailure> {
    let (mut done, mut problems, mut away) = (Vec::new(), malformed, None);
    for (plan, reached) in plans.iter().zip(reached) {
        let name = plan.name;
        match reached {
            Ok(reached) => done.push(reached),
            Err(SourceObstacle::Definite(sentences)) => {
                problems.extend(sentences.into_iter().map(|sentence| format!("source {name}: {sentence}")));
            }
            Err(SourceObstacle::Away(error)) => away = Some(anyhow!("source {name}: {error}")),
            Err(SourceObstacle::Unknown) => {}
        }
    }
    match away {
        _ if !problems.is_empty() => Err(ProgramFailure::Misconfigured(problems)),
        Some(error) => Err(ProgramFailure::Failed(error)),
        None => Ok(done),
    }
}

impl SourcePlan<'_> {
    fn span(&self) -> Span {
        tracing::error_span!("source", source = self.name)
    }

    /// Asks the database if the source and its tables can be followed. Changes nothing there.
    ///
    /// # Errors
    /// Each problem, or the reason why the source cannot be asked.
    pub(super) async fn check(&self) -> Result<(), SourceError> {
        let requests: Vec<TableRequest> = self.tables.iter().map(|table| table.request.clone()).collect();
        let schemas = PostgresSource::new(self.source.clone()).check(&requests).await?;
        self.check_pipelines(&schemas)
    }

    /// Checks the filters and transforms of each table.
    fn check_pipelines(&self, schemas: &[Arc<Schema>]) -> Result<(), SourceError> {
        let checked = self.tables.iter().zip(schemas).map(|(table, schema)| (table, table.pipeline.check(schema)));
        let sentence = |(table, checked): (&TableOptions, Result<(), PipelineError>)| {
            checked.err().map(|error| format!("table {}: {error}", table.request.name))
        };
        let problems: Vec<String> = checked.filter_map(sentence).collect();
        if problems.is_empty() { Ok(()) } else { Err(SourceError::Definite(problems)) }
    }

    /// Does `work`. While the source is unreachable, tries again and writes the reason to
    /// `waiting`.
    async fn retry_until_reached<T>(
        &self,
        waiting: &watch::Sender<AwaitedSources>,
        broken: &CancellationToken,
        work: impl AsyncFn() -> Result<T, SourceError>,
    ) -> Result<T, SourceObstacle> {
        let (name, reconnect) = (self.name, &self.source.reconnect);
        let mut random = StdRng::seed_from_u64(self.source.seed);
        let wait_for = |what: String| waiting.send_modify(|waiting| drop(waiting.insert(name.to_owned(), what)));
        wait_for("the source is being checked".to_owned());
        for failed in 1_u32.. {
            let error = match work().await {
                Ok(done) => {
                    waiting.send_modify(|waiting| drop(waiting.remove(name)));
                    return Ok(done);
                }
                Err(SourceError::Definite(sentences)) => {
                    broken.cancel();
                    return Err(SourceObstacle::Definite(sentences));
                }
                // The process that holds the slot or a folder may be about to end, because this one
                // replaces it.
                Err(SourceError::Transient(error) | SourceError::Held(error)) => error,
            };
            if reconnect.attempts_max.is_some_and(|max| failed >= max) {
                broken.cancel();
                return Err(SourceObstacle::Away(format!(
                    "{error}; given up after {failed} attempts (reconnect.max_attempts)"
                )));
            }
            let Some(delay) = reconnect.delay(failed - 1, &mut random) else { break };
            tracing::warn!(
                event = "source_unreachable",
                source = name,
                error,
                attempt = failed,
                delay_ms = delay.as_millis(),
                "cannot reach the source yet"
            );
            wait_for(error);
            tokio::select! {
                biased;
                () = broken.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        Err(SourceObstacle::Unknown)
    }
}
