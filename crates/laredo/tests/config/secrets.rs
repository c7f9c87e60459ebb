//! No report, dump or debug output contains a secret.

use laredo::config::ServerConfig;

use super::{ConfigFolder, MINIMAL, fixture, load};

const PASSWORD: &str = "hunter2";

#[test]
fn the_effective_configuration_masks_both_forms_of_connection() {
    let text = |connection: &str| MINIMAL.replace("postgresql://u@h/d", connection);
    for (connection, shown) in [
        ("postgresql://u:hunter2@h/d?sslmode=require", "\"postgresql://u:****@h/d?sslmode=require\""),
        (
            "postgresql://h/d?user=u&password=hunter2&sslmode=require",
            "\"postgresql://h/d?user=u&password=****&sslmode=require\"",
        ),
        ("postgresql://h/d?user=u&p%61ssword=hunter2", "\"postgresql://h/d?user=u&p%61ssword=****\""),
        ("host=h user=u password=hunter2 dbname=d", "\"host=h user=u password=**** dbname=d\""),
        ("host=h user=u password = 'it is hunter2'", "\"host=h user=u password = ****\""),
    ] {
        let config = load(&text(connection)).expect("valid");
        let hocon = config.to_hocon();
        assert!(hocon.contains(&format!("connection = {shown}\n")), "{hocon}");
        assert!(!format!("{config:?}").contains(PASSWORD));
        assert_eq!(config.sources["pg"].connection.expose(), connection);
    }
    let command = "password_command = [\"print\", \"hunter2\", \"--token=hunter2\"]";
    let config = load(&text("postgresql://u@h/d").replacen("type =", &format!("{command}, type ="), 1)).expect("valid");
    let hocon = config.to_hocon();
    assert!(hocon.contains("password_command = [\"print\", \"****\", \"****\"]\n"), "{hocon}");
    assert!(!hocon.contains(PASSWORD) && !format!("{config:?}").contains(PASSWORD));
    let folder = ConfigFolder::new(&[]);
    let config = ServerConfig::load(&folder.loader().file(fixture("every-key.conf"))).expect("valid");
    assert!(!config.to_hocon().contains("hunter"));
}

#[test]
fn the_key_of_a_hash_is_masked() {
    let transforms = "{ type = hash, fields = [email], key = \"hunter2 hunter2 hunter2\" }";
    let target = "{ type = replication-fanout }";
    let text = MINIMAL.replace(target, &format!("{{ type = replication-fanout, transforms = [{transforms}] }}"));
    let config = load(&text).expect("valid");
    let hocon = config.to_hocon();
    assert!(hocon.contains("key = \"****\"") && !hocon.contains(PASSWORD), "{hocon}");
    assert!(!format!("{config:?}").contains(PASSWORD));
}

#[test]
fn reports_hold_no_secret() {
    let secret_lines = [
        // The secret and the error are on the same line.
        "sources { pg { type = postgrsql, connection = \"postgresql://u:hunter2@h/d\" } }",
        "sources { pg { type = pg, conection = \"postgresql://u:hunter2@h/d\" } }",
        "sources { pg { type = pg, url = \"host=h password=hunter2\" } }",
        "sources { pg { type = pg, slot_name = \"postgresql://u:hunter2@h/d\", connection = x } }",
        "sources { pg { type = \"postgresql://u:hunter2@h/d\", connection = x } }",
        "sources { pg { type = pg, connection = { password = hunter2 } } }",
        "sources { pg { type = pg, connection = [hunter2], passwrd = hunter2 } }",
        "tables = [{ targets = [{ transforms = [{ type = hash, key = hunter2 }] }] }]",
        "tables = [{ targets = [{ transforms = [{ type = hash, key = [hunter2] }] }] }]",
        "tables = [{ targets = [{ transforms = [{ type = hash, kay = \"hunter2 and more of it\" }] }] }]",
        "tables = [{ targets = [{ transforms = [{ type = mask, key = \"hunter2 and more of it\" }] }] }]",
        "sources { pg { type = pg, url = \"postgresql://h/d?p%61ssword=hunter2\" } }",
        "sources { pg { type = pg, connection = \"user=u\", password_command = \"echo hunter2\" } }",
        "sources { pg { type = pg, connection = \"user=u\", password_command = [echo, { a = hunter2 }] } }",
        "sources { pg { type = pg, connection = \"user=u\", password_comand = [echo, hunter2] } }",
        // Syntax errors around the secret.
        "tables = [{ transforms = [{ key = \"hunter2 } ] }]",
        "tables = [{ transforms = [{ key = hunter2+more } ] }]",
        "sources { pg { connection = postgresql://u:hunter2@h/d } }",
        "sources { pg { connection = \"postgresql://u:hunter2@h/d } }",
        "sources { pg { connection = hunter2+more } }",
        "sources { pg { connection = \"hunter2\\q\" } }",
        "sources { pg { connection = \"hunter2\" } } }",
        "connection = \"\"\"hunter2\n",
    ];
    for line in secret_lines {
        let folder = ConfigFolder::new(&[("laredo.conf", line)]);
        let report =
            ServerConfig::load(&folder.loader().file(folder.path("laredo.conf"))).expect_err("the line is wrong");
        for shown in [report.to_string(), report.render(false), report.render(true), format!("{report:?}")] {
            assert!(!shown.contains(PASSWORD), "{line}\n{shown}");
        }
    }
}

#[test]
fn reports_about_variables_and_settings_hold_no_secret() {
    let folder = ConfigFolder::new(&[("laredo.conf", MINIMAL)]);
    let loader = folder
        .loader_with(&[
            ("LAREDO_SOURCES_PG_CONECTION", "postgresql://u:hunter2@h/d"),
            ("LAREDO_SOURCES_PG_CONNECTION", "[\"hunter2\"]"),
        ])
        .file(folder.path("laredo.conf"))
        .set("sources.pg.connection=[\"hunter2")
        .set("sources.pg.slot_name=postgresql://u:hunter2@h/d")
        .set("postgresql://u:hunter2@h/d");
    let report = ServerConfig::load(&loader).expect_err("all of them are wrong");
    assert_eq!(report.problem_count(), 5, "{report}");
    for shown in [report.to_string(), report.render(false), format!("{report:?}")] {
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
}
