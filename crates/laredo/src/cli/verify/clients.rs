//! The clients' part of the output of `laredo verify`.

use laredo_proto::oam::{ClientComparison, ClientOutcome};
use serde_json::{Value, json};

use super::super::text_table::{grouped, table};

/// Returns true if a client's rows differ, or if a client did not answer.
pub(super) fn is_alarming(clients: &[ClientComparison]) -> bool {
    clients.iter().any(|client| matches!(client.outcome(), ClientOutcome::Differs | ClientOutcome::NoAnswer))
}

/// Returns a sentence with the number of clients for each result, and a line for each client.
pub(super) fn to_text(clients: &[ClientComparison]) -> String {
    if clients.is_empty() {
        return "no client was connected\n".to_owned();
    }
    let count = |outcome: ClientOutcome, words: &str| {
        let count = clients.iter().filter(|client| client.outcome() == outcome).count();
        (count > 0).then(|| format!("{count} {words}"))
    };
    let counts = [
        count(ClientOutcome::Equal, "equal to the server"),
        count(ClientOutcome::Differs, "different from the server"),
        count(ClientOutcome::NoAnswer, "without an answer"),
        count(ClientOutcome::Left, "gone meanwhile"),
        count(ClientOutcome::NotComparable, "that cannot be compared"),
        count(ClientOutcome::Unspecified, "with an unknown result"),
    ];
    let rows = clients.iter().map(|client| {
        let id = if client.client_id.is_empty() { "(unnamed)" } else { &client.client_id };
        let rows = client.rows.map_or_else(String::new, |rows| grouped(rows.unsigned_abs()));
        [id.to_owned(), name(client.outcome()).to_owned(), rows, detail(client)]
    });
    let lines = table(["CLIENT", "RESULT", "ROWS", "DETAIL"], &[2], rows.collect());
    let mut text = format!("clients: {}\n\n{lines}", counts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    if clients.iter().any(|client| client.outcome() == ClientOutcome::Differs) {
        text += "\nA client of laredo-client that differs loads all rows again. Report this.\n";
    }
    text
}

fn detail(client: &ClientComparison) -> String {
    match client.outcome() {
        ClientOutcome::Equal => format!("at {}", client.position),
        ClientOutcome::Differs => format!(
            "at {}: its checksum is {}, the server's is {}",
            client.position, client.client_checksum, client.server_checksum
        ),
        ClientOutcome::NotComparable | ClientOutcome::NoAnswer | ClientOutcome::Left | ClientOutcome::Unspecified => {
            client.reason.clone()
        }
    }
}

pub(super) fn to_json(clients: &[ClientComparison]) -> Value {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let client = |client: &ClientComparison| {
        json!({
            "client_id": client.client_id,
            "outcome": name(client.outcome()),
            "reason": text(&client.reason),
            "position": text(&client.position),
            "rows": client.rows,
            "client_checksum": text(&client.client_checksum),
            "server_checksum": text(&client.server_checksum),
            "connected_at": client.connected_at.as_ref().map(ToString::to_string),
        })
    };
    clients.iter().map(client).collect()
}

fn name(outcome: ClientOutcome) -> &'static str {
    match outcome {
        ClientOutcome::Equal => "equal",
        ClientOutcome::Differs => "differs",
        ClientOutcome::NotComparable => "not_comparable",
        ClientOutcome::NoAnswer => "no_answer",
        ClientOutcome::Left => "left",
        ClientOutcome::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(client_id: &str, outcome: ClientOutcome) -> ClientComparison {
        ClientComparison { client_id: client_id.to_owned(), outcome: outcome.into(), ..ClientComparison::default() }
    }

    fn clients() -> Vec<ClientComparison> {
        let (position, rows) = ("0/10".to_owned(), Some(1204));
        let because = |client: ClientComparison, reason: &str| ClientComparison { reason: reason.to_owned(), ..client };
        vec![
            ClientComparison { position: position.clone(), rows, ..client("app", ClientOutcome::Equal) },
            ClientComparison {
                position,
                client_checksum: "0a".to_owned(),
                server_checksum: "0b".to_owned(),
                ..client("", ClientOutcome::Differs)
            },
            because(client("go", ClientOutcome::NotComparable), "it reads Structs"),
        ]
    }

    #[test]
    fn clients_have_a_text_form() {
        assert_eq!(
            to_text(&clients()),
            "clients: 1 equal to the server, 1 different from the server, 1 that cannot be compared\n\n\
             CLIENT     RESULT           ROWS  DETAIL\n\
             app        equal           1,204  at 0/10\n\
             (unnamed)  differs                at 0/10: its checksum is 0a, the server's is 0b\n\
             go         not_comparable         it reads Structs\n\n\
             A client of laredo-client that differs loads all rows again. Report this.\n"
        );
        assert_eq!(to_text(&[]), "no client was connected\n");
    }

    #[test]
    fn clients_have_a_json_form() {
        let json = to_json(&clients());
        assert_eq!((&json[0]["outcome"], &json[0]["rows"]), (&json!("equal"), &json!(1204)));
        assert_eq!((&json[1]["client_checksum"], &json[1]["rows"]), (&json!("0a"), &Value::Null));
        assert_eq!((&json[2]["reason"], &json[2]["position"]), (&json!("it reads Structs"), &Value::Null));
    }

    #[test]
    fn a_client_that_differs_or_does_not_answer_is_an_alarm() {
        let alarms = |outcome| is_alarming(&[client("a", ClientOutcome::Equal), client("b", outcome)]);
        assert!(alarms(ClientOutcome::Differs) && alarms(ClientOutcome::NoAnswer));
        assert!(!alarms(ClientOutcome::NotComparable) && !alarms(ClientOutcome::Left) && !is_alarming(&[]));
    }
}
