//! Child processes are watched line by line, are measured, and end with the test.

use std::process::Command;
use std::time::Duration;

use laredo_testkit::{ChildProcess, HarnessError, clean_command, eventually, free_port};

const PATIENCE: Duration = Duration::from_secs(30);

fn shell(script: &str) -> ChildProcess {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    ChildProcess::spawn(command).unwrap()
}

#[tokio::test]
async fn lines_are_found_in_both_outputs_whenever_they_come() {
    let process = shell("echo first; echo to stderr >&2; echo again 1; echo again 2; printf unfinished");
    assert_eq!(process.wait_for_nth_line("^again", 2).await.unwrap(), "again 2");
    assert_eq!(process.wait_for_line("^fir.t$").await.unwrap(), "first");
    assert_eq!(process.wait_for_line("stderr").await.unwrap(), "to stderr");
    assert_eq!(process.wait_for_line("unfini").await.unwrap(), "unfinished");
    let missing = process.wait_for_line("never").await.unwrap_err();
    assert!(matches!(&missing, HarnessError::Program { output, .. } if output.contains("again 1")), "{missing}");
    assert!(process.wait(PATIENCE).await.unwrap().success());
    assert_eq!(process.output().len(), 5);
}

#[tokio::test]
async fn it_ends_on_its_own_when_asked_and_when_killed() {
    assert_eq!(shell("exit 7").wait(PATIENCE).await.unwrap().code(), Some(7));

    let polite = shell("trap 'echo bye; exit 3' TERM; echo up; while :; do read -r _ < /dev/null; done");
    polite.wait_for_line("up").await.unwrap();
    polite.terminate();
    assert_eq!(polite.wait(PATIENCE).await.unwrap().code(), Some(3));
    polite.wait_for_line("bye").await.unwrap();

    let killed = shell("exec sleep 1000");
    let early = killed.wait(Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(early, HarnessError::Timeout { .. }), "{early}");
    killed.kill9();
    assert_eq!(killed.wait(PATIENCE).await.unwrap().code(), None);
    killed.kill9();
}

/// The end of a process is known before its last lines are read from the pipe.
#[tokio::test]
async fn all_lines_are_there_once_its_end_was_waited_for() {
    for _ in 0..20 {
        let process = shell("seq 5000; exit 2");
        assert_eq!(process.wait(PATIENCE).await.unwrap().code(), Some(2));
        assert_eq!(process.output().len(), 5000);
    }
    let outlived = shell("sleep 1000 & exit 5");
    assert_eq!(outlived.wait(Duration::from_millis(200)).await.unwrap().code(), Some(5));
}

#[tokio::test]
async fn its_memory_and_time_can_be_read_while_it_runs() {
    let process = shell("x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo filled; x=; exec sleep 1000");
    process.wait_for_line("filled").await.unwrap();
    assert!(process.peak_rss_bytes().unwrap() >= process.rss_bytes().unwrap());
    assert!(process.rss_bytes().unwrap() > 100_000);
    assert!(process.cpu_time().unwrap() < PATIENCE);
    process.kill9();
    process.wait(PATIENCE).await.unwrap();
    assert!(process.rss_bytes().is_err());
}

#[test]
fn dropping_it_kills_it() {
    let process = shell("exec sleep 1000");
    let proc = format!("/proc/{}", process.id());
    assert!(std::fs::exists(&proc).unwrap());
    drop(process);
    assert!(!std::fs::exists(&proc).unwrap());
}

#[test]
fn free_ports_differ_and_can_be_listened_on() {
    let ports = [free_port().unwrap(), free_port().unwrap()];
    assert_ne!(ports[0], ports[1]);
    let _both = ports.map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
}

#[tokio::test]
async fn eventually_polls_until_it_holds_or_the_time_is_up() {
    let mut asked = 0;
    let third = || {
        asked += 1;
        std::future::ready(asked == 3)
    };
    eventually(PATIENCE, third).await.unwrap();
    assert_eq!(asked, 3);
    let never = eventually(Duration::from_millis(20), || async { false }).await;
    assert!(matches!(never, Err(HarnessError::Timeout { .. })));
}

/// The variable is set for a child of this test. A test must not change its own environment,
/// because other tests run in the same process.
#[test]
fn a_clean_command_has_no_variables_that_would_configure_laredo() {
    const INSIDE: &str = "LAREDO_TEST_CLEAN_COMMAND";
    if std::env::var_os(INSIDE).is_some() {
        let output = clean_command("env").output().unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let name = "process::a_clean_command_has_no_variables_that_would_configure_laredo";
    let mut inside = Command::new(std::env::current_exe().unwrap());
    let output = inside.args([name, "--exact", "--nocapture"]).env(INSIDE, "1").env("KEPT", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("KEPT=1") && !said.contains("LAREDO_"), "{said}");
}
