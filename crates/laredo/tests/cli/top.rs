//! `laredo top` on a terminal, against a real server.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Child;
use std::sync::mpsc;
use std::time::Instant;

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::{laredo, run};

/// A `top` on a terminal of its own.
struct TopProcess {
    child: Child,
    terminal: File,
    output: mpsc::Receiver<Vec<u8>>,
    /// Everything that was written to the terminal.
    written: String,
}

impl TopProcess {
    fn start(server: &ServerProcess) -> TopProcess {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).and_then(|()| unlockpt(&terminal)).unwrap();
        tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let open = || File::options().read(true).write(true).open(&name).unwrap();
        let health = format!("http://127.0.0.1:{}", server.ports.health);
        let mut command = laredo(&["top", "--interval", "0.1", "--health", &health, "--oam", &server.oam_url()]);
        command.args(["--server", &server.url()]).stdin(open()).stdout(open());
        let child = command.spawn().unwrap();
        drop(command);
        let (sender, output) = mpsc::channel();
        let mut reader = File::from(terminal.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The read fails once the process has ended.
            while let Ok(count) = reader.read(&mut bytes) {
                if count == 0 || sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        TopProcess { child, terminal: File::from(terminal), output, written: String::new() }
    }

    /// Waits until all of these texts were written to the terminal.
    fn wait_for(&mut self, texts: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while !texts.iter().all(|text| self.written.contains(text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.output.recv_timeout(left) else { panic!("{texts:?} is not in {:?}", self.written) };
            self.written += &String::from_utf8_lossy(&bytes);
        }
    }

    fn press(&mut self, key: &str) {
        self.terminal.write_all(key.as_bytes()).unwrap();
    }
}

impl Drop for TopProcess {
    fn drop(&mut self) {
        // It has ended by itself unless the test has failed.
        let _ = self.child.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_tables_and_clients_until_a_key_ends_it() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").unwrap();
    cluster.psql("INSERT INTO a SELECT generate_series(1, 1234)").unwrap();
    let tables = ["a", "b"].map(|table| TableName::new("public", table));
    let server = ServerProcessConfig::new(cluster.url("postgres"), tables).start().await;
    server.ready().await;
    for key in ["q", "\x03"] {
        let mut top = TopProcess::start(&server);
        top.wait_for(&["ready", "public.a", "1,234", "live", "public.a: no client"]);
        top.press("j");
        // The other line is the selected one now.
        top.wait_for(&["\x1b[7mpublic.b"]);
        top.press(key);
        // The terminal is as it was before.
        top.wait_for(&["\x1b[?1049l"]);
        assert_eq!(top.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn top_needs_a_terminal() {
    let (code, out, said) = run(&["top"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert_eq!(said, "laredo: `laredo top` needs a terminal; `laredo status` prints the same once\n");
}
