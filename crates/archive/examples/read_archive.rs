//! Reads the newest state of an archive in a folder.
//!
//! `./dev demo` writes an archive, and prints its folder in the line `the archive:`. While the demo
//! runs, this command in another terminal reads it:
//!
//! ```sh
//! cargo run -p laredo-archive --no-default-features --example read_archive -- FOLDER
//! ```
//!
//! The output is one line, such as `public.users has 1000 rows at 0/19F2A80`.

use std::error::Error;

use laredo_archive::{Archive, ArchivePoint, DestinationOptions, DestinationUri, ReadProgress};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: read_archive FOLDER")?;
    println!("{}", describe_newest_state(&folder).await?);
    Ok(())
}

/// Rebuilds the newest state of an archive, and describes it in a line.
pub(crate) async fn describe_newest_state(folder: &str) -> Result<String, Box<dyn Error>> {
    let uri: DestinationUri = folder.parse()?;
    let archive = Archive::open(uri.open_reader(&DestinationOptions::default()).await?, None).await?;
    let rebuilt = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await?;
    let position = rebuilt.boundary.position.ok_or("the archive does not record the position of its newest state")?;
    Ok(format!("{} has {} rows at {position}", archive.manifest().table, rebuilt.table.len()))
}
