use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use laredo_core::Lsn;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

#[cfg(feature = "tls")]
use crate::ClusterTls;
use crate::installation::{Installation, run};
use crate::watchdog::Watchdog;
use crate::{HarnessError, Result, data_dir, free_port};

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// The options of a private cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// True to sync to disk, as a production server does. Off by default, for speed.
    pub fsync: bool,
    /// True to keep the data on disk. Set it for gigabytes of data and for measurements of speed.
    /// Otherwise the data is in memory if there is room, which starts ten times faster.
    pub on_disk: bool,
    /// Lines of `postgresql.conf`, as (`name`, `value`). They override the defaults of this crate.
    pub settings: Vec<(String, String)>,
    /// Lines of `pg_hba.conf` for TCP, which come before the defaults of this crate.
    pub hba: Vec<String>,
    /// TLS with a certificate of a test authority; see [`Cluster::ca_path`].
    #[cfg(feature = "tls")]
    pub tls: Option<ClusterTls>,
    /// The password of the user `postgres` for TCP, checked by scram-sha-256. Without it, all
    /// connections are trusted.
    pub password: Option<String>,
    /// True to run `initdb` instead of copying an earlier result. This takes a second longer, and
    /// gives the cluster its own system identifier; copies all have the same one.
    pub own_identity: bool,
    /// Variables of the server's environment, such as `LOCPATH` for additional locales.
    pub environment: Vec<(String, String)>,
}

impl ClusterOptions {
    /// Adds a line to `postgresql.conf`.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// The way to stop a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends all sessions and writes a checkpoint.
    Fast,
    /// Stops as in a crash; the next start recovers from WAL.
    Immediate,
}

/// A copy of a cluster's files on disk. It is removed when this is dropped.
#[derive(Debug)]
pub struct StorageCopy(PathBuf);

impl Drop for StorageCopy {
    fn drop(&mut self) {
        // The cluster's directory may be gone already, together with the copy.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A private PostgreSQL cluster with a new data directory, a port of 127.0.0.1, and a socket that
/// only this test knows. The superuser is `postgres`. The cluster is removed when this is dropped,
/// and when the test process dies.
///
/// It has `wal_level=logical`, and room for 20 slots and 20 WAL senders.
#[derive(Debug)]
pub struct Cluster {
    installation: Installation,
    port: u16,
    password: Option<String>,
    environment: Vec<(String, String)>,
    server: Option<Child>,
    /// The number of copies made so far, which names the next one.
    copies: u32,
    // Fields are dropped in this order, so the watchdog is stopped last.
    dir: TempDir,
    _watchdog: Watchdog,
}

impl Cluster {
    /// Starts a cluster, and returns when it accepts connections. Blocks for a few tenths of a
    /// second.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start. The error contains the end of its log.
    pub fn start(options: ClusterOptions) -> Result<Self> {
        let installation = Installation::find()?;
        let dir = tempfile::Builder::new()
            .prefix("laredo-pg-")
            .tempdir_in(data_dir::place(options.on_disk))
            .map_err(HarnessError::io("make a temporary directory"))?;
        installation.give(dir.path())?;
        let watchdog = watch(dir.path())?;
        let mut cluster = Self {
            installation,
            port: free_port()?,
            password: None,
            environment: options.environment.clone(),
            server: None,
            copies: 0,
            dir,
            _watchdog: watchdog,
        };
        data_dir::make(&cluster.installation, cluster.dir.path(), &options)?;
        cluster.launch()?;
        if let Some(password) = options.password {
            cluster.psql(&format!("ALTER USER postgres PASSWORD '{}'", password.replace('\'', "''")))?;
            cluster.password = Some(password);
        }
        Ok(cluster)
    }

    /// Returns a connection URL for `database` over TCP, with the password if there is one.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let password = self.password.as_ref().map(|p| format!(":{p}")).unwrap_or_default();
        format!("postgresql://postgres{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns the TCP port, which stays the same after every restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder of the Unix socket, for `host=` of a connection string. All connections
    /// there are trusted.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of the test authority's certificate (PEM), which exists if
    /// [`ClusterOptions::tls`] is set.
    #[must_use]
    pub fn ca_path(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Returns the data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Returns the path of a program of the PostgreSQL that this cluster runs.
    #[must_use]
    pub fn bin(&self, name: &str) -> PathBuf {
        self.installation.bin(name)
    }

    /// Returns the major version, such as 15.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        let digits = self.installation.version().split(|c: char| !c.is_ascii_digit()).next();
        digits.and_then(|major| major.parse().ok()).unwrap_or_default()
    }

    /// Returns the server's log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Opens a session of the superuser in the database `postgres`. Its driver is spawned on this
    /// runtime.
    ///
    /// # Errors
    /// [`HarnessError::Connect`].
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        self.connect_to("postgres").await
    }

    /// Opens a session of the superuser in `database`. Its driver is spawned on this runtime.
    ///
    /// # Errors
    /// [`HarnessError::Connect`].
    pub async fn connect_to(&self, database: &str) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(self.dir.path())
            .port(self.port)
            .user("postgres")
            .dbname(database)
            .connect(tokio_postgres::NoTls)
            .await?;
        // The next call of the client notices the end of the connection.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs SQL with psql in the database `postgres`, statement by statement, and returns the bare
    /// rows.
    ///
    /// # Errors
    /// [`HarnessError::Program`] at the first statement that fails.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.psql_in("postgres", sql)
    }

    /// Runs SQL with psql in `database`, statement by statement, and returns the bare rows.
    ///
    /// # Errors
    /// [`HarnessError::Program`] at the first statement that fails.
    pub fn psql_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut child = Command::new(self.bin("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database])
            .args(["-p", &self.port.to_string(), "-h"])
            .arg(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(HarnessError::io("run psql"))?;
        let mut stdin = child.stdin.take().expect("it was asked for");
        let sql = sql.to_owned();
        // A separate thread writes the input, because psql may fill its output before it has read
        // all of it. If psql stops reading, its standard error has the reason.
        let writer = thread::spawn(move || stdin.write_all(sql.as_bytes()));
        let done = child.wait_with_output().map_err(HarnessError::io("run psql"))?;
        let _ = writer.join();
        if !done.status.success() {
            return Err(HarnessError::Program {
                program: "psql".to_owned(),
                output: String::from_utf8_lossy(&done.stderr).into_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim_end_matches('\n').to_owned())
    }

    /// Stops the server, and returns when it has ended.
    ///
    /// # Errors
    /// [`HarnessError::Timeout`] when the server is still running after a minute.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        // This fails only if the server has already ended.
        let _ = kill_process(Pid::from_child(server), signal);
        let deadline = Instant::now() + PATIENCE;
        while server.try_wait().map_err(HarnessError::io("wait for postgres"))?.is_none() {
            if Instant::now() > deadline {
                let what = "postgres to stop".to_owned();
                return Err(HarnessError::Timeout { what, waited: PATIENCE });
            }
            thread::sleep(POLL);
        }
        self.server = None;
        Ok(())
    }

    /// Starts the server again on the same data and port. A running server is first stopped (fast).
    ///
    /// # Errors
    /// As [`Cluster::start`] and [`Cluster::stop`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop(StopMode::Fast)?;
        // A crash leaves this file behind, with the status of the crashed server.
        let _ = fs::remove_file(self.data_dir().join("postmaster.pid"));
        self.launch()
    }

    /// Copies the data directory as it is on disk. The server is stopped meanwhile.
    ///
    /// # Errors
    /// When the files cannot be copied, or as [`Cluster::restart`].
    pub fn copy_storage(&mut self, mode: StopMode) -> Result<StorageCopy> {
        self.stop(mode)?;
        self.copies += 1;
        let copy = StorageCopy(self.dir.path().join(format!("copy-{}", self.copies)));
        self.clone_directory(&self.data_dir(), &copy.0)?;
        self.restart()?;
        Ok(copy)
    }

    /// Replaces the data directory with a copy, and starts the server on it. The server continues
    /// on the copy's timeline.
    ///
    /// # Errors
    /// When the files cannot be copied, or as [`Cluster::restart`].
    pub fn put_back(&mut self, copy: &StorageCopy, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.replace_data(copy)?;
        self.restart()
    }

    /// Ends the timeline as a promotion does: the server recovers its data and begins a new
    /// timeline.
    ///
    /// # Errors
    /// As [`Cluster::restart`]. `restore_command` must be set.
    pub fn begin_timeline(&mut self, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.recover()
    }

    /// Promotes a standby that lacks everything since the copy. A new timeline begins there, and
    /// the current one is abandoned.
    ///
    /// # Errors
    /// When the files cannot be copied, or as [`Cluster::begin_timeline`].
    pub fn promote(&mut self, copy: &StorageCopy, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.replace_data(copy)?;
        self.recover()
    }

    /// Restores the state at a position after the copy, from the copy and the current WAL. A new
    /// timeline begins there. All WAL since the copy must still exist (`wal_keep_size`).
    ///
    /// # Errors
    /// When the files cannot be copied, or as [`Cluster::begin_timeline`].
    pub fn restore_to(&mut self, copy: &StorageCopy, position: Lsn, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        let (wal, kept) = (self.data_dir().join("pg_wal"), self.dir.path().join("pg_wal"));
        fs::rename(&wal, &kept).map_err(HarnessError::io("keep the WAL"))?;
        self.replace_data(copy)?;
        fs::remove_dir_all(&wal)
            .and_then(|()| fs::rename(&kept, &wal))
            .map_err(HarnessError::io("put the WAL back"))?;
        let target = format!("recovery_target_lsn = '{position}'\nrecovery_target_action = 'promote'\n");
        let settings = self.data_dir().join("postgresql.auto.conf");
        let append = |mut file: File| file.write_all(target.as_bytes());
        let appended = File::options().append(true).open(settings).and_then(append);
        appended.map_err(HarnessError::io("write postgresql.auto.conf"))?;
        self.recover()?;
        self.psql("ALTER SYSTEM RESET recovery_target_lsn; ALTER SYSTEM RESET recovery_target_action").map(drop)
    }

    /// Starts the server so that it recovers its data and begins a new timeline.
    fn recover(&mut self) -> Result<()> {
        let signal = self.data_dir().join("recovery.signal");
        File::create(&signal).map_err(HarnessError::io("make recovery.signal"))?;
        self.installation.give(&signal)?;
        self.restart()?;
        self.await_primary()
    }

    fn replace_data(&self, copy: &StorageCopy) -> Result<()> {
        fs::remove_dir_all(self.data_dir()).map_err(HarnessError::io("remove the data directory"))?;
        self.clone_directory(&copy.0, &self.data_dir())
    }

    /// Waits until the server is no longer in recovery. It accepts connections earlier than
    /// changes.
    fn await_primary(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.psql("SELECT pg_is_in_recovery()")? != "f" {
            if Instant::now() > deadline {
                let what = "postgres to end its recovery".to_owned();
                return Err(HarnessError::Timeout { what, waited: PATIENCE });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn clone_directory(&self, from: &Path, to: &Path) -> Result<()> {
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(from).arg(to);
        self.installation.as_owner(&mut copy);
        run(copy.current_dir(self.dir.path())).map(drop)
    }

    fn launch(&mut self) -> Result<()> {
        let dir = self.dir.path();
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .map_err(HarnessError::io("open the server's log"))?;
        let mut server = self
            .installation
            .command("postgres", dir)
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port.to_string()])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // The server does not receive Ctrl-C. The process that started it does, and stops the
            // server.
            .process_group(0)
            .spawn()
            .map_err(HarnessError::io("start postgres"))?;
        let ready = self.await_ready(&mut server);
        self.server = Some(server);
        ready
    }

    /// Waits until the server is ready. It writes its status to the eighth line of
    /// `postmaster.pid`.
    fn await_ready(&self, server: &mut Child) -> Result<()> {
        let status = self.data_dir().join("postmaster.pid");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&status).unwrap_or_default();
            if text.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                return Ok(());
            }
            let ended = server.try_wait().map_err(HarnessError::io("wait for postgres"))?.is_some();
            if ended || Instant::now() > deadline {
                let (program, output) = ("postgres".to_owned(), self.end_of_log());
                return Err(HarnessError::Program { program, output });
            }
            thread::sleep(POLL);
        }
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("-- the end of PostgreSQL's log:\n{}", self.end_of_log());
        }
        if self.stop(StopMode::Immediate).is_err() {
            // The watchdog and the operating system must stop the server.
            eprintln!("PostgreSQL in {} did not stop", self.dir.path().display());
        }
    }
}

/// Kills the server and deletes its directory when this process dies.
fn watch(dir: &Path) -> Result<Watchdog> {
    const SCRIPT: &str = r#"
        pid=$(head -n 1 "$1/data/postmaster.pid") && kill -QUIT "$pid" && {
            n=0
            while [ $n -lt 100 ] && kill -0 "$pid"; do sleep 0.1; n=$((n + 1)); done
            kill -KILL "$pid"
        }
        rm -rf "$1""#;
    Watchdog::start(SCRIPT, &[&dir.to_string_lossy()])
}
