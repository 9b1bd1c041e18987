//! The emulator alone: is it as true as the tests that rely on it need it to be?
//!
//! What must hold on any machine is asserted (no packet early, the log agrees with what was received, the same seed
//! gives the same fates); how late packets are is printed beside its target, for a busy machine may be slow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::Case;
use crate::lab::error::Context;
use crate::lab::wan::{Burst, Counts, Record, now};
use crate::lab::{Error, Fate, Host, Lab, Result, Wan};

/// The cases of this file.
pub const CASES: &[Case] = &[
    Case { name: "calibration::no_packet_is_early", needs: &[], run: no_packet_is_early },
    Case { name: "calibration::the_log_is_what_arrives", needs: &[], run: log_is_what_arrives },
    Case { name: "calibration::the_same_seed_gives_the_same_fates", needs: &[], run: same_seed_same_fates },
    Case { name: "calibration::a_bulk_stream_arrives_whole", needs: &[], run: bulk_arrives },
];

/// Longer than anything local takes; reached only in failure.
const LONG: Duration = Duration::from_secs(20);

/// How late the emulator may hand over, p99, on an idle machine: printed, never asserted.
const TARGET_US: f64 = 20.0;

/// How many datagrams are sent before the receiver is asked: with copies, what its socket holds without reading.
const BATCH: usize = 50;

/// Two hosts on a fresh emulated network, with a socket each.
struct Pair {
    wan: Wan,
    left: UdpSocket,
    right: UdpSocket,
    to_right: SocketAddr,
}

impl Pair {
    fn new(lab: &Lab, seed: u64) -> Result<Pair> {
        let wan = lab.wan(seed)?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let on_a = wan.attach(&a)?;
        let on_b = wan.attach(&b)?;
        let bind = |host: &Host, address| host.enter(|| UdpSocket::bind(SocketAddr::new(address, 0))).context("bind");
        let (left, right) = (bind(&a, on_a.v4.into())?, bind(&b, on_b.v4.into())?);
        left.set_read_timeout(Some(LONG))?;
        right.set_read_timeout(Some(LONG))?;
        let to_right = right.local_addr()?;
        Ok(Pair { wan, left, right, to_right })
    }
}

fn no_packet_is_early(lab: &Lab) -> Result<()> {
    let Pair { wan, left, right, to_right } = Pair::new(lab, 1)?;
    let echo = thread::spawn(move || {
        let mut buffer = [0; 64];
        // An empty datagram ends the echo.
        while let Ok((len @ 1.., from)) = right.recv_from(&mut buffer) {
            let _ = right.send_to(&buffer[..len], from);
        }
    });
    println!(
        "emulator alone, one way set | late at hand-over p50 p99 max us (target p99 {TARGET_US}) | RTT above the log p50 p99 us"
    );
    for (micros, count) in [(200, 1000), (1_000, 500), (5_000, 200), (10_000, 100), (50_000, 20)] {
        let delay = Duration::from_micros(micros);
        wan.link("a", "b").delay(delay);
        let mark = wan.mark();
        let mut above = Vec::new();
        for number in 0..count {
            let sent = now();
            left.send_to(&u64::to_be_bytes(number), to_right)?;
            let mut buffer = [0; 64];
            let len = left.recv(&mut buffer).context("the echo")?;
            let rtt = now() - sent;
            assert_eq!(buffer[..len], number.to_be_bytes());
            assert!(rtt >= 2 * nanos(delay), "an echo came back after {rtt} ns, set are twice {delay:?}");
            above.push(rtt);
        }
        let log = wan.log(mark);
        assert_eq!(log.len() as u64, 2 * count);
        for record in &log {
            assert_eq!(record.fate, Fate::Delivered, "{record}");
            assert!(record.left >= record.due && record.due == record.entered + nanos(delay), "{record}");
        }
        for (rtt, way) in above.iter_mut().zip(log.chunks(2)) {
            // Both directions of one echo, as the emulator saw them; the rest is the hosts' own.
            *rtt -= way.iter().map(|record| record.left - record.entered).sum::<u64>();
        }
        let late: Vec<u64> = log.iter().map(|record| record.left - record.due).collect();
        println!(
            "{delay:>8?}: late {:.1} {:.1} {:.1} | above {:.1} {:.1}",
            micros_at(&late, 0.5),
            micros_at(&late, 0.99),
            micros_at(&late, 1.0),
            micros_at(&above, 0.5),
            micros_at(&above, 0.99),
        );
    }
    wan.all().clear();
    left.send_to(&[], to_right)?;
    echo.join().map_err(|_| Error::failed("the echo panicked"))
}

fn bulk_arrives(lab: &Lab) -> Result<()> {
    let wan = lab.wan(1)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    wan.attach(&a)?;
    let on_b = wan.attach(&b)?;
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for (micros, blocks) in [(0, 64), (5_000, 32)] {
        wan.link("a", "b").delay(Duration::from_micros(micros));
        let listener = b.enter(|| TcpListener::bind((on_b.v4, 0))).context("listen")?;
        let to = listener.local_addr()?;
        let expected = block.clone();
        let reader = thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept().context("accept")?;
            let mut got = vec![0; expected.len()];
            for _ in 0..blocks {
                stream.read_exact(&mut got).context("read")?;
                assert!(got == expected, "the stream arrived changed");
            }
            Ok(())
        });
        let began = Instant::now();
        let mut stream = a.enter(|| TcpStream::connect(to)).context("connect")?;
        for _ in 0..blocks {
            stream.write_all(&block).context("write")?;
        }
        reader.join().map_err(|_| Error::failed("the reader panicked"))??;
        let megabits = f64::from(blocks) * 8.0 * 1.048_576 / began.elapsed().as_secs_f64();
        println!("emulator alone, {micros} us each way: TCP at {megabits:.0} Mbit/s");
    }
    // The streams' last words may still be under way.
    wan.wait(LONG, "the delivery of every packet", |core| {
        let counts = core.count("a", "b");
        counts.entered == counts.delivered
    })
}

/// Sends `count` numbered datagrams through every impairment, and returns the log and the numbers in the order in
/// which they arrived.
fn ordeal(lab: &Lab, seed: u64, count: u64) -> Result<(Vec<Record>, Vec<u64>, Counts)> {
    let Pair { wan, left, right, to_right } = Pair::new(lab, seed)?;
    wan.way("a", "b")
        .delay(Duration::from_micros(500))
        .jitter(Duration::from_micros(300))
        .loss(0.05)
        .burst(Burst::of(0.05, 4.0))
        .reorder(0.05, Duration::from_millis(2))
        .duplicate(0.05)
        .corrupt(0.05);
    let mut arrived = Vec::new();
    for batch in (0..count).collect::<Vec<_>>().chunks(BATCH) {
        for number in batch {
            left.send_to(&number.to_be_bytes(), to_right)?;
        }
        let sent = batch.last().map_or(0, |last| last + 1);
        wan.wait(LONG, "the end of what was sent", |core| {
            core.count("a", "b").entered == sent && core.log.since(0).all(|record| record.fate != Fate::InFlight)
        })?;
        let received = wan.log(0).iter().filter(|record| is_received(record)).count();
        while arrived.len() < received {
            let mut buffer = [0; 8];
            right.recv(&mut buffer).context("receive what the log says was delivered")?;
            arrived.push(u64::from_be_bytes(buffer));
        }
    }
    right.set_nonblocking(true)?;
    let mut buffer = [0; 8];
    if right.recv(&mut buffer).is_ok() {
        let number = u64::from_be_bytes(buffer);
        let known: Vec<Record> = wan.log(0).into_iter().filter(|record| record.tag == number).collect();
        panic!("{number} arrived once more than the log knows: {known:#?}");
    }
    Ok((wan.log(0), arrived, wan.counts("a", "b")))
}

/// UDP's checksum finds every single flipped bit, so a corrupted packet is handed over but not received.
fn is_received(record: &Record) -> bool {
    record.fate == Fate::Delivered && !record.corrupted
}

fn log_is_what_arrives(lab: &Lab) -> Result<()> {
    let count = 4000;
    let (log, arrived, counts) = ordeal(lab, 42, count)?;
    let mut expected: Vec<&Record> = log.iter().filter(|record| is_received(record)).collect();
    // Each batch has ended before the next one begins, so this order holds over all of them.
    expected.sort_by_key(|record| (record.due, record.number));
    let differs = expected.iter().zip(&arrived).find(|(record, number)| record.tag != **number);
    assert!(differs.is_none() && expected.len() == arrived.len(), "{differs:?}");
    // Late packets leave in the order in which they were due.
    assert!(expected.windows(2).all(|pair| pair[0].left <= pair[1].left));
    let having = |yes: fn(&Record) -> bool| log.iter().filter(|record| yes(record)).count() as u64;
    assert_eq!(counts.entered, count);
    assert_eq!(counts.lost, having(|record| record.fate == Fate::Lost));
    assert_eq!(counts.delivered, having(|record| record.fate == Fate::Delivered));
    assert_eq!(counts.duplicated, having(|record| record.copy));
    assert_eq!(counts.delivered + counts.lost, counts.entered + counts.duplicated);
    assert!(counts.held > 0 && counts.corrupted > 0 && counts.duplicated > 0 && counts.lost > 0, "{counts:?}");
    Ok(())
}

fn same_seed_same_fates(lab: &Lab) -> Result<()> {
    let fates = |seed| -> Result<Vec<_>> {
        let inner = Lab::new(lab.name())?;
        let (log, ..) = ordeal(&inner, seed, 1000)?;
        Ok(log.iter().map(|r| (r.tag, r.fate, r.copy, r.held, r.corrupted)).collect())
    };
    let first = fates(7)?;
    assert!(first == fates(7)?, "the same seed gave other fates");
    assert!(first != fates(8)?, "another seed gave the same fates");
    Ok(())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns a quantile of durations in nanoseconds, in microseconds.
fn micros_at(samples: &[u64], quantile: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into the samples")]
    let at = ((sorted.len() - 1) as f64 * quantile).round() as usize;
    sorted[at] as f64 / 1000.0
}
