//! Forwards over a mesh: switched while requests come, and told to monitors.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use meshd::config::{Forward, ForwardSource, Target, TargetHost};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::look::{Look, wait};
use crate::lab::{Host, Lab, Mesh, Result};
use crate::scene::{LONG, Scene};

/// The cases of this file.
pub const CASES: &[Case] = &[Case {
    name: "forwards::ten_switches_there_and_back_under_200_requests_a_second",
    needs: &[],
    run: switches_under_load,
}];

/// Where a service listens, and the forward to it.
const SERVICE: u16 = 3306;

/// Where the metrics are served.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9655);

/// Clients, and the pause of each between the beginnings of two requests: 200 requests a second in all.
const CLIENTS: usize = 20;
const PACE: Duration = Duration::from_millis(100);

/// Requests answered between two switches, at least.
const BETWEEN: u64 = 100;

/// A forward from a host's own loopback to members.
pub fn forward(targets: &[&str]) -> Result<Forward> {
    let target = |name: &&str| {
        let name = name.parse().context("a host's name")?;
        Ok(Target { host: TargetHost::Node(name), port: SERVICE })
    };
    Ok(Forward {
        name: "orders".parse().context("a name")?,
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, SERVICE))],
        targets: targets.iter().map(target).collect::<Result<_>>()?,
        failover: false,
        check_interval: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(10),
        source: ForwardSource::None,
        max_connections: 1_000,
    })
}

/// A service that answers each request, a number of eight bytes, with its letter, and remembers which it answered.
struct Service {
    letter: u8,
    served: Arc<Mutex<Vec<u64>>>,
}

impl Service {
    fn start(mesh: &Mesh, host: &Host, letter: u8) -> Result<Service> {
        let address = SocketAddr::from((mesh.overlay(host).0, SERVICE));
        let listener = host.enter(|| TcpListener::bind(address)).context("listen")?;
        let served = Arc::<Mutex<Vec<u64>>>::default();
        let noted = Arc::clone(&served);
        // It ends with the process; nobody connects once the hosts are gone.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = Arc::clone(&noted);
                thread::spawn(move || serve(stream, letter, &noted));
            }
        });
        Ok(Service { letter, served })
    }

    fn served(&self) -> Vec<u64> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut stream: TcpStream, letter: u8, served: &Mutex<Vec<u64>>) {
    let mut request = [0; 8];
    // The looks of the forward end without a byte.
    while stream.read_exact(&mut request).is_ok() {
        served.lock().unwrap_or_else(PoisonError::into_inner).push(u64::from_be_bytes(request));
        if stream.write_all(&[letter]).is_err() {
            return;
        }
    }
}

/// A request that was answered.
struct Answered {
    began: Instant,
    ended: Instant,
    letter: u8,
}

/// A connection of its own, a question and the answer.
fn request(host: &Host, number: u64) -> Result<Answered> {
    let began = Instant::now();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, SERVICE));
    let mut stream = host.enter(|| TcpStream::connect(address)).context(format_args!("request {number}"))?;
    stream.set_read_timeout(Some(LONG)).context("a timeout")?;
    stream.write_all(&number.to_be_bytes()).context(format_args!("ask {number}"))?;
    let mut letter = [0];
    stream.read_exact(&mut letter).context(format_args!("the answer to {number}"))?;
    Ok(Answered { began, ended: Instant::now(), letter: letter[0] })
}

/// Asks again and again, at most once per [`PACE`], until told to stop.
fn client(host: &Host, next: &AtomicU64, answered: &AtomicU64, stop: &AtomicBool) -> Result<Vec<Answered>> {
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        all.push(request(host, next.fetch_add(1, Ordering::Relaxed))?);
        answered.fetch_add(1, Ordering::Relaxed);
        let used = all.last().map_or(Duration::ZERO, |last| last.began.elapsed());
        thread::sleep(PACE.saturating_sub(used));
    }
    Ok(all)
}

/// The value of each series of a family, by its labels.
fn series(host: &Host, family: &str) -> Result<BTreeMap<String, f64>> {
    let mut stream = host.enter(|| TcpStream::connect(METRICS)).context("the metrics")?;
    stream.set_read_timeout(Some(LONG)).context("a timeout")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").context("ask")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("the metrics")?;
    let of = text.lines().filter_map(|line| line.strip_prefix(family)?.strip_prefix('{')?.split_once("} "));
    of.map(|(labels, value)| Ok((labels.to_owned(), value.parse().context(family)?))).collect()
}

/// ```text
///     app ─────── old     requests to 127.0.0.1:3306 of app, each a connection of its own, answered by old or by new
///        ╲─────── new
/// ```
fn switches_under_load(lab: &Lab) -> Result<()> {
    let scene = Scene::running(lab, &["app", "old", "new"])?;
    let (mesh, all) = (&scene.mesh, scene.all());
    let app = all[0];
    let services = [Service::start(mesh, all[1], b'o')?, Service::start(mesh, all[2], b'n')?];
    let forward = forward(&["old", "new"])?;
    mesh.change_config(app, |config| {
        config.forwards = vec![forward];
        config.metrics.listen = Some(METRICS);
    })?;
    mesh.ctl(app).arg("reload").check()?;
    let (next, answered) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (app, next, answered, stop) = (app.clone(), next.clone(), answered.clone(), stop.clone());
            thread::spawn(move || client(&app, &next, &answered, &stop))
        })
        .collect();
    // After each switch: when it was asked for, when it was made, and who answers from then on.
    let mut switches = Vec::new();
    let began = Instant::now();
    let switching: Result<()> = (0..20).try_for_each(|round| {
        let before = answered.load(Ordering::Relaxed);
        wait("requests are answered", LONG, || {
            let count = answered.load(Ordering::Relaxed) - before;
            let failed = clients.iter().any(|client| client.is_finished());
            Ok(if count >= BETWEEN || failed { Look::Found(()) } else { Look::NotYet(format!("{count} requests")) })
        })?;
        let asked = Instant::now();
        let ctl = mesh.ctl(app).args(["forward", "switch", "orders"]);
        let (ctl, letter) = match round % 2 {
            0 => (ctl.args(["--to", "new"]), b'n'),
            _ => (ctl.arg("--back"), b'o'),
        };
        ctl.check()?;
        switches.push((asked, Instant::now(), letter));
        Ok(())
    });
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let answers: Vec<Result<Vec<Answered>>> =
        clients.into_iter().map(|client| client.join().expect("it ends")).collect();
    switching?;
    let answers: Vec<Answered> = answers.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();

    let [old, new] = services.each_ref().map(Service::served);
    let mut once: Vec<u64> = old.iter().chain(&new).copied().collect();
    once.sort_unstable();
    assert_eq!(once, (0..answers.len() as u64).collect::<Vec<_>>(), "each request was served, once, by one side");
    let mut clear = 0;
    for (number, (_, made, letter)) in switches.iter().enumerate() {
        let until = switches.get(number + 1).map(|(asked, ..)| *asked);
        let between = answers.iter().filter(|one| one.began >= *made && until.is_none_or(|until| one.ended <= until));
        for one in between {
            assert_eq!(one.letter, *letter, "after switch {number} nobody is served by the side that was left");
            clear += 1;
        }
    }
    assert!(clear > 20 * BETWEEN / 2, "{clear} requests began after a switch and ended before the next");
    let longest = answers.iter().map(|one| one.ended - one.began).max().unwrap_or_default();
    let rate = answers.len() as f64 / took.as_secs_f64();
    println!(
        "    {} requests at {rate:.0}/s over 20 switches, none failed: {} by old, {} by new; the slowest {longest:.0?}",
        answers.len(),
        old.len(),
        new.len()
    );

    // What monitors are told of all that.
    let of = |target: &str| format!("forward=\"orders\",target=\"{target}:{SERVICE}\"");
    let made = series(app, "meshd_forward_connections_made_total")?;
    assert_eq!(made.values().sum::<f64>(), answers.len() as f64, "{made:?}");
    assert_eq!((made.get(&of("old")), made.get(&of("new"))), (Some(&(old.len() as f64)), Some(&(new.len() as f64))));
    assert_eq!(series(app, "meshd_forward_connect_seconds_count")?, made, "each has its time");
    let bytes = series(app, "meshd_forward_bytes_total")?;
    let sent = |target: &str| bytes.get(&format!("{},direction=\"to_target\"", of(target))).copied().unwrap_or(-1.0);
    wait("what clients closed is counted", LONG, || {
        let open = series(app, "meshd_forward_connections")?.values().sum::<f64>();
        Ok(if open == 0.0 { Look::Found(()) } else { Look::NotYet(format!("{open} open")) })
    })?;
    assert_eq!(sent("old") + sent("new"), 8.0 * answers.len() as f64, "{bytes:?}");
    assert_eq!(series(app, "meshd_forward_target_in_use")?.get(&of("old")), Some(&1.0), "twenty switches lead back");
    assert_eq!(services.map(|service| service.letter), *b"on");
    wait("both targets are seen up", LONG, || {
        let up = series(app, "meshd_forward_target_up")?;
        Ok(if up.values().filter(|up| **up == 1.0).count() == 2 {
            Look::Found(())
        } else {
            Look::NotYet(format!("{up:?}"))
        })
    })?;
    mesh.ctl(app).args(["--json", "forward", "orders"]).check().map(drop)
}
