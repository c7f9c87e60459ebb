//! `./dev demo`: a PostgreSQL table, live in two other processes and in an archive.

use clap::{Parser, Subcommand};
use laredo_devtools::demo;

#[derive(Parser)]
#[command(about = "A PostgreSQL table, live in two other processes and in an archive; Ctrl-C ends it")]
struct DemoArguments {
    /// End after this many seconds, and compare every client and the archive with the database
    #[arg(long)]
    seconds: Option<u64>,
    /// Commits per second to aim for
    #[arg(long, default_value_t = 500)]
    rate: u32,
    #[command(subcommand)]
    part: Option<DemoCommand>,
}

#[derive(Subcommand)]
enum DemoCommand {
    /// A client of the demo (started by the demo itself)
    #[command(hide = true)]
    Client(demo::DemoClientArguments),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = DemoArguments::parse();
    match arguments.part {
        Some(DemoCommand::Client(client)) => demo::run_client(client).await,
        None => demo::run(arguments.seconds, arguments.rate).await,
    }
}
