use super::{ConfigSecret, mask_text};

fn masked(connection: &str) -> String {
    ConfigSecret::new(connection).masked_connection()
}

#[test]
fn masks_both_forms_of_connection() {
    assert_eq!(
        masked("postgresql://user:pass@host:5432/db?sslmode=require"),
        "postgresql://user:****@host:5432/db?sslmode=require"
    );
    assert_eq!(masked("postgres://user:p@ss/w@host/db?password=other"), "postgres://user:****@host/db?password=****");
    assert_eq!(masked("postgresql://user@host/db"), "postgresql://user@host/db");
    assert_eq!(masked("host=db user=u password=hunter2 dbname=d"), "host=db user=u password=**** dbname=d");
    assert_eq!(masked(r"host=db password='hun ter\'2' dbname=d"), "host=db password=**** dbname=d");
    assert_eq!(masked("hunter2"), "****");
    assert_eq!(masked("postgresql://u:a\nhunter2@h/d"), "postgresql://u:****@h/d");
    assert_eq!(masked("postgresql://h/d?user=u&p%61ssword=hunter2"), "postgresql://h/d?user=u&p%61ssword=****");
    assert_eq!(masked("user=u password\n=\nhunter2"), "user=u password\n=\n****");
    assert_eq!(masked("postgresql://u:hunter2@h/d?unknown=1"), "****", "what cannot be parsed is not shown");
    assert_eq!(format!("{:?}", ConfigSecret::new("hunter2")), "Secret(****)");
}

#[test]
fn masks_source_text_and_keeps_its_columns() {
    let text = "a { connection = \"postgresql://u:pw@h/d\", slot_mode = statefull }";
    let shown = mask_text(text);
    assert_eq!(shown.chars().count(), text.chars().count());
    assert!(!shown.contains("pw") && shown.ends_with(", slot_mode = statefull }"));

    for leaky in [
        "conection = \"host=h password=hunter2\"",
        "anything = \"postgresql://u:hunter2@h/d\"",
        "connection = ${HOST}\"hunter2\"",
        "\"connection\" : hunter2",
        "connection = \"\"\"\nhunter2\n\"\"\"",
        "conn = \"host=h password='hunter2'\"",
        "token += hunter2",
        "passwrd = hunter2",
        "connection = \"x hunter2",
        "anything = \"postgresql://h/d?p%61ssword=hunter2&x=y\"",
        "password_command = [\"echo\", \"hunter2\"]",
        "password_comand = [echo, hunter2]",
    ] {
        assert!(!mask_text(leaky).contains("hunter2"), "{leaky}");
    }
    assert_eq!(mask_text("connection = ${PG_URL}"), "connection = ${PG_URL}");
}
