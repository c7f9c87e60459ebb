//! Access rules that change while streams are open. Only the streams end whose callers the new
//! rules refuse, or grant another part of the table.

use laredo_client::{GrpcCode, ReplicaError};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// The log line, with its quotes: the reason for which streams end begins in the same way.
const REPLACED: &str = "\"the access rules were replaced\"";

fn hang_up(server: &ServerProcess) {
    kill_process(Pid::from_raw(server.process.id().cast_signed()).unwrap(), Signal::HUP).unwrap();
}

/// Waits until the log has had a text so many times.
async fn logged(server: &ServerProcess, text: &str, times: usize) {
    let count = || server.process.output().iter().filter(|line| line.contains(text)).count();
    let waited = eventually(PATIENCE, async || count() >= times).await;
    assert!(waited.is_ok(), "{text} is {} times in\n{}", count(), server.process.output().join("\n"));
    assert_eq!(count(), times, "{text}");
}

async fn replica(server: &ServerProcess, token_name: &str) -> Replica {
    let replica = Replica::builder(server.url(), orders()).token(token(token_name)).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    replica
}

/// Waits until a replica has exactly these rows, by ID.
async fn has_rows(replica: &Replica, expected: &[i64]) {
    let ids = || {
        let view = replica.view();
        let mut ids: Vec<i64> = view.rows().map(|row| i64::from(row.get::<i32>("id").unwrap())).collect();
        ids.sort_unstable();
        ids
    };
    let waited = eventually(PATIENCE, async || ids() == expected).await;
    assert!(waited.is_ok(), "{:?} instead of {expected:?}, {:?}", ids(), replica.status());
}

/// Waits until a replica's stream has ended and its client is refused.
async fn is_refused(replica: &Replica, expected: GrpcCode) {
    let refused = async || {
        let status = replica.status();
        matches!(status.error, Some(ReplicaError::Refused { code, .. }) if code == expected) && !status.connected
    };
    assert!(eventually(PATIENCE, refused).await.is_ok(), "{:?}", replica.status());
}

/// Asserts that the stream of a replica is still its first one.
fn is_untouched(replica: &Replica) {
    let status = replica.status();
    assert_eq!((status.connects, status.connected, status.last_error.is_none()), (1, true, true), "{status:?}");
}

fn add_row(cluster: &Cluster, id: i64, tenant: &str) {
    cluster.psql(&format!("INSERT INTO orders VALUES ({id}, '{tenant}', 1, 'hush')")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_token_ends_its_streams_and_no_others() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let (acme, globex) = (replica(&server, "acme").await, replica(&server, "globex").await);
    let analyst = replica(&server, "analyst").await;
    let before = ids_of(&cluster, "acme");
    let request = SyncRequest { schema: "public".into(), table: "orders".into(), ..SyncRequest::default() };
    let mut client = reader(&server, "acme").await;
    let mut stream = client.sync(request.clone()).await.unwrap().into_inner();
    let mut structs = StructReader::default();
    structs.read_until(&mut stream, |reader| reader.rows.len() == before.len()).await;

    // No signal is needed.
    server.edit_config(&hash("acme").to_string(), &hash("acme2").to_string());
    logged(&server, REPLACED, 1).await;
    add_row(&cluster, 9001, "acme");
    add_row(&cluster, 9002, "globex");
    let read = async {
        loop {
            match stream.message().await {
                Ok(message) => structs.apply(message.expect("it ends with a status")),
                Err(status) => return status,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(!structs.rows.contains_key(&9001), "a row was sent after the token was removed");
    is_refused(&acme, GrpcCode::Unauthenticated).await;
    assert_eq!(client.sync(request).await.unwrap_err().code(), Code::Unauthenticated);
    has_rows(&globex, &ids_of(&cluster, "globex")).await;
    has_rows(&acme, &before).await;
    let all: Vec<i64> = (1..=300).chain([9001, 9002]).collect();
    has_rows(&analyst, &all).await;
    is_untouched(&globex);
    is_untouched(&analyst);
    // The end of a stream is in the audit.
    let is_audited = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        line["target"] == "audit" && line["message"] == "stream ended" && line["identity"] == "acme"
    };
    assert!(server.process.output().iter().any(is_audited), "{}", server.process.output().join("\n"));
    has_rows(&replica(&server, "acme2").await, &ids_of(&cluster, "acme")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_configuration_and_a_removed_block_keep_the_rules() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let acme = replica(&server, "acme").await;
    server.edit_config("observers = [", "observers = [{ identities = [nemo] }, ");
    hang_up(&server);
    logged(&server, "the access rules remain as they were", 1).await;
    let problem = server.process.output().into_iter().find(|line| line.contains("the access rules remain")).unwrap();
    assert!(problem.contains("laredo.conf:") && problem.contains("nemo"), "{problem}");
    hang_up(&server);
    logged(&server, "SIGHUP", 2).await;
    let status = async |name: &str| {
        let request = GetReplicationStatusRequest { schema: "public".into(), table: "orders".into() };
        reader(&server, name).await.get_replication_status(request).await.map(drop).map_err(|s| s.code())
    };
    assert_eq!(status("acme").await, Ok(()));
    assert_eq!(status("wrong").await, Err(Code::Unauthenticated));
    logged(&server, "the access rules remain as they were", 1).await;
    server.edit_config("observers = [{ identities = [nemo] }, ", "observers = [");

    // Nothing that is missing opens a server.
    server.edit_config(&access(), "");
    hang_up(&server);
    logged(&server, "the configuration has no block `access` any more", 1).await;
    assert_eq!(status("acme").await, Ok(()));
    assert_eq!(status("wrong").await, Err(Code::Unauthenticated));
    logged(&server, REPLACED, 0).await;
    add_row(&cluster, 9001, "acme");
    has_rows(&acme, &ids_of(&cluster, "acme")).await;
    is_untouched(&acme);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_outside_a_narrower_grant_are_deleted_at_the_client() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let server = start(&cluster, folder.path()).await;
    let (acme, analyst) = (replica(&server, "acme").await, replica(&server, "analyst").await);
    let (wide, narrow) = (
        "{ identities = [analyst], tables = [public.orders] }",
        "{ identities = [analyst], tables = [public.orders], hide = [secret]
           rows = [{ type = field-equals, field = tenant_id, value = globex }] }",
    );
    let all: Vec<i64> = (1..=300).collect();
    has_rows(&analyst, &all).await;
    server.edit_config(wide, narrow);
    hang_up(&server);
    logged(&server, REPLACED, 1).await;
    has_rows(&analyst, &ids_of(&cluster, "globex")).await;
    assert!(analyst.view().rows().all(|row| row.get::<String>("secret").is_err()), "the column is hidden");
    let status = analyst.status();
    assert!(
        matches!(status.last_error, Some(ReplicaError::Ended { code: GrpcCode::Unavailable, .. })),
        "the client reconnects at once: {status:?}"
    );
    assert_eq!(status.connects, 2, "{status:?}");

    server.edit_config(narrow, wide);
    hang_up(&server);
    logged(&server, REPLACED, 2).await;
    has_rows(&analyst, &all).await;
    server.edit_config(wide, "");
    hang_up(&server);
    logged(&server, REPLACED, 3).await;
    is_refused(&analyst, GrpcCode::PermissionDenied).await;
    add_row(&cluster, 9001, "acme");
    has_rows(&acme, &ids_of(&cluster, "acme")).await;
    is_untouched(&acme);
    has_rows(&analyst, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_rotated_in_a_file_without_a_dropped_stream() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let file = folder.path().join("acme.hashes");
    let write = |lines: &str| {
        // As a mounted secret is replaced: at once.
        let new = folder.path().join("acme.new");
        std::fs::write(&new, lines).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    write(&hash("acme").to_string());
    let mut config = config(&cluster, folder.path());
    let inline = format!("acme {{ tokens = [{{ sha256 = {} }}]", hash("acme"));
    let by_file = format!("acme {{ token_hashes_file = \"{}\"", file.display());
    assert!(config.extra.contains(&inline), "{}", config.extra);
    config.extra = config.extra.replace(&inline, &by_file);
    let mut server = config.start().await;
    server.ends_unverified();
    let (old, other) = (replica(&server, "acme").await, replica(&server, "globex").await);

    write(&format!("# until the services have moved\n{}\n{}\n", hash("acme"), hash("acme2")));
    logged(&server, REPLACED, 1).await;
    let new = replica(&server, "acme2").await;
    add_row(&cluster, 9001, "acme");
    for replica in [&old, &new] {
        has_rows(replica, &ids_of(&cluster, "acme")).await;
        is_untouched(replica);
    }
    write("no hash\n");
    logged(&server, "acme.hashes:1: it is not 64 hexadecimal digits", 1).await;
    is_untouched(&old);

    write(&format!("{} 2090-01-01T00:00:00Z\n", hash("acme2")));
    logged(&server, REPLACED, 2).await;
    is_refused(&old, GrpcCode::Unauthenticated).await;
    add_row(&cluster, 9002, "acme");
    has_rows(&new, &ids_of(&cluster, "acme")).await;
    is_untouched(&new);
    is_untouched(&other);
}
