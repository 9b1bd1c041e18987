//! Two databases far apart, without a mesh between them: the lab's own proof, and the yardstick for the tests with one.

use std::time::Duration;

use crate::harness::Case;
use crate::lab::mariadb::{Mariadb, Options};
use crate::lab::{Lab, Result, package};

/// The cases of this file.
pub const CASES: &[Case] = &[Case {
    name: "databases::two_masters_replicate_over_the_emulator",
    needs: &[&package::MARIADB],
    run: two_masters_replicate,
}];

/// Longer than replication of a few rows takes anywhere; reached only in failure.
const LONG: Duration = Duration::from_secs(60);

fn two_masters_replicate(lab: &Lab) -> Result<()> {
    let wan = lab.wan(3)?;
    wan.sites("paris", "london").delay(Duration::from_millis(5));
    let (paris, london) = (lab.host("paris1")?, lab.host("london1")?);
    let in_paris = wan.site("paris").attach(&paris)?;
    let in_london = wan.site("london").attach(&london)?;
    let left = Mariadb::start(&paris, Options::master(1, in_paris.v4.into()))?;
    let right = Mariadb::start(&london, Options::master(2, in_london.v4.into()))?;
    left.replicate_from(in_london.v4.into(), right.port(), 1)?;
    right.replicate_from(in_paris.v4.into(), left.port(), 1)?;
    left.sql("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, place VARCHAR(16))")?;
    right.wait_for(&left, LONG)?;
    for number in 0..5 {
        left.sql(&format!("INSERT INTO shop.orders (place) VALUES ('paris {number}')"))?;
        right.sql(&format!("INSERT INTO shop.orders (place) VALUES ('london {number}')"))?;
    }
    left.wait_for(&right, LONG)?;
    right.wait_for(&left, LONG)?;
    let all = "SELECT id, place FROM shop.orders ORDER BY id";
    let rows = left.sql(all)?;
    assert_eq!(rows, right.sql(all)?);
    assert_eq!((left.count("shop.orders")?, right.count("shop.orders")?), (10, 10));
    assert_eq!(rows.lines().filter(|row| row.contains("london")).count(), 5, "{rows}");
    for database in [&left, &right] {
        let status = database.slave_status()?;
        assert_eq!(status.get("Slave_IO_Running").map(String::as_str), Some("Yes"), "{status:?}");
        assert_eq!(status.get("Slave_SQL_Running").map(String::as_str), Some("Yes"), "{status:?}");
        assert_eq!(database.slave_connects(), 1);
    }
    let seen = left.sql_from(&london, in_paris.v4.into(), "SELECT COUNT(*) FROM shop.orders")?;
    assert_eq!(seen.trim(), "10");
    // A lost connection must show, or "no reconnection" in a test over the mesh would mean nothing.
    let right = right.restart()?;
    left.wait_for_log("replication resumed", LONG)?;
    assert_eq!(left.slave_connects(), 2);
    right.sql("INSERT INTO shop.orders (place) VALUES ('london again')")?;
    left.wait_for(&right, LONG)?;
    assert_eq!(left.count("shop.orders")?, 11);
    right.stop()?;
    left.stop()
}
