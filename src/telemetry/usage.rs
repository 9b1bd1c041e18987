//! Which long-lived connections use which link: the answer to "can this link go?".
//!
//! Fed with what the data threads have counted ([`Usage::take`]), it keeps what they cannot: connections that had to make room in
//! their tables, what was known before a restart, and what used a link last. A connection that is seen again with the same
//! ends is the same one, with its age, unless its opening was seen in between, or it was silent so long that it cannot be.

use crate::identity::NodeId;
use crate::time::{Instant, UnixTime};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Open connections kept: those of two shards' tables.
const MOST_OPEN: usize = 8_192;

/// Ended connections kept, the newest: several for each link of a small mesh, and the newest of a busy one.
const MOST_ENDED: usize = 1_024;

/// How long a connection lasts before it is kept: what ends sooner needs no link to stay.
const LONG_LIVED: Duration = Duration::from_secs(60);

/// How long a TCP connection may be silent before it is taken for gone, though its end was not seen: what Linux's connection
/// tracking waits (`nf_conntrack_tcp_timeout_established`).
const TCP_SILENCE: Duration = Duration::from_secs(5 * 86_400);

/// The same where one end has finished, as far as what the other still had to say takes (Linux: 60 s).
const HALF_CLOSED_SILENCE: Duration = Duration::from_secs(120);

/// The same for everything else, which has no end to be seen.
const OTHER_SILENCE: Duration = Duration::from_secs(600);

/// How long a connection that is kept alive may be silent (Linux's `tcp_keepalive_time`): beyond it, whether it still stands
/// is anybody's guess.
const KEPT_ALIVE: Duration = Duration::from_secs(7_200);

/// How long ago the last packet must be before a link without long-lived connections counts as unused: what comes each
/// minute or quarter of an hour was there by then.
const UNUSED: Duration = Duration::from_secs(3_600);

/// How long a link that was never used must have been watched for that to mean something.
const WATCHED: Duration = Duration::from_secs(86_400);

/// How long the last use of a link that is gone is remembered.
const REMEMBERED: Duration = Duration::from_secs(90 * 86_400);

const TCP: u8 = 6;

/// The ends of a connection, seen from its tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// The end on this side.
    pub near: SocketAddr,
    /// The end on the peer's side.
    pub far: SocketAddr,
    /// The IP protocol.
    pub protocol: u8,
}

/// What a data thread has counted of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which thread.
    pub shard: u8,
    /// Whose tunnel it crosses.
    pub node: NodeId,
    /// Its ends.
    pub ends: Ends,
    /// Whether the near end opened it; `None` where its opening was not seen.
    pub opened_near: Option<bool>,
    /// Whether its end was seen.
    pub ended: bool,
    /// Whether one end has finished.
    pub half_closed: bool,
    /// The first packet that was counted.
    pub first: Instant,
    /// The last one.
    pub last: Instant,
    /// Bytes into the tunnel since the first packet.
    pub sent: u64,
    /// Bytes out of it.
    pub received: u64,
}

/// A connection, open or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Whose tunnel it crosses.
    pub node: NodeId,
    /// Its ends.
    pub ends: Ends,
    /// Whether the near end opened it, where that is known.
    pub opened_near: Option<bool>,
    /// When it began, or was first seen.
    pub began: UnixTime,
    /// Its last packet.
    pub last: UnixTime,
    /// Bytes into the tunnel, at least.
    pub sent: u64,
    /// Bytes out of it, at least.
    pub received: u64,
}

/// What is known of one link's use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkUse {
    /// The peer's name when it was there last.
    pub name: String,
    /// Since when the link is watched.
    pub since: UnixTime,
    /// The last packet of any connection, however short.
    pub last: Option<UnixTime>,
    /// Whose it was, as far as it was seen.
    pub last_ends: Option<(Ends, Option<bool>)>,
}

/// Whether a link can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Something uses it.
    No,
    /// It cannot be told.
    Unsure,
    /// Nothing has used it for a while.
    Yes,
}

/// What is known of all links' use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    open: BTreeMap<(NodeId, Ends), Open>,
    ended: VecDeque<Open>,
    links: BTreeMap<NodeId, LinkUse>,
    /// Long-lived connections that found no room here.
    left_out: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Open {
    connection: Connection,
    half_closed: bool,
    /// What was taken of it already, by thread.
    taken: Vec<Taken>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Taken {
    shard: u8,
    first: Instant,
    sent: u64,
    received: u64,
}

impl Usage {
    /// Goes on from what was known before.
    pub fn resume(open: Vec<Connection>, ended: Vec<Connection>, links: BTreeMap<NodeId, LinkUse>) -> Usage {
        let known = |connection| Open { connection, half_closed: false, taken: Vec::new() };
        let keyed = |connection: Connection| ((connection.node, connection.ends), known(connection));
        let skipped = ended.len().saturating_sub(MOST_ENDED);
        Usage {
            open: open.into_iter().take(MOST_OPEN).map(keyed).collect(),
            ended: ended.into_iter().skip(skipped).map(known).collect(),
            links,
            left_out: 0,
        }
    }

    /// A link is there; `last` is the last packet of a connection since the start, if there was one.
    pub fn watch(&mut self, node: NodeId, name: &str, last: Option<UnixTime>, wall: UnixTime) {
        let fresh = || LinkUse { name: name.to_owned(), since: wall, last: None, last_ends: None };
        let link = self.links.entry(node).or_insert_with(fresh);
        link.last = link.last.max(last);
        if link.name != name {
            name.clone_into(&mut link.name);
        }
    }

    /// Takes what the data threads have counted by `now`, and forgets what cannot be open any more.
    pub fn take(&mut self, seen: impl IntoIterator<Item = Seen>, now: Instant, wall: UnixTime) {
        let mut newest: BTreeMap<NodeId, (Instant, Ends, Option<bool>)> = BTreeMap::new();
        for seen in seen {
            let last = newest.entry(seen.node).or_insert((seen.last, seen.ends, seen.opened_near));
            if seen.last > last.0 {
                *last = (seen.last, seen.ends, seen.opened_near);
            }
            self.take_one(&seen, now, wall);
        }
        for (node, (last, ends, opened_near)) in newest {
            let Some(link) = self.links.get_mut(&node) else { continue };
            let last = wall - now.saturating_since(last);
            // As good as the same second: a clock in whole seconds rounds either way.
            if link.last.is_none_or(|known| last + Duration::from_secs(1) >= known) {
                link.last = link.last.max(Some(last));
                link.last_ends = Some((ends, opened_near));
            }
        }
        let silent: Vec<_> = self.open.iter().filter(|(_, open)| open.is_gone(wall)).map(|(key, _)| *key).collect();
        for key in silent {
            self.end(key);
        }
        let open = &self.open;
        self.links.retain(|node, link| {
            let forgotten = wall.saturating_since(link.last.unwrap_or(link.since)) > REMEMBERED;
            !forgotten || open.range((*node, FIRST)..).next().is_some_and(|((of, _), _)| of == node)
        });
    }

    fn take_one(&mut self, seen: &Seen, now: Instant, wall: UnixTime) {
        let at = |instant: Instant| wall - now.saturating_since(instant);
        let key = (seen.node, seen.ends);
        if let Some(open) = self.open.get(&key) {
            // Its opening was seen, after what is known of it: the one before is over.
            if !open.knows(seen) && seen.opened_near.is_some() {
                self.end(key);
            }
        }
        if !self.open.contains_key(&key) {
            if seen.last.saturating_since(seen.first) < LONG_LIVED {
                return;
            }
            let is_it = |ended: &Open| (ended.connection.node, ended.connection.ends) == key && ended.knows(seen);
            let told = self.ended.iter().rposition(is_it);
            if told.is_some() && seen.ended {
                return;
            }
            if self.open.len() >= MOST_OPEN {
                self.left_out += 1;
                return;
            }
            let (node, ends, opened_near) = (seen.node, seen.ends, seen.opened_near);
            let (began, last, sent, received) = (at(seen.first), at(seen.last), 0, 0);
            let connection = Connection { node, ends, opened_near, began, last, sent, received };
            let fresh = Open { connection, half_closed: false, taken: Vec::new() };
            // What was taken for its end was not.
            let revived = told.and_then(|place| self.ended.remove(place));
            self.open.insert(key, revived.unwrap_or(fresh));
        }
        if let Some(open) = self.open.get_mut(&key) {
            open.take(seen, at(seen.last));
            if seen.ended {
                self.end(key);
            }
        }
    }

    fn end(&mut self, key: (NodeId, Ends)) {
        if let Some(open) = self.open.remove(&key) {
            self.ended.push_back(open);
            if self.ended.len() > MOST_ENDED {
                self.ended.pop_front();
            }
        }
    }

    /// What is known of a link's use.
    pub fn link(&self, node: NodeId) -> Option<&LinkUse> {
        self.links.get(&node)
    }

    /// The links, also those of members that are gone.
    pub fn links(&self) -> impl Iterator<Item = (NodeId, &LinkUse)> {
        self.links.iter().map(|(node, link)| (*node, link))
    }

    /// The long-lived connections of a link that are not known to have ended.
    pub fn open(&self, node: NodeId) -> impl Iterator<Item = &Connection> {
        let of = self.open.range((node, FIRST)..).take_while(move |((of, _), _)| *of == node);
        of.map(|(_, open)| &open.connection)
    }

    /// All of them.
    pub fn all_open(&self) -> impl Iterator<Item = &Connection> {
        self.open.values().map(|open| &open.connection)
    }

    /// The long-lived connections that ended, the oldest end first.
    pub fn ended(&self) -> impl DoubleEndedIterator<Item = &Connection> {
        self.ended.iter().map(|ended| &ended.connection)
    }

    /// How many long-lived connections found no room here.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Whether a link can go.
    pub fn verdict(&self, node: NodeId, wall: UnixTime) -> Verdict {
        let ago = |last: UnixTime| wall.saturating_since(last);
        let link = self.links.get(&node);
        let newest = self.open(node).map(|connection| connection.last).max();
        match (newest, link.and_then(|link| link.last)) {
            (Some(newest), _) if ago(newest) <= KEPT_ALIVE => Verdict::No,
            (_, Some(last)) if ago(last) < UNUSED => Verdict::No,
            (Some(_), _) => Verdict::Unsure,
            (None, Some(_)) => Verdict::Yes,
            (None, None) if link.is_some_and(|link| ago(link.since) >= WATCHED) => Verdict::Yes,
            (None, None) => Verdict::Unsure,
        }
    }
}

/// Below all others.
const FIRST: Ends = {
    let lowest = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
    Ends { near: lowest, far: lowest, protocol: 0 }
};

impl Open {
    /// Whether these counts are of the same place in the same thread as some that were taken before.
    fn knows(&self, seen: &Seen) -> bool {
        self.taken.iter().any(|taken| taken.shard == seen.shard && taken.first == seen.first)
    }

    fn take(&mut self, seen: &Seen, last: UnixTime) {
        let Taken { first, sent, received, .. } = Taken::of(seen);
        let before = self.taken.iter_mut().find(|taken| taken.shard == seen.shard);
        // The thread's counts go on, or began again at zero because it had given up the place in between.
        let (sent_before, received_before) = match &before {
            Some(taken) if taken.first == first => (taken.sent, taken.received),
            _ => (0, 0),
        };
        match before {
            Some(taken) => *taken = Taken::of(seen),
            None => self.taken.push(Taken::of(seen)),
        }
        self.connection.sent += sent.saturating_sub(sent_before);
        self.connection.received += received.saturating_sub(received_before);
        self.connection.last = self.connection.last.max(last);
        self.connection.opened_near = self.connection.opened_near.or(seen.opened_near);
        self.half_closed = seen.half_closed;
    }

    fn is_gone(&self, wall: UnixTime) -> bool {
        let patience = match (self.connection.ends.protocol, self.half_closed) {
            (TCP, true) => HALF_CLOSED_SILENCE,
            (TCP, false) => TCP_SILENCE,
            _ => OTHER_SILENCE,
        };
        wall.saturating_since(self.connection.last) > patience
    }
}

impl Taken {
    fn of(seen: &Seen) -> Taken {
        Taken { shard: seen.shard, first: seen.first, sent: seen.sent, received: seen.received }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DB: NodeId = NodeId::from_bytes([7; 16]);
    const WEB: NodeId = NodeId::from_bytes([8; 16]);
    const BOOT: u64 = 1_000_000;

    fn ends(port: u16) -> Ends {
        Ends { near: ([10, 77, 0, 1], port).into(), far: ([10, 77, 0, 2], 3_306).into(), protocol: TCP }
    }

    fn at(second: u64) -> Instant {
        Instant::from_millis(second * 1_000)
    }

    fn wall(second: u64) -> UnixTime {
        UnixTime::from_secs(BOOT + second)
    }

    fn seen(port: u16, first: u64, last: u64, bytes: u64) -> Seen {
        Seen {
            shard: 0,
            node: DB,
            ends: ends(port),
            opened_near: Some(true),
            ended: false,
            half_closed: false,
            first: at(first),
            last: at(last),
            sent: bytes,
            received: 2 * bytes,
        }
    }

    fn taken(usage: &mut Usage, second: u64, seen: &[Seen]) {
        let newest = seen.iter().map(|seen| seen.last).max();
        usage.watch(DB, "db1", newest.map(|last| wall(second) - at(second).saturating_since(last)), wall(second));
        usage.take(seen.iter().copied(), at(second), wall(second));
    }

    /// What a file would keep.
    fn restarted(usage: &Usage) -> Usage {
        let links = usage.links().map(|(node, link)| (node, link.clone())).collect();
        Usage::resume(usage.all_open().copied().collect(), usage.ended().copied().collect(), links)
    }

    #[test]
    fn only_what_lasts_is_kept_and_counted_once() {
        let mut usage = Usage::default();
        taken(&mut usage, 59, &[seen(1, 0, 59, 10), seen(2, 0, 1, 10)]);
        assert_eq!(usage.all_open().count(), 0);
        taken(&mut usage, 100, &[seen(1, 0, 99, 20), seen(2, 0, 1, 10)]);
        taken(&mut usage, 200, &[seen(1, 0, 199, 50)]);
        let open: Vec<_> = usage.open(DB).collect();
        assert_eq!(open.len(), 1);
        assert_eq!((open[0].began, open[0].last, open[0].sent, open[0].received), (wall(0), wall(199), 50, 100));
        assert_eq!(usage.verdict(DB, wall(200)), Verdict::No);
        assert_eq!(usage.open(WEB).count(), 0);
    }

    #[test]
    fn an_age_outlives_restarts_and_lost_places() {
        let mut usage = Usage::default();
        taken(&mut usage, 100, &[seen(1, 0, 100, 10)]);
        // The thread lost it, and met it again in mid-flow.
        let again = Seen { opened_near: None, ..seen(1, 150, 151, 5) };
        taken(&mut usage, 160, &[again]);
        let mut usage = restarted(&usage);
        let after = Seen { opened_near: None, ..seen(1, 300, 301, 7) };
        taken(&mut usage, 302, &[after]);
        let open: Vec<_> = usage.open(DB).collect();
        assert_eq!((open.len(), open[0].began, open[0].sent, open[0].opened_near), (1, wall(0), 22, Some(true)));
        assert_eq!(usage.ended().count(), 0);
    }

    #[test]
    fn the_same_ends_opened_again_are_another_connection() {
        let mut usage = Usage::default();
        taken(&mut usage, 100, &[seen(1, 0, 100, 10)]);
        let mut usage = restarted(&usage);
        taken(&mut usage, 300, &[seen(1, 200, 300, 7)]);
        let (open, ended): (Vec<_>, Vec<_>) = (usage.open(DB).collect(), usage.ended().collect());
        assert_eq!((open.len(), open[0].began, open[0].sent), (1, wall(200), 7));
        assert_eq!((ended.len(), ended[0].began, ended[0].last), (1, wall(0), wall(100)));
    }

    #[test]
    fn an_end_is_told_once_however_long_its_place_is_kept() {
        let mut usage = Usage::default();
        taken(&mut usage, 100, &[seen(1, 0, 100, 10)]);
        let over = Seen { ended: true, ..seen(1, 0, 110, 20) };
        for second in [120, 180, 240] {
            taken(&mut usage, second, &[over]);
        }
        assert_eq!((usage.open(DB).count(), usage.ended().count()), (0, 1));
        assert_eq!(usage.ended().next().unwrap().sent, 20);
        // A reset that the connection did not believe.
        taken(&mut usage, 300, &[seen(1, 0, 290, 30)]);
        let open: Vec<_> = usage.open(DB).collect();
        assert_eq!((open.len(), open[0].began, open[0].sent, usage.ended().count()), (1, wall(0), 30, 0));
        // One that began and ended between two looks.
        let mut brief = Usage::default();
        taken(&mut brief, 120, &[over]);
        assert_eq!((brief.open(DB).count(), brief.ended().count()), (0, 1));
    }

    #[test]
    fn a_link_can_go_when_nothing_has_used_it_for_a_while() {
        let (hour, day) = (3_600, 86_400);
        let mut usage = Usage::default();
        taken(&mut usage, 0, &[]);
        assert_eq!(usage.verdict(DB, wall(60)), Verdict::Unsure, "watched for a minute");
        assert_eq!(usage.verdict(DB, wall(day)), Verdict::Yes, "watched for a day");
        assert_eq!(usage.verdict(WEB, wall(day)), Verdict::Unsure, "not known");
        taken(&mut usage, 100, &[seen(1, 0, 100, 10)]);
        assert_eq!(usage.verdict(DB, wall(2 * hour)), Verdict::No);
        assert_eq!(usage.verdict(DB, wall(3 * hour)), Verdict::Unsure, "silent longer than what is kept alive");
        taken(&mut usage, 6 * day, &[]);
        assert_eq!(usage.verdict(DB, wall(6 * day)), Verdict::Yes, "gone without a word");
        assert_eq!(usage.link(DB).unwrap().last, Some(wall(100)));
        // Short ones need it too.
        taken(&mut usage, 6 * day + 10, &[seen(2, 6 * day + 9, 6 * day + 10, 1)]);
        assert_eq!(usage.verdict(DB, wall(6 * day + 20)), Verdict::No);
        assert_eq!(usage.link(DB).unwrap().last_ends, Some((ends(2), Some(true))));
        assert_eq!(usage.verdict(DB, wall(6 * day + hour + 10)), Verdict::Yes);
        assert_eq!(restarted(&usage).verdict(DB, wall(6 * day + hour + 10)), Verdict::Yes);
    }

    #[test]
    fn half_closed_and_datagrams_are_gone_sooner() {
        let mut usage = Usage::default();
        let half = Seen { half_closed: true, ..seen(1, 0, 100, 1) };
        let mut datagrams = seen(2, 0, 100, 1);
        datagrams.ends.protocol = 17;
        for (second, open) in [(101, 2), (221, 1), (701, 0)] {
            taken(&mut usage, second, &[half, datagrams]);
            assert_eq!(usage.open(DB).count(), open, "at {second} s");
        }
    }

    #[test]
    fn it_is_bounded_and_says_so() {
        let mut usage = Usage::default();
        let many: Vec<Seen> = (0..MOST_OPEN as u16 + 5).map(|port| seen(port, 0, 100, 1)).collect();
        taken(&mut usage, 100, &many);
        assert_eq!((usage.all_open().count(), usage.left_out()), (MOST_OPEN, 5));
        let over: Vec<Seen> = many.iter().map(|seen| Seen { ended: true, last: at(101), ..*seen }).collect();
        taken(&mut usage, 101, &over);
        assert_eq!((usage.all_open().count(), usage.ended().count()), (0, MOST_ENDED));
    }

    #[test]
    fn a_member_that_is_gone_is_forgotten_after_a_season() {
        let mut usage = Usage::default();
        taken(&mut usage, 100, &[seen(1, 99, 100, 10)]);
        usage.take([], at(100 + 90 * 86_400), wall(100 + 90 * 86_400));
        assert!(usage.link(DB).is_some());
        usage.take([], at(101 + 90 * 86_400), wall(101 + 90 * 86_400));
        assert!(usage.link(DB).is_none());
    }

    proptest! {
        #[test]
        fn bytes_are_never_counted_twice(steps in prop::collection::vec((0u64..100, 0u64..1_000), 1..30)) {
            // A thread's counts that only rise, looked at now and then.
            let (mut usage, mut second, mut bytes) = (Usage::default(), 60, 0);
            for (pause, more) in steps {
                (second, bytes) = (second + pause, bytes + more);
                taken(&mut usage, second, &[seen(1, 0, second, bytes)]);
            }
            let open: Vec<_> = usage.open(DB).collect();
            prop_assert_eq!((open.len(), open[0].sent, open[0].last), (1, bytes, wall(second)));
        }
    }
}
