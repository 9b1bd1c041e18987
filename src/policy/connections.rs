//! The conversations that this side began: their answers pass without a rule.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::flow::{Flags, Flow, TCP};
use crate::time::Instant;

/// Sets of the table, each with a lock of its own. 65,536 conversations in all: twice the ports that one client has for
/// one server (Linux: 28,232), in 6 MB that are taken only where there are rules.
const SETS: usize = 8_192;

/// Conversations of one set. At half load, one set in fifty thousand would want more.
const WAYS: usize = 8;

/// How long an unanswered attempt is remembered: longer than Linux goes on trying to connect (127 s).
const OPENING: Duration = Duration::from_secs(150);

/// How long an established connection may be silent: pools of databases are, for days (netfilter: five).
const ESTABLISHED: Duration = Duration::from_secs(5 * 86_400);

/// How long a connection that is being closed is remembered: two maximum segment lifetimes of a minute (Linux).
const CLOSING: Duration = Duration::from_secs(120);

/// How long answers may follow a question of UDP, ICMP or anything without connections: what NATs give at least that
/// work well with DNS, NTP and QUIC (RFC 4787 REQ-5).
const DATAGRAMS: Duration = Duration::from_secs(120);

/// For how long after the table was made connections of networks behind this node are taken up in mid-flow: whoever was
/// cut off by a restart sends again within this time (Linux's longest pause between retransmissions).
const TAKING_UP: Duration = Duration::from_secs(120);

/// What leaves.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    /// Who sends to whom.
    pub flow: Flow,
    /// TCP's flags; none for everything else.
    pub flags: Flags,
    /// Whether it comes from behind this node, so that its connections cannot be read from this host's kernel.
    pub forwarded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Established,
    Closing,
    Datagrams,
}

impl Phase {
    const fn patience(self) -> Duration {
        match self {
            Phase::Opening => OPENING,
            Phase::Established => ESTABLISHED,
            Phase::Closing => CLOSING,
            Phase::Datagrams => DATAGRAMS,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Conversation {
    /// As this side sends.
    flow: Flow,
    phase: Phase,
    heard: Instant,
}

impl Conversation {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_since(self.heard) > self.phase.patience()
    }

    fn advance(&mut self, flags: Flags, now: Instant) {
        self.heard = now;
        if self.flow.protocol == TCP && flags.has(Flags::FIN | Flags::RST) {
            self.phase = Phase::Closing;
        }
    }
}

/// The table. Only what leaves makes entries, so that no member can fill it; where a set is full, the one goes of which
/// nothing was heard for longest.
#[derive(Debug)]
pub struct Connections {
    sets: Box<[Mutex<[Option<Conversation>; WAYS]>]>,
    made: Instant,
}

impl Connections {
    /// Conversations at most.
    pub const LIMIT: usize = SETS * WAYS;

    /// Makes an empty table.
    pub fn new(now: Instant) -> Self {
        Connections { sets: (0..SETS).map(|_| Mutex::new([None; WAYS])).collect(), made: now }
    }

    /// Notes what leaves. `answers` tells whether it may be the answer to what a rule let in: that needs no entry, and with
    /// one it would outlive its rule.
    ///
    /// A TCP connection begins with its SYN. What is in mid-flow is taken up only for those whose state nobody here knows,
    /// and only in the table's first two minutes: later it is the remainder of what a rule allowed once.
    pub fn note(&self, departure: &Departure, now: Instant, answers: impl FnOnce(&Flow) -> bool) {
        let Departure { flow, flags, forwarded } = *departure;
        let mut set = self.set(&flow);
        if let Some(known) = set.iter_mut().flatten().find(|known| known.flow == flow && !known.is_over(now)) {
            known.advance(flags, now);
            if flow.protocol == TCP && flags.begins() {
                known.phase = Phase::Opening;
            }
            return;
        }
        drop(set);
        let phase = if flow.protocol != TCP {
            if answers(&flow.reversed()) {
                return;
            }
            Phase::Datagrams
        } else if flags.begins() {
            Phase::Opening
        } else {
            let young = now.saturating_since(self.made) <= TAKING_UP;
            let in_flow = !flags.has(Flags::SYN | Flags::RST);
            if !(forwarded && young && in_flow) || answers(&flow.reversed()) {
                return;
            }
            Phase::Established
        };
        self.insert(Conversation { flow, phase, heard: now }, now);
    }

    /// Enters an established TCP connection that this host opened, as its kernel knows it; `flow` is its way out.
    pub fn take_up(&self, flow: Flow, now: Instant) {
        self.insert(Conversation { flow, phase: Phase::Established, heard: now }, now);
    }

    /// Tells whether what came belongs to a conversation of this side, and notes that it came.
    pub fn passes(&self, flow: &Flow, flags: Flags, now: Instant) -> bool {
        let out = flow.reversed();
        let mut set = self.set(&out);
        let Some(known) = set.iter_mut().flatten().find(|known| known.flow == out && !known.is_over(now)) else {
            return false;
        };
        known.advance(flags, now);
        if known.phase == Phase::Opening && flags.has(Flags::ACK) {
            known.phase = Phase::Established;
        }
        true
    }

    /// Tells whether an error about `flow`, which this side is said to have sent, is about a conversation of it.
    pub fn knows(&self, flow: &Flow, now: Instant) -> bool {
        self.set(flow).iter().flatten().any(|known| known.flow == *flow && !known.is_over(now))
    }

    /// Counts the conversations that are remembered.
    pub fn count(&self, now: Instant) -> usize {
        let live = |set: &Mutex<[Option<Conversation>; WAYS]>| {
            locked(set).iter().flatten().filter(|known| !known.is_over(now)).count()
        };
        self.sets.iter().map(live).sum()
    }

    fn insert(&self, conversation: Conversation, now: Instant) {
        let mut set = self.set(&conversation.flow);
        // The same one first, so that none is there twice; then what is free or over; then the one silent for longest.
        let rank = |way: &Option<Conversation>| match way {
            Some(known) if known.flow == conversation.flow => (0, now),
            Some(known) if !known.is_over(now) => (2, known.heard),
            _ => (1, now),
        };
        if let Some(way) = set.iter_mut().min_by_key(|way| rank(way)) {
            *way = Some(conversation);
        }
    }

    fn set(&self, flow: &Flow) -> MutexGuard<'_, [Option<Conversation>; WAYS]> {
        // Whoever chooses the flows is this host itself, so the function need not be secret.
        let mut hasher = DefaultHasher::new();
        flow.hash(&mut hasher);
        locked(&self.sets[hasher.finish() as usize % SETS])
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::flow::UDP;
    use super::*;

    const ACK: Flags = Flags(Flags::ACK);
    const SYN: Flags = Flags(Flags::SYN);

    fn flow(protocol: u8, port: u16) -> Flow {
        let (source, destination) = ("10.1.0.1".parse().unwrap(), "10.1.0.2".parse().unwrap());
        Flow { source, destination, protocol, source_port: port, destination_port: 3_306 }
    }

    fn leaves(table: &Connections, flow: Flow, flags: Flags, now: Instant) {
        table.note(&Departure { flow, flags, forwarded: false }, now, |_| false);
    }

    #[test]
    fn answers_pass_for_as_long_as_their_conversation_lasts() {
        let now = Instant::from_millis(1_000_000);
        let table = Connections::new(now);
        let (tcp, udp) = (flow(TCP, 40_000), flow(UDP, 40_000));
        assert!(!table.passes(&tcp.reversed(), ACK, now));
        leaves(&table, tcp, SYN, now);
        leaves(&table, udp, Flags::default(), now);
        assert!(!table.passes(&tcp, ACK, now), "the same direction is no answer");
        assert!(table.passes(&udp.reversed(), Flags::default(), now + Duration::from_secs(119)));
        assert!(!table.passes(&udp.reversed(), Flags::default(), now + Duration::from_secs(240)));
        // Unanswered, the attempt is forgotten; answered, it lasts for days.
        assert!(!table.passes(&tcp.reversed(), ACK, now + Duration::from_secs(151)));
        leaves(&table, tcp, SYN, now);
        assert!(table.passes(&tcp.reversed(), Flags(Flags::SYN | Flags::ACK), now));
        let later = now + Duration::from_secs(4 * 86_400);
        assert!(table.passes(&tcp.reversed(), ACK, later));
        assert!(table.passes(&tcp.reversed(), Flags(Flags::FIN | Flags::ACK), later));
        assert!(table.passes(&tcp.reversed(), ACK, later + Duration::from_secs(60)));
        assert!(!table.passes(&tcp.reversed(), ACK, later + Duration::from_secs(181)));
    }

    #[test]
    fn what_a_rule_let_in_makes_no_entry_and_outlives_it_not() {
        let now = Instant::from_millis(1_000_000);
        let table = Connections::new(now);
        // This host as a server: what it sends are answers.
        let served = flow(TCP, 3_306);
        for flags in [Flags(Flags::SYN | Flags::ACK), ACK, Flags(Flags::RST)] {
            leaves(&table, served, flags, now);
        }
        let answered = Departure { flow: flow(UDP, 53), flags: Flags::default(), forwarded: false };
        table.note(&answered, now, |_| true);
        let behind = Departure { flow: served, flags: ACK, forwarded: true };
        table.note(&behind, now, |_| true);
        table.note(&behind, now + Duration::from_secs(121), |_| false);
        assert_eq!(table.count(now), 0);
        // In mid-flow, from behind this node, after a restart.
        table.note(&behind, now, |_| false);
        assert!(table.passes(&served.reversed(), ACK, now));
    }

    #[test]
    fn the_table_is_bounded_and_the_longest_silent_goes() {
        let start = Instant::from_millis(1_000_000);
        let table = Connections::new(start);
        let mut now = start;
        for number in 0..200_000u32 {
            now += Duration::from_millis(1);
            let source = std::net::Ipv4Addr::from(0x0a01_0000 | number >> 8).into();
            let flow = Flow { source, source_port: 1_024 + (number & 0xff) as u16, ..flow(UDP, 0) };
            leaves(&table, flow, Flags::default(), now);
            assert!(table.passes(&flow.reversed(), Flags::default(), now), "the newest is always there");
        }
        let count = table.count(now);
        assert!(count <= Connections::LIMIT && count > Connections::LIMIT * 9 / 10, "{count}");
    }

    #[test]
    fn a_connection_read_from_the_kernel_is_there_once() {
        let now = Instant::from_millis(1_000_000);
        let table = Connections::new(now);
        let known = flow(TCP, 40_000);
        table.take_up(known, now);
        table.take_up(known, now);
        assert_eq!(table.count(now), 1);
        assert!(table.passes(&known.reversed(), ACK, now + Duration::from_secs(86_400)));
        assert!(table.knows(&known, now) && !table.knows(&known.reversed(), now));
    }
}
