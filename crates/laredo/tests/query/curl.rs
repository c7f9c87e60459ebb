//! The commands of `docs/protocols.md`: queries by curl, in JSON.

use serde_json::{Value, json};

use super::{cluster, start};

/// The commands of the page, without those of other sections.
fn documented() -> Vec<String> {
    let page = include_str!("../../../../docs/protocols.md");
    let (_, section) = page.split_once("\n## Queries\n").expect("the page has the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks.map(str::to_owned).collect()
}

/// Runs a command of the page against a server at this port. Returns its output.
async fn run(command: &str, port: u16) -> Vec<u8> {
    let command = command.replace("localhost:4001", &format!("127.0.0.1:{port}"));
    let output = tokio::process::Command::new("bash").args(["-c", &command]).output().await.unwrap();
    assert!(output.stderr.is_empty(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_what_the_page_shows() {
    let cluster = cluster();
    let server = start(&cluster).await;
    let commands = documented();
    assert_eq!(commands.len(), 6, "{commands:#?}");
    let mut answers = Vec::new();
    for command in &commands[..5] {
        let output = run(command, server.ports.grpc).await;
        let answer: Value = serde_json::from_slice(&output).unwrap_or_else(|e| panic!("{command}: {e}: {output:?}"));
        answers.push(answer);
    }
    let seven = json!({ "id": 7, "name": "item 7", "color": "green", "price": "1.7500000000000000" });
    let plain = |row: &Value| {
        let mut row = row.clone();
        row["id"] = json!(row["id"].as_f64().unwrap() as i64);
        row
    };
    assert_eq!((&answers[0]["found"], plain(&answers[0]["row"])), (&json!(true), seven.clone()));
    assert_eq!(plain(&answers[1]["row"]), seven);
    assert!(answers[1]["sourcePosition"].as_str().unwrap().contains('/'), "{}", answers[1]);
    assert_eq!(answers[2]["rows"].as_array().unwrap().len(), 167);
    assert_eq!((answers[3]["rows"].as_array().unwrap().len(), &answers[3]["totalCount"]), (2, &json!("500")));
    assert!(!answers[3]["nextPageToken"].as_str().unwrap().is_empty());
    assert_eq!(answers[4]["count"], "500");
    // Each event of the stream has a prefix of five bytes.
    let output = run(&commands[5], server.ports.grpc).await;
    let length = u32::from_be_bytes(output[1..5].try_into().unwrap()) as usize;
    let event: Value = serde_json::from_slice(&output[5..5 + length]).unwrap();
    assert_eq!((&event["action"], &event["newValues"]["name"].is_string()), (&json!("INSERT"), &true), "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_answered_in_grpc_web() {
    use laredo_proto::oam::{GetRowRequest, GetRowResponse};
    use prost::Message as _;
    let cluster = cluster();
    let server = start(&cluster).await;
    let (schema, table) = ("public".to_owned(), "item".to_owned());
    let request = GetRowRequest { schema, table, primary_key: 7, ..GetRowRequest::default() };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("request");
    std::fs::write(&file, laredo_proto::frame::to_bytes(&request)).unwrap();
    let command = format!(
        "curl --silent --data-binary @{} --header 'Content-Type: application/grpc-web' \
         http://localhost:4001/laredo.v1.LaredoQueryService/GetRow",
        file.display()
    );
    let output = run(&command, server.ports.grpc).await;
    let length = laredo_proto::frame::length(&output).unwrap();
    let (message, end) = output[5..].split_at(length);
    let row = GetRowResponse::decode(message).unwrap().row.unwrap();
    assert_eq!(super::word(&row, "name"), "item 7");
    assert_eq!(end[0], 0x80, "the trailers");
    assert!(String::from_utf8_lossy(&end[5..]).contains("grpc-status: 0"), "{end:?}");
}
