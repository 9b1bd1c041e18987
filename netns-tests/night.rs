//! The night in which a site's databases are still reached through the mesh: pages of fifty queries, one after the other, while
//! the daemons below are reloaded and restarted.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::forwards;
use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::mariadb::{Mariadb, Options};
use crate::lab::{Error, Host, Lab, Mesh, Result, package};
use crate::scene::LONG;

/// The cases of this file. They print figures of a page's time, so they run beside the others of their kind.
pub const LONG_CASES: &[Case] = &[Case {
    name: "night::pages_of_fifty_queries_outlive_reloads_and_restarts",
    needs: &[&package::MARIADB],
    run: pages_outlive,
}];

/// One way between the datacentres: 300 km, and what lies between.
const BETWEEN: Duration = Duration::from_millis(5);

/// Queries of a page, each sent when the one before is answered.
const QUERIES: usize = 50;

/// Pages of a quiet measurement.
const QUIET: usize = 10;

/// Reloads and restarts of each of the two daemons.
const ROUNDS: usize = 5;

/// Reads a page: connects, asks one query after the other, and returns the time it took.
fn page(database: &Mariadb, from: &Host, address: IpAddr) -> Result<Duration> {
    // A client that connected again in between would hide what the page would have shown.
    let identity = "SELECT CONNECTION_ID();\n";
    let queries = (0..QUERIES - 2).map(|number| format!("SELECT name FROM shop.products WHERE id = {};\n", number + 1));
    let sql = [identity.to_owned()].into_iter().chain(queries).chain([identity.to_owned()]).collect::<String>();
    let began = Instant::now();
    let answer = database.sql_from(from, address, &sql)?;
    let took = began.elapsed();
    let lines: Vec<&str> = answer.lines().collect();
    if lines.len() != QUERIES || lines.first() != lines.last() || lines[1] != "product 1" {
        return Err(Error::failed(format!("a page was not whole: {answer}")));
    }
    Ok(took)
}

fn quiet(database: &Mariadb, from: &Host, address: IpAddr) -> Result<Pages> {
    let times = (0..QUIET).map(|_| page(database, from, address)).collect::<Result<_>>()?;
    Ok(Pages(times))
}

/// The times of pages.
struct Pages(Vec<Duration>);

impl Pages {
    fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    }

    fn slowest(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }

    fn print(&self, what: &str, bare: Duration) {
        let added = (self.median().as_secs_f64() - bare.as_secs_f64()) * 1e3 / QUERIES as f64;
        println!(
            "    {what}: {} pages, none failed; median {:.0?}, slowest {:.3?}; {added:+.2} ms a query beside the bare path",
            self.0.len(),
            self.median(),
            self.slowest()
        );
    }
}

/// Reads pages by several ways at once, without a pause, while `work` is done; `work` is given the number of pages so far.
fn during<const N: usize>(
    database: &Mariadb,
    from: &Host,
    ways: [IpAddr; N],
    work: impl FnOnce(&dyn Fn() -> usize) -> Result<()>,
) -> Result<[Pages; N]> {
    let (stop, counts) = (AtomicBool::new(false), ways.map(|_| AtomicUsize::new(0)));
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: [_; N] = std::array::from_fn(|way| {
            let (stop, failed, count, address) = (&stop, &failed, &counts[way], ways[way]);
            scope.spawn(move || {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match page(database, from, address) {
                        Ok(took) => times.push(took),
                        Err(error) => {
                            failed.store(true, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Pages(times))
            })
        });
        // The way that is behind, so that whoever waits for pages waits for all ways.
        let least = || match failed.load(Ordering::Relaxed) {
            true => usize::MAX,
            false => counts.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or_default(),
        };
        let worked = work(&least);
        stop.store(true, Ordering::Relaxed);
        let pages: Vec<Result<Pages>> = readers.into_iter().map(|reader| reader.join().expect("it ends")).collect();
        let pages: Vec<Pages> = pages.into_iter().collect::<Result<_>>()?;
        worked?;
        pages.try_into().map_err(|_| Error::failed("a way is missing"))
    })
}

/// Waits for two more whole pages of each way: one that began before, and one that began after.
fn two_more(pages: &dyn Fn() -> usize) -> Result<()> {
    let before = pages();
    wait("two more pages are read", LONG, || {
        let now = pages();
        Ok(if now == usize::MAX || now >= before + 2 { Look::Found(()) } else { Look::NotYet(format!("{now} pages")) })
    })
}

/// ```text
///     app ──── 5 ms ──── db      MariaDB; read by its address in the mesh, by a forward on app, and past the mesh
/// ```
fn pages_outlive(lab: &Lab) -> Result<()> {
    let wan = lab.wan(23)?;
    wan.sites("roubaix", "paris").delay(BETWEEN);
    let (app, db) = (lab.host("app")?, lab.host("db")?);
    let underlay = [wan.site("roubaix").attach(&app)?.v4, wan.site("paris").attach(&db)?.v4];
    let mesh = Mesh::init(&app, underlay[0])?;
    mesh.admit_offline(&db, underlay[1])?;
    let forward = forwards::forward(&["db"])?;
    mesh.change_config(&app, |config| config.forwards = vec![forward])?;
    mesh.start(&[&app, &db])?;
    mesh.wait_until_all_up(&[&app, &db], LONG)?;
    let database = Mariadb::start(&db, Options::master(1, Ipv4Addr::UNSPECIFIED.into()))?;
    let rows: Vec<String> = (1..=QUERIES).map(|id| format!("({id}, 'product {id}')")).collect();
    database.sql(&format!(
        "CREATE DATABASE shop; CREATE TABLE shop.products (id INT PRIMARY KEY, name VARCHAR(40));
         INSERT INTO shop.products VALUES {};",
        rows.join(", ")
    ))?;
    let (bare, tunnel, forwarded) = (underlay[1].into(), mesh.overlay(&db).0.into(), Ipv4Addr::LOCALHOST.into());

    let past = quiet(&database, &app, bare)?;
    let usual = past.median();
    past.print("past the mesh", usual);
    quiet(&database, &app, tunnel)?.print("through the mesh", usual);
    quiet(&database, &app, forwarded)?.print("through a forward", usual);

    let [by_mesh, by_forward] = during(&database, &app, [tunnel, forwarded], |pages| {
        for round in 0..ROUNDS {
            for host in [&app, &db] {
                let interval = Duration::from_millis(if round % 2 == 0 { 500 } else { 1_000 });
                mesh.change_config(host, |config| config.probe.interval = interval)?;
                let told = mesh.ctl(host).arg("reload").check()?;
                assert!(told.contains("probe.interval"), "{told}");
                two_more(pages)?;
            }
        }
        Ok(())
    })?;
    by_mesh.print("through the mesh, over 10 reloads", usual);
    by_forward.print("through a forward, over 10 reloads", usual);

    let [by_mesh] = during(&database, &app, [tunnel], |pages| {
        for _ in 0..ROUNDS {
            for host in [&app, &db] {
                mesh.ctl(host).arg("restart").check()?;
                two_more(pages)?;
            }
        }
        Ok(())
    })?;
    by_mesh.print("through the mesh, over 10 restarts in place", usual);
    for host in [&app, &db] {
        let told = mesh.ctl(host).args(["--json", "version"]).check()?;
        let version: serde_json::Value = serde_json::from_str(&told).context(&told)?;
        assert_eq!(version["daemon"]["restarts"].as_u64(), Some(ROUNDS as u64), "{}", host.name());
    }
    Ok(())
}
