//! The ways to a peer: which there are, what is known of each, which one to take.
//!
//! A link whose peer has one address, reached from one of ours, has one path, and nothing here costs anything. Where there
//! are more, each is probed inside the tunnel, by datagrams that leave from that address for that endpoint and are answered
//! by the way they came: seldom while the link answers, all at once when it falls silent. The choice is a pure function of
//! what was measured ([`Paths::choose`]): a path that is silent is left as soon as another has answered since; a path that is
//! merely slower is left late, and the more reluctantly the more often that has happened lately.
//!
//! A relay is a way for trouble: relays are looked at while the direct ways are silent or one of them is in use. Then the best
//! of them is kept to by the same measures as else, and left again when a direct way answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::RngCore;

use super::candidate::Entry;
pub use super::candidate::LOSS_COST;
use super::condition::Condition;
use super::probe::jittered;
use crate::identity::NodeId;
use crate::time::Instant;

/// One way for a link's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Straight to the peer.
    Direct {
        /// The peer's endpoint.
        remote: SocketAddr,
        /// The address of ours; `None` leaves the choice to the kernel, which has only one of that family.
        local: Option<IpAddr>,
    },
    /// Through another member, which passes on what it cannot read.
    Relay {
        /// The member.
        via: NodeId,
    },
}

impl Path {
    /// The path to an endpoint from the address that the kernel chooses.
    pub fn to(remote: SocketAddr) -> Path {
        Path::Direct { remote, local: None }
    }

    /// The peer's endpoint, of a direct path.
    pub fn remote(self) -> Option<SocketAddr> {
        match self {
            Path::Direct { remote, .. } => Some(remote),
            Path::Relay { .. } => None,
        }
    }

    /// The address of ours, where it is part of the path.
    pub fn local(self) -> Option<IpAddr> {
        match self {
            Path::Direct { local, .. } => local,
            Path::Relay { .. } => None,
        }
    }

    /// The member that passes on, of a relayed path.
    pub fn via(self) -> Option<NodeId> {
        match self {
            Path::Direct { .. } => None,
            Path::Relay { via } => Some(via),
        }
    }
}

/// Direct paths to one peer that are looked at: two addresses of each family on both sides make eight.
pub const MOST_PATHS: usize = 16;
/// Relays that are looked at: the one in use, and two more that are known to answer when it does not.
pub const MOST_RELAYS: usize = 3;
/// Looks that a relay may leave unanswered before it makes room for the next.
const RELAY_TRIES: u32 = 3;
/// Time between two looks at a path while the link answers: what is to be chosen in trouble shall have answered lately, and
/// eight paths then cost as much as a fifth of the link's own probes.
const CALM_PAUSE: Duration = Duration::from_secs(30);
/// Time between two looks while the link is silent: the first answer decides.
const SILENT_PAUSE: Duration = Duration::from_millis(250);
/// Time between two looks at a link that has been silent for a minute.
const LONG_SILENT_PAUSE: Duration = Duration::from_secs(3);
/// When a link counts as silent for long.
const LONG_SILENT_AFTER: Duration = Duration::from_secs(60);
/// Time between two looks at a direct path while a relay is in use, for a minute: most troubles are over soon.
const RETURN_PAUSE: Duration = Duration::from_secs(1);
/// The same from then on, and for the relays that are not in use.
const WARM_PAUSE: Duration = Duration::from_secs(5);
/// How long a relay is in use before its direct paths are looked at less often.
const SOON: Duration = Duration::from_secs(60);
/// How long a look may be answered.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Shortest time between two looks at a path that the peer seems to have moved to, so that copied packets cannot make us
/// spray.
const MOVE_PAUSE: Duration = Duration::from_millis(200);
/// How long the path in use may take to answer a look when it is in doubt, or two round trips where that is longer: ten times what
/// a busy host takes to answer, and two of them make the shortest pause after which the kernel sends a segment again.
const DOUBT: Duration = Duration::from_millis(100);
/// Silence of a relay after which not this one path is taken to have died, but the network: as many looks as are seldom lost.
const WHOLE_SILENCE: Duration = Duration::from_secs(1);
/// Looks at the path in use before the peer's word counts more, at most: on a path that loses much, most of them get lost.
const MOST_DOUBT_TRIES: u32 = 4;
/// A path must have answered so many looks before it is preferred to one that works.
const LOOKS_TO_PREFER: u32 = 5;
/// It must be better at so many looks in a row: a minute and a half. A direct path must answer as many before the relay is left,
/// twice as many after each time that this was premature.
const LOOKS_IN_ROW: u32 = 3;
/// How long a preferred path is kept; doubled with each change of preference within [`FLIPS_FORGOTTEN`].
const SHORTEST_STAY: Duration = Duration::from_secs(60);
/// Longest time that a preferred path is kept for having changed too often.
const LONGEST_STAY: Duration = Duration::from_secs(600);
/// When earlier changes of preference are forgotten.
const FLIPS_FORGOTTEN: Duration = Duration::from_secs(3600);

/// A look at a path: a request to be sent by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The path.
    pub path: Path,
    /// The request's number, to be told from others by.
    pub number: u32,
}

/// Why the path in use is the one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The newest session was made there.
    Session,
    /// The peer moved there and answered a challenge.
    Moved,
    /// The one before fell silent, and this one answered.
    Silence,
    /// It is better by more than the hysteresis.
    Better,
    /// It is direct and answers again; the one before was a relay.
    Direct,
}

/// What is known of a path, to be shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathView {
    /// The path.
    pub path: Path,
    /// Whether packets take it.
    pub in_use: bool,
    /// The round trip by it, smoothed; by the link's own probes where it is in use.
    pub rtt: Option<Duration>,
    /// Looks that were answered, of those remembered.
    pub answered: u32,
    /// Looks that are remembered; at most 20.
    pub looks: u32,
    /// When it answered last.
    pub heard: Option<Instant>,
    /// What it costs, for the choice: its round trip, and its loss in retransmission time-outs.
    pub cost: Option<Duration>,
}

/// The paths to one peer.
#[derive(Debug, Default)]
pub struct Paths {
    /// Whether the peer's choice is followed. One of the two ends decides, so that they do not chase each other.
    follows: bool,
    /// The endpoints that the peer's own record names.
    announced: Vec<SocketAddr>,
    entries: Vec<Entry>,
    current: Option<(Path, Reason)>,
    /// When the path in use became it.
    since: Option<Instant>,
    /// No change of preference before.
    stay_until: Option<Instant>,
    /// Changes of preference that are not forgotten.
    flips: u32,
    flipped: Option<Instant>,
    doubt: Option<Doubt>,
    unanswered: Option<Unanswered>,
    /// Until when the peer's new place may answer, on the node that follows it.
    following: Option<Instant>,
    /// Until when a direct path may answer after the first relay did.
    awaited: Option<Instant>,
    /// Whether the link was silent when it was looked at last.
    silent: bool,
    /// The place among the relays offered from which the next one is taken.
    next_relay: usize,
}

/// The host's connections send the same again and hear nothing, though no probe was missed yet: is the path in use good?
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    since: Instant,
    /// When the path in use should have answered; `None` once that was looked at.
    until: Option<Instant>,
}

/// The peer uses another of its places than we do: is ours still good?
#[derive(Clone, Copy, Debug)]
struct Doubt {
    other: Path,
    since: Instant,
    /// When the path in use should have answered.
    until: Instant,
    /// Looks that it has not answered yet.
    tries: u32,
    /// How many of them decide.
    needed: u32,
}

impl Paths {
    /// Starts without any. `follows` is true on the node with the higher id.
    pub fn new(follows: bool) -> Paths {
        Paths { follows, ..Paths::default() }
    }

    /// The path in use.
    pub fn current(&self) -> Option<Path> {
        self.current.map(|(path, _)| path)
    }

    /// The path in use, why it is, and since when.
    pub fn chosen(&self) -> Option<(Path, Reason, Instant)> {
        self.current.zip(self.since).map(|((path, reason), since)| (path, reason, since))
    }

    /// Takes over which endpoints the peer has and which addresses this node has. What is known of paths that stay is kept;
    /// those that came are looked at as soon as there is another one to compare them with.
    ///
    /// `announced` are the endpoints that the peer itself names, `configured` those of this node's configuration.
    pub fn set(&mut self, announced: &[SocketAddr], configured: &[SocketAddr], locals: &[IpAddr], now: Instant) {
        self.announced = announced.to_vec();
        let old = std::mem::take(&mut self.entries);
        let known = |path: Path| old.iter().find(|entry| entry.path == path).cloned();
        for remote in announced.iter().chain(configured) {
            for local in sources(*remote, locals) {
                let path = Path::Direct { remote: *remote, local };
                let entry = known(path).map(|entry| Entry { observed: false, ..entry });
                self.add(entry.unwrap_or_else(|| Entry::new(path, false, now)));
            }
        }
        // What was seen stays for as long as it answers, from an address that is still there.
        let current = self.current();
        for entry in old {
            let relayed = entry.path.via().is_some();
            let kept = relayed || entry.observed || current == Some(entry.path);
            if kept && entry.path.local().is_none_or(|local| locals.contains(&local)) {
                self.add(Entry { observed: !relayed, ..entry });
            }
        }
    }

    /// Takes over through which members the link could go, the nearest first. Those that were offered before and are not any
    /// more are forgotten, and those that do not answer make room for others.
    pub fn offer_relays(&mut self, candidates: &[NodeId], now: Instant) {
        let current = self.current();
        let more = candidates.len() > MOST_RELAYS;
        self.entries.retain(|entry| {
            let Some(via) = entry.path.via() else { return true };
            let mute = entry.looks >= RELAY_TRIES && entry.fates == 0;
            current == Some(entry.path) || candidates.contains(&via) && !(mute && more)
        });
        for _ in 0..candidates.len() {
            if self.count(true) >= MOST_RELAYS {
                break;
            }
            let via = candidates[self.next_relay % candidates.len()];
            self.next_relay = self.next_relay.wrapping_add(1);
            self.add(Entry::new(Path::Relay { via }, false, now));
        }
    }

    /// A member is no relay any more. Returns the path to take instead, where its was in use and another is known.
    pub fn forget_relay(&mut self, via: NodeId) -> Option<Path> {
        self.entries.retain(|entry| entry.path.via() != Some(via));
        self.current().filter(|current| current.via() == Some(via))?;
        let order = |entry: &&Entry| (std::cmp::Reverse(entry.heard), entry.path);
        self.entries.iter().min_by_key(order).map(|entry| entry.path)
    }

    /// Notes a path by which an authentic packet came.
    pub fn observe(&mut self, path: Path, now: Instant) {
        // The oldest that was only seen makes room: a peer behind a changing NAT leaves many behind.
        let relayed = path.via().is_some();
        let (most, current) = (if relayed { MOST_RELAYS } else { MOST_PATHS }, self.current());
        let spare = |entry: &Entry| match relayed {
            true => entry.path.via().is_some() && current != Some(entry.path),
            false => entry.observed,
        };
        if self.count(relayed) >= most
            && self.entry(path).is_none()
            && let Some(oldest) = self.entries.iter().position(spare)
        {
            self.entries.remove(oldest);
        }
        self.add(Entry::new(path, !relayed, now));
    }

    fn add(&mut self, entry: Entry) {
        let relayed = entry.path.via().is_some();
        let most = if relayed { MOST_RELAYS } else { MOST_PATHS };
        if self.count(relayed) < most && self.entry(entry.path).is_none() {
            self.entries.push(entry);
        }
    }

    /// How many of the paths are relayed, or direct.
    fn count(&self, relayed: bool) -> usize {
        self.entries.iter().filter(|entry| entry.path.via().is_some() == relayed).count()
    }

    /// Whether relays are looked at now.
    fn watches_relays(&self) -> bool {
        self.silent || self.is_doubted() || self.current().is_some_and(|path| path.via().is_some())
    }

    /// Packets take this path from now on.
    pub fn take(&mut self, path: Path, reason: Reason, now: Instant) {
        if self.current() != Some(path) {
            self.since = Some(now);
            self.next_relay = 0;
            self.entries.iter_mut().for_each(|entry| entry.better = 0);
            (self.unanswered, self.following) = (None, None);
        }
        self.current = Some((path, reason));
        self.observe(path, now + CALM_PAUSE);
    }

    /// Connections to the peer send again what they sent, and nothing is heard of it, while its probes are not missed yet:
    /// looks at every path, so that a dead one is left without waiting for a probe to be missed.
    pub fn on_unanswered(&mut self, condition: &Condition, now: Instant) {
        if self.entries.len() > 1 && self.unanswered.is_none() && condition.silent_since.is_none() {
            let patience = answer_due(condition).max(condition.patience());
            self.unanswered = Some(Unanswered { since: now, until: Some(now + patience) });
            self.look_now(condition, now);
        }
    }

    /// Whether packets may be lost on the path in use because it is dead, or because the peer has left it.
    pub fn is_doubted(&self) -> bool {
        self.doubt.is_some() || self.unanswered.is_some() || self.following.is_some()
    }

    /// The link fell silent, or something about the ways may have changed (an address of ours, a route): look at all of them
    /// now.
    pub fn look_now(&mut self, condition: &Condition, now: Instant) {
        self.silent = condition.silent_since.is_some();
        self.entries.iter_mut().for_each(|entry| entry.next = now);
    }

    /// Returns when [`Paths::handle_timeout`] wants to be called; `None` where there is nothing to choose from.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let relays = self.watches_relays();
        let next = |entry: &Entry| (relays || entry.path.via().is_none()).then_some(entry.next);
        let expiry = |entry: &Entry| entry.open.front().map(|(_, sent)| *sent + ANSWER_WITHIN);
        let times = self.entries.iter().flat_map(|entry| [next(entry), expiry(entry)]).flatten();
        let judged = self.unanswered.and_then(|unanswered| unanswered.until);
        let first = times.chain(self.doubt.map(|doubt| doubt.until)).chain(judged).chain(self.following);
        let first = first.chain(self.awaited).min();
        first.filter(|_| self.has_choice())
    }

    fn has_choice(&self) -> bool {
        self.count(false) + if self.watches_relays() { self.count(true) } else { 0 } > 1
    }

    /// Returns the looks that are due.
    pub fn handle_timeout(&mut self, condition: &Condition, now: Instant, rng: &mut impl RngCore) -> Vec<Look> {
        self.silent = condition.silent_since.is_some();
        if !self.has_choice() {
            return Vec::new();
        }
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.until = unanswered.until.filter(|until| now < *until);
            if now.saturating_since(unanswered.since) >= ANSWER_WITHIN {
                // By now the probes know better.
                self.unanswered = None;
            }
        }
        self.following = self.following.filter(|until| now < *until);
        self.awaited = self.awaited.filter(|until| now < *until);
        let unanswered = self.unanswered.map(|unanswered| unanswered.since);
        let (relays, relayed) = (self.watches_relays(), self.current().is_some_and(|path| path.via().is_some()));
        let soon = self.since.is_some_and(|since| now.saturating_since(since) < SOON);
        let pause = |path: Path| match condition.silent_since.or(unanswered) {
            None if relayed && path.via().is_none() && soon => RETURN_PAUSE,
            None if relayed => WARM_PAUSE,
            None => CALM_PAUSE,
            Some(since) if now.saturating_since(since) < LONG_SILENT_AFTER => SILENT_PAUSE,
            Some(_) => LONG_SILENT_PAUSE,
        };
        let mut looks = Vec::new();
        if let Some(doubt) = self.doubt.as_mut().filter(|doubt| now >= doubt.until && doubt.tries < doubt.needed) {
            doubt.tries += 1;
            doubt.until = now + doubt.until.saturating_since(doubt.since) / (doubt.tries - 1);
            let current = self.current.map(|(path, _)| path);
            looks.extend(
                self.entries.iter_mut().find(|entry| Some(entry.path) == current).map(|used| used.look(now, rng)),
            );
        }
        for entry in &mut self.entries {
            while entry.open.front().is_some_and(|(_, sent)| now >= *sent + ANSWER_WITHIN) {
                entry.open.pop_front();
                entry.remember(false);
            }
            if now >= entry.next && (relays || entry.path.via().is_none()) {
                entry.next = now + jittered(pause(entry.path), rng);
                looks.push(entry.look(now, rng));
            }
        }
        looks
    }

    /// An authentic packet of the peer came by `path`, which is not the one in use: the peer may have moved, or found the one
    /// in use to be dead. Returns the looks that find out, none where there was one just now.
    pub fn on_move(&mut self, path: Path, condition: &Condition, now: Instant, rng: &mut impl RngCore) -> Vec<Look> {
        self.observe(path, now + CALM_PAUSE);
        let current = self.current();
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.path == path) else { return Vec::new() };
        entry.moved = entry.moved.or(Some(now));
        if entry.open.back().is_some_and(|(_, sent)| now.saturating_since(*sent) < MOVE_PAUSE) {
            return Vec::new();
        }
        let mut looks = vec![entry.look(now, rng)];
        let used = self.entries.iter_mut().find(|entry| Some(entry.path) == current && entry.path != path);
        let doubted = self.doubt.is_some_and(|doubt| doubt.other == path);
        if self.follows {
            self.following = Some(now + answer_due(condition));
        }
        if let Some(used) = used.filter(|_| !self.follows && !doubted) {
            looks.push(used.look(now, rng));
            let (until, needed) = (now + answer_due(condition), condition.misses().min(MOST_DOUBT_TRIES));
            self.doubt = Some(Doubt { other: path, since: now, until, tries: 1, needed });
        }
        looks
    }

    /// Takes the answer to a look, received at `received` from a peer that had held it for `held`. Returns whether it was one.
    pub fn on_answer(
        &mut self,
        number: u32,
        (received, held): (Instant, Duration),
        condition: &Condition,
        now: Instant,
    ) -> bool {
        let current = self.current();
        let silence = condition.silent_since.or(self.unanswered.map(|unanswered| unanswered.since));
        let asked = |entry: &Entry| entry.open.iter().find(|(open, _)| *open == number).map(|(_, sent)| *sent);
        let found = self.entries.iter_mut().find_map(|entry| asked(entry).map(|sent| (entry, sent)));
        let Some((entry, sent)) = found else { return false };
        let Some(rtt) = received.saturating_since(sent).checked_sub(held) else { return false };
        entry.open.retain(|(open, _)| *open != number);
        entry.remember(true);
        if silence.is_some_and(|since| entry.back.is_none_or(|back| back < since)) {
            entry.back = Some(now);
        }
        entry.heard = Some(now);
        entry.rtt = Some(entry.rtt.map_or(rtt, |smoothed| smoothed * 3 / 4 + rtt / 4));
        let by_relay = current.is_some_and(|path| path.via().is_some());
        if current == Some(entry.path) {
            self.unanswered = None;
        } else if condition.silent_since.is_none() && (by_relay || entry.path.via().is_none()) {
            // A relay is compared with another one; a direct path takes over from either when it answers.
            let returns = by_relay && entry.path.via().is_none();
            let good = returns || entry.fates.count_ones() >= LOOKS_TO_PREFER && entry.is_better(condition);
            entry.better = if good { entry.better + 1 } else { 0 };
        }
        true
    }

    /// The path that packets should take instead of the one in use, and why; `None` where that one is to be kept.
    pub fn choose(&mut self, condition: &Condition, now: Instant) -> Option<(Path, Reason)> {
        let current = self.current()?;
        if let Some(moved) = self.followed(current) {
            return Some((moved, Reason::Moved));
        }
        if let Some(other) = self.settled_doubt(current, now) {
            return Some((other, Reason::Silence));
        }
        let unanswered = self.unanswered.map(|unanswered| (unanswered.since, answer_due(condition)));
        let silent = condition.silent_since.map(|since| (since, Duration::ZERO));
        if let Some((since, round_trip)) = silent.or(unanswered) {
            if now.saturating_since(since) < condition.patience().max(round_trip) {
                return None;
            }
            let alive = |entry: &&Entry| entry.path != current && entry.heard.is_some_and(|heard| heard > since);
            let order = |entry: &&Entry| (entry.path.via().is_some(), entry.cost(None));
            let best = self.entries.iter().filter(alive).min_by_key(order)?;
            // Where a relay was silent as well, the network comes back as a whole, and the relay may only be the first: the
            // direct paths, looked at as often, are not far behind it.
            let whole = |back: &Instant| best.path.via().is_some() && back.saturating_since(since) >= WHOLE_SILENCE;
            let until = best.back.filter(whole).map(|back| back + SILENT_PAUSE + answer_due(condition));
            self.awaited = until.filter(|until| now < *until);
            return self.awaited.is_none().then_some((best.path, Reason::Silence));
        }
        self.preferred(current, now)
    }

    /// Where the peer has moved to: a place that only its packets told of, or any other where the one in use is told of no
    /// more. Between two places that are both told of, the end with the lower id chooses, and the other one follows.
    fn followed(&mut self, current: Path) -> Option<Path> {
        let current_told = current.remote().is_none_or(|remote| self.announced.contains(&remote));
        let follows = self.follows;
        let arrived =
            |entry: &&mut Entry| entry.moved.is_some_and(|moved| entry.heard.is_some_and(|heard| heard >= moved));
        let entry = self.entries.iter_mut().find(arrived)?;
        entry.moved = None;
        (entry.path != current && (follows || entry.observed || !current_told)).then_some(entry.path)
    }

    /// The peer's place, where it answered a look and the path in use did not.
    fn settled_doubt(&mut self, current: Path, now: Instant) -> Option<Path> {
        let doubt = self.doubt.filter(|doubt| now >= doubt.until && doubt.tries >= doubt.needed)?;
        self.doubt = None;
        let answered =
            |path| self.entry(path).is_some_and(|entry| entry.heard.is_some_and(|heard| heard >= doubt.since));
        (doubt.other != current && answered(doubt.other) && !answered(current)).then_some(doubt.other)
    }

    /// A path that is better by the hysteresis, or direct where a relay is in use: that one waits for no stay to end, but must
    /// answer the longer the more often it was taken in vain.
    fn preferred(&mut self, current: Path, now: Instant) -> Option<(Path, Reason)> {
        if self.follows {
            return None;
        }
        if self.flipped.is_some_and(|last| now.saturating_since(last) > FLIPS_FORGOTTEN) {
            self.flips = 0;
        }
        let stays = self.stay_until.is_some_and(|until| now < until);
        let returns = |path: Path| current.via().is_some() && path.via().is_none();
        let ripe = |entry: &&Entry| match returns(entry.path) {
            true => entry.better >= LOOKS_IN_ROW << self.flips.min(2),
            false => entry.path != current && !stays && entry.better >= LOOKS_IN_ROW,
        };
        let order = |entry: &&Entry| (!returns(entry.path), entry.cost(None));
        let best = self.entries.iter().filter(ripe).min_by_key(order)?.path;
        let reason = if returns(best) { Reason::Direct } else { Reason::Better };
        let stay = SHORTEST_STAY.saturating_mul(1 << self.flips.min(8)).min(LONGEST_STAY);
        self.flips += 1;
        (self.flipped, self.stay_until) = (Some(now), Some(now + stay));
        Some((best, reason))
    }

    fn entry(&self, path: Path) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path)
    }

    /// What is known of each path, the one in use first, then by cost.
    pub fn view(&self, condition: &Condition) -> Vec<PathView> {
        let mut views: Vec<PathView> = self
            .entries
            .iter()
            .map(|entry| {
                let in_use = self.current() == Some(entry.path);
                let rtt = condition.rtt.filter(|_| in_use);
                let (answered, looks) = (entry.fates.count_ones(), entry.looks);
                let (path, heard) = (entry.path, entry.heard);
                PathView { path, in_use, rtt: rtt.or(entry.rtt), answered, looks, heard, cost: entry.cost(rtt) }
            })
            .collect();
        views.sort_by_key(|view| (!view.in_use, view.cost.is_none(), view.cost, view.path));
        views
    }
}

/// How long the path in use may take to answer a look.
fn answer_due(condition: &Condition) -> Duration {
    condition.rtt.map_or(DOUBT, |rtt| DOUBT.max(rtt * 2))
}

/// The addresses of ours from which an endpoint is looked at: each of its family where there are several, else the kernel's
/// choice; none where this node has no address of that family.
pub(super) fn sources(remote: SocketAddr, locals: &[IpAddr]) -> Vec<Option<IpAddr>> {
    let remote = remote.ip().to_canonical();
    let fitting: Vec<Option<IpAddr>> =
        locals.iter().filter(|local| local.is_ipv4() == remote.is_ipv4()).map(|local| Some(*local)).collect();
    if fitting.len() > 1 { fitting } else { vec![None] }
}

#[cfg(test)]
mod tests {
    use super::super::candidate::MOST_OPEN;
    use super::super::condition::MISS;
    use super::*;
    use rand_chacha::ChaCha12Rng;
    use rand_core::SeedableRng;

    /// One end of a link in virtual time, and what the network does to each of its paths.
    struct End {
        now: Instant,
        paths: Paths,
        condition: Condition,
        rng: ChaCha12Rng,
        /// The round trip of each path; `None` where nothing comes back.
        network: Vec<(Path, Option<Duration>)>,
        looks: usize,
    }

    const MS: Duration = Duration::from_millis(1);

    fn path(remote: u8, local: u8) -> Path {
        Path::Direct {
            remote: ([192, 0, 2, remote], 7655).into(),
            local: (local > 0).then(|| [198, 51, 100, local].into()),
        }
    }

    impl End {
        /// A link with these paths, the first of them in use.
        fn new(network: Vec<(Path, Option<Duration>)>) -> End {
            let mut paths = Paths::default();
            let remotes: Vec<SocketAddr> = network.iter().filter_map(|(path, _)| path.remote()).collect();
            paths.set(&remotes, &[], &[], Instant::ZERO);
            paths.take(network[0].0, Reason::Session, Instant::ZERO);
            let condition = Condition { silent_since: None, rtt: network[0].1, loss: 0.0 };
            End { now: Instant::ZERO, paths, condition, rng: ChaCha12Rng::seed_from_u64(3), network, looks: 0 }
        }

        /// Lets time pass and returns the path it changed to, if it did.
        fn run(&mut self, time: Duration) -> Option<(Path, Reason)> {
            let end = self.now + time;
            while let Some(next) = self.paths.poll_timeout().filter(|next| *next <= end) {
                self.now = self.now.max(next);
                for look in self.paths.handle_timeout(&self.condition, self.now, &mut self.rng) {
                    self.looks += 1;
                    self.answer(look);
                }
                if let Some((path, reason)) = self.paths.choose(&self.condition, self.now) {
                    self.paths.take(path, reason, self.now);
                    return Some((path, reason));
                }
            }
            self.now = end;
            None
        }

        /// The answer comes in no time; its round trip is what the network says.
        fn answer(&mut self, look: Look) {
            let round_trip = self.network.iter().find(|(path, _)| *path == look.path).and_then(|(_, rtt)| *rtt);
            if let Some(rtt) = round_trip {
                assert!(self.paths.on_answer(look.number, (self.now + rtt, Duration::ZERO), &self.condition, self.now));
            }
        }

        fn fall_silent(&mut self) {
            self.condition = Condition { silent_since: Some(self.now), ..self.condition };
            self.now += MS;
            self.paths.look_now(&self.condition, self.now);
        }
    }

    #[test]
    fn a_single_path_costs_nothing() {
        let mut end = End::new(vec![(path(1, 0), Some(MS))]);
        assert_eq!(end.paths.poll_timeout(), None);
        end.fall_silent();
        assert_eq!((end.run(Duration::from_secs(3600)), end.looks), (None, 0));
    }

    #[test]
    fn each_endpoint_from_each_address_of_its_family_is_a_path() {
        let mut paths = Paths::default();
        let v6: SocketAddr = "[2001:db8::1]:7655".parse().unwrap();
        let place = path(1, 0).remote().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.3]:7655".parse().unwrap();
        let locals = [[198, 51, 100, 1].into(), [198, 51, 100, 2].into(), "2001:db8::9".parse().unwrap()];
        paths.set(&[place, v6], &[mapped, v6], &locals, Instant::ZERO);
        let ways: Vec<Path> = paths.entries.iter().map(|entry| entry.path).collect();
        let from = |local: IpAddr| Path::Direct { remote: mapped, local: Some(local) };
        // Of the other family there is one address of ours, which the kernel finds by itself.
        assert_eq!(ways, [path(1, 1), path(1, 2), Path::to(v6), from(locals[0]), from(locals[1])]);
        paths.set(&[place], &[], &locals[1..], Instant::ZERO);
        assert_eq!(paths.entries.iter().map(|entry| entry.path).collect::<Vec<_>>(), [path(1, 0)]);
    }

    #[test]
    fn a_silent_path_is_left_for_the_best_one_that_answers() {
        let mut end = End::new(vec![
            (path(1, 0), None),
            (path(2, 0), None),
            (path(3, 0), Some(40 * MS)),
            (path(4, 0), Some(9 * MS)),
        ]);
        end.fall_silent();
        assert_eq!(end.run(Duration::from_secs(1)), Some((path(4, 0), Reason::Silence)));
    }

    #[test]
    fn what_connections_miss_is_enough_to_leave_a_path_by() {
        let mut end = End::new(vec![(path(1, 0), None), (path(2, 0), Some(9 * MS))]);
        end.now += 500 * MS;
        end.paths.on_unanswered(&end.condition, end.now);
        assert!(end.paths.is_doubted());
        let began = end.now;
        end.now += MS;
        assert_eq!(end.run(Duration::from_secs(1)), Some((path(2, 0), Reason::Silence)));
        assert_eq!(end.now, began + 200 * MS, "the least that the probes' own word takes");
        assert!(!end.paths.is_doubted());
    }

    #[test]
    fn a_path_that_answers_is_kept_whatever_connections_miss() {
        let mut end = End::new(vec![(path(1, 0), Some(40 * MS)), (path(2, 0), Some(9 * MS))]);
        end.paths.on_unanswered(&end.condition, end.now);
        assert_eq!(end.run(Duration::from_secs(1)), None);
        assert_eq!((end.paths.is_doubted(), end.looks), (false, 4), "two looks at each");
    }

    #[test]
    fn where_nothing_answers_the_probes_have_the_last_word() {
        let mut end = End::new(vec![(path(1, 0), None), (path(2, 0), None)]);
        end.paths.on_unanswered(&end.condition, end.now);
        assert_eq!(end.run(ANSWER_WITHIN + SILENT_PAUSE * 2), None);
        assert!(!end.paths.is_doubted());
    }

    #[test]
    fn one_lost_probe_is_no_silence() {
        let mut end = End::new(vec![(path(1, 0), Some(MS)), (path(2, 0), Some(MS))]);
        end.fall_silent();
        assert_eq!(end.run(MISS - 2 * MS), None);
        assert_eq!(end.run(Duration::from_secs(1)), Some((path(2, 0), Reason::Silence)));
    }

    #[test]
    fn an_answer_from_before_the_silence_proves_nothing() {
        let mut end = End::new(vec![(path(1, 0), Some(MS)), (path(2, 0), Some(MS))]);
        end.run(Duration::from_secs(60));
        end.network.iter_mut().for_each(|(_, rtt)| *rtt = None);
        end.fall_silent();
        assert_eq!(end.run(Duration::from_secs(600)), None);
        // Both are back: it does not matter which answers.
        end.network[1].1 = Some(MS);
        assert_eq!(end.run(Duration::from_secs(5)), Some((path(2, 0), Reason::Silence)));
    }

    #[test]
    fn a_relay_that_is_back_first_waits_for_the_direct_paths() {
        let relay = Path::Relay { via: NodeId::from_bytes([9; 16]) };
        let grace = SILENT_PAUSE + DOUBT;
        for (direct, taken) in [(Some(MS), path(2, 0)), (None, relay)] {
            let mut end = End::new(vec![(path(1, 0), None), (path(2, 0), None), (relay, None)]);
            end.paths.offer_relays(&[relay.via().unwrap()], end.now);
            end.fall_silent();
            assert_eq!(end.run(Duration::from_secs(10)), None);
            end.network[2].1 = Some(MS);
            assert_eq!(end.run(SILENT_PAUSE.mul_f64(1.3)), None);
            end.network[1].1 = direct;
            let back = end.now;
            assert_eq!(end.run(Duration::from_secs(1)), Some((taken, Reason::Silence)));
            assert!(end.now <= back + grace, "{:?}", end.now.saturating_since(back));
        }
    }

    #[test]
    fn a_better_path_is_taken_late_and_a_little_better_one_never() {
        let mut end = End::new(vec![(path(1, 0), Some(30 * MS)), (path(2, 0), Some(26 * MS))]);
        assert_eq!(end.run(Duration::from_secs(24 * 3600)), None);
        end.network[1].1 = Some(20 * MS);
        let before = end.now;
        assert_eq!(end.run(Duration::from_secs(3600)), Some((path(2, 0), Reason::Better)));
        let waited = end.now.saturating_since(before);
        assert!(waited >= Duration::from_secs(60) && waited <= Duration::from_secs(600), "{waited:?}");
    }

    #[test]
    fn paths_that_take_turns_at_being_better_are_changed_ever_less() {
        let mut end = End::new(vec![(path(1, 0), Some(10 * MS)), (path(2, 0), Some(10 * MS))]);
        let mut changes = 0;
        // The worst there is: whichever is in use is the slower one, for six hours.
        let mut ends = end.now + Duration::from_secs(6 * 3600);
        while end.now < ends {
            let current = end.paths.current();
            for (path, rtt) in &mut end.network {
                *rtt = Some(if Some(*path) == current { 50 * MS } else { 10 * MS });
            }
            end.condition.rtt = Some(50 * MS);
            match end.run(ends.saturating_since(end.now)) {
                Some(_) => changes += 1,
                None => ends = end.now,
            }
        }
        assert!((6..=6 * 6 + 10).contains(&changes), "{changes} changes");
    }

    #[test]
    fn a_peer_that_moved_is_followed_once_it_answers_there() {
        let mut end = End::new(vec![(path(1, 0), Some(MS))]);
        let moved = path(7, 0);
        let looks = end.paths.on_move(moved, &end.condition, end.now, &mut end.rng);
        assert_eq!(looks.iter().map(|look| look.path).collect::<Vec<_>>(), [moved, path(1, 0)]);
        assert_eq!(end.paths.choose(&end.condition, end.now), None, "not before it has answered");
        for (loss, misses) in [(0.0, 2), (0.005, 2), (0.02, 3), (0.05, 4), (0.09, 4), (0.2, 6), (0.9, 6), (1.0, 6)] {
            assert_eq!(Condition { loss, ..end.condition }.patience(), MISS * (misses - 1), "{loss}");
        }
        // Copied packets do not make more looks than one in 200 ms.
        assert!(end.paths.on_move(moved, &end.condition, end.now + 199 * MS, &mut end.rng).is_empty());
        end.network.push((moved, Some(MS)));
        end.answer(looks[0]);
        assert_eq!(end.paths.choose(&end.condition, end.now), Some((moved, Reason::Moved)));
    }

    #[test]
    fn between_two_known_places_one_end_chooses_and_the_other_follows() {
        let mut end = End::new(vec![(path(1, 0), Some(MS)), (path(2, 0), Some(MS))]);
        for _ in 0..20 {
            end.now += Duration::from_secs(1);
            let looks = end.paths.on_move(path(2, 0), &end.condition, end.now, &mut end.rng);
            looks.into_iter().for_each(|look| end.answer(look));
            assert_eq!(end.paths.choose(&end.condition, end.now), None);
            assert_eq!(end.run(500 * MS), None);
        }
        // But where ours does not answer any more, the peer knows better.
        end.network[0].1 = None;
        end.now += Duration::from_secs(1);
        let looks = end.paths.on_move(path(2, 0), &end.condition, end.now, &mut end.rng);
        looks.into_iter().for_each(|look| end.answer(look));
        assert_eq!(end.run(Duration::from_secs(1)), Some((path(2, 0), Reason::Silence)));
        let mut other = End::new(vec![(path(1, 0), Some(MS)), (path(2, 0), Some(MS))]);
        other.paths.follows = true;
        let looks = other.paths.on_move(path(2, 0), &other.condition, other.now, &mut other.rng);
        looks.into_iter().for_each(|look| other.answer(look));
        assert_eq!(other.paths.choose(&other.condition, other.now), Some((path(2, 0), Reason::Moved)));
    }

    #[test]
    fn strange_answers_and_many_places_change_nothing() {
        let mut end = End::new(vec![(path(1, 0), Some(MS)), (path(2, 0), Some(MS))]);
        let look = end.paths.handle_timeout(&end.condition, end.now, &mut end.rng)[0];
        let held = (end.now + MS, 2 * MS);
        assert!(!end.paths.on_answer(look.number, held, &end.condition, end.now), "held for longer than it was away");
        assert!(!end.paths.on_answer(!look.number, (end.now, Duration::ZERO), &end.condition, end.now));
        for place in 10..200 {
            end.paths.on_move(path(place, 0), &end.condition, end.now, &mut end.rng);
        }
        assert_eq!(end.paths.entries.len(), MOST_PATHS);
        let known = |place: u8| end.paths.entries.iter().any(|entry| entry.path == path(place, 0));
        assert!(known(1) && known(2), "what the peer tells of is not pushed out by what was seen");
        assert!(end.paths.entries.iter().all(|entry| entry.open.len() <= MOST_OPEN));
    }
}
