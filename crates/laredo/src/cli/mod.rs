//! The operator's command `laredo`, which shows the changes of tables, the state of servers and
//! their clients, and the contents of archives.
//!
//! Most commands send a request over gRPC or HTTP, format the answer with a pure function, and
//! print the text.

mod archive;
mod args;
mod change_line;
mod config;
mod connect;
mod ddl;
mod error;
mod fanout;
mod oam;
mod query;
mod snapshot;
mod source_drop;
mod status;
mod tail;
mod text_table;
mod token;
#[cfg(feature = "top")]
mod top;
mod verify;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio_util::sync::CancellationToken;

use crate::printable::{PrintableOutput, printable, printable_lines};
use args::{LaredoArgs, LaredoCommand, SourceCommand, SourceCommandArgs};
pub use error::CliError;

/// Runs the command that the process's arguments ask for.
#[must_use]
pub fn main() -> ExitCode {
    let args = LaredoArgs::parse();
    // Output is written on this thread, which may wait for its reader. Other threads serve the
    // network meanwhile.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(CliError::Runtime).and_then(|runtime| runtime.block_on(run(args.command)));
    match result {
        Ok(code) => code,
        // The reader closed the output because it needs no more.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            print_message(&error.to_string());
            ExitCode::from(2)
        }
    }
}

async fn run(command: LaredoCommand) -> Result<ExitCode, CliError> {
    match command {
        LaredoCommand::Tail(args) => tail::run(args, end_at_interrupt()).await,
        LaredoCommand::Status(args) => status::run(args).await,
        #[cfg(feature = "top")]
        LaredoCommand::Top(args) => top::run(args).await,
        LaredoCommand::Fanout(command) => fanout::run(command).await,
        LaredoCommand::Drain(args) => oam::drain(args).await,
        LaredoCommand::Reload(args) => oam::reload(args).await,
        LaredoCommand::Config(command) => config::run(command).await,
        LaredoCommand::Verify(args) => verify::run(args, end_at_interrupt()).await,
        LaredoCommand::ResetSource(args) => oam::reset_source(args).await,
        LaredoCommand::Pause(args) => oam::pause(args).await,
        LaredoCommand::Resume(args) => oam::resume(args).await,
        LaredoCommand::Source(SourceCommandArgs { command: None, position }) => oam::source(position).await,
        LaredoCommand::Source(SourceCommandArgs { command: Some(SourceCommand::Drop(args)), .. }) => {
            source_drop::run(&args).await
        }
        LaredoCommand::Tables(args) => oam::tables(args).await,
        LaredoCommand::Pipelines(args) => oam::pipelines(args).await,
        LaredoCommand::Schema(args) => oam::schema(args).await,
        LaredoCommand::Query(args) => query::run(args).await,
        LaredoCommand::Watch(args) => oam::watch(args, end_at_interrupt()).await,
        LaredoCommand::Ready(args) => oam::ready(args).await,
        LaredoCommand::Snapshot(command) => snapshot::run(command).await,
        LaredoCommand::Archive(command) => archive::run(command).await,
        LaredoCommand::Ddl(command) => ddl::run(command).await,
        LaredoCommand::Token(command) => token::run(command),
        LaredoCommand::Completions(args) => {
            args.print(LaredoArgs::command()).map(|()| ExitCode::SUCCESS).map_err(CliError::Output)
        }
        LaredoCommand::Man(args) => {
            let written = args.write(LaredoArgs::command()).map(|()| ExitCode::SUCCESS);
            written.map_err(|reason| CliError::Folder { folder: args.folder, reason })
        }
    }
}

/// Returns a token that the first Ctrl-C cancels. A second Ctrl-C ends the process, which may be
/// waiting for the reader of its output.
fn end_at_interrupt() -> CancellationToken {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        // If the signal cannot be awaited, it keeps its default effect and ends the process.
        if tokio::signal::ctrl_c().await.is_ok() {
            stopped.cancel();
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        }
    });
    stop
}

/// Writes a text to standard output in one piece. The text may have several lines, so a name in it
/// must be [`printable`] unless it is in JSON. Other control characters are escaped here.
fn print_output(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(printable_lines(text).as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Returns standard output for data, which is written as it is. On a terminal, control characters
/// are escaped.
fn data_output() -> Box<dyn Write> {
    let out = io::stdout().lock();
    if out.is_terminal() { Box::new(PrintableOutput::new(out)) } else { Box::new(out) }
}

/// Writes a message for the operator to standard error.
fn print_message(message: &str) {
    // If standard error is closed, the message is dropped.
    let _ = writeln!(io::stderr().lock(), "laredo: {}", printable(message));
}
