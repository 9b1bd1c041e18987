//! Which connections cross the tunnels: a bounded table for each data thread, written by it alone and read by anybody.
//!
//! The thread notes each packet it has parsed anyway, and a packet that stands for many once: a look at the flow of the packet
//! before, else a hash and one line of the cache to find it, and a few plain stores. Nothing is locked and nothing allocated. Who
//! reads sees each flow whole, by a version that is odd while its place is given to another one.
//!
//! A flow is seen from its tunnel: one end is near (this node, a network behind it, or another tunnel that it came out of), the
//! other far. So what is passed from one peer to another appears once for each of the two tunnels.
//!
//! The table is full where more flows are open than it has places. Then one that has ended makes room, else one that did not
//! last, and only then one that did; those are counted, and what comes of them later enters them again.

use super::inner::{ICMP, ICMPV6, InnerPacket, TCP, UDP};
use crate::time::Instant;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// Flows of one thread: more connections than a busy web server has open to its databases, in half a megabyte.
pub const MOST_FLOWS: usize = SETS * WAYS;

/// Places a flow may have; their tags fill one line of the processor's cache.
const WAYS: usize = 16;

const SETS: usize = 256;

/// How long a flow lasts before it is long-lived, and is kept rather than one that came and went.
pub const LONG_LIVED: Duration = Duration::from_secs(60);

/// How long a datagram flow is silent before what follows is another one: several times what connection trackers wait
/// (Linux: 120 s, RFC 4787 §4.3: 2 min and better 5).
pub const DATAGRAM_SILENCE: Duration = Duration::from_secs(600);

/// SCTP has its ports where TCP has them (RFC 9260 §3.1).
const SCTP: u8 = 132;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What is known of a flow besides its numbers.
const FINISHED: [u64; 2] = [1, 2];
const RESET: u64 = 4;
const OPENED: [u64; 2] = [8, 16];
/// Something else than the first SYN was seen.
const SPOKEN: u64 = 32;

/// One end of a flow, and the direction of what leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// On this side of the tunnel.
    Near,
    /// On the peer's side.
    Far,
}

/// What makes a flow this one and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// The end on this side of the tunnel; port 0 where the protocol has none.
    pub near: SocketAddr,
    /// The end on the peer's side.
    pub far: SocketAddr,
    /// The IP protocol.
    pub protocol: u8,
}

/// A flow at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowReading {
    /// Which one.
    pub ends: Ends,
    /// Who opened it, where that was seen. `Some` also means that it was entered at its beginning.
    pub opener: Option<Side>,
    /// Whether its end was seen: a TCP reset, or the FIN of both.
    pub ended: bool,
    /// Whether one end of a TCP connection has finished, and the other has not.
    pub half_closed: bool,
    /// The first packet since it was entered here.
    pub first: Instant,
    /// The last packet.
    pub last: Instant,
    /// Bytes of packets into the tunnel, their headers included.
    pub sent: u64,
    /// Bytes of packets out of the tunnel.
    pub received: u64,
}

/// The flows of one data thread.
#[derive(Debug)]
pub struct Flows {
    hasher: RandomState,
    /// Part of each flow's hash; 0 where the place is free.
    tags: Box<[Line]>,
    slots: Box<[Slot]>,
    evicted: AtomicU64,
}

/// The tags of one set.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU32; WAYS]);

/// A flow's place. The first line of the cache is what finds it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    /// 0: never used; odd: being given to another flow.
    version: AtomicU64,
    key: [AtomicU64; 5],
    state: AtomicU64,
    last: AtomicU64,
    first: AtomicU64,
    /// Bytes out of the near and out of the far end.
    bytes: [AtomicU64; 2],
}

/// Ends as they are compared: two addresses, IPv4 as IPv4-mapped (which no packet may have as IPv6), then ports and protocol.
type Key = [u64; 5];

/// The flow of the last packet, which the next one is most likely of. Each direction has its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recent(usize);

impl Default for Flows {
    fn default() -> Self {
        Flows {
            hasher: RandomState::new(),
            tags: (0..SETS).map(|_| Line::default()).collect(),
            slots: (0..MOST_FLOWS).map(|_| Slot::default()).collect(),
            evicted: AtomicU64::new(0),
        }
    }
}

impl Flows {
    /// Notes a packet, of `bytes` in all, which `from` one side crosses the tunnel. Only ever called by one thread at a time; what
    /// two would do at once could count wrongly. Returns whether it is of a flow: ICMP and later fragments are not.
    #[inline]
    pub fn note(
        &self,
        recent: &mut Recent,
        packet: &[u8],
        inner: &InnerPacket,
        bytes: usize,
        from: Side,
        now: Instant,
    ) -> bool {
        if !inner.has_header || matches!(inner.protocol, ICMP | ICMPV6) {
            return false;
        }
        let payload = packet.get(inner.payload..).unwrap_or_default();
        let ports = match (inner.protocol, payload.first_chunk::<4>()) {
            (TCP | UDP | SCTP, Some(ports)) => u32::from_be_bytes(*ports),
            _ => 0,
        };
        // Both directions are one flow: near first.
        let (near, far, ports) = match from {
            Side::Near => (inner.source, inner.destination, ports),
            Side::Far => (inner.destination, inner.source, ports.rotate_left(16)),
        };
        let ([a, b], [c, d]) = (words(near), words(far));
        let key = [a, b, c, d, u64::from(ports) << 8 | u64::from(inner.protocol)];
        let place = match self.slots[recent.0].has(&key) {
            true => recent.0,
            false => self.place(&key, now),
        };
        recent.0 = place;
        let slot = &self.slots[place];
        let before = slot.last.load(Ordering::Relaxed);
        if inner.protocol == TCP {
            self.follow(slot, &key, payload, inner.length - inner.payload, from, now);
        } else if now.as_nanos().saturating_sub(before) > DATAGRAM_SILENCE.as_nanos() as u64 {
            slot.give(&key, now);
        }
        slot.last.store(now.as_nanos(), Ordering::Relaxed);
        let sum = &slot.bytes[from as usize];
        sum.store(sum.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
        true
    }

    /// Takes what a TCP header says of the connection's life. `length` is that of the segment.
    #[inline]
    fn follow(&self, slot: &Slot, key: &Key, payload: &[u8], length: usize, from: Side, now: Instant) {
        let Some(header) = payload.first_chunk::<14>() else { return };
        let flags = header[13];
        let state = slot.state.load(Ordering::Relaxed);
        let next = if flags & (SYN | ACK | RST) == SYN {
            // One that was heard of already begins anew; else it is the first one again.
            if state & (SPOKEN | RESET | FINISHED[0] | FINISHED[1]) != 0 {
                slot.give(key, now);
            }
            OPENED[from as usize]
        } else if flags & RST != 0 {
            state | RESET | SPOKEN
        } else if flags & FIN != 0 {
            state | FINISHED[from as usize] | SPOKEN
        } else if length > usize::from(header[12] >> 4) * 4 {
            // Data after a reset: the connection did not believe it (RFC 5961 §3), or its end sends another one.
            state & !RESET | SPOKEN
        } else {
            state | SPOKEN
        };
        if next != state {
            slot.state.store(next, Ordering::Relaxed);
        }
    }

    /// Finds the place of a flow, or gives it one.
    fn place(&self, key: &Key, now: Instant) -> usize {
        let hash = self.hasher.hash_one(key);
        let (set, tag) = (hash as usize % SETS, (hash >> 32) as u32 | 1);
        let tags = &self.tags[set].0;
        for (way, known) in tags.iter().enumerate() {
            let place = set * WAYS + way;
            if known.load(Ordering::Relaxed) == tag && self.slots[place].has(key) {
                return place;
            }
        }
        let mut victim = (Worth::Lasting, u64::MAX, 0);
        for way in 0..WAYS {
            let slot = &self.slots[set * WAYS + way];
            victim = victim.min((slot.worth(), slot.last.load(Ordering::Relaxed), way));
        }
        let (worth, _, way) = victim;
        if worth == Worth::Lasting {
            self.evicted.store(self.evicted.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        tags[way].store(tag, Ordering::Relaxed);
        let place = set * WAYS + way;
        self.slots[place].give(key, now);
        place
    }

    /// Reads all flows, those included that have ended and whose places nobody needed.
    pub fn read(&self) -> Vec<FlowReading> {
        self.slots.iter().filter_map(Slot::read).collect()
    }

    /// Bytes the table takes.
    pub fn size(&self) -> usize {
        size_of_val(&*self.tags) + size_of_val(&*self.slots)
    }

    /// How many long-lived flows had to make room for others while they may have been open.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

/// What it would cost to forget a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Nothing,
    Over,
    Brief,
    Lasting,
}

impl Slot {
    #[inline]
    fn has(&self, key: &Key) -> bool {
        let differs = |sum: u64, (mine, theirs): (&AtomicU64, &u64)| sum | (mine.load(Ordering::Relaxed) ^ theirs);
        // No key is all zeros: its protocol would be none that has ports, from nowhere.
        self.key.iter().zip(key).fold(0, differs) == 0
    }

    /// Makes it the place of a flow that begins.
    fn give(&self, key: &Key, now: Instant) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.key.iter().zip(key).for_each(|(mine, theirs)| mine.store(*theirs, Ordering::Relaxed));
        for zero in [&self.state, &self.bytes[0], &self.bytes[1]] {
            zero.store(0, Ordering::Relaxed);
        }
        for time in [&self.first, &self.last] {
            time.store(now.as_nanos(), Ordering::Relaxed);
        }
        self.version.store((version | 1) + 1, Ordering::Release);
    }

    fn worth(&self) -> Worth {
        let [state, first, last, version] =
            [&self.state, &self.first, &self.last, &self.version].map(|word| word.load(Ordering::Relaxed));
        match last.saturating_sub(first) {
            _ if version == 0 => Worth::Nothing,
            _ if has_ended(state) => Worth::Over,
            lasted if lasted < LONG_LIVED.as_nanos() as u64 => Worth::Brief,
            _ => Worth::Lasting,
        }
    }

    fn read(&self) -> Option<FlowReading> {
        let version = self.version.load(Ordering::Acquire);
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let key = std::array::from_fn(|at| word(&self.key[at]));
        let (state, first, last) = (word(&self.state), word(&self.first), word(&self.last));
        let [sent, received] = [word(&self.bytes[0]), word(&self.bytes[1])];
        fence(Ordering::Acquire);
        if version == 0 || version % 2 == 1 || self.version.load(Ordering::Relaxed) != version {
            // What is being made of it is seen the next time.
            return None;
        }
        let finished = FINISHED.map(|bit| state & bit != 0);
        Some(FlowReading {
            ends: ends(&key),
            opener: match OPENED.map(|bit| state & bit != 0) {
                [true, _] => Some(Side::Near),
                [_, true] => Some(Side::Far),
                _ => None,
            },
            ended: has_ended(state),
            half_closed: finished[0] != finished[1],
            first: Instant::from_nanos(first),
            last: Instant::from_nanos(last),
            sent,
            received,
        })
    }
}

fn has_ended(state: u64) -> bool {
    state & RESET != 0 || FINISHED.iter().all(|bit| state & bit != 0)
}

#[inline]
fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, 0xffff_0000_0000 | u64::from(u32::from(v4))],
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            [(bits >> 64) as u64, bits as u64]
        }
    }
}

fn ends(key: &Key) -> Ends {
    let address = |high: u64, low: u64| match (high, low >> 32) {
        (0, 0xffff) => IpAddr::V4(Ipv4Addr::from(low as u32)),
        _ => IpAddr::V6(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low))),
    };
    let [a, b, c, d, rest] = *key;
    let port = |shift: u32| (rest >> shift) as u16;
    Ends {
        near: SocketAddr::new(address(a, b), port(24)),
        far: SocketAddr::new(address(c, d), port(8)),
        protocol: rest as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::{packet, udp};
    use super::*;
    use proptest::prelude::*;

    const NEAR: &str = "10.77.0.1";
    const FAR: &str = "10.77.0.2";

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_000 + seconds * 1_000)
    }

    struct Table {
        flows: Flows,
        recent: [Recent; 2],
    }

    impl Table {
        fn new() -> Self {
            Table { flows: Flows::default(), recent: [Recent::default(); 2] }
        }

        fn bytes(&mut self, from: Side, packet: &[u8], second: u64) -> bool {
            let inner = InnerPacket::parse(packet).unwrap();
            self.flows.note(&mut self.recent[from as usize], packet, &inner, packet.len(), from, at(second))
        }

        /// A segment of the connection from a near port to MySQL's.
        fn tcp(&mut self, from: Side, port: u16, flags: u8, data: usize, second: u64) {
            let ports = [port.to_be_bytes(), 3306u16.to_be_bytes()];
            let (addresses, ports) = match from {
                Side::Near => ([NEAR, FAR], ports.concat()),
                Side::Far => ([FAR, NEAR], [ports[1], ports[0]].concat()),
            };
            let mut segment = [&ports[..], &[0; 16]].concat();
            (segment[12], segment[13]) = (5 << 4, flags);
            segment.extend(vec![7; data]);
            assert!(self.bytes(from, &packet(addresses[0], addresses[1], TCP, &segment), second));
        }

        fn only(&self) -> FlowReading {
            let read = self.flows.read();
            assert_eq!(read.len(), 1, "{read:?}");
            read[0]
        }
    }

    #[test]
    fn a_connection_is_one_flow_from_its_opening_to_its_end() {
        let mut table = Table::new();
        table.tcp(Side::Near, 4_000, SYN, 0, 0);
        table.tcp(Side::Far, 4_000, SYN | ACK, 0, 1);
        table.tcp(Side::Near, 4_000, ACK, 100, 2);
        table.tcp(Side::Far, 4_000, ACK, 1_000, 90);
        let open = table.only();
        assert_eq!(
            (open.ends.near, open.ends.far, open.ends.protocol),
            ("10.77.0.1:4000".parse().unwrap(), "10.77.0.2:3306".parse().unwrap(), TCP)
        );
        assert_eq!((open.opener, open.ended, open.half_closed), (Some(Side::Near), false, false));
        assert_eq!((open.first, open.last), (at(0), at(90)));
        assert_eq!((open.sent, open.received), (40 + 140, 40 + 1_040));
        table.tcp(Side::Near, 4_000, FIN | ACK, 0, 91);
        assert!(table.only().half_closed && !table.only().ended);
        table.tcp(Side::Far, 4_000, FIN | ACK, 0, 92);
        table.tcp(Side::Near, 4_000, ACK, 0, 93);
        assert!(table.only().ended && !table.only().half_closed);
    }

    #[test]
    fn a_port_used_again_is_another_connection() {
        let mut table = Table::new();
        table.tcp(Side::Far, 4_000, SYN, 0, 0);
        table.tcp(Side::Far, 4_000, SYN, 0, 3);
        assert_eq!((table.only().first, table.only().opener), (at(0), Some(Side::Far)), "a SYN sent again");
        table.tcp(Side::Near, 4_000, SYN | ACK, 0, 3);
        table.tcp(Side::Near, 4_000, RST, 0, 100);
        assert!(table.only().ended);
        table.tcp(Side::Far, 4_000, SYN, 0, 200);
        let again = table.only();
        assert_eq!((again.first, again.ended, again.sent, again.received), (at(200), false, 0, 40));
    }

    #[test]
    fn a_reset_that_is_not_believed_ends_nothing() {
        let mut table = Table::new();
        table.tcp(Side::Near, 4_000, ACK, 10, 0);
        table.tcp(Side::Far, 4_000, RST, 0, 1);
        assert!(table.only().ended);
        table.tcp(Side::Near, 4_000, ACK, 0, 1);
        assert!(table.only().ended, "nothing but an acknowledgement");
        table.tcp(Side::Near, 4_000, ACK, 10, 2);
        assert!(!table.only().ended);
        assert_eq!(table.only().opener, None, "its opening was not seen");
    }

    #[test]
    fn datagrams_that_come_again_after_a_long_silence_are_another_flow() {
        let mut table = Table::new();
        let datagram = packet("fd00::1", "fd00::2", UDP, &udp(53, b"x"));
        for (second, first) in [(0, 0), (600, 0), (1_201, 1_201), (1_202, 1_201)] {
            assert!(table.bytes(Side::Near, &datagram, second));
            assert_eq!(table.only().first, at(first), "at {second} s");
        }
    }

    #[test]
    fn echoes_and_later_fragments_are_no_flows() {
        let mut table = Table::new();
        assert!(!table.bytes(Side::Near, &packet(NEAR, FAR, ICMP, &[8; 16]), 0));
        assert!(!table.bytes(Side::Near, &packet("fd00::1", "fd00::2", ICMPV6, &[128; 16]), 0));
        let mut fragment = packet(NEAR, FAR, UDP, &[1; 16]);
        fragment[7] = 1;
        assert!(!table.bytes(Side::Near, &fragment, 0));
        assert!(table.flows.read().is_empty());
        // What has no ports has ends all the same.
        assert!(table.bytes(Side::Far, &packet(FAR, NEAR, 47, &[0; 8]), 0));
        assert_eq!(table.only().ends.far, "10.77.0.2:0".parse().unwrap());
    }

    #[test]
    fn what_lasts_is_kept_when_many_come_and_go() {
        let mut table = Table::new();
        for port in 0..100 {
            table.tcp(Side::Near, port, ACK, 1, 0);
            table.tcp(Side::Near, port, ACK, 1, 60);
        }
        for number in 0..20_000 {
            table.tcp(Side::Near, 10_000 + number, SYN, 0, 100 + u64::from(number));
        }
        let kept = table.flows.read().iter().filter(|flow| flow.ends.near.port() < 100).count();
        assert_eq!((kept, table.flows.evicted()), (100, 0));
        assert!(table.flows.read().len() <= MOST_FLOWS);
    }

    #[test]
    fn what_lasts_makes_room_last_and_is_counted() {
        let mut table = Table::new();
        let ports = 0..2 * MOST_FLOWS as u16;
        for port in ports.clone() {
            table.tcp(Side::Near, port, ACK, 1, u64::from(port));
            table.tcp(Side::Near, port, ACK, 1, u64::from(port) + 60);
        }
        let kept = table.flows.read();
        // Every flow is in the table or was counted; of each set, the ones that were silent longest had to go.
        assert_eq!(kept.len() as u64 + table.flows.evicted(), ports.len() as u64);
        assert!(kept.len() > MOST_FLOWS * 9 / 10, "{}", kept.len());
        let old = kept.iter().filter(|flow| usize::from(flow.ends.near.port()) < MOST_FLOWS / 2).count();
        assert!(old < MOST_FLOWS / 100, "{old}");
    }

    #[test]
    fn who_reads_meanwhile_sees_whole_flows() {
        // Each flow's ports, its protocol's bytes and its address say the same number.
        let flows = Flows::default();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut recent = Recent::default();
                for number in 0..60_000u32 {
                    let [_, _, high, low] = number.to_be_bytes();
                    let from = format!("10.1.{high}.{low}");
                    let bytes = packet(&from, "10.2.0.1", UDP, &[high, low, high, low, 0, 8, 0, 0]);
                    let inner = InnerPacket::parse(&bytes).unwrap();
                    flows.note(&mut recent, &bytes, &inner, number as usize, Side::Near, at(0));
                }
            });
            while !writer.is_finished() {
                for flow in flows.read() {
                    let port = flow.ends.near.port();
                    let [high, low] = port.to_be_bytes();
                    assert_eq!(flow.ends.near.ip(), IpAddr::from([10, 1, high, low]));
                    assert_eq!(flow.ends.far.port(), port);
                    assert!(flow.sent == u64::from(port) || flow.sent == 0, "{flow:?}");
                }
            }
        });
    }

    proptest! {
        #[test]
        fn any_packets_are_taken(packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 20..80), any::<bool>()), 0..50)) {
            let mut table = Table::new();
            let mut noted = 0;
            for (mut bytes, far) in packets {
                (bytes[0], bytes[2]) = (0x45, 0);
                bytes[3] = bytes[3].min(bytes.len() as u8);
                bytes[9] = if bytes[9] < 128 { TCP } else { bytes[9] };
                if let Ok(inner) = InnerPacket::parse(&bytes) {
                    let side = if far { Side::Far } else { Side::Near };
                    noted += usize::from(table.flows.note(&mut table.recent[0], &bytes, &inner, bytes.len(), side, at(1)));
                }
            }
            let flows = table.flows.read();
            prop_assert!(flows.len() <= noted && flows.is_empty() == (noted == 0));
        }
    }
}
