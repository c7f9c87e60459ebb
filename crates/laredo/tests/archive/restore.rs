//! Rows are restored into a database, all of them or none.

use laredo_testkit::{Cluster, ClusterOptions};

use crate::pipeline::{ArchivePipeline, HISTORY, PipelineArchive, THINGS, answer, assert_same, laredo, refusal};

const ARCHIVE: PipelineArchive<'_> = PipelineArchive { table: "things", formats: &["jsonl"], name: "things" };

#[tokio::test(flavor = "multi_thread")]
async fn every_state_comes_back_as_it_was() {
    let pipeline = ArchivePipeline::start(THINGS, &[ARCHIVE]).await;
    let heads = pipeline.write_history().await;
    pipeline.end().await;
    let (cluster, place) = (&pipeline.cluster, pipeline.archive("things"));
    let (place, url) = (place.to_str().unwrap(), cluster.url("postgres"));
    cluster.psql("CREATE TABLE empty (LIKE things INCLUDING ALL)").unwrap();
    for (number, head) in heads.iter().enumerate() {
        let into = |table: &str, how: &[&str]| {
            let table = format!("public.{table}");
            let at = ["reconstruct", place, "--at", head, "--exact", "--postgres", &url, "--table", &table];
            laredo(&[&at[..], how].concat())
        };
        let (code, out, said) = into("empty", if number == 0 { &[] } else { &["--replace"] });
        assert_eq!((code, out.as_str()), (Some(0), ""), "{said}");
        assert!(said.contains(&format!("rows as of {head} (epoch 1")), "{said}");
        assert_same(cluster, "postgres", "empty", &format!("things_{number}"));
        let made = format!("made_{number}");
        assert_eq!(into(&made, &["--create"]).0, Some(0));
        assert_same(cluster, "postgres", &made, &format!("things_{number}"));
    }
    // The created table has the columns, their types, and the key.
    let shape = |table: &str| {
        cluster
            .psql(&format!(
                "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0 \
                 UNION ALL SELECT pg_get_constraintdef(oid), NULL, NULL FROM pg_constraint WHERE conrelid = '{table}'::regclass"
            ))
            .unwrap()
    };
    assert_eq!(shape("made_0"), shape("things"));
    assert!(shape("made_0").contains("PRIMARY KEY"), "{}", shape("made_0"));

    as_csv(cluster, place, &heads);
    as_a_file(place, &heads);
    refuses(cluster, place);
}

/// Checks that PostgreSQL reads the CSV, with NULLs and empty texts as different values.
fn as_csv(cluster: &Cluster, place: &str, heads: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    for (number, head) in heads.iter().enumerate() {
        let file = folder.path().join(format!("{number}.csv"));
        let file = file.to_str().unwrap();
        answer(&["reconstruct", place, "--at", head, "--format", "csv", "--output", file]);
        let load = format!(
            "CREATE TABLE csv_{number} (LIKE things);\n\\copy csv_{number} FROM '{file}' WITH (FORMAT csv, HEADER MATCH)\n"
        );
        cluster.psql(&load).unwrap();
        assert_same(cluster, "postgres", &format!("csv_{number}"), &format!("things_{number}"));
        assert_eq!(
            answer(&["reconstruct", place, "--at", head, "--format", "csv"]),
            std::fs::read_to_string(file).unwrap()
        );
    }
}

/// Checks that the same state makes the same file, which replaces an existing file as a whole. The
/// umask decides who may read it.
fn as_a_file(place: &str, heads: &[String]) {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (file, plain) = (folder.path().join("rows.jsonl"), folder.path().join("plain"));
    std::fs::write(&file, "old").unwrap();
    std::fs::write(&plain, "").unwrap();
    answer(&["reconstruct", place, "--at", &heads[0], "--output", file.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), answer(&["reconstruct", place, "--at", &heads[0]]));
    let mode = |file| std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode(&file), mode(&plain));
    let said = refusal(&["reconstruct", place, "--output", folder.path().join("none/rows").to_str().unwrap()]);
    assert!(said.contains("cannot write the output"), "{said}");
}

fn refuses(cluster: &Cluster, place: &str) {
    let url = cluster.url("postgres");
    cluster
        .psql(
            r#"CREATE TABLE full_already AS TABLE things_1;
            CREATE TABLE picky (LIKE things, CHECK (shop < 7)); INSERT INTO picky SELECT * FROM things_0;
            CREATE TABLE narrow (shop int, "it's ""it""" text);
            CREATE TABLE other (LIKE things); ALTER TABLE other ALTER day TYPE bytea USING NULL"#,
        )
        .unwrap();
    let refused = |table: &str, how: &[&str]| {
        let table = format!("public.{table}");
        let into = ["reconstruct", place, "--postgres", &url, "--table", &table];
        let said = refusal(&[&into[..], how].concat());
        assert!(said.contains("nothing was restored: "), "{said}");
        said
    };
    for (table, how, words) in [
        (
            "full_already",
            &[][..],
            "table public.full_already has rows; empty it first, or use --replace to replace them",
        ),
        ("full_already", &["--create"], "table public.full_already already exists; omit --create"),
        ("nobody", &[], "table public.nobody does not exist; create it, or use --create"),
        ("nobody", &["--replace"], "table public.nobody does not exist"),
        ("picky", &["--replace"], "picky_shop_check"),
        ("narrow", &[], "column \"amount\" of relation \"narrow\" does not exist"),
        ("other", &[], "the table's column `day` cannot be \""),
    ] {
        let said = refused(table, how);
        assert!(said.contains(words), "{table} {how:?}: {said}");
    }
    let counts = "SELECT (SELECT count(*) FROM full_already), (SELECT count(*) FROM picky), (SELECT count(*) FROM narrow), (SELECT count(*) FROM other)";
    assert_eq!(cluster.psql(counts).unwrap(), "6|5|0|0", "as they were");
    let unreachable =
        ["reconstruct", place, "--postgres", "postgresql://postgres@127.0.0.1:1/postgres", "--table", "a.b"];
    assert!(refusal(&unreachable).contains("nothing was restored: "));
    let (code, _, said) = laredo(&["reconstruct", place, "--postgres", &url]);
    assert!(code == Some(2) && said.contains("--table"), "{said}");
}

/// The table may have wider columns than the archive, and more of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_may_hold_more_than_the_archive_has() {
    let pipeline = ArchivePipeline::start(THINGS, &[ARCHIVE]).await;
    for sql in HISTORY.iter().take(2) {
        pipeline.write(sql).await;
    }
    pipeline.end().await;
    let other = Cluster::start(ClusterOptions::default()).unwrap();
    other
        .psql(
            r#"CREATE TABLE wider (id bigint GENERATED ALWAYS AS IDENTITY, note text, ok boolean, day date, at timestamptz, ratio float8,
            big bigint, amount numeric, "it's ""it""" varchar, shop bigint, twice bigint GENERATED ALWAYS AS (shop * 2) STORED)"#,
        )
        .unwrap();
    let place = pipeline.archive("things");
    answer(&["reconstruct", place.to_str().unwrap(), "--postgres", &other.url("postgres"), "--table", "public.wider"]);
    let rows = r#"SELECT shop, "it's ""it""", amount, big, ratio, at, day, ok, note FROM"#;
    let here = pipeline.cluster.psql(&format!("{rows} things ORDER BY 1, 2")).unwrap();
    assert_eq!(other.psql(&format!("{rows} wider ORDER BY 1, 2")).unwrap(), here);
    assert_eq!(other.psql("SELECT count(DISTINCT id), sum(twice) > 0 FROM wider").unwrap(), "5|t");
}
