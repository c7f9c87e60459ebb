//! Finds rows of the demo's table by primary key, by lookup columns and by an index.

use std::time::Duration;

use laredo_client::{Replica, TableName, Unique};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::args().nth(1).ok_or("pass the address that ./dev demo prints: http://127.0.0.1:PORT")?;
    let replica = Replica::builder(server, TableName::new("public", "orders"))
        .lookup(["region", "id"])
        .index("by_status", ["status"], Unique::No)
        .start()?;
    replica.ready(Duration::from_secs(30)).await?;
    println!("by primary key: {:?}", replica.get(1)?);
    println!("by region and id: {:?}", replica.lookup(("eu-north", 1))?);
    println!("with the status `open`: {} rows", replica.view().index("by_status", "open")?.count());
    // A key of the wrong type is an error, and not a row that is missing.
    println!("by a text: {}", replica.get("one").expect_err("the key is a number"));
    Ok(())
}
