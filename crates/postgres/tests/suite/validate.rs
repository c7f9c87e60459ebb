//! All misconfigurations are reported at once, each in a sentence that says which SQL to run.
use std::sync::Arc;
use std::time::Duration;

use laredo_core::TableName;
use laredo_engine::source::{Source, SourceError, SourceServer, TableRequest};
use laredo_engine::spool::SpoolOptions;
use laredo_postgres::ddl::DdlWatch;
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::{COPY_TIMEOUT, ConnectionOptions, PostgresOptions, PostgresSource, PublicationOptions};
use laredo_testkit::{Cluster, ClusterOptions};

fn options(connection: &str) -> PostgresOptions {
    PostgresOptions {
        connection: ConnectionOptions::parse(connection).unwrap(),
        slot: SlotMode::Stateful { name: "laredo_01".to_owned() },
        publication: PublicationOptions { name: "laredo_01_pub".to_owned(), create: true },
        ddl: DdlWatch::Poll,
        reconnect: ReconnectOptions::default(),
        copies_max: 4,
        copy_timeout: COPY_TIMEOUT,
        spool: Arc::new(SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() }),
        seed: 1,
    }
}

fn request(name: &str, key_fields: &[&str]) -> TableRequest {
    TableRequest {
        name: name.parse::<TableName>().unwrap(),
        key_fields: key_fields.iter().map(|field| (*field).to_owned()).collect(),
    }
}

async fn prepare(options: &PostgresOptions, tables: &[TableRequest]) -> Result<SourceServer, Vec<String>> {
    let source = PostgresSource::new(options.clone());
    source.prepare(tables).await.map_err(|error| match error {
        SourceError::Definite(problems) => problems,
        SourceError::Transient(problem) | SourceError::Held(problem) => panic!("not definite: {problem}"),
    })
}

async fn problem(options: &PostgresOptions, table: TableRequest) -> String {
    let problems = prepare(options, &[table]).await.unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.into_iter().next().unwrap()
}

fn cluster(sql: &str) -> (Cluster, PostgresOptions) {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(sql).unwrap();
    let options = options(&cluster.url("postgres"));
    (cluster, options)
}

#[tokio::test]
async fn a_good_configuration_gets_its_publication() {
    let (cluster, options) = cluster(
        r#"CREATE TABLE a (id int PRIMARY KEY, v text);
           CREATE SCHEMA "Sché ma"; CREATE TABLE "Sché ma"."Tä""ble" ("Î d" int PRIMARY KEY);
           CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
           CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
           CREATE TABLE child () INHERITS (a);"#,
    );
    let tables = [request("public.a", &[]), request("public.p", &[])];
    let identity = prepare(&options, &tables).await.unwrap().identity;
    assert_eq!((identity.database.as_str(), identity.timeline), ("postgres", 1));
    let system = cluster.psql("SELECT system_identifier FROM pg_control_system()").unwrap();
    assert_eq!(identity.system_identifier, system);
    let published = "SELECT schemaname || '.' || tablename FROM pg_publication_tables ORDER BY 1";
    assert_eq!(cluster.psql(published).unwrap(), "public.a\npublic.p", "neither the child nor the partition");
    let flags = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot FROM pg_publication";
    assert_eq!(cluster.psql(flags).unwrap(), "t");

    // The publication grows, and does not shrink.
    let name = TableName::new("Sché ma", "Tä\"ble");
    let quoted = [TableRequest { name, key_fields: vec!["Î d".to_owned()] }];
    prepare(&options, &quoted).await.unwrap();
    assert_eq!(cluster.psql(published).unwrap(), "Sché ma.Tä\"ble\npublic.a\npublic.p");
}

#[tokio::test]
async fn what_a_table_lacks_is_said_with_its_remedy() {
    let (_cluster, options) = cluster(
        "CREATE TABLE keyless (a int, b int);
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE f (a int, b int, g int GENERATED ALWAYS AS (a + 1) STORED); ALTER TABLE f REPLICA IDENTITY FULL;
         CREATE TABLE dropped (id int NOT NULL); CREATE UNIQUE INDEX i ON dropped (id);
         ALTER TABLE dropped REPLICA IDENTITY USING INDEX i; DROP INDEX i;
         CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
         CREATE TABLE good (id int PRIMARY KEY, v int);
         CREATE VIEW v AS SELECT 1 AS id;
         CREATE UNLOGGED TABLE u (id int PRIMARY KEY);
         CREATE TABLE acls (id int PRIMARY KEY, one aclitem, many aclitem[]);
         CREATE TYPE pair AS (a int, b aclitem); CREATE TABLE pairs (id int PRIMARY KEY, p pair);
         CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE q (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (0) TO (10); ALTER TABLE q1 REPLICA IDENTITY NOTHING;",
    );
    for (table, expected) in [
        (
            request("public.keyless", &[]),
            "table public.keyless has no primary key, so updates and deletes do not identify \
            their row; run ALTER TABLE \"public\".\"keyless\" ADD PRIMARY KEY (…), or",
        ),
        (request("public.nothing", &[]), "run ALTER TABLE \"public\".\"nothing\" REPLICA IDENTITY DEFAULT"),
        (request("public.f", &[]), "key_fields = [ … ]"),
        (request("public.f", &["z"]), "key_fields names \"z\", which is not one of its columns: a, b, g"),
        (request("public.f", &["g"]), "key_fields names \"g\", a generated column"),
        (request("public.dropped", &[]), "the index of its replica identity was dropped; run ALTER TABLE"),
        (request("public.late", &[]), "its primary key is DEFERRABLE"),
        (request("public.good", &["v"]), "key_fields [v] differ from its replica identity [id]"),
        (request("public.v", &[]), "public.v is a view"),
        (request("public.u", &[]), "run ALTER TABLE \"public\".\"u\" SET LOGGED"),
        (request("public.Good", &[]), "table public.Good does not exist in database postgres"),
        (
            request("public.acls", &[]),
            "column \"many\" is of type aclitem[], and PostgreSQL cannot send its part aclitem",
        ),
        (
            request("public.pairs", &[]),
            "column \"p\" is of type public.pair, and PostgreSQL cannot send its part aclitem",
        ),
        (
            request("public.q", &[]),
            "its partition public.q1 has another replica identity, so its deletes do not contain the \
            key [id]; run ALTER TABLE \"public\".\"q1\" REPLICA IDENTITY FULL",
        ),
    ] {
        let found = problem(&options, table).await;
        assert!(found.contains(expected), "{found}\nlacks\n{expected}");
    }
    let both = prepare(&options, &[request("public.p", &[]), request("public.p1", &[])]).await.unwrap_err();
    assert_eq!(
        both,
        ["table public.p1 is a partition of public.p, whose rows include its own; follow only one of them"]
    );
    let all = [request("public.keyless", &[]), request("public.v", &[]), request("public.nowhere", &[])];
    assert_eq!(prepare(&options, &all).await.unwrap_err().len(), 3, "everything at once");
    prepare(&options, &[request("public.good", &["id"]), request("public.f", &["b", "a"])]).await.unwrap();
}

#[tokio::test]
async fn rights_that_are_missing_are_named() {
    let (cluster, options) = cluster(
        "CREATE ROLE follower LOGIN;
         CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY);
         CREATE TABLE secret (id int PRIMARY KEY); ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
         GRANT SELECT ON secret TO follower; GRANT SELECT ON s.t TO follower",
    );
    let url = cluster.url("postgres").replace("postgres@", "follower@");
    let mut limited = options.clone();
    limited.connection = ConnectionOptions::parse(&url).unwrap();
    let tables = [request("public.t", &[]), request("s.t", &[]), request("public.secret", &[])];
    let problems = prepare(&limited, &tables).await.unwrap_err();
    let expected = [
        "role follower may not replicate; as a superuser run ALTER ROLE \"follower\" REPLICATION",
        "publication laredo_01_pub does not exist, and this role may not create one",
        "table public.t cannot be read by this role; as its owner run GRANT SELECT ON \"public\".\"t\" TO \"follower\"",
        "table s.t: this role lacks USAGE on its schema; as the schema's owner run GRANT USAGE ON SCHEMA \"s\" TO \"follower\"",
        "table public.secret: row-level security would hide rows from this role; as a superuser run ALTER ROLE \
         \"follower\" BYPASSRLS",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{problem}\nlacks\n{expected}");
    }
    // The SQL in the messages is sufficient. The publication belongs to the superuser.
    cluster
        .psql(
            "ALTER ROLE follower REPLICATION BYPASSRLS; GRANT SELECT ON t TO follower; GRANT USAGE ON SCHEMA s TO follower;
             GRANT CREATE ON DATABASE postgres TO follower",
        )
        .unwrap();
    let problems = prepare(&limited, &tables).await.unwrap_err();
    let expected = "only their owner may publish the tables public.t (of postgres), s.t (of postgres), public.secret \
                    (of postgres); as that owner or a superuser run CREATE PUBLICATION";
    assert!(problems[0].contains(expected), "{problems:#?}");
    let create = problems[0].split_once("superuser run ").unwrap().1;
    cluster.psql(create).unwrap();
    prepare(&limited, &tables).await.unwrap();
}

#[tokio::test]
async fn a_publication_is_checked_and_explained() {
    let (cluster, mut options) = cluster(
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    );
    options.publication.create = false;
    let found = problem(&options, request("public.t", &[])).await;
    assert_eq!(
        found,
        "publication laredo_01_pub does not exist; run CREATE PUBLICATION \"laredo_01_pub\" FOR TABLE ONLY \
         \"public\".\"t\" WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true), or \
         let laredo do so with publication.create = true"
    );
    cluster.psql("CREATE PUBLICATION laredo_01_pub FOR TABLE t WITH (publish = 'insert, update')").unwrap();
    let tables = [request("public.t", &[]), request("public.u", &[]), request("public.p", &[])];
    let problems = prepare(&options, &tables).await.unwrap_err();
    let statements = [
        "ALTER PUBLICATION \"laredo_01_pub\" ADD TABLE ONLY \"public\".\"u\", \"public\".\"p\"",
        "ALTER PUBLICATION \"laredo_01_pub\" SET (publish = 'insert, update, delete, truncate')",
        "ALTER PUBLICATION \"laredo_01_pub\" SET (publish_via_partition_root = true)",
    ];
    assert_eq!(problems.len(), statements.len(), "{problems:#?}");
    for (problem, statement) in problems.iter().zip(statements) {
        assert!(problem.contains(&format!("run {statement}")), "{problem}");
        cluster.psql(statement).unwrap();
    }
    prepare(&options, &tables).await.unwrap();

    cluster.psql("ALTER PUBLICATION laredo_01_pub SET TABLE t (v)").unwrap();
    let found = problem(&options, request("public.t", &[])).await;
    assert!(found.contains("column list leaves out \"id\" of the key"), "{found}");
}

#[tokio::test]
async fn a_partition_of_a_published_root_is_refused() {
    let (cluster, options) = cluster(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE PUBLICATION laredo_01_pub FOR TABLE p WITH (publish_via_partition_root = true)",
    );
    let found = problem(&options, request("public.p1", &[])).await;
    assert!(found.contains("does not send the changes of public.p1 under that name"), "{found}");
    cluster.psql("ALTER PUBLICATION laredo_01_pub SET TABLE p1").unwrap();
    prepare(&options, &[request("public.p1", &[])]).await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_do_it_says_so() {
    let few = ClusterOptions::default().set("max_replication_slots", "1").set("max_wal_senders", "1");
    let cluster = Cluster::start(few).unwrap();
    cluster
        .psql(
            "CREATE TABLE t (id int PRIMARY KEY); SELECT pg_create_physical_replication_slot('other');
             CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;
             CREATE DATABASE second",
        )
        .unwrap();
    let mut options = options(&cluster.url("postgres"));
    let table = || request("public.t", &[]);
    let found = problem(&options, table()).await;
    assert!(
        found.contains("all 1 replication slots are in use") && found.contains("max_replication_slots = 6"),
        "{found}"
    );
    let name = |name: &str| SlotMode::Stateful { name: name.to_owned() };
    options.slot = name("other");
    let found = problem(&options, table()).await;
    assert!(found.contains("replication slot other uses the plugin (none: it is physical), not pgoutput"), "{found}");
    cluster.psql("SELECT pg_drop_replication_slot('other')").unwrap();
    let foreign = "SELECT pg_create_logical_replication_slot('other', 'pgoutput')";
    cluster.psql_in("second", foreign).unwrap();
    let found = problem(&options, table()).await;
    assert!(found.contains("replication slot other belongs to database second"), "{found}");
    options.slot = name("Upper");
    let problems = prepare(&options, &[table()]).await.unwrap_err();
    assert!(
        problems.iter().any(|problem| problem.contains("slot_name `Upper` is not a valid slot name")),
        "{problems:#?}"
    );
    cluster.psql("SELECT pg_drop_replication_slot('other')").unwrap();
    options.slot = name("other");
    cluster.psql_in("second", foreign).unwrap();

    cluster.psql_in("latin", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let mut latin = options.clone();
    latin.connection = ConnectionOptions::parse(&cluster.url("latin")).unwrap();
    let problems = prepare(&latin, &[table()]).await.unwrap_err();
    assert!(problems[0].contains("database latin is encoded in LATIN1"), "{problems:#?}");
}

#[tokio::test]
async fn wal_level_is_checked() {
    let replica = ClusterOptions::default().set("wal_level", "replica");
    let cluster = Cluster::start(replica).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let found = problem(&options(&cluster.url("postgres")), request("public.t", &[])).await;
    assert_eq!(
        found,
        "wal_level is replica and must be logical; run ALTER SYSTEM SET wal_level = logical and restart PostgreSQL"
    );
}

#[tokio::test]
async fn a_provider_is_recognized_and_its_own_terms_are_used() {
    let options_of = |cluster: &Cluster| {
        let mut options = options(&cluster.url("postgres"));
        options.connection.user = "follower".to_owned();
        options
    };
    let replica = ClusterOptions::default().set("wal_level", "replica").set("max_replication_slots", "0");
    let cluster = Cluster::start(replica).unwrap();
    cluster
        .psql("CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE follower LOGIN; GRANT SELECT ON t TO follower")
        .unwrap();
    for (role, decoding, right, slots) in [
        (
            "rds_superuser",
            "set rds.logical_replication = 1 in the parameter group",
            "as the master user run GRANT rds_replication TO \"follower\"",
            "set max_replication_slots = 5 in the parameter group and restart the instance",
        ),
        (
            "cloudsqlsuperuser",
            "set the flag cloudsql.logical_decoding = on",
            "as a member of cloudsqlsuperuser run ALTER ROLE \"follower\" REPLICATION",
            "set the flag max_replication_slots = 5",
        ),
        (
            "alloydbsuperuser",
            "set the flag alloydb.logical_decoding = on",
            "as a member of alloydbsuperuser run ALTER ROLE",
            "set the flag max_replication_slots = 5",
        ),
        (
            "azure_pg_admin",
            "set the server parameter wal_level = logical",
            "as the administrator run ALTER ROLE",
            "set the server parameter max_replication_slots = 5",
        ),
        (
            "neon_superuser",
            "enable logical replication in the settings of the project",
            "as a role of Neon's console run ALTER ROLE",
            "set max_replication_slots = 5 as the provider's documentation says",
        ),
        (
            "supabase_admin",
            "set it as Supabase's documentation says",
            "as the user postgres run ALTER ROLE",
            "set max_replication_slots = 5 as the provider's documentation says",
        ),
    ] {
        cluster.psql(&format!("CREATE ROLE {role}")).unwrap();
        let problems = prepare(&options_of(&cluster), &[request("public.t", &[])]).await.unwrap_err().join("\n");
        for expected in [decoding, right, slots] {
            assert!(problems.contains(expected), "{role}: {problems}\nlacks\n{expected}");
        }
        assert!(!problems.contains("ALTER SYSTEM"), "{role}: {problems}");
        cluster.psql(&format!("DROP ROLE {role}")).unwrap();
    }
}

#[tokio::test]
async fn walsenders_are_counted() {
    let one = ClusterOptions::default().set("max_wal_senders", "1");
    let cluster = Cluster::start(one).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let options = options(&cluster.url("postgres"));
    let _taken = laredo_postgres::transport::ReplicationConnection::connect(&options.connection).await.unwrap();
    let found = problem(&options, request("public.t", &[])).await;
    assert!(found.contains("all 1 walsenders are busy"), "{found}");
}

#[tokio::test]
async fn a_wrong_password_is_definite_and_a_server_that_is_away_is_not() {
    let cluster =
        Cluster::start(ClusterOptions { password: Some("right".to_owned()), ..ClusterOptions::default() }).unwrap();
    let wrong = cluster.url("postgres").replace("right", "wrong");
    let problems = prepare(&options(&wrong), &[]).await.unwrap_err();
    assert!(problems[0].contains("password authentication failed"), "{problems:#?}");
    let port = laredo_testkit::free_port().unwrap();
    let away = PostgresSource::new(options(&format!("postgresql://postgres@127.0.0.1:{port}/postgres")));
    let error = tokio::time::timeout(Duration::from_secs(10), away.prepare(&[])).await.unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Transient(_)), "{error}");
}
