//! What a year of history takes, and what recording costs.
//!
//! `cargo bench --bench history -- [--links N] [--days N]` writes a simulated time of links probed once a second through the
//! recorder and the store, compares the store with direct computation, and prints bytes by link and tier, and the time each
//! part took.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Clock};

use meshd::control::measurement::{Direction, Measurement, Sample};
use meshd::history::{Batch, Reader, Store, Tier};
use meshd::identity::NodeId;
use meshd::telemetry::{Bucket, Recorder, Standing};
use meshd::time::{Instant, UnixTime};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The beginning of a day.
const WALL: UnixTime = UnixTime::from_secs(1_795_392_000);
/// Room for everything: the limit is not what is measured.
const SIZE: u64 = 1 << 40;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, otherwise: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (links, days) = (number("--links", 1) as u8, number("--days", 365));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history.db");
    let (mut store, _) = Store::open(&path, SIZE, WALL).expect("opens");
    let (mut recorder, mut rng) = (Recorder::new(Instant::ZERO, WALL), ChaCha12Rng::seed_from_u64(17));
    let node = |link: u8| NodeId::from_bytes([link; 16]);
    (0..links).for_each(|link| recorder.watch(node(link), &format!("n{link}"), Standing::Up, Instant::ZERO));
    // What the first link's buckets must add up to, by day.
    let mut want = BTreeMap::<u64, Bucket>::new();
    let [mut recording, mut writing, mut settling] = [Duration::ZERO; 3];
    let (mut buckets, mut bytes) = (0u64, 0u64);
    for second in 0..days * 86_400 {
        let (now, wall) = (Instant::from_millis(second * 1_000), WALL + Duration::from_secs(second));
        let began = Clock::now();
        recorder.follow(now, wall);
        for link in 0..links {
            recorder.measured(node(link), &probe(now, second, link, &mut rng), now);
        }
        recording += began.elapsed();
        if second % 30 == 5 {
            let began = Clock::now();
            let sealed = recorder.seal(now);
            recording += began.elapsed();
            for sealed in &sealed {
                (buckets, bytes) = (buckets + 1, bytes + sealed.bucket.encode().len() as u64);
                if sealed.node == node(0) {
                    let day = (sealed.minute.as_secs() - WALL.as_secs()) / 86_400;
                    want.entry(day).or_default().merge(&sealed.bucket);
                }
            }
            let began = Clock::now();
            store.write(&Batch { buckets: sealed, events: Vec::new() }).expect("written");
            writing += began.elapsed();
        }
        if second % 3_600 == 3_599 {
            let began = Clock::now();
            store.settle(wall + Duration::from_secs(1)).expect("settled");
            settling += began.elapsed();
        }
    }
    let end = WALL + Duration::from_secs(days * 86_400);
    let reader = Reader::open(&path, Duration::from_secs(600)).expect("opens");
    // The last half minute is still open in the recorder.
    for (day, want) in want.iter().filter(|(day, _)| **day + 1 < days) {
        let since = WALL + Duration::from_secs(day * 86_400);
        let mut got = Bucket::default();
        let visit = |_: UnixTime, bucket: &Bucket| got.merge(bucket);
        reader.buckets(node(0), Tier::Day, since, since + Duration::from_secs(86_400), visit).expect("readable");
        assert_eq!(&got, want, "day {day}");
    }
    println!("{links} links, {days} days at one probe a second: each day equals what its probes add up to");
    let seconds = days as f64 * 86_400.0;
    println!("a half minute takes {:.1} bytes in the mean", bytes as f64 / buckets as f64);
    for (what, time) in [("recording", recording), ("writing", writing), ("settling", settling)] {
        let share = time.as_secs_f64() / seconds * 100.0;
        println!("{what}: {:.1} s for {days} days, {share:.4} % of a core", time.as_secs_f64());
    }
    for (table, size) in store.table_sizes().expect("readable") {
        println!("{table}: {size} bytes, {:.0} bytes a link", size as f64 / f64::from(links));
    }
    let sizes = store.sizes().expect("readable");
    println!("file: {} bytes, {:.2} MB a link", sizes.file, sizes.file as f64 / 1e6 / f64::from(links));
    let began = Clock::now();
    let mut month = Bucket::default();
    let since = UnixTime::from_secs(end.as_secs().saturating_sub(30 * 86_400));
    reader.buckets(node(0), Tier::TenMinutes, since, end, |_, bucket| month.merge(bucket)).expect("readable");
    println!("a month by ten minutes is read in {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    let began = Clock::now();
    let baselines = store.baselines(end).expect("readable").len();
    println!("{baselines} baselines are computed in {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
}

/// A probe of a link of some milliseconds: a daily rhythm of 1 %, noise, now and then a slow one or a lost one.
fn probe(now: Instant, second: u64, link: u8, rng: &mut ChaCha12Rng) -> Measurement {
    let chance = rng.next_u32();
    if chance.is_multiple_of(20_000) {
        return Measurement::Lost { sent: now, direction: Direction::Forward, in_row: 1 };
    }
    let base = 2_000_000 + u64::from(link) * 370_000;
    let rhythm = base / 100 * (second % 86_400) / 86_400;
    let noise = u64::from(rng.next_u32() % 1_000 + rng.next_u32() % 1_000) * base / 100_000;
    let slow = if chance % 500 == 1 { u64::from(rng.next_u32() % 5_000_000) } else { 0 };
    let path_rtt = Duration::from_nanos(base + rhythm + noise + slow);
    let own_delay = Duration::from_nanos(20_000 + u64::from(rng.next_u32() % 60_000));
    let peer_delay = Duration::from_nanos(20_000 + u64::from(rng.next_u32() % 60_000));
    let transit = path_rtt.as_nanos() as i64 / 2;
    Measurement::Sample(Sample {
        sent: now,
        path_rtt,
        tunnel_rtt: path_rtt + own_delay + peer_delay,
        own_delay,
        peer_delay,
        forward_transit: transit,
        reverse_transit: transit,
        late: None,
    })
}
