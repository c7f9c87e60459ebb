//! Reads the newest state of an archive, such as the one that `./dev demo` writes and names:
//! `cargo run -p laredo-archive --example read_archive -- FOLDER`.

use laredo_archive::{Archive, ArchivePoint, DestinationOptions, DestinationUri, ReadProgress};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let uri: DestinationUri = std::env::args().nth(1).unwrap_or_default().parse()?;
    let archive = Archive::open(uri.open_reader(&DestinationOptions::default()).await?, None).await?;
    let rebuilt = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await?;
    println!("{} has {} rows at {:?}", archive.manifest().table, rebuilt.table.len(), rebuilt.boundary.position);
    Ok(())
}
