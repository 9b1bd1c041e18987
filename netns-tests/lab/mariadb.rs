//! A MariaDB server on a host, run from the unpacked packages, with its own data directory, and replication between
//! two of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Context, Error, Result};
use super::host::Host;
use super::package::{MARIADB, Tree};
use super::place;
use super::process::{HostCommand, Proc};

/// How long a server may take to start, on a slow machine.
const START: Duration = Duration::from_secs(60);

/// The account that other hosts use, for queries and for replication, and its password.
const ACCOUNT: &str = "lab";

/// What a server is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Unique among servers that replicate; also its GTID domain, so that two masters' writes stay apart.
    pub server_id: u32,
    /// The address it listens on.
    pub bind: IpAddr,
    /// The TCP port it listens on.
    pub port: u16,
    /// `auto_increment_increment` and `auto_increment_offset`.
    pub auto_increment: (u16, u16),
    /// Further options of `mariadbd`, such as `--slave-net-timeout=5`.
    pub extra: Vec<String>,
}

impl Options {
    /// Returns options for one of two masters that replicate from each other: `server_id` 1 makes odd row numbers, 2
    /// even ones.
    pub fn master(server_id: u16, bind: IpAddr) -> Self {
        Options { server_id: server_id.into(), bind, port: 3306, auto_increment: (2, server_id), extra: Vec::new() }
    }
}

/// A running server. Dropping it kills it.
pub struct Mariadb {
    host: Host,
    tree: Tree,
    socket: PathBuf,
    options: Options,
    server: Proc,
}

impl Mariadb {
    /// Makes a data directory and starts a server on it; returns when the server takes connections.
    ///
    /// # Errors
    /// NOT RUN where MariaDB cannot be had; failed where it does not start.
    pub fn start(host: &Host, options: Options) -> Result<Mariadb> {
        let tree = MARIADB.fetch()?;
        let data = host.dir().join("mariadb");
        fill(host, &tree, &data)?;
        let database = Mariadb::launch(host, tree, &data, options)?;
        database.sql(&format!(
            "SET SESSION sql_log_bin = 0;
             CREATE USER '{ACCOUNT}'@'%' IDENTIFIED BY '{ACCOUNT}';
             GRANT ALL ON *.* TO '{ACCOUNT}'@'%';"
        ))?;
        // The system tables are this server's own; what is replicated begins here.
        database.sql("RESET MASTER")?;
        Ok(database)
    }

    fn launch(host: &Host, tree: Tree, data: &Path, options: Options) -> Result<Mariadb> {
        let socket = host.dir().join("mariadb.sock");
        let usr = tree.root().join("usr");
        let server = host
            .command_from(&tree, "mariadbd")?
            .arg("--no-defaults")
            .arg(format!("--basedir={}", usr.display()))
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--tmpdir={}", data.display()))
            .arg(format!("--plugin-dir={}", usr.join("lib/mysql/plugin").display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--pid-file={}", host.dir().join("mariadb.pid").display()))
            .arg(format!("--bind-address={}", options.bind))
            .arg(format!("--port={}", options.port))
            .arg(format!("--server-id={}", options.server_id))
            .arg(format!("--gtid-domain-id={}", options.server_id))
            .arg(format!("--auto-increment-increment={}", options.auto_increment.0))
            .arg(format!("--auto-increment-offset={}", options.auto_increment.1))
            .args(["--user=root", "--log-bin=binlog", "--log-slave-updates", "--skip-name-resolve", "--log-warnings=2"])
            .args(TUNING)
            .args(&options.extra)
            .spawn()?;
        server.wait_for_output("ready for connections", START)?;
        Ok(Mariadb { host: host.clone(), tree, socket, options, server })
    }

    /// Runs SQL on the server through its Unix socket; returns the rows, one a line, columns separated by tabs.
    ///
    /// # Errors
    /// Where the server refuses it.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let client = self.client(&self.host)?.arg(format!("--socket={}", self.socket.display()));
        client.args(["--user=root"]).input(sql).check().context(format_args!("on {}: {sql}", self.host.name()))
    }

    /// Starts SQL that takes long, through the server's Unix socket. It ends with the returned process, which prints rows
    /// as [`Mariadb::sql`] returns them.
    ///
    /// # Errors
    /// Where the client cannot be started.
    pub fn start_sql(&self, sql: &str) -> Result<Proc> {
        let client = self.client(&self.host)?.arg(format!("--socket={}", self.socket.display()));
        client.args(["--user=root"]).input(sql).spawn()
    }

    /// Runs SQL on the server from another host, over TCP to `address`.
    ///
    /// # Errors
    /// Where the server cannot be reached or refuses it.
    pub fn sql_from(&self, host: &Host, address: IpAddr, sql: &str) -> Result<String> {
        let client = self.client(host)?.arg(format!("--host={address}")).arg(format!("--port={}", self.options.port));
        let client = client.args(["--protocol=tcp", "--connect-timeout=30"]);
        let client = client.arg(format!("--user={ACCOUNT}")).arg(format!("--password={ACCOUNT}"));
        client.input(sql).check().context(format_args!("from {}: {sql}", host.name()))
    }

    fn client(&self, host: &Host) -> Result<HostCommand> {
        Ok(host.command_from(&self.tree, "mariadb")?.args(["--no-defaults", "--batch", "--skip-column-names"]))
    }

    /// Returns the number of rows of a table, such as `shop.orders`.
    ///
    /// # Errors
    /// Where there is no such table.
    pub fn count(&self, table: &str) -> Result<u64> {
        let text = self.sql(&format!("SELECT COUNT(*) FROM {table}"))?;
        text.trim().parse().context(format_args!("count rows of {table}"))
    }

    /// Makes the server replicate from another, reached at `address`, from where it left off, trying again every
    /// `retry` seconds when the connection is lost.
    ///
    /// # Errors
    /// Where the server refuses it.
    pub fn replicate_from(&self, address: IpAddr, port: u16, retry: u16) -> Result<()> {
        let mut sql = format!("CHANGE MASTER TO MASTER_HOST='{address}', MASTER_PORT={port}");
        // Writing to a string does not fail.
        let _ = write!(sql, ", MASTER_USER='{ACCOUNT}', MASTER_PASSWORD='{ACCOUNT}', MASTER_CONNECT_RETRY={retry}");
        sql.push_str(", MASTER_USE_GTID=slave_pos, MASTER_HEARTBEAT_PERIOD=1; START SLAVE;");
        self.sql(&sql).map(drop)
    }

    /// Waits until everything that `other` has written so far has arrived here.
    ///
    /// # Errors
    /// Where the time runs out.
    pub fn wait_for(&self, other: &Mariadb, limit: Duration) -> Result<()> {
        let domain = other.options.server_id;
        let position = other.sql("SELECT @@gtid_binlog_pos")?;
        // Only the other's own writes: its copy of ours is none of our business.
        let position =
            position.trim().split(',').find(|gtid| gtid.starts_with(&format!("{domain}-"))).map(str::to_owned);
        let Some(position) = position else { return Ok(()) };
        let waited = self.sql(&format!("SELECT MASTER_GTID_WAIT('{position}', {})", limit.as_secs_f64()))?;
        if waited.trim() == "0" {
            return Ok(());
        }
        let status = self.slave_status()?;
        Err(Error::failed(format!("{} did not reach {position} within {limit:?}: {status:?}", self.host.name())))
    }

    /// Returns the columns of `SHOW SLAVE STATUS`; empty where the server does not replicate.
    ///
    /// # Errors
    /// Where the server refuses it.
    pub fn slave_status(&self) -> Result<BTreeMap<String, String>> {
        let client = self.client(&self.host)?.arg(format!("--socket={}", self.socket.display()));
        let text = client.args(["--user=root", "--vertical", "--column-names"]).input("SHOW SLAVE STATUS").check()?;
        let pairs = text.lines().filter_map(|line| line.trim().split_once(':'));
        Ok(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect())
    }

    /// Returns how often the server's replication has connected to its master since the server started, reconnections
    /// included, as its error log tells.
    pub fn slave_connects(&self) -> usize {
        // "Slave I/O thread: connected to master" at first, "Slave: connected to master" after a lost connection.
        self.server.stderr().lines().filter(|line| line.contains(": connected to master")).count()
    }

    /// Waits until the error log has said this.
    ///
    /// # Errors
    /// Where the time runs out.
    pub fn wait_for_log(&self, needle: &str, limit: Duration) -> Result<String> {
        self.server.wait_for_output(needle, limit)
    }

    /// Returns the server's process.
    pub fn process(&self) -> &Proc {
        &self.server
    }

    /// Returns the TCP port it listens on.
    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// Stops the server in order and starts it again on the same data; its error log begins anew.
    ///
    /// # Errors
    /// Where it does not stop, or does not start.
    pub fn restart(self) -> Result<Mariadb> {
        self.server.stop(START)?;
        let Mariadb { host, tree, options, .. } = self;
        let data = host.dir().join("mariadb");
        Mariadb::launch(&host, tree, &data, options)
    }

    /// Stops the server in order.
    ///
    /// # Errors
    /// Where it does not stop in time (it is killed then).
    pub fn stop(self) -> Result<()> {
        self.server.stop(START).map(drop)
    }
}

/// Makes a data directory with the system tables. They are the same for every server, so they are made once per
/// version of the packages and copied after that.
fn fill(host: &Host, tree: &Tree, data: &Path) -> Result<()> {
    let version = tree.root().file_name().map_or("host".into(), |name| name.to_string_lossy());
    let blank = place::lab()?.join("root").join(format!(".data-{version}"));
    if !blank.is_dir() {
        let part = host.dir().join("blank");
        let install = host
            .command_from(tree, "mariadb-install-db")?
            .arg("--no-defaults")
            .arg(format!("--basedir={}", tree.root().join("usr").display()))
            .arg(format!("--datadir={}", part.display()))
            // A host here has no resolver, and asking for one costs ten seconds.
            .args(["--user=root", "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"])
            .args(TUNING);
        install.check()?;
        std::fs::create_dir_all(blank.parent().unwrap_or(&blank)).context("create the directory of packages")?;
        // Where another run was faster, its copy is as good.
        if std::fs::rename(&part, &blank).is_err() && !blank.is_dir() {
            return Err(Error::failed(format!("{} cannot be written", blank.display())));
        }
    }
    host.command("cp").arg("-a").arg(&blank).arg(data).check().map(drop)
}

/// Small and plain: a test's database needs no memory, and some kernels offer no native asynchronous reads.
const TUNING: &[&str] = &[
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--innodb-use-native-aio=0",
    "--innodb-flush-log-at-trx-commit=2",
    "--performance-schema=0",
];
