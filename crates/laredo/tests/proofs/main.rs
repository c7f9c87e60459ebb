//! The proof that clients have PostgreSQL's rows: real processes against a real PostgreSQL. `./dev
//! test --full` runs them for longer.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod age;
mod archive;
mod atomicity;
mod bad_input;
mod bounds;
mod chaos;
#[cfg(debug_assertions)]
mod checksums;
mod command;
mod composites;
mod config_reload;
mod connections;
mod copies;
mod deferrable;
mod definitions;
mod drain;
mod equality;
mod faults;
mod histories;
mod interleaving;
mod jwt;
mod limits;
mod log_events;
mod newcomers;
mod open_writers;
mod passwords;
mod personal_data;
mod private_files;
mod restarts;
mod schema_changes;
mod slot;
mod snapshots;
mod startup;
mod states;
mod subscription;
mod table_isolation;
mod two_servers;
mod unread_log;
mod values;
mod verify;
mod verify_clients;
