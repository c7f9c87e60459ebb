use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use super::*;

const LONG: Duration = Duration::from_secs(600);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn shell(script: &str, lifetime: Duration, time_limit: Duration) -> Arc<PasswordCommand> {
    let arguments = ["-c", script].map(SecretText::new);
    Arc::new(PasswordCommand::new("sh", arguments, lifetime, time_limit))
}

async fn printed(command: &PasswordCommand) -> String {
    command.obtain().await.unwrap().text.expose().to_owned()
}

async fn refusal(command: &PasswordCommand) -> String {
    command.obtain().await.unwrap_err()
}

#[tokio::test]
async fn libpq_s_places_are_read_in_its_order() {
    let folder = folder();
    let (given, pgpassfile, home) = (folder.path().join("given"), folder.path().join("PGPASSFILE"), folder.path());
    write(&given, "*:*:*:*:from passfile", 0o600);
    write(&pgpassfile, "*:*:*:*:from PGPASSFILE", 0o600);
    write(&home.join(".pgpass"), "*:*:other:*:no\nh:5432:d:u:from home\n", 0o600);
    let options = ConnectionOptions::parse("host=h user=u dbname=d").unwrap();
    let all: BTreeMap<&str, OsString> = BTreeMap::from([
        ("PGPASSWORD", "from PGPASSWORD".into()),
        ("PGPASSFILE", pgpassfile.clone().into()),
        ("HOME", home.into()),
    ]);
    for (names, passfile, expected) in [
        (vec!["PGPASSWORD", "PGPASSFILE", "HOME"], Some(given.as_path()), Some("from PGPASSWORD")),
        (vec!["PGPASSFILE", "HOME"], Some(given.as_path()), Some("from passfile")),
        (vec!["PGPASSFILE", "HOME"], None, Some("from PGPASSFILE")),
        (vec!["HOME"], None, Some("from home")),
        (vec!["HOME"], Some(Path::new("/nowhere")), None),
        (vec![], None, None),
    ] {
        let variable = |name: &str| names.contains(&name).then(|| all.get(name).cloned()).flatten();
        let found = options.look_up_password(passfile, variable).await.unwrap();
        assert_eq!(found.as_ref().map(SecretText::expose), expected, "{names:?} {passfile:?}");
    }
    let empty = |name: &str| (name == "PGPASSWORD").then(OsString::new);
    assert_eq!(options.look_up_password(Some(&given), empty).await.unwrap(), Some(SecretText::new("from passfile")));
}

#[tokio::test]
async fn a_passfile_that_others_can_read_is_ignored() {
    let folder = folder();
    let path = folder.path().join("pgpass");
    let options = ConnectionOptions::parse("user=u").unwrap();
    for (mode, is_used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o660, false)] {
        write(&path, "localhost:*:u:u:x", mode);
        let found = options.look_up_password(Some(&path), |_| None).await.unwrap();
        assert_eq!(found.is_some(), is_used, "{mode:o}");
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(options.look_up_password(Some(folder.path()), |_| None).await.unwrap(), None, "a folder is no file");
}

#[tokio::test]
async fn a_file_is_read_again_at_each_attempt() {
    let folder = folder();
    let path = folder.path().join("password");
    let password = PasswordSource::File(path.clone());
    let options = ConnectionOptions { password, ..ConnectionOptions::parse("user=u").unwrap() };
    for (text, expected) in [("one", "one"), ("two\n", "two"), ("three\r\n", "three"), (" four \n\n", " four \n")] {
        write(&path, text, 0o644);
        assert_eq!(options.obtain_password().await.unwrap().unwrap().text.expose(), expected);
    }
    let too_long = vec![b'x'; 100_000];
    for (bytes, problem) in [
        (b"".as_slice(), "empty"),
        (b"\n", "empty"),
        (b"\xff", "not UTF-8"),
        (b"a\0b", "zero byte"),
        (&too_long, "larger"),
    ] {
        write(&path, bytes, 0o600);
        let error = options.obtain_password().await.unwrap_err();
        assert!(error.contains(path.to_str().unwrap()) && error.contains(problem), "{error}");
    }
    fs::remove_file(&path).unwrap();
    let error = options.obtain_password().await.unwrap_err();
    assert!(error.contains("No such file") && error.contains("write the password alone into that file"), "{error}");
}

#[tokio::test]
async fn a_command_runs_again_when_its_password_is_old_or_refused() {
    let folder = folder();
    let count = folder.path().join("count");
    let script = format!("echo x >> {0}; wc -l < {0}", count.display());
    let each_time = shell(&script, Duration::ZERO, LONG);
    assert_eq!([printed(&each_time).await, printed(&each_time).await], ["1", "2"]);

    let kept = shell(&script, LONG, LONG);
    assert_eq!([printed(&kept).await, printed(&kept).await], ["3", "3"]);
    kept.forget(&SecretText::new("2")).await;
    assert_eq!(printed(&kept).await, "3", "another password was refused");
    kept.forget(&SecretText::new("3")).await;
    assert_eq!(printed(&kept).await, "4");

    let short = shell(&script, Duration::from_millis(1), LONG);
    let first = printed(&short).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_ne!(printed(&short).await, first);
}

#[tokio::test]
async fn attempts_at_the_same_time_share_one_run() {
    let folder = folder();
    let count = folder.path().join("count");
    let script = format!("sleep 0.3; echo x >> {0}; wc -l < {0}", count.display());
    let command = shell(&script, LONG, LONG);
    let all = futures_util::future::join_all((0..8).map(|_| printed(&command))).await;
    assert_eq!(all, ["1"; 8]);
    // A failure is shared, too: only those that came during a run wait for the next one.
    let failing = shell(&format!("echo x >> {}; sleep 0.3; exit 1", count.display()), LONG, LONG);
    futures_util::future::join_all((0..8).map(|_| refusal(&failing))).await;
    let runs = fs::read_to_string(&count).unwrap().lines().count() - 1;
    assert!((1..=2).contains(&runs), "{runs} runs");
}

#[tokio::test]
async fn a_command_that_fails_is_named_with_its_reason() {
    for (script, problem) in [
        (
            "echo 'no credentials:  run\n login' >&2; exit 3",
            "ended with exit code 3 (it wrote: no credentials: run login)",
        ),
        ("echo hunter2; exit 1", "ended with exit code 1; run it as the user"),
        ("kill -9 $$", "was ended (signal: 9"),
        ("true", "the password is empty"),
        ("echo; echo said >&2", "the password is empty (it wrote: said)"),
        ("printf 'a\\377'", "not UTF-8"),
        ("head -c 100000 /dev/zero", "printed more than 65536 bytes"),
    ] {
        let error = refusal(&shell(script, LONG, LONG)).await;
        assert!(error.starts_with("password_command `sh` ") && error.contains(problem), "{script}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let missing = PasswordCommand::new("/nowhere/token", [], LONG, LONG);
    let error = refusal(&missing).await;
    assert!(error.contains("`/nowhere/token` cannot be started: No such file"), "{error}");
}

#[tokio::test]
async fn no_shell_interprets_the_arguments() {
    let arguments = ["%s\n", "$HOME; a  'b' > c"].map(SecretText::new);
    assert_eq!(printed(&PasswordCommand::new("printf", arguments, LONG, LONG)).await, "$HOME; a  'b' > c");
}

#[tokio::test]
async fn a_command_that_hangs_is_stopped_with_all_that_it_started() {
    let folder = folder();
    let pid = folder.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid.display());
    let began = Instant::now();
    let error = refusal(&shell(&script, LONG, Duration::from_millis(500))).await;
    assert!(began.elapsed() < LONG, "the time limit did not count");
    assert!(error.contains("did not end within 500ms") && error.contains("password_timeout"), "{error}");
    let status = PathBuf::from(format!("/proc/{}/stat", fs::read_to_string(pid).unwrap().trim()));
    // A process that was killed is gone, or waits for its parent to notice.
    while let Ok(stat) = fs::read_to_string(&status)
        && !stat.contains(") Z ")
    {
        assert!(began.elapsed() < Duration::from_secs(30), "the process that the command started still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn nothing_secret_is_shown() {
    let command = shell("echo hunter2", LONG, LONG);
    let sources = [
        PasswordSource::Text(SecretText::new("hunter2")),
        PasswordSource::Command(command.clone()),
        PasswordSource::File("/run/secrets/pg".into()),
    ];
    for password in sources {
        let options = ConnectionOptions { password, ..ConnectionOptions::parse("user=u password=hunter2").unwrap() };
        assert!(!format!("{options:?} {options:#?}").contains("hunter2"));
        assert_eq!(options, options.clone());
    }
    assert_ne!(*command, *shell("echo hunter3", LONG, LONG));
}
