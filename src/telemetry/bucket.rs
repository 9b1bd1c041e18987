//! What one link did in some stretch of time.

use std::time::Duration;

use super::Distribution;
use super::varint::{self, Damaged};
use crate::control::measurement::Direction;

/// How a link stood, as the history counts its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It answered.
    Up,
    /// It answered, but badly.
    Degraded,
    /// It had missed answers.
    Suspect,
    /// It did not answer.
    Down,
    /// This node could not tell, being unwell itself.
    Unknown,
    /// It had not answered yet.
    New,
}

/// One list for the counters' names, so that none is forgotten in merging, writing or reading. Only ever add at the end.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// One link's figures over a stretch of time of any length: a minute, a day, a month.
        ///
        /// Merging is exact, so that however probes are split into buckets, the merged bucket is the same. What spans two
        /// buckets (a run of losses, the difference to the round trip before) is carried over by whoever fills them.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Bucket {
            $($(#[$doc])* pub $name: u64,)*
            /// Most probes lost one after the other.
            pub longest_loss_run: u64,
            /// Round trips on the network, within 1 %.
            pub path: Distribution,
            /// Round trips with both daemons' queues, within 1 %.
            pub tunnel: Distribution,
            /// What both hosts added to the network's round trip, within 5 %: it varies by more from probe to probe.
            pub host: Distribution<10>,
        }

        impl Bucket {
            pub(super) const COUNTERS: usize = [$(stringify!($name)),*].len();

            pub(super) fn counters(&self) -> [u64; Self::COUNTERS] {
                [$(self.$name),*]
            }

            pub(super) fn counters_mut(&mut self) -> [&mut u64; Self::COUNTERS] {
                [$(&mut self.$name),*]
            }
        }
    };
}

counters! {
    /// Probes answered, late ones among them.
    answered,
    /// Probes answered after they had been counted as lost.
    late,
    /// Probes lost on the way to the peer.
    lost_forward,
    /// Probes whose answer was lost on the way back.
    lost_reverse,
    /// Probes lost on either way.
    lost_unknown,
    /// Copies of a probe or its answer that came again.
    duplicates,
    /// Probes and answers that came after a later one.
    reordered,
    /// Probes answered with stamps that cannot be right, which say nothing but that they were not lost.
    discarded,
    /// Sum of this host's own part of the host delays, in nanoseconds, each rounded to a microsecond.
    own_delay_nanos,
    /// How many differences of successive answers are in the three sums that follow.
    jitter_count,
    /// Sum of the differences of successive round trips, in nanoseconds, each rounded to a microsecond.
    jitter_nanos,
    /// Sum of the differences of successive transits to the peer, likewise.
    jitter_forward_nanos,
    /// Sum of the differences of successive transits from the peer, likewise.
    jitter_reverse_nanos,
    /// Data packets sent whose fate is known.
    data_sent,
    /// Of these, lost on the way to the peer.
    data_sent_lost,
    /// Data packets the peer sent whose fate is known.
    data_received,
    /// Of these, lost on the way back.
    data_received_lost,
    /// Bytes sent in the tunnel.
    tx_bytes,
    /// Bytes received in the tunnel.
    rx_bytes,
    /// How often packets began to take another path.
    path_changes,
    /// Sessions made.
    handshakes,
    /// Milliseconds in [`Standing::Up`].
    up_millis,
    /// Milliseconds in [`Standing::Degraded`].
    degraded_millis,
    /// Milliseconds in [`Standing::Suspect`].
    suspect_millis,
    /// Milliseconds in [`Standing::Down`].
    down_millis,
    /// Milliseconds in [`Standing::Unknown`].
    unknown_millis,
    /// Milliseconds in [`Standing::New`].
    new_millis,
    /// Probes answered late, or more than 5 ms above the link's median of seven days.
    slow,
    /// Of the probes lost, those of outages: eight in a row and more, with which a link goes down.
    outage_lost,
    /// Milliseconds of outages: those in [`Standing::Down`], and the suspicion before.
    outage_millis,
}

/// Rounds nanoseconds to a whole microsecond. No stamp is exacter, and digits that mean nothing would be kept for years: they
/// are the part of a sum that no packing makes smaller.
fn to_micros(nanos: u64) -> u64 {
    (nanos.saturating_add(500) / 1_000).saturating_mul(1_000)
}

/// The layout of [`Bucket::encode`]; another one gets another number, and the readers of both.
const LAYOUT: u8 = 1;

impl Bucket {
    /// Adds everything that `other` holds.
    pub fn merge(&mut self, other: &Bucket) {
        for (sum, more) in self.counters_mut().into_iter().zip(other.counters()) {
            *sum = sum.saturating_add(more);
        }
        self.longest_loss_run = self.longest_loss_run.max(other.longest_loss_run);
        self.path.merge(&other.path);
        self.tunnel.merge(&other.tunnel);
        self.host.merge(&other.host);
    }

    /// Returns whether nothing was put in.
    pub fn is_empty(&self) -> bool {
        *self == Bucket::default()
    }

    /// Counts time in a state.
    pub fn stood(&mut self, standing: Standing, time: Duration) {
        let millis = match standing {
            Standing::Up => &mut self.up_millis,
            Standing::Degraded => &mut self.degraded_millis,
            Standing::Suspect => &mut self.suspect_millis,
            Standing::Down => &mut self.down_millis,
            Standing::Unknown => &mut self.unknown_millis,
            Standing::New => &mut self.new_millis,
        };
        *millis = millis.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Counts an answered probe. `own` is this host's part of `host`, which is what both hosts added to `path`.
    pub fn answer(&mut self, path: Duration, tunnel: Duration, own: Duration, host: Duration) {
        self.answered += 1;
        let own = u64::try_from(own.as_nanos()).unwrap_or(u64::MAX);
        self.own_delay_nanos = self.own_delay_nanos.saturating_add(to_micros(own));
        self.path.record(path);
        self.tunnel.record(tunnel);
        self.host.record(host);
    }

    /// Counts by how much an answer differs from the one before, in nanoseconds: its round trip, its transit to the peer, its
    /// transit from it.
    pub fn vary(&mut self, [rtt, forward, reverse]: [u64; 3]) {
        self.jitter_count += 1;
        self.jitter_nanos = self.jitter_nanos.saturating_add(to_micros(rtt));
        self.jitter_forward_nanos = self.jitter_forward_nanos.saturating_add(to_micros(forward));
        self.jitter_reverse_nanos = self.jitter_reverse_nanos.saturating_add(to_micros(reverse));
    }

    /// Counts a lost probe, the `run`-th one in a row.
    pub fn lose(&mut self, on: Direction, run: u64) {
        *self.lost_mut(on) += 1;
        self.longest_loss_run = self.longest_loss_run.max(run);
    }

    /// Takes a loss back, because the answer came late. Returns false where no such loss is in here.
    pub fn find_again(&mut self, on: Direction) -> bool {
        let lost = self.lost_mut(on);
        let found = *lost > 0;
        *lost -= u64::from(found);
        found
    }

    fn lost_mut(&mut self, on: Direction) -> &mut u64 {
        match on {
            Direction::Forward => &mut self.lost_forward,
            Direction::Reverse => &mut self.lost_reverse,
            Direction::Unknown => &mut self.lost_unknown,
        }
    }

    /// Probes lost on any way.
    pub fn lost(&self) -> u64 {
        self.lost_forward.saturating_add(self.lost_reverse).saturating_add(self.lost_unknown)
    }

    /// Probes whose fate is known.
    pub fn sent(&self) -> u64 {
        self.answered.saturating_add(self.discarded).saturating_add(self.lost())
    }

    /// How long the link was watched.
    pub fn observed(&self) -> Duration {
        let states = [
            self.up_millis,
            self.degraded_millis,
            self.suspect_millis,
            self.down_millis,
            self.unknown_millis,
            self.new_millis,
        ];
        Duration::from_millis(states.into_iter().fold(0, u64::saturating_add))
    }

    /// The mean difference of successive round trips, of transits to the peer, and of transits from it: what RFC 3550's
    /// estimate converges to, and mergeable, which that is not. `None` before the second answer.
    pub fn jitter(&self) -> Option<[Duration; 3]> {
        let sums = [self.jitter_nanos, self.jitter_forward_nanos, self.jitter_reverse_nanos];
        (self.jitter_count > 0).then(|| sums.map(|sum| Duration::from_nanos(sum / self.jitter_count)))
    }

    /// Writes it in few bytes: the layout's number, a mask of the counters that are not zero, these, the distributions. A
    /// minute of a healthy link probed once a second takes 70 to 100 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.push(LAYOUT);
        let counters = self.counters();
        // The run first, so that a counter added at the end of the list changes nobody's place.
        let all = [&self.longest_loss_run].into_iter().chain(&counters);
        let mask = all.clone().enumerate().fold(0, |mask, (i, value)| mask | u64::from(*value != 0) << i);
        varint::write(&mut out, mask);
        all.filter(|value| **value != 0).for_each(|value| varint::write(&mut out, *value));
        self.path.encode(&mut out);
        self.tunnel.encode(&mut out);
        self.host.encode(&mut out);
        out
    }

    /// Reads what [`Bucket::encode`] wrote.
    ///
    /// # Errors
    /// It is damaged, or its layout is not known here.
    pub fn decode(mut bytes: &[u8]) -> Result<Bucket, Damaged> {
        let bytes = &mut bytes;
        let (layout, rest) = bytes.split_first().ok_or(Damaged)?;
        *bytes = rest;
        if *layout != LAYOUT {
            return Err(Damaged);
        }
        let mask = varint::read(bytes)?;
        if mask >> (Self::COUNTERS + 1) != 0 {
            return Err(Damaged);
        }
        let mut bucket = Bucket::default();
        let mut run = 0;
        for (i, value) in [&mut run].into_iter().chain(bucket.counters_mut()).enumerate() {
            if mask >> i & 1 == 1 {
                *value = varint::read(bytes)?;
            }
        }
        bucket.longest_loss_run = run;
        bucket.path = Distribution::decode(bytes)?;
        bucket.tunnel = Distribution::decode(bytes)?;
        bucket.host = Distribution::decode(bytes)?;
        if bytes.is_empty() { Ok(bucket) } else { Err(Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One thing that a bucket takes in.
    #[derive(Clone, Debug)]
    enum Input {
        Answer(u64, u64),
        Loss(u8, u64),
        State(u8, u64),
        Count(usize, u64),
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            (0u64..60_000_000, 0u64..5_000).prop_map(|(path, host)| Input::Answer(path, host)),
            (0u8..3, 1u64..20).prop_map(|(way, run)| Input::Loss(way, run)),
            (0u8..6, 0u64..60_000).prop_map(|(state, millis)| Input::State(state, millis)),
            (0..Bucket::COUNTERS, 0u64..1 << 40).prop_map(|(at, more)| Input::Count(at, more)),
        ]
    }

    fn fill(bucket: &mut Bucket, input: &Input) {
        use Standing::*;
        match *input {
            Input::Answer(path, host) => {
                let [path, host] = [path, host].map(Duration::from_micros);
                bucket.answer(path, path + host, host / 3, host);
            }
            Input::Loss(way, run) => {
                bucket.lose([Direction::Forward, Direction::Reverse, Direction::Unknown][usize::from(way)], run);
            }
            Input::State(state, millis) => {
                let standing = [Up, Degraded, Suspect, Down, Unknown, New][usize::from(state)];
                bucket.stood(standing, Duration::from_millis(millis));
            }
            Input::Count(at, more) => *bucket.counters_mut()[at] += more,
        }
    }

    proptest! {
        #[test]
        fn any_split_merges_to_the_whole(inputs in prop::collection::vec((input(), 0usize..6), 0..200)) {
            let (mut whole, mut parts) = (Bucket::default(), vec![Bucket::default(); 6]);
            for (input, part) in &inputs {
                fill(&mut whole, input);
                fill(&mut parts[*part], input);
            }
            let merged = parts.iter().fold(Bucket::default(), |mut all, part| { all.merge(part); all });
            prop_assert_eq!(&merged, &whole);
            let backward = parts.iter().rev().fold(Bucket::default(), |mut all, part| { all.merge(part); all });
            prop_assert_eq!(&backward, &whole);
        }

        #[test]
        fn what_is_written_reads_back(inputs in prop::collection::vec(input(), 0..200)) {
            let mut bucket = Bucket::default();
            inputs.iter().for_each(|input| fill(&mut bucket, input));
            let bytes = bucket.encode();
            prop_assert_eq!(Bucket::decode(&bytes), Ok(bucket));
            for cut in 0..bytes.len() {
                prop_assert!(Bucket::decode(&bytes[..cut]).is_err(), "cut at {}", cut);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(mut bucket) = Bucket::decode(&[&[LAYOUT], bytes.as_slice()].concat()) {
                let copy = bucket.clone();
                bucket.merge(&copy);
                let _ = (bucket.jitter(), bucket.observed(), bucket.sent());
            }
        }
    }

    #[test]
    fn a_late_answer_takes_one_loss_back() {
        let mut bucket = Bucket::default();
        bucket.lose(Direction::Forward, 1);
        assert!(!bucket.find_again(Direction::Reverse));
        assert!(bucket.find_again(Direction::Forward));
        assert!(!bucket.find_again(Direction::Forward));
        assert_eq!((bucket.lost(), bucket.longest_loss_run), (0, 1));
    }

    #[test]
    fn an_unknown_layout_is_refused() {
        let mut bytes = Bucket::default().encode();
        bytes[0] = LAYOUT + 1;
        assert_eq!(Bucket::decode(&bytes), Err(Damaged));
    }
}
