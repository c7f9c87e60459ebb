//! The command lines of `laredo-server` and `laredo-snapshotter`, without starting their service.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use laredo_testkit::clean_command;

use crate::output_texts;

/// A program, and its names for common things.
struct ProgramUnderTest {
    name: &'static str,
    path: &'static str,
    config: &'static str,
    /// The variable that names the configuration file.
    variable: &'static str,
    /// The flag of the port that reports readiness, and its configuration key.
    port: (&'static str, &'static str),
}

const PROGRAMS: [ProgramUnderTest; 2] = [
    ProgramUnderTest {
        name: "laredo-server",
        path: env!("CARGO_BIN_EXE_laredo-server"),
        config: "sources { db { type = postgresql, connection = \"postgresql://u:hunter2@h/d?sslmode=verify-full\" } }
            tables = [{ source = db, schema = public, table = t, targets = [{ type = replication-fanout }] }]
            grpc.address = \"127.0.0.1\", fanout.grpc.address = \"127.0.0.1\"",
        variable: "LAREDO_CONFIG",
        port: ("--health-port", "health.http_port"),
    },
    ProgramUnderTest {
        name: "laredo-snapshotter",
        path: env!("CARGO_BIN_EXE_laredo-snapshotter"),
        config: "snapshotter { source { server = \"https://h:1\", schema = public, table = t, token = hunter2 }
            destinations = [{ type = local, path = /archive }] }",
        variable: "LAREDO_SNAPSHOTTER_CONFIG",
        port: ("--http-port", "snapshotter.http.port"),
    },
];

impl ProgramUnderTest {
    fn command(&self, config: &str) -> (tempfile::TempDir, Command) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("own.conf");
        std::fs::write(&file, config).expect("a file");
        let mut command = clean_command(self.path);
        command.arg("--config").arg(file).arg("--conf-dir").arg(folder.path().join("conf.d"));
        std::fs::create_dir(folder.path().join("conf.d")).expect("a folder");
        (folder, command)
    }

    /// Runs the program. Returns the exit code, the standard output and the standard error.
    fn run(&self, config: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let (_folder, mut command) = self.command(config);
        output_texts(command.args(arguments).output().expect("it runs"))
    }
}

#[test]
fn programs_print_their_version_and_usage() {
    for program in &PROGRAMS {
        let version = format!("{} {}\n", program.name, env!("CARGO_PKG_VERSION"));
        assert_eq!(program.run("", &["version"]), (Some(0), version.clone(), String::new()));
        assert_eq!(program.run("", &["--version"]).1, version);
        let help = program.run("", &["--help"]).1;
        for expected in
            ["validate", "healthcheck", "--set", "--check", program.port.0, program.variable, "2 misconfigured"]
        {
            assert!(help.contains(expected), "{expected} is not in\n{help}");
        }
    }
}

#[test]
fn all_three_write_completions_and_pages_of_the_manual() {
    for (name, path, page) in [
        ("laredo", env!("CARGO_BIN_EXE_laredo"), "laredo-archive-verify.1"),
        ("laredo-server", env!("CARGO_BIN_EXE_laredo-server"), "laredo-server-healthcheck.1"),
        ("laredo-snapshotter", env!("CARGO_BIN_EXE_laredo-snapshotter"), "laredo-snapshotter-config.1"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let (code, script, said) = output_texts(clean_command(path).args(["completions", shell]).output().unwrap());
            assert_eq!((code, said.as_str()), (Some(0), ""), "{name} {shell}");
            assert!(script.contains(name) && script.contains("completions"), "{name} {shell}:\n{script}");
        }
        // The script is one that a shell can read.
        let (_, script, _) = output_texts(clean_command(path).args(["completions", "bash"]).output().unwrap());
        let file = folder.path().join("completions.bash");
        std::fs::write(&file, script).unwrap();
        assert!(Command::new("bash").arg("-n").arg(&file).status().unwrap().success(), "{name}");
        let pages = folder.path().join("man1");
        let written = clean_command(path).arg("man").arg(&pages).output().unwrap();
        assert_eq!(output_texts(written), (Some(0), String::new(), String::new()));
        for page in [format!("{name}.1"), page.to_owned()] {
            let text = std::fs::read_to_string(pages.join(&page)).expect(&page);
            assert!(text.contains(".SH SYNOPSIS"), "{page}:\n{text}");
        }
        let refused = clean_command(path).arg("man").arg(&file).output().unwrap();
        let (code, _, said) = output_texts(refused);
        assert!(code != Some(0) && said.contains("completions.bash"), "{code:?} {said}");
    }
}

#[test]
fn they_check_a_configuration_and_exit() {
    for program in &PROGRAMS {
        for asked in ["--check", "validate"] {
            assert_eq!(program.run(program.config, &[asked]), (Some(0), String::new(), String::new()));
            let wrong = program.config.replace("table =", "tabel =");
            let (code, _, said) = program.run(&wrong, &[asked]);
            assert_eq!(code, Some(2), "{said}");
            for expected in ["own.conf:", "tabel", "did you mean table?", "2 errors; nothing was started"] {
                assert!(said.contains(expected), "{expected} is not in\n{said}");
            }
        }
    }
}

#[test]
fn they_print_what_the_layers_come_to_and_no_secret() {
    for program in &PROGRAMS {
        let (flag, key) = program.port;
        let last = key.rsplit('.').next().expect("a key");
        let set = format!("{key}=5001");
        for (arguments, port) in [
            (&["config"][..], 8080),
            (&["--set", &set, "config"], 5001),
            (&["config", "--set", &set, flag, "5002"], 5002),
        ] {
            let (code, printed, said) = program.run(program.config, arguments);
            assert_eq!((code, said.as_str()), (Some(0), ""));
            assert!(printed.contains(&format!("{last} = {port}\n")), "{printed}");
            assert!(printed.contains("****") && !printed.contains("hunter2"), "{printed}");
        }
    }
}

#[test]
fn a_variable_names_the_file() {
    for program in &PROGRAMS {
        let (folder, _) = program.command(program.config);
        let run = |file: &Path| {
            let mut command = clean_command(program.path);
            output_texts(command.arg("validate").env(program.variable, file).output().expect("it runs"))
        };
        assert_eq!(run(&folder.path().join("own.conf")).0, Some(0));
        let (code, _, said) = run(&folder.path().join("none.conf"));
        assert!(code == Some(2) && said.contains(&format!("environment variable {}", program.variable)), "{said}");
    }
}

#[test]
fn a_healthcheck_asks_whether_it_is_ready() {
    for program in &PROGRAMS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port().to_string();
        let ask = || program.run(program.config, &["healthcheck", program.port.0, &port]);
        let (code, _, said) = std::thread::scope(|scope| {
            let asked = scope.spawn(|| answer(&listener, "200 OK"));
            let ended = ask();
            assert_eq!(asked.join().expect("it asks"), None, "it has no token");
            ended
        });
        assert_eq!(code, Some(0), "{said}");
        let (code, _, said) = std::thread::scope(|scope| {
            scope.spawn(|| answer(&listener, "503 Service Unavailable"));
            ask()
        });
        assert_eq!((code, said.as_str()), (Some(1), "not ready: HTTP/1.1 503 Service Unavailable\n"));
        drop(listener);
        let (code, _, said) = ask();
        assert!(code == Some(1) && said.ends_with(&format!("is {} running?\n", program.name)), "{said}");
    }
}

#[test]
fn a_healthcheck_sends_the_token_of_a_variable_or_of_a_file() {
    for program in &PROGRAMS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port().to_string();
        let (folder, _) = program.command(program.config);
        let file = folder.path().join("token");
        std::fs::write(&file, "laredo_of_the_file\n").expect("a file");
        let ask = |with_file: bool, variable: &str, status: &str| {
            let (_folder, mut command) = program.command(program.config);
            command.args(["healthcheck", program.port.0, &port]).env("LAREDO_TOKEN", variable);
            if with_file {
                command.arg("--token-file").arg(&file);
            }
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| answer(&listener, status));
                let ended = output_texts(command.output().expect("it runs"));
                (asked.join().expect("it asks"), ended)
            })
        };
        for (with_file, variable, expected) in [
            (false, "laredo_of_the_variable", Some("laredo_of_the_variable")),
            (true, "laredo_of_the_variable", Some("laredo_of_the_file")),
            (false, "", None),
        ] {
            let (token, ended) = ask(with_file, variable, "200 OK");
            assert_eq!((token.as_deref(), ended.0), (expected, Some(0)), "{}", ended.2);
        }
        let (_, (code, _, said)) = ask(false, "", "401 Unauthorized");
        assert_eq!(code, Some(1));
        assert!(said.contains("LAREDO_TOKEN or --token-file"), "{said}");
        // A text that would be another header is not sent.
        for text in ["two words", "", "a\r\nHost: evil"] {
            std::fs::write(&file, text).expect("a file");
            let (_folder, mut command) = program.command(program.config);
            command.args(["healthcheck", program.port.0, &port, "--token-file"]).arg(&file);
            let (code, _, said) = output_texts(command.output().expect("it runs"));
            assert!(code == Some(1) && said.contains("--token-file"), "{text:?}: {said}");
        }
    }
}

/// Answers one request for readiness, and returns its token.
fn answer(listener: &TcpListener, status: &str) -> Option<String> {
    let (mut stream, _) = listener.accept().expect("it asks");
    let lines = BufReader::new(&stream).lines().map(|line| line.expect("it asks"));
    let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    assert_eq!(request[0], "GET /health/ready HTTP/1.1");
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").expect("it reads");
    request.iter().find_map(|line| line.strip_prefix("Authorization: Bearer ")).map(str::to_owned)
}

#[test]
fn the_snapshotter_warns_of_what_is_probably_not_meant() {
    let [_, program] = &PROGRAMS;
    let config = program.config.replace("table = t,", "table = t, local_snapshot_path = /s,");
    for asked in ["--check", "validate"] {
        let (code, printed, said) = program.run(&config, &[asked]);
        assert_eq!((code, printed.as_str()), (Some(0), ""));
        assert!(said.starts_with("warning: public.t: source.local_snapshot_path is not needed"), "{said}");
    }
}

#[test]
fn the_server_warns_of_a_database_on_another_machine_that_is_not_checked() {
    let [program, _] = &PROGRAMS;
    for (connection, warning) in [
        ("postgresql://u:hunter2@h/d", "sslmode=prefer to h:5432 does not check that the server is the right one"),
        ("postgresql://u:hunter2@10.0.0.1/d?sslmode=require", "sslmode=require to 10.0.0.1:5432 does not check"),
        ("host=h user=u sslmode=disable", "sslmode=disable to h:5432 sends everything unencrypted"),
        ("postgresql://u:hunter2@localhost/d", ""),
        ("host=/run/postgresql user=u", ""),
    ] {
        let config = program.config.replace("postgresql://u:hunter2@h/d?sslmode=verify-full", connection);
        for asked in ["--check", "validate"] {
            let (code, printed, said) = program.run(&config, &[asked]);
            assert_eq!((code, printed.as_str()), (Some(0), ""));
            match warning {
                "" => assert_eq!(said, ""),
                warning => {
                    assert!(said.starts_with(&format!("warning: sources.db.connection: {warning}")), "{said}");
                    assert!(said.contains("set sslmode=verify-full") && !said.contains("hunter2"), "{said}");
                }
            }
        }
    }
}

#[test]
fn the_server_warns_of_ports_that_serve_rows_in_plain_text() {
    let [program, _] = &PROGRAMS;
    let open = program.config.replace("\"127.0.0.1\"", "\"*\"");
    let tls = format!("{open}\ngrpc.tls {{ enabled = true, cert_path = c, key_path = k }}");
    let socket = program.config.replace("\"127.0.0.1\"", "\"unix:/run/laredo.sock\"");
    for asked in ["--check", "validate"] {
        let (code, printed, said) = program.run(&open, &[asked]);
        assert_eq!((code, printed.as_str()), (Some(0), ""));
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].starts_with("warning: grpc.port (*:4001): rows are served in plain text"), "{said}");
        assert!(lines[1].starts_with("warning: tables[0].targets[0].grpc.port (*:4002): rows"), "{said}");
        assert!(
            lines.len() == 2 && lines[1].ends_with("set tables[0].targets[0].grpc.address = \"127.0.0.1\""),
            "{said}"
        );
        assert_eq!(program.run(&tls, &[asked]), (Some(0), String::new(), String::new()));
        assert_eq!(program.run(&socket, &[asked]), (Some(0), String::new(), String::new()));
    }
}

#[test]
fn the_snapshotter_names_the_levels_of_its_log() {
    let [_, program] = &PROGRAMS;
    assert_eq!(program.run(program.config, &["--check", "--log-level", "debug"]).0, Some(0));
    let (code, _, said) = program.run(program.config, &["--log-level", "loud"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("expected one of trace, debug, info, warn, error"), "{said}");
}
