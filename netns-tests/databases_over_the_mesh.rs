//! What the mesh is for: two databases in two datacentres, each the other's master, with nothing but the mesh between
//! them.

use std::time::{Duration, Instant};

use meshd::api::{PeerState, PeerStatus};

use crate::harness::Case;
use crate::lab::capture::Captured;
use crate::lab::error::Context;
use crate::lab::mariadb::{Mariadb, Options};
use crate::lab::mesh::PORT;
use crate::lab::{Capture, Error, Firewall, Host, Lab, Mesh, Open, Proc, Result, package};
use crate::scene::LONG;

/// The cases of this file. They wait for a rekey, which comes two minutes after a session began, so they run beside the
/// others.
pub const CASES: &[Case] = &[Case {
    name: "databases_over_the_mesh::replication_lives_through_a_rekey_and_a_killed_daemon",
    needs: &[&package::MARIADB, &package::NFTABLES],
    run: replication_lives,
}];

/// One way between the datacentres.
const BETWEEN: Duration = Duration::from_millis(5);

/// A session is renewed 120 s after it began; the rest is for a loaded machine.
const UNTIL_REKEYED: Duration = Duration::from_secs(200);

/// In every row, to be looked for where packets can be seen.
const SECRET: &[u8] = b"confidential order";

/// Rows until told to stop: the table `closed` is replicated like any other, so one row in it ends both sides.
const SHOP: &str = "
CREATE DATABASE shop;
CREATE TABLE shop.orders (
    id INT AUTO_INCREMENT PRIMARY KEY, place VARCHAR(8), number INT, text VARCHAR(60), UNIQUE (place, number)
);
CREATE TABLE shop.closed (id INT AUTO_INCREMENT PRIMARY KEY);
DELIMITER //
CREATE PROCEDURE shop.sell(here VARCHAR(8))
BEGIN
    DECLARE n INT DEFAULT 0;
    WHILE NOT EXISTS (SELECT 1 FROM shop.closed) DO
        SET n = n + 1;
        INSERT INTO shop.orders (place, number, text) VALUES (here, n, CONCAT('confidential order ', n));
        DO SLEEP(0.05);
    END WHILE;
    SELECT n;
END//
DELIMITER ;
";

/// ```text
///      paris             5 ms      london          web: authority and bootstrap, no database
///   web     paris ───────────────── london         eth0 of each: UDP 7655 open, nothing else
///             │                       │
///          MariaDB ◀── the mesh ──▶ MariaDB        rows are written on both all the time
/// ```
///
/// Both write while the session between them is renewed, and while one daemon is killed, missed and started again.
fn replication_lives(lab: &Lab) -> Result<()> {
    let wan = lab.wan(17)?;
    wan.sites("paris", "london").delay(BETWEEN);
    let (web, paris, london) = (lab.host("web")?, lab.host("paris")?, lab.host("london")?);
    let sites = [("paris", &web), ("paris", &paris), ("london", &london)];
    let mut underlay = Vec::new();
    for (site, host) in sites {
        underlay.push(wan.site(site).attach(host)?.v4);
        Firewall::new(host)?.open_only("eth0", &[Open::Udp(PORT)])?;
    }
    let mesh = Mesh::init(&web, underlay[0])?;
    mesh.start(&[&web])?;
    mesh.join(&paris, underlay[1])?;
    mesh.admit_offline(&london, underlay[2])?;
    mesh.start(&[&paris, &london])?;
    mesh.wait_until_all_up(&[&web, &paris, &london], LONG)?;
    let outside = [Capture::start(lab, &paris, "eth0")?, Capture::start(lab, &london, "eth0")?];
    let inside = Capture::start(lab, &paris, "mesh0")?;

    let shop = Shop::open(&mesh, &paris, &london)?;
    let sessions = shop.link(&mesh)?.handshakes;
    shop.check_rows_arrive()?;

    let renewed = |status: &meshd::api::Status| peer(status, "london").is_some_and(|peer| peer.handshakes > sessions);
    mesh.wait_for(&paris, "a renewed session with london", UNTIL_REKEYED, renewed)?;
    shop.check_rows_arrive()?;
    println!("    rekeyed with {} rows written", shop.paris.count("shop.orders")?);
    // What could be read inside was really there to be read, so not finding it outside means something.
    assert!(inside.contains_plaintext(SECRET), "the mesh's own device carries the rows");

    let killed = Instant::now();
    mesh.kill(&london)?;
    mesh.wait_until_seen(&[&paris], &london, PeerState::Down, LONG)?;
    let missed = killed.elapsed();
    mesh.start(&[&london])?;
    mesh.wait_until_all_up(&[&web, &paris, &london], LONG)?;
    shop.check_rows_arrive()?;
    println!("    killed, seen as down after {missed:.2?}, all rows here again after {:.2?}", killed.elapsed());

    shop.close()?;
    for (capture, host) in outside.iter().zip(["paris", "london"]) {
        assert!(!capture.contains_plaintext(SECRET), "a row left {host} in clear");
        let strange = capture.packets(|packet| !is_of_the_mesh(packet));
        assert!(strange.is_empty(), "{host}'s eth0 carried {} other packets: {:02x?}", strange.len(), strange.first());
        assert!(capture.count(is_of_the_mesh) > 1_000, "{host}'s eth0 carried the replication");
    }
    Ok(())
}

/// A datagram between the mesh's ports, or a kernel's word that nobody listened there.
fn is_of_the_mesh(packet: &Captured) -> bool {
    let complaint = || packet.quoted().is_some_and(|quoted| quoted.udp_ports() == Some((PORT, PORT)));
    packet.udp_ports() == Some((PORT, PORT)) || complaint()
}

/// Two servers, and on each a client that writes rows without end.
struct Shop {
    paris: Mariadb,
    london: Mariadb,
    hosts: (Host, Host),
    writers: [Proc; 2],
}

impl Shop {
    fn open(mesh: &Mesh, at_paris: &Host, at_london: &Host) -> Result<Shop> {
        let (in_paris, in_london) = (mesh.overlay(at_paris).0, mesh.overlay(at_london).0);
        let paris = Mariadb::start(at_paris, Options::master(1, in_paris.into()))?;
        let london = Mariadb::start(at_london, Options::master(2, in_london.into()))?;
        paris.replicate_from(in_london.into(), london.port(), 1)?;
        london.replicate_from(in_paris.into(), paris.port(), 1)?;
        paris.sql(SHOP)?;
        london.wait_for(&paris, LONG)?;
        let writers = [paris.start_sql("CALL shop.sell('paris')")?, london.start_sql("CALL shop.sell('london')")?];
        Ok(Shop { paris, london, hosts: (at_paris.clone(), at_london.clone()), writers })
    }

    /// Checks that rows are being written on both sides, and that what is written from now on arrives on the other.
    fn check_rows_arrive(&self) -> Result<()> {
        for (near, far, place) in [(&self.paris, &self.london, "paris"), (&self.london, &self.paris, "london")] {
            let query = format!("SELECT COUNT(*) FROM shop.orders WHERE place = '{place}'");
            let rows = |database: &Mariadb| database.sql(&query)?.trim().parse::<u64>().context("count rows");
            let (before, began) = (rows(near)?, Instant::now());
            while rows(near)? == before {
                if began.elapsed() > LONG {
                    return Err(Error::failed(format!("nothing is written in {place} any more")));
                }
            }
            far.wait_for(near, LONG)?;
            assert!(rows(far)? > before, "a row of {place} arrived");
        }
        Ok(())
    }

    /// Ends the writing, and checks that every row is on both sides and that replication never lost its connection.
    fn close(self) -> Result<()> {
        self.paris.sql("INSERT INTO shop.closed VALUES ()")?;
        let mut written = Vec::new();
        for writer in &self.writers {
            let status = writer.wait(LONG)?;
            assert!(status.success(), "{status}: {}", writer.stderr());
            written.push(writer.stdout().trim().to_owned());
        }
        self.paris.wait_for(&self.london, LONG)?;
        self.london.wait_for(&self.paris, LONG)?;
        let expected = format!("london\t{}\t{}\nparis\t{}\t{}", written[1], written[1], written[0], written[0]);
        // (place, number) is unique: as many rows as the highest number means that none is missing.
        let query = "SELECT place, COUNT(*), MAX(number) FROM shop.orders GROUP BY place ORDER BY place";
        for (database, host) in [(&self.paris, &self.hosts.0), (&self.london, &self.hosts.1)] {
            assert_eq!(database.sql(query)?.trim(), expected, "the rows on {}", host.name());
            let status = database.slave_status()?;
            assert_eq!(status.get("Slave_IO_Running").map(String::as_str), Some("Yes"), "{status:?}");
            assert_eq!(database.slave_connects(), 1, "{} connected to its master again", host.name());
        }
        println!("    {} rows written in paris and {} in london, all on both sides", written[0], written[1]);
        Ok(())
    }

    /// The link from paris to london, as paris sees it.
    fn link(&self, mesh: &Mesh) -> Result<PeerStatus> {
        let status = mesh.status(&self.hosts.0)?;
        peer(&status, self.hosts.1.name()).cloned().ok_or_else(|| Error::failed("paris does not know london"))
    }
}

fn peer<'a>(status: &'a meshd::api::Status, name: &str) -> Option<&'a PeerStatus> {
    status.peers.iter().find(|peer| peer.name == name)
}
