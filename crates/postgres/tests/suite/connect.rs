//! Every way to connect to a real PostgreSQL, and every way to be refused.
use laredo_core::Lsn;
use laredo_postgres::ConnectionOptions;
use laredo_postgres::transport::{ReplicationConnection, ReplicationMessage, SqlConnection, TransportError};
use laredo_testkit::{Cluster, ClusterOptions, ClusterTls, FaultProxy, ProxyDirection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn options(text: &str) -> ConnectionOptions {
    ConnectionOptions::parse(text).unwrap()
}

async fn connect(text: &str) -> Result<SqlConnection, TransportError> {
    SqlConnection::connect(&options(text)).await
}

async fn refused(text: &str) -> String {
    connect(text).await.unwrap_err().to_string()
}

/// Returns true if the session is encrypted according to the server.
async fn encrypted(connection: &mut SqlConnection) -> bool {
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    connection.simple_query(sql).await.unwrap()[0][0].as_deref() == Some("t")
}

fn tls_cluster(hosts: &[&str], hba: &[&str]) -> Cluster {
    let options = ClusterOptions {
        tls: Some(ClusterTls { hosts: hosts.iter().map(|host| (*host).to_owned()).collect() }),
        password: Some("s3cret é".to_owned()),
        hba: hba.iter().map(|line| (*line).to_owned()).collect(),
        ..ClusterOptions::default()
    };
    Cluster::start(options).unwrap()
}

#[tokio::test]
async fn scram_is_bound_to_tls() {
    let cluster = tls_cluster(&["127.0.0.1"], &[]);
    let base = format!("hostaddr=127.0.0.1 port={} user=postgres password='s3cret é' dbname=postgres", cluster.port());
    let mut session = connect(&format!("{base} sslmode=require channel_binding=require")).await.unwrap();
    assert!(encrypted(&mut session).await);
    assert_eq!(session.major_version(), cluster.major_version());
    let mut session = connect(&format!("{base} sslmode=require channel_binding=disable")).await.unwrap();
    assert!(encrypted(&mut session).await);

    let mut session = connect(&format!("{base} sslmode=disable")).await.unwrap();
    assert!(!encrypted(&mut session).await);
    let problem = refused(&format!("{base} sslmode=disable channel_binding=require")).await;
    assert!(problem.contains("channel_binding=require needs TLS"), "{problem}");

    let wrong = base.replace("s3cret é", "wrong");
    let error = connect(&wrong).await.unwrap_err();
    assert_eq!(error.server().unwrap().code, "28P01");
    assert!(!error.is_transient());
    let none = format!("hostaddr=127.0.0.1 port={} user=postgres dbname=postgres", cluster.port());
    assert!(refused(&none).await.contains("the server requires a password, and there is none"));
    let nobody = format!("{base} sslmode=require").replace("dbname=postgres", "dbname=nowhere");
    assert_eq!(connect(&nobody).await.unwrap_err().server().unwrap().code, "3D000");
}

#[tokio::test]
async fn certificates_are_checked_as_the_mode_says() {
    let cluster = tls_cluster(&["db.example"], &[]);
    let other = tls_cluster(&["db.example"], &[]);
    let base = format!("hostaddr=127.0.0.1 port={} user=postgres password='s3cret é' dbname=postgres", cluster.port());
    let right = format!("{base} sslrootcert={}", cluster.ca_path().display());
    let stranger = format!("{base} sslrootcert={}", other.ca_path().display());

    for (how, accepted) in [
        ("host=db.example sslmode=verify-full", true),
        ("host=wrong.example sslmode=verify-full", false),
        ("host=wrong.example sslmode=verify-ca", true),
        ("host=wrong.example sslmode=require", true),
    ] {
        let result = connect(&format!("{right} {how}")).await;
        assert_eq!(result.is_ok(), accepted, "{how}: {result:?}");
    }
    for mode in ["verify-full", "verify-ca", "require"] {
        let problem = refused(&format!("{stranger} host=db.example sslmode={mode}")).await;
        assert!(problem.contains("was not signed by the key that sslrootcert"), "{mode}: {problem}");
    }
    let problem = refused(&format!("{base} host=db.example sslrootcert=system")).await;
    assert!(problem.contains("sslrootcert=system does not lead to that authority"), "{problem}");
    let problem = refused(&format!("{base} sslmode=verify-full sslrootcert=/nowhere.pem")).await;
    assert!(problem.contains("sslrootcert /nowhere.pem"), "{problem}");
}

#[tokio::test]
async fn a_self_signed_certificate_may_be_trusted_itself() {
    let cluster = tls_cluster(&["db.example"], &[]);
    let server = cluster.socket_dir().join("server.crt");
    let base = format!(
        "hostaddr=127.0.0.1 port={} user=postgres password='s3cret é' sslrootcert={} sslmode=verify-full",
        cluster.port(),
        server.display()
    );
    assert!(connect(&format!("{base} host=db.example")).await.is_ok());
    assert!(connect(&format!("{base} host=wrong.example")).await.is_err());
}

#[tokio::test]
async fn a_server_that_goes_away_during_the_handshake_is_only_away() {
    let cluster = tls_cluster(&["127.0.0.1"], &[]);
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", cluster.port())).await.unwrap();
    let base = format!("hostaddr=127.0.0.1 port={} user=postgres dbname=postgres", proxy.addr().port());
    for mode in ["require", "verify-ca", "verify-full"] {
        let text = format!("{base} host=127.0.0.1 sslmode={mode} sslrootcert={}", cluster.ca_path().display());
        // Cut after nothing, after the `S` that agrees to TLS, and inside the bytes that follow.
        for bytes in [0, 1, 2, 100, 500] {
            proxy.cut_after_bytes(ProxyDirection::ToClient, bytes);
            let error = connect(&text).await.unwrap_err();
            assert!(error.is_transient(), "{mode}, cut after {bytes} bytes: {error}");
        }
    }
}

#[tokio::test]
async fn a_server_that_answers_the_request_for_tls_with_an_error_is_only_busy() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let text = format!("host=127.0.0.1 port={port} user=postgres sslmode=require");
    let answering = async {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        client.read_exact(&mut request).await.unwrap();
        client.write_all(b"Ecould not fork new process for connection\0").await.unwrap();
    };
    let (refused, ()) = tokio::join!(connect(&text), answering);
    let error = refused.unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("answered the request for TLS with an error"),
        "{error}"
    );
}

#[tokio::test]
async fn pg_hba_decides_between_encrypted_and_plain() {
    let cluster = tls_cluster(
        &["127.0.0.1"],
        &[
            "hostnossl clear all all reject",
            "hostssl clear all all trust",
            "hostssl plain all all reject",
            "host plain all all trust",
        ],
    );
    cluster.psql("CREATE DATABASE clear; CREATE DATABASE plain").unwrap();
    let base = format!("hostaddr=127.0.0.1 port={} user=postgres", cluster.port());
    for (how, expected) in [
        ("dbname=clear sslmode=allow", Some(true)),
        ("dbname=clear sslmode=prefer", Some(true)),
        ("dbname=clear sslmode=disable", None),
        ("dbname=plain sslmode=allow", Some(false)),
        ("dbname=plain sslmode=prefer", Some(false)),
        ("dbname=plain sslmode=require", None),
    ] {
        let found = match connect(&format!("{base} {how}")).await {
            Ok(mut session) => Some(encrypted(&mut session).await),
            Err(_) => None,
        };
        assert_eq!(found, expected, "{how}");
    }
}

#[tokio::test]
async fn older_ways_to_ask_for_a_password() {
    let cluster = tls_cluster(&["127.0.0.1"], &["host all hashed all md5", "host all clear all password"]);
    let sql = "SET password_encryption = md5; CREATE ROLE hashed LOGIN PASSWORD 'geheim';
               CREATE ROLE clear LOGIN PASSWORD 'geheim'";
    cluster.psql(sql).unwrap();
    for user in ["hashed", "clear"] {
        let base = format!("host=127.0.0.1 port={} user={user} dbname=postgres", cluster.port());
        let base = format!("{base} sslmode=require");
        assert!(connect(&format!("{base} password=geheim")).await.is_ok(), "{user}");
        assert!(connect(&format!("{base} password=falsch")).await.is_err(), "{user}");
        let problem = refused(&format!("{base} password=geheim channel_binding=require")).await;
        assert!(problem.contains("channel_binding=require"), "{user}: {problem}");
    }
    let plain = Cluster::start(ClusterOptions::default()).unwrap();
    let problem = refused(&format!("host=127.0.0.1 port={} user=postgres sslmode=require", plain.port())).await;
    assert!(problem.contains("does not offer TLS"), "{problem}");
}

#[tokio::test]
async fn a_unix_socket_takes_queries_and_says_what_went_wrong() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let text =
        format!("host={} port={} user=postgres sslmode=verify-full", cluster.socket_dir().display(), cluster.port());
    let mut session = connect(&text).await.unwrap();
    let rows = session.simple_query("SELECT 1, NULL, ''; SELECT 'zwölf'").await.unwrap();
    assert_eq!(rows[0], [Some("1".to_owned()), None, Some(String::new())]);
    assert_eq!(rows[1], [Some("zwölf".to_owned())]);

    let error = session.simple_query("SELECT 1; SELECT 1/0").await.unwrap_err();
    let server = error.server().unwrap();
    assert_eq!((server.severity.as_str(), server.code.as_str()), ("ERROR", "22012"));
    assert_eq!(error.to_string(), "PostgreSQL: division by zero (SQLSTATE 22012)");
    let rows = session.simple_query("SHOW timezone; SHOW datestyle; SHOW search_path").await.unwrap();
    let shown: Vec<_> = rows.into_iter().flatten().flatten().collect();
    assert_eq!(shown, ["UTC", "ISO, MDY", "pg_catalog"]);

    let problem = refused("host=/nowhere user=postgres").await;
    assert!(problem.contains("cannot connect to PostgreSQL at /nowhere/.s.PGSQL.5432"), "{problem}");
}

#[tokio::test]
async fn a_replication_stream_reads_and_answers() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t").unwrap();
    let mut session = ReplicationConnection::connect(&options(&cluster.url("postgres"))).await.unwrap();
    let sql = "CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT";
    let created = session.simple_query(sql).await.unwrap();
    assert_eq!(created[0][0].as_deref(), Some("s"));
    let start = "START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '2', publication_names '\"p\"', binary 'true')";
    let (mut reader, mut writer) = session.start_replication(start).await.unwrap();
    cluster.psql("INSERT INTO t VALUES (7)").unwrap();
    let mut kinds = Vec::new();
    let end = loop {
        match reader.next().await.unwrap().unwrap() {
            ReplicationMessage::XLogData { data, start, .. } => {
                kinds.push(char::from(data[0]));
                if data[0] == b'C' {
                    break start;
                }
            }
            ReplicationMessage::KeepAlive { .. } => {}
        }
    };
    assert_eq!(kinds, ['B', 'R', 'I', 'C']);
    writer.standby_status(end, end, end, true).await.unwrap();
    loop {
        if let ReplicationMessage::KeepAlive { wal_end, .. } = reader.next().await.unwrap().unwrap() {
            assert!(wal_end > Lsn::ZERO);
            break;
        }
    }
}
