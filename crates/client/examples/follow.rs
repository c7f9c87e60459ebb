//! Prints the size and the position of a live copy of the demo's table, once for each transaction.

use std::time::Duration;

use laredo_client::{Replica, TableName};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::args().nth(1).ok_or("pass the address that ./dev demo prints: http://127.0.0.1:PORT")?;
    let replica = Replica::builder(server, TableName::new("public", "orders")).start()?;
    replica.ready(Duration::from_secs(30)).await?;
    let mut transactions = replica.transactions();
    while let Some(transaction) = transactions.next().await {
        let (changes, view) = (transaction?.changes.len(), replica.view());
        println!("{changes} changes, {} rows as of {}", view.len(), view.position());
    }
    Ok(())
}
