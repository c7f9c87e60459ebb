//! Prints each changed row of the demo's open orders, until Ctrl-C.

use laredo_client::{ColumnPredicate, Replica, TableName};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::args().nth(1).ok_or("pass the address that ./dev demo prints: http://127.0.0.1:PORT")?;
    let replica = Replica::builder(server, TableName::new("public", "orders"))
        .filter(ColumnPredicate::equals("status", "open"))
        .start()?;
    let _listener = replica.listen(|old, new| match (old, new) {
        (None, Some(new)) => println!("+ {new:?}"),
        (Some(old), None) => println!("- {old:?}"),
        (old, new) => println!("~ {old:?} -> {new:?}"),
    });
    tokio::signal::ctrl_c().await?;
    replica.stop().await;
    Ok(())
}
