//! A shop whose orders are taken in both datacentres: two MariaDB servers, each the other's master, on overlay addresses.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::capture::Captured;
use crate::lab::error::Context;
use crate::lab::mariadb::{Mariadb, Options};
use crate::lab::{Capture, Error, Result, package};
use crate::mesh::{Mesh, PORT};
use crate::stage::Stage;

/// Rows written on each side, one each 20 ms at most.
const ROWS: u32 = 500;

/// Longer than anything here takes on a slow machine.
const LONG: Duration = Duration::from_secs(60);

/// Begins every row's text, to be looked for on the wire.
const MARK: &str = "confidential order";

/// The two servers.
pub struct Shop<'a> {
    stage: &'a Stage,
    sides: [Side; 2],
}

struct Side {
    host: String,
    place: &'static str,
    database: Mariadb,
}

impl<'a> Shop<'a> {
    /// Finds out whether there is a MariaDB to be had.
    pub fn fetch() -> Result<()> {
        package::MARIADB.fetch().map(drop)
    }

    /// Starts a server on each of the two hosts, and makes each the other's master.
    pub fn open(stage: &'a Stage, mesh: &Mesh<'_>, left: &str, right: &str) -> Result<Self> {
        stage.scene("A database in each datacentre, each the other's master");
        let (at_left, at_right) = (mesh.overlay(left)?, mesh.overlay(right)?);
        let start = |host: &str, id, address: std::net::Ipv4Addr| {
            Mariadb::start(mesh.host(host), Options::master(id, address.into()))
        };
        let (first, second) = thread::scope(|scope| {
            let second = scope.spawn(|| start(right, 2, at_right));
            let first = start(left, 1, at_left);
            (first, second.join().unwrap_or_else(|_| Err(Error::failed("a database's thread panicked"))))
        });
        let (first, second) = (first?, second?);
        for (host, address) in [(left, at_left), (right, at_right)] {
            stage.say(&format!("  MariaDB on {host:<7} listens on {address}:3306 inside the mesh, nowhere else"));
        }
        first.replicate_from(at_right.into(), second.port(), 1)?;
        second.replicate_from(at_left.into(), first.port(), 1)?;
        first.sql(
            "CREATE DATABASE shop;
             CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, place VARCHAR(8), text VARCHAR(60))",
        )?;
        second.wait_for(&first, LONG)?;
        let side = |host: &str, place, database| Side { host: host.to_owned(), place, database };
        Ok(Shop { stage, sides: [side(left, "paris", first), side(right, "london", second)] })
    }

    /// Writes rows on both sides at once, and does something to the mesh in the middle of it.
    pub fn sell_while(&self, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
        self.stage.scene("Orders are taken on both sides, and a daemon is killed under them");
        self.stage.say(&format!("{ROWS} rows on each side, one every 20 ms; every one has to arrive on the other.\n"));
        thread::scope(|scope| {
            let writers = self.sides.each_ref().map(|side| scope.spawn(|| side.database.sql(&side.orders())));
            let [here, there] = &self.sides;
            // Something of each side has reached the other before anything happens to the mesh.
            for (from, to) in [(here, there), (there, here)] {
                from.wait_for_own(ROWS / 5)?;
                to.database.wait_for(&from.database, LONG)?;
            }
            disturb()?;
            for writer in writers {
                writer.join().map_err(|_| Error::failed("a writer panicked"))??;
            }
            Ok::<_, Error>(())
        })?;
        let [here, there] = &self.sides;
        here.database.wait_for(&there.database, LONG)?;
        there.database.wait_for(&here.database, LONG)?;
        Ok(())
    }

    /// Says what somebody on the path between the datacentres could see.
    pub fn tell_what_the_wire_saw(&self, capture: &Capture) -> Result<()> {
        let is_mesh = |packet: &Captured| packet.udp_ports() == Some((PORT, PORT));
        let is_complaint = |packet: &Captured| packet.quoted().as_ref().is_some_and(is_mesh);
        let count = |yes: &dyn Fn(&Captured) -> bool| capture.packets(yes).len();
        let (ours, complaints) = (count(&is_mesh), count(&is_complaint));
        let others = count(&|packet| !is_mesh(packet) && !is_complaint(packet));
        let in_clear = count(&|packet| packet.bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes()));
        let readable = if in_clear > 0 { "READABLE" } else { "readable nowhere" };
        self.stage.scene(&format!("What crossed the public interface of {} meanwhile", self.sides[0].host));
        self.stage.say(&format!("  {ours:>6} UDP datagrams from port {PORT} to port {PORT}"));
        self.stage.say(&format!("  {complaints:>6} ICMP errors about such datagrams, while the daemon was dead"));
        self.stage.say(&format!("  {others:>6} other packets"));
        let missed = capture.missed();
        if missed > 0 {
            // Without root the kernel holds little for a capture, and a busy machine is late to take it.
            self.stage.warn(&format!("  {missed:>6} packets came faster than they could be looked at"));
        }
        self.stage.say(&format!("  The text of the orders, \"{MARK}\": {readable}"));
        Ok(())
    }

    /// Counts what arrived.
    pub fn count(&self) -> Result<()> {
        self.stage.scene("And the orders");
        for side in &self.sides {
            let query = "SELECT place, COUNT(*) FROM shop.orders GROUP BY place ORDER BY place DESC";
            let rows = side.database.sql(query)?;
            let rows: Vec<String> = rows.lines().map(|row| row.replace('\t', " ")).collect();
            let connects = side.database.slave_connects();
            let times = if connects == 1 { "once, never again".to_owned() } else { format!("{connects} times") };
            self.stage.say(&format!("  {:<7}  rows written in {}; connected {times}", side.host, rows.join(", in ")));
        }
        let [left, right] = self.sides.each_ref().map(|side| side.database.sql("CHECKSUM TABLE shop.orders"));
        let (left, right) = (left?, right?);
        if left != right {
            return Err(Error::failed(format!("the two tables differ: {left}{right}")));
        }
        self.stage.say("  Both tables are the same.");
        Ok(())
    }
}

impl Side {
    /// The SQL that writes this side's rows, one after another.
    fn orders(&self) -> String {
        let insert = |number| {
            format!(
                "INSERT INTO shop.orders (place, text) VALUES ('{}', '{MARK} {number}'); DO SLEEP(0.02);\n",
                self.place
            )
        };
        (1..=ROWS).map(insert).collect()
    }

    /// Waits until this side has written that many rows.
    fn wait_for_own(&self, rows: u32) -> Result<()> {
        let query = format!("SELECT COUNT(*) FROM shop.orders WHERE place = '{}'", self.place);
        let began = Instant::now();
        while self.database.sql(&query)?.trim().parse::<u32>().context("count rows")? < rows {
            if began.elapsed() > LONG {
                return Err(Error::failed(format!("{} did not write {rows} rows within {LONG:?}", self.host)));
            }
        }
        Ok(())
    }
}
