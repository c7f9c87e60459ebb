//! The program `laredo`, run as an operator runs it against a server of the test, and the command
//! lines of the other programs.

#[path = "../support/mod.rs"]
mod support;

mod programs;
mod server;
mod service_manager;
mod source_drop;
mod top;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use server::{SingleTableServer, delete, insert, update};

fn laredo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_laredo"));
    command.args(args).stdin(Stdio::null()).env_remove("NO_COLOR").env_remove("LAREDO_SERVER").env("TERM", "xterm");
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    output_texts(laredo(args).output().expect("it runs"))
}

fn output_texts(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).expect("it writes UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A `tail` that has reached the head of its table.
struct TailProcess {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
    started: String,
}

impl TailProcess {
    fn start(mut command: Command) -> TailProcess {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it runs");
        let mut errors = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut started = String::new();
        errors.read_line(&mut started).expect("it says that it follows");
        assert!(started.starts_with("laredo: following"), "{started}");
        TailProcess { child, errors, started }
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.child.stdout.take().expect("it is piped")).lines().map(|line| line.expect("it is UTF-8"))
    }

    /// Waits for the end of the process. Returns the exit code, and the rest of its error output.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.errors.read_to_string(&mut said).expect("it is UTF-8");
        (self.child.wait().expect("it ends").code(), said)
    }

    fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    }
}

#[test]
fn tail_writes_a_json_line_for_each_row_and_change_and_ends_at_an_interrupt() {
    let server = SingleTableServer::start();
    let mut command = laredo(&["tail", "public.t", "--snapshot", "--filter", "flag=true", "--filter-prefix", "name=a"]);
    let mut tail = TailProcess::start({
        command.env("LAREDO_SERVER", &server.url).stdout(Stdio::piped());
        command
    });
    assert_eq!(tail.started, "laredo: following public.t from 0/100, 1 rows\n");
    server.commit(0x200, vec![insert(2, "b")]);
    server.commit(0x300, vec![update(1, "a2"), delete(2)]);
    let lines: Vec<Value> =
        tail.lines().take(4).map(|line| serde_json::from_str(&line).expect("each line is JSON")).collect();
    let row = |id: i64, name: &str| json!({"id": id, "name": name, "flag": null});
    let line = |action: &str, position: &str, id: i64, old: Value, new: Value| {
        let at = (action != "SNAPSHOT").then_some("2000-01-01T00:00:00.000005Z");
        json!({"action": action, "position": position, "committed_at": at, "key": {"id": id}, "old": old, "new": new})
    };
    assert_eq!(
        lines,
        [
            line("SNAPSHOT", "0/100", 1, Value::Null, row(1, "a")),
            line("INSERT", "0/200", 2, Value::Null, row(2, "b")),
            line("UPDATE", "0/300", 1, row(1, "a"), row(1, "a2")),
            line("DELETE", "0/300", 2, row(2, "b"), Value::Null),
        ]
    );
    let filters = server.requests()[0].filters.clone();
    assert_eq!(filters.iter().map(|f| f.field.as_str()).collect::<Vec<_>>(), ["flag", "name"]);
    tail.interrupt();
    assert_eq!(tail.end(), (Some(0), String::new()));
}

#[test]
fn tail_ends_quietly_when_its_reader_does() {
    let server = SingleTableServer::start();
    let mut command = laredo(&["tail", "public.t", "--server", &server.url]);
    command.stdout(Stdio::piped());
    let mut tail = TailProcess::start(command);
    drop(tail.child.stdout.take());
    server.commit(0x200, vec![insert(2, "b")]);
    assert_eq!(tail.end(), (Some(0), String::new()));
}

#[test]
fn tail_reports_a_lost_connection_and_continues() {
    let server = SingleTableServer::start();
    let mut command = laredo(&["tail", "public.t", "--server", &server.url]);
    command.stdout(Stdio::piped());
    let mut tail = TailProcess::start(command);
    let mut lines = tail.lines();
    server.commit(0x200, vec![insert(2, "b")]);
    assert!(lines.next().expect("a line").contains("\"id\":2"));
    server.cut();
    let mut said = String::new();
    tail.errors.read_line(&mut said).expect("it says so");
    assert!(said.starts_with("laredo: the stream ended: cut by the test (Unavailable)"), "{said}");
    said.clear();
    tail.errors.read_line(&mut said).expect("it says so");
    assert_eq!(said, "laredo: connected again: the test says so\n");
    server.commit(0x300, vec![delete(2)]);
    assert!(lines.next().expect("a line").contains("\"DELETE\""));
    tail.interrupt();
    assert_eq!(tail.end().0, Some(0));
}

#[test]
fn tail_is_colored_on_a_terminal_by_default() {
    let colored = on_a_terminal(&[], None);
    assert!(colored.contains("\x1b[32mINSERT\x1b[0m") && colored.contains(" name=\"b\""), "{colored:?}");
    let plain = on_a_terminal(&[], Some("1"));
    assert!(plain.starts_with("2000-01-01T00:00:00.000005Z INSERT 0/200 id=2 name=\"b\" flag=null"), "{plain:?}");
    let json: Value = serde_json::from_str(on_a_terminal(&["--json"], None).trim_end()).expect("it is JSON");
    assert_eq!(json["new"]["name"], "b");
}

/// Returns the first line that `tail` writes to a terminal.
fn on_a_terminal(args: &[&str], no_color: Option<&str>) -> String {
    let server = SingleTableServer::start();
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
    grantpt(&controller).and_then(|()| unlockpt(&controller)).expect("it is ours");
    let name = ptsname(&controller, Vec::new()).expect("it has a name").into_string().expect("it is UTF-8");
    let terminal = File::options().read(true).write(true).open(name).expect("it opens");
    let mut command = laredo(&["tail", "public.t", "--server", &server.url]);
    command.args(args).stdout(terminal);
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let tail = TailProcess::start(command);
    server.commit(0x200, vec![insert(2, "b")]);
    let mut line = String::new();
    BufReader::new(File::from(controller)).read_line(&mut line).expect("a line comes");
    tail.interrupt();
    assert_eq!(tail.end().0, Some(0));
    line
}

#[test]
fn an_error_says_what_to_do() {
    let server = SingleTableServer::start();
    let url = server.url.as_str();
    // The port is bound, so that no other process can take it, and nothing listens on it.
    let bound = tokio::net::TcpSocket::new_v4().expect("there are sockets");
    bound.bind(([127, 0, 0, 1], 0).into()).expect("a port is free");
    let nobody = format!("http://{}", bound.local_addr().expect("it is bound"));
    let cases: [(&[&str], &str); 8] = [
        (&["tail", "public.none", "--server", url], "has no table public.none; `laredo status` lists"),
        (&["fanout", "status", "public.none", "--server", url], "has no table public.none; `laredo status` lists"),
        (
            &["tail", "public.t", "--server", url, "--filter", "nme=a"],
            "no column `nme`, so no row passes the filter; it has id, name, flag",
        ),
        (&["tail", "public.t", "--server", &nobody, "--timeout", "5"], "Connection refused"),
        (&["fanout", "clients", "public.t", "--server", &nobody], "Connection refused"),
        (&["status", "--health", &nobody], "Connection refused"),
        (&["tail", "public.t", "--server", "https://127.0.0.1:1", "--timeout", "5"], "Connection refused"),
        (
            &["tail", "public.t", "--server", "https://127.0.0.1:1", "--ca-file", "/no.pem"],
            "cannot read the certificates in /no.pem",
        ),
    ];
    for (args, expected) in cases {
        let (code, out, said) = run(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {said}");
        let last = said.lines().last().expect("it says what is wrong");
        assert!(last.starts_with("laredo: ") && last.contains(expected), "{args:?}: {said}");
    }
    let (code, _, said) = run(&["tail", "t"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("write SCHEMA.TABLE"), "{said}");
    let (code, help, _) = run(&["status", "--help"]);
    assert_eq!(code, Some(0));
    assert!(help.contains("Exit codes:") && help.contains("1  `status`, `ready`: not ready"), "{help}");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", silent.local_addr().expect("it is bound"));
    for args in [
        ["tail", "public.t", "--server", &url, "--timeout", "0.2"].as_slice(),
        &["fanout", "status", "public.t", "--server", &url, "--timeout", "0.2"],
        &["status", "--health", &url, "--timeout", "0.2"],
    ] {
        let (code, _, said) = run(args);
        assert_eq!(code, Some(2), "{args:?}: {said}");
        assert!(said.contains("no answer within 0.2 s"), "{args:?}: {said}");
    }
}

#[test]
fn fanout_has_a_text_and_a_json_form() {
    let server = SingleTableServer::start();
    let (code, text, _) = run(&["fanout", "clients", "public.t", "--server", &server.url]);
    assert_eq!(code, Some(0));
    assert!(text.starts_with("CLIENT  STATE  SEQUENCE"), "{text}");
    assert!(text.contains("\nmyapp   live "), "{text}");
    let (code, text, _) = run(&["fanout", "status", "public.t", "--server", &server.url, "--json"]);
    let json: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!((code, &json["table"], &json["row_count"]), (Some(0), &json!("t"), &json!(7)));
}

#[test]
fn status_says_whether_the_server_is_ready() {
    let cases = [
        (
            "200 OK",
            r#"{"ready":true,"tables":[{"schema":"public","table":"t","state":"live","rows":7}]}"#,
            0,
            "ready\n\nTABLE",
        ),
        ("503 Service Unavailable", r#"{"ready":false,"tables":[]}"#, 1, "not ready"),
        (
            "503 Service Unavailable",
            r#"{"ready":false,"tables":[],"waiting_for":{"db":"cannot connect"}}"#,
            1,
            "not ready, the server is starting\nsource db: cannot connect\n",
        ),
        ("404 Not Found", "nothing", 2, ""),
    ];
    for (line, body, expected, starts) in cases {
        let url = answering(line, body);
        let (code, text, said) = run(&["status", "--health", &url]);
        assert_eq!(code, Some(expected), "{text}{said}");
        assert!(text.starts_with(starts), "{text}");
        assert_eq!(said.is_empty(), expected < 2, "{said}");
    }
    let (code, text, _) = run(&["status", "--json", "--health", &answering(cases[1].0, cases[1].1)]);
    assert_eq!((code, text), (Some(1), format!("{}\n", cases[1].1)));
}

#[test]
fn a_status_without_a_reader_still_has_its_exit_code() {
    for (line, ready, expected) in [("200 OK", true, 0), ("503 Service Unavailable", false, 1)] {
        let url = answering(line, &json!({ "ready": ready, "tables": [] }).to_string());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let status = laredo(&["status", "--health", &url]).stdout(writer).status().expect("it runs");
        assert_eq!(status.code(), Some(expected));
    }
}

/// Starts a server that gives this answer to one request, and returns its URL.
fn answering(line: &str, body: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let answer = format!("HTTP/1.1 {line}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("somebody asks");
        let mut stream = BufReader::new(stream);
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") && stream.read_line(&mut request).is_ok_and(|read| read > 0) {}
        assert!(request.starts_with("GET /health/ready HTTP/1.1\r\n"), "{request}");
        stream.get_mut().write_all(answer.as_bytes()).expect("it listens");
    });
    url
}
