//! The changes of transactions arrive exactly as they were made.

use std::collections::BTreeMap;

use laredo_engine::source::SourceEvent;
use laredo_testkit::ClusterOptions;

use crate::stream::harness::{StreamFollower, cluster, ephemeral, stateful};

#[tokio::test(flavor = "multi_thread")]
async fn transactions_come_in_the_order_of_their_commits() {
    let cluster = cluster(ClusterOptions::default());
    let mut stream = StreamFollower::start(&cluster, ephemeral()).await;
    let (one, two) = (cluster.connect().await.unwrap(), cluster.connect().await.unwrap());
    let begin = "BEGIN; SELECT pg_current_xact_id()::text";
    let xid = |rows: Vec<tokio_postgres::SimpleQueryMessage>| {
        let rows = rows.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(|xid| xid.parse::<u64>().unwrap()),
            _ => None,
        });
        rows.unwrap()
    };
    let first = xid(one.simple_query(begin).await.unwrap());
    let second = xid(two.simple_query(begin).await.unwrap());
    for (client, sql) in [
        (&one, "INSERT INTO users VALUES ('1', 'one')"),
        (&two, "INSERT INTO users VALUES ('2', 'two')"),
        (&one, "INSERT INTO orders VALUES ('3', 'one')"),
        (&two, "UPDATE users SET note = 'two again' WHERE id = '2'; COMMIT"),
        (&one, "DELETE FROM users WHERE id = '1'; COMMIT"),
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    let reported = [stream.commit().await, stream.commit().await];
    assert!(first < second && reported[0].end < reported[1].end);
    assert_eq!((reported[0].xid, reported[1].xid), (second, first));
    assert_eq!(reported[0].tables, BTreeMap::from([(0, vec!["+2,two".into(), "=2,two again".into()])]));
    let expected = BTreeMap::from([(0, vec!["+1,one".into(), "-1,NULL".into()]), (1, vec!["+3,one".into()])]);
    assert_eq!(reported[1].tables, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_transaction_comes_once_it_commits_without_what_it_rolled_back() {
    let cluster = cluster(ClusterOptions::default().set("logical_decoding_work_mem", "64kB"));
    let mut stream = StreamFollower::start(&cluster, stateful()).await;
    let large = cluster.connect().await.unwrap();
    let insert = |savepoint: i32| {
        format!("INSERT INTO users SELECT {savepoint} || '/' || i, repeat('x', 50) FROM generate_series(1, 1000) i;")
    };
    large.batch_execute(&format!("BEGIN; {}", insert(0))).await.unwrap();
    // A small transaction commits in the middle.
    cluster.psql("INSERT INTO users VALUES ('small', 'one')").unwrap();
    assert_eq!(stream.changes(0).await, ["+small,one"]);
    for savepoint in 1..6 {
        let end = if savepoint % 2 == 0 { "RELEASE" } else { "ROLLBACK TO" };
        let sql = format!("SAVEPOINT s; {} {end} s;", insert(savepoint));
        large.batch_execute(&sql).await.unwrap();
    }
    large
        .batch_execute("ALTER TABLE users ADD COLUMN more text; INSERT INTO users VALUES ('more', 'a', 'b'); COMMIT")
        .await
        .unwrap();
    let reported = stream.changes(0).await;
    let streamed = cluster.psql("SELECT stream_count > 0 FROM pg_stat_replication_slots").unwrap();
    assert_eq!(streamed, "t", "it was streamed ahead of its commit");
    assert_eq!(reported.len(), 3001);
    assert_eq!(reported.last().unwrap(), "+more,a,b");
    let kept = reported[..3000].iter().map(|change| change[1..].split_once(',').unwrap().0.to_owned());
    let expected = [0, 2, 4].iter().flat_map(|savepoint| (1..=1000).map(move |i| format!("{savepoint}/{i}")));
    assert!(kept.eq(expected));
    // The relation that the transaction announced is valid for the next one too.
    cluster.psql("INSERT INTO users VALUES ('next', 'c', 'd')").unwrap();
    assert_eq!(stream.changes(0).await, ["+next,c,d"]);
    // A transaction that is rolled back completely leaves no change.
    cluster.psql(&format!("BEGIN; {} ROLLBACK; INSERT INTO users VALUES ('last')", insert(9))).unwrap();
    assert_eq!(stream.changes(0).await, ["+last,NULL,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_of_several_tables_empties_those_that_are_followed() {
    let cluster = cluster(ClusterOptions::default());
    let mut stream = StreamFollower::start(&cluster, ephemeral()).await;
    cluster.psql("BEGIN; INSERT INTO users VALUES ('1'); TRUNCATE other, orders, users; INSERT INTO users VALUES ('2'); COMMIT").unwrap();
    let reported = stream.commit().await.tables;
    let expected = [(0, vec!["+1,NULL".into(), "0".into(), "+2,NULL".into()]), (1, vec!["0".into()])];
    assert_eq!(reported, BTreeMap::from(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_that_stay_are_marked() {
    let cluster = cluster(ClusterOptions::default());
    let large = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i)";
    cluster
        .psql("CREATE TABLE keyed (id text PRIMARY KEY, note text); ALTER PUBLICATION laredo ADD TABLE keyed")
        .unwrap();
    // The key is long enough to be stored out of line, and short enough for an index.
    cluster.psql("ALTER TABLE keyed ALTER id SET STORAGE EXTERNAL").unwrap();
    let mut options = crate::stream::harness::options(&cluster.url("postgres"), ephemeral());
    options.tables.push("public.keyed".parse().unwrap());
    let mut stream = StreamFollower::start_with(options, 64).await;
    let mut run = async |table: usize, sql: String| {
        cluster.psql(&sql).unwrap();
        stream.changes(table).await
    };
    assert_eq!(run(0, format!("INSERT INTO users VALUES ('1', {large})")).await, ["+1,9600 bytes"]);
    assert_eq!(run(0, "UPDATE users SET note = note".into()).await, ["=1,?"]);
    assert_eq!(run(0, "UPDATE users SET id = '2'".into()).await, ["1,NULL=2,?"]);
    let replica = "ALTER TABLE users REPLICA IDENTITY FULL; UPDATE users SET id = '3'".to_owned();
    assert_eq!(run_full(&cluster, &mut stream, &replica).await, ["2,9600 bytes=3,?"]);

    let mut run = async |sql: String| {
        cluster.psql(&sql).unwrap();
        stream.changes(2).await
    };
    let key = format!("left({large}, 2500)");
    assert_eq!(run(format!("INSERT INTO keyed VALUES ({key}, 'a')")).await, ["+2500 bytes,a"]);
    assert_eq!(run("UPDATE keyed SET note = 'b'".into()).await, ["2500 bytes,NULL=?,b"], "the key stayed");
    assert_eq!(run("DELETE FROM keyed".into()).await, ["-2500 bytes,NULL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_enter_and_leave_a_filter_as_the_copy_has_them() {
    let cluster = cluster(ClusterOptions::default());
    if cluster.major_version() < 15 {
        return;
    }
    cluster.psql("ALTER PUBLICATION laredo SET TABLE users WHERE (id > '5'), orders, other").unwrap();
    let mut stream = StreamFollower::start(&cluster, ephemeral()).await;
    let large = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i)";
    let mut rows = BTreeMap::new();
    for (sql, expected) in [
        (format!("INSERT INTO users VALUES ('1', {large}), ('6', 'six')"), vec!["+6,six"]),
        // The row enters as an insert that leaves out its large value. A reader without such a row
        // has to copy again.
        ("UPDATE users SET id = '7' WHERE id = '1'".into(), vec!["+7,?"]),
        ("UPDATE users SET note = 'seven' WHERE id = '7'".into(), vec!["=7,seven"]),
        ("UPDATE users SET id = '2' WHERE id = '6'".into(), vec!["-6,NULL"]),
        (
            "UPDATE users SET note = 'two' WHERE id = '2'; INSERT INTO users VALUES ('8', 'eight')".into(),
            vec!["+8,eight"],
        ),
    ] {
        cluster.psql(&sql).unwrap();
        assert_eq!(stream.changes(0).await, expected, "{sql}");
        for change in expected {
            let (id, note) = change[1..].split_once(',').unwrap();
            match change.starts_with('-') {
                true => drop(rows.remove(id)),
                false => drop(rows.insert(id, note)),
            }
        }
    }
    let streamed: Vec<_> = rows.into_iter().map(|(id, note)| format!("{id}|{note}")).collect();
    assert_eq!(cluster.psql("SELECT * FROM users WHERE id > '5' ORDER BY id").unwrap(), streamed.join("\n"));
}

/// Returns the changes to the first table, after the event that announces the changed replica
/// identity.
async fn run_full(cluster: &laredo_testkit::Cluster, stream: &mut StreamFollower, sql: &str) -> Vec<String> {
    cluster.psql(sql).unwrap();
    loop {
        match stream.next().await {
            SourceEvent::Moved { table, .. } => {
                assert_eq!(table.0, 0);
                return stream.changes(0).await;
            }
            SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_come_through_their_root() {
    let cluster = cluster(ClusterOptions::default());
    cluster
        .psql(
            "CREATE TABLE parts (id text PRIMARY KEY, note text) PARTITION BY LIST (id);
             CREATE TABLE parts_a (note text, id text NOT NULL);
             ALTER TABLE parts ATTACH PARTITION parts_a FOR VALUES IN ('a');
             CREATE TABLE parts_b PARTITION OF parts FOR VALUES IN ('b');
             ALTER PUBLICATION laredo ADD TABLE parts;",
        )
        .unwrap();
    let mut options = crate::stream::harness::options(&cluster.url("postgres"), ephemeral());
    options.tables = vec!["public.parts".parse().unwrap()];
    let mut stream = StreamFollower::start_with(options, 64).await;
    cluster.psql("INSERT INTO parts VALUES ('a', '1'), ('b', '2')").unwrap();
    assert_eq!(stream.changes(0).await, ["+a,1", "+b,2"], "in the root's order of columns");
    cluster.psql("DELETE FROM parts WHERE id = 'b'; UPDATE parts SET id = 'b'").unwrap();
    assert_eq!(stream.changes(0).await, ["-b,NULL"]);
    assert_eq!(stream.changes(0).await, ["-a,NULL", "+b,1"], "it moved to the other partition");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_loses_its_key_is_broken_and_only_that_one() {
    let cluster = cluster(ClusterOptions::default());
    let mut stream = StreamFollower::start(&cluster, ephemeral()).await;
    cluster.psql("INSERT INTO users VALUES ('1'); INSERT INTO orders VALUES ('1')").unwrap();
    assert_eq!(stream.changes(0).await, ["+1,NULL"]);
    assert_eq!(stream.changes(1).await, ["+1,NULL"]);
    cluster.psql("ALTER TABLE users DROP CONSTRAINT users_pkey; INSERT INTO users VALUES ('2')").unwrap();
    let error = loop {
        match stream.next().await {
            SourceEvent::Broken { table, error } if table.0 == 0 => break error,
            SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(error.contains("public.users has lost its primary key"), "{error}");
    cluster.psql("INSERT INTO orders VALUES ('2')").unwrap();
    assert_eq!(stream.changes(0).await, ["+2,NULL"], "what to do with these is not the stream's to decide");
    assert_eq!(stream.changes(1).await, ["+2,NULL"]);
}
