//! The node's mind: who the members are, how to reach each, how each link is. Pure.
//!
//! [`Engine`] is one state machine. Its inputs are the `handle_*` methods and the commands, its outputs come from
//! [`Engine::poll_output`], its next deadline from [`Engine::poll_timeout`]. After any call that takes `&mut self` the driver
//! drains `poll_output` until it returns `None`, in order, then re-arms its timer. It reads no clock and owns no socket: the
//! daemon drives it with real ones, `tests/sim` drives hundreds of them in virtual time.
//!
//! | file | what it decides |
//! |---|---|
//! | `membership` | which signed objects we believe, and which replaces which |
//! | `gossip` | what to tell whom, how digests are compared |
//! | `exchange` | what a control message makes us do |
//! | `admission` | introductions, joins, invites, renewals, revocations |
//! | `contact` | when and where to try to reach a peer |
//! | `path` | which ways there are to a peer, and which one to take |
//! | `candidate` | what is known of one path |
//! | `condition` | how a link is by the path in use |
//! | `paths` | what the engine does with them: looks, moves, switches |
//! | `relays` | through which members a link can go |
//! | `probe` | when to probe a link, what an answer or silence means |
//! | `series` | what the answers and the reports give |
//! | `measurement` | what a probe gives |
//! | `data_loss` | which packets of data were lost, by their numbers |
//! | `class` | how closely a link is watched |
//! | `health` | how well this node itself is |
//! | `check` | whether what lies behind a gateway answers |
//! | `gateway` | which of several nodes carries a prefix that they share |
//! | `gateway_states` | what gateways tell of themselves, and who has heard it |
//! | `gateways` | what the engine does with them: watches, asks, moves a prefix |
//! | `path_mtu` | which sizes of packets a path carries |
//! | `sizing` | when they are tried, and who hears of it |
//! | `link` | a peer's life: its contact and its probes together |
//! | `hybrid` | when to agree on a hybrid key with a peer |
//! | `rows` | whose row of the matrix to ask for, and who may ask for ours |
//! | `served` | which introductions and joins are copies |
//! | `routing` | which peer owns which overlay address and prefix |
//! | `snapshot` | what survives a restart |
//! | `verdict` | whether a silent link or its node is at fault |
//! | `view` | what `meshctl status` is told |
#![forbid(unsafe_code)]

pub mod admission;
mod candidate;
pub mod check;
pub mod class;
pub mod condition;
pub mod contact;
mod data_loss;
mod exchange;
pub mod gateway;
mod gateway_states;
mod gateways;
pub mod gossip;
pub mod health;
pub mod hold;
mod hybrid;
pub mod limit;
mod link;
pub mod measurement;
pub mod membership;
pub mod output;
pub mod path;
pub mod path_mtu;
mod paths;
pub mod placement;
pub mod probe;
mod relays;
pub mod routing;
mod rows;
mod series;
pub mod served;
mod sizing;
pub mod snapshot;
pub mod timer;
mod trust;
pub mod verdict;
pub mod view;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

use crate::config::PostQuantum;
use crate::identity::{
    Authority, InviteBook, NodeId, NodeKeys, Record, SignedCertificate, SignedRecord, Tag, TrustAnchor, VerifyingKey,
    WireguardKey,
};
use crate::time::{Instant, UnixTime};
use crate::wire::probe::{Arrivals, Class};
use gossip::Gossip;
use health::LocalHealth;
use limit::StrangerLimit;
use link::{Bootstrap, Peer};
use membership::Membership;
use output::{Event, Output, Persist};
use path::Path;
use rows::Rows;
use served::Served;
use timer::{TimerName, Timers};

pub use admission::CommandError;
pub use gateway_states::Word;
pub use gateways::{HolderView, SharedPrefix};
pub use hybrid::Standoff;
pub use link::SessionEvent;
pub use paths::PathsView;
pub use trust::Outsider;
pub use view::{PeerView, View};

/// The version of the control protocol this build speaks, announced in its record.
pub const PROTOCOL_VERSION: u16 = 1;

/// Feature bit in a record: this node holds the authority's key and renews certificates.
pub const FEATURE_RENEWS: u32 = 1;

/// Feature bit in a record: this node tells somebody of alerts.
pub const FEATURE_TELLS_ALERTS: u32 = 2;

/// Feature bit in a record: this node agrees on hybrid keys.
pub const FEATURE_HYBRID: u32 = 4;

/// Feature bit in a record: data to and from this node passes under hybrid keys alone.
pub const FEATURE_REQUIRES_HYBRID: u32 = 8;

/// How long a record is valid: a node that was away for a month announces itself anew.
const RECORD_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// How often a record is made anew: four chances before the old one ends.
const RECORD_REFRESH: Duration = Duration::from_secs(7 * 86_400);
/// How often certificates are looked at: fine against a grace of a day and a renewal at half of 30 days.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(60);
/// Time between digests while something changed lately.
const ANTI_ENTROPY_BUSY: Duration = Duration::from_secs(1);
/// Time between digests in a quiet mesh.
const ANTI_ENTROPY_QUIET: Duration = Duration::from_secs(10);
/// How long a change keeps the digests frequent.
const BUSY_FOR: Duration = Duration::from_secs(10);

/// Who this node is.
pub struct OwnNode {
    /// Its private keys.
    pub keys: NodeKeys,
    /// Its certificate.
    pub certificate: SignedCertificate,
    /// The mesh it belongs to.
    pub anchor: TrustAnchor,
    /// The authority's key, on a node that signs.
    pub authority: Option<Authority>,
    /// The invites this node has given out.
    pub invites: InviteBook,
}

/// What the configuration says about the control engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between two probes of a link.
    pub probe_interval: Duration,
    /// The endpoints to announce.
    pub endpoints: Vec<SocketAddr>,
    /// The addresses of this host on the underlay, from which datagrams can leave.
    pub addresses: Vec<IpAddr>,
    /// The interface's MTU in bytes: the largest packet any link may have to carry.
    pub mtu: u16,
    /// Members to contact while nobody else is known.
    pub bootstrap: Vec<BootstrapPeer>,
    /// How much hybrid keys are worth.
    pub post_quantum: PostQuantum,
    /// How long a hybrid key serves.
    pub key_renewal: Duration,
}

#[cfg(test)]
impl Settings {
    /// Those of a node that tests drive by hand: it announces nothing and knows nobody.
    pub(crate) fn bare() -> Settings {
        let probe_interval = Duration::from_secs(1);
        Settings {
            probe_interval,
            endpoints: vec![],
            addresses: vec![],
            mtu: 1_420,
            bootstrap: vec![],
            post_quantum: PostQuantum::On,
            key_renewal: PostQuantum::RENEWAL,
        }
    }
}

/// A member that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapPeer {
    /// Its WireGuard key.
    pub key: WireguardKey,
    /// Where it is.
    pub endpoint: SocketAddr,
}

/// A control payload as it came out of a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The peer whose tunnel it came through.
    pub peer: NodeId,
    /// How it came: from which endpoint, to which address of ours.
    pub path: Path,
    /// When the kernel received its datagram.
    pub stamped: Instant,
    /// When the daemon read it.
    pub read: Instant,
    /// Whether no clock was set between the two, so that they can be compared.
    pub steady: bool,
    /// What the tunnel has seen of the peer's messages.
    pub arrived: Arrivals,
}

impl Arrival {
    /// A payload that was read as soon as it came, of a tunnel that counts nothing: for drivers without a kernel.
    pub fn at(peer: NodeId, path: Path, now: Instant) -> Self {
        Arrival { peer, path, stamped: now, read: now, steady: true, arrived: Arrivals::default() }
    }
}

/// The control engine of one node.
pub struct Engine {
    own: OwnNode,
    node: NodeId,
    settings: Settings,
    membership: Membership,
    gossip: Gossip,
    peers: BTreeMap<NodeId, Peer>,
    bootstraps: BTreeMap<WireguardKey, Bootstrap>,
    strangers: StrangerLimit,
    served: Served,
    timers: Timers,
    rng: ChaCha12Rng,
    outputs: VecDeque<Output>,
    /// Random per start: two values alternating under one key betray a cloned host.
    boot: u64,
    sequence: u64,
    last_change: Instant,
    last_clone_answer: Option<Instant>,
    clone_seen: Option<Instant>,
    revoked: bool,
    tells_alerts: bool,
    /// What this node's rules are condensed to, once they are known.
    policy: Option<u64>,
    renewal_asked: Option<Instant>,
    renewed: BTreeMap<NodeId, Instant>,
    /// Operators' pings under way: whom they went to, and when.
    pings: BTreeMap<u32, (NodeId, Instant)>,
    /// Contacts of an earlier life, until their members are adopted.
    remembered: BTreeMap<NodeId, contact::Contact>,
    /// The probes of each class that are going out together.
    company: [Option<link::Company>; Class::ALL.len()],
    /// Tags that make the links of a node critical.
    critical_tags: Vec<Tag>,
    health: LocalHealth,
    /// Whose silence it is.
    verdicts: verdict::Verdicts,
    rows: Rows,
    gateways: gateways::Gateways,
    gateway_states: gateway_states::GatewayStates,
    /// Whether a path is so narrow that datagrams may be fragmented.
    fragmenting: bool,
}

impl Engine {
    /// Makes the engine of a node from what it is, what it remembers, and a random seed.
    ///
    /// A snapshot that does not fit the mesh is ignored object by object: each one is verified again.
    pub fn new(
        own: OwnNode,
        settings: Settings,
        snapshot: Option<snapshot::Snapshot>,
        seed: [u8; 32],
        now: Instant,
        wall: UnixTime,
    ) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let boot = rng.next_u64();
        let mut engine = Engine {
            node: own.certificate.certificate().node,
            membership: Membership::new(own.anchor.clone()),
            own,
            settings,
            gossip: Gossip::default(),
            peers: BTreeMap::new(),
            bootstraps: BTreeMap::new(),
            strangers: StrangerLimit::new(now),
            served: Served::default(),
            timers: Timers::default(),
            rng,
            outputs: VecDeque::new(),
            boot,
            sequence: 0,
            last_change: now,
            last_clone_answer: None,
            clone_seen: None,
            revoked: false,
            tells_alerts: false,
            policy: None,
            renewal_asked: None,
            renewed: BTreeMap::new(),
            pings: BTreeMap::new(),
            remembered: BTreeMap::new(),
            company: [None; Class::ALL.len()],
            critical_tags: Vec::new(),
            health: LocalHealth::default(),
            verdicts: verdict::Verdicts::default(),
            rows: Rows::default(),
            gateways: gateways::Gateways::default(),
            gateway_states: gateway_states::GatewayStates::default(),
            fragmenting: false,
        };
        let certificate = engine.own.certificate.clone();
        engine.membership.merge_verified(certificate.clone(), wall);
        if let Some(snapshot) = snapshot {
            engine.restore(snapshot, now, wall);
        }
        engine.revoked = engine.membership.is_revoked(&certificate);
        engine.publish(now, wall);
        engine.start_peers(now);
        engine.start_bootstraps(now);
        engine.timers.set(TimerName::AntiEntropy, now + ANTI_ENTROPY_BUSY);
        engine.timers.set(TimerName::Certificates, now + CERTIFICATE_CHECK);
        engine
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// This node's certificate.
    pub fn certificate(&self) -> &SignedCertificate {
        &self.own.certificate
    }

    /// The endpoints this node announces.
    pub fn endpoints(&self) -> &[SocketAddr] {
        &self.settings.endpoints
    }

    /// Whether this node holds the authority's key.
    pub fn is_authority(&self) -> bool {
        self.own.authority.is_some()
    }

    /// The key that this node admits and renews with.
    pub fn signing_key(&self) -> Option<VerifyingKey> {
        self.own.authority.as_ref().map(Authority::public)
    }

    /// What this node knows of the mesh.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Takes the next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Engine::handle_timeout`] wants to be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, TimerName)> {
        self.timers.next()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall: UnixTime) {
        while self.handle_first_timeout(now, wall) {}
    }

    /// Does the first thing that is due, and tells whether there was one: for a driver that reads the clock again before
    /// each, so that every probe carries the time at which it was sent.
    pub fn handle_first_timeout(&mut self, now: Instant, wall: UnixTime) -> bool {
        if let Some((due, _)) = self.timers.next() {
            self.health.note_lag(now.saturating_since(due), now);
        }
        let Some(name) = self.timers.pop_due(now) else { return false };
        match name {
            TimerName::Flush => self.flush(now),
            TimerName::AntiEntropy => self.compare_with_someone(now),
            TimerName::Record => self.publish(now, wall),
            TimerName::Certificates => self.check_certificates(now, wall),
            TimerName::Contact(node) => self.try_contact(node, now, wall),
            TimerName::Bootstrap(key) => self.try_bootstrap(key, now, wall),
            TimerName::Probe(node) => self.probe(node, now),
            TimerName::Paths(node) => self.look_at_paths(node, now),
            TimerName::Hearing(node) => self.tell_hearing(node, now),
            TimerName::Verdict(node) => self.judge_silence(node, now),
            TimerName::Rows => self.ask_rows(now),
            TimerName::Sizes(node) => self.size(node, now),
            TimerName::Hybrid(node) => self.look_at_hybrid(node, now),
            TimerName::Gateways => self.look_at_gateways(now),
            TimerName::GatewayState => self.tell_gateway_state(false, now),
        }
        true
    }

    /// Replaces the endpoints this node announces.
    pub fn set_endpoints(&mut self, endpoints: Vec<SocketAddr>, now: Instant, wall: UnixTime) {
        if self.settings.endpoints != endpoints {
            self.settings.endpoints = endpoints;
            self.publish(now, wall);
        }
    }

    /// How unwell this node is as an observer: 0 is well.
    pub fn health(&self, now: Instant) -> u8 {
        self.health.score(now)
    }

    /// Something that the engine cannot see makes this node an unreliable observer, as grave as `by` late deadlines.
    pub fn handle_trouble(&mut self, by: u8, now: Instant) {
        self.health.worsen(by, now);
    }

    /// Says to the mesh whether this node tells somebody of alerts, so that one of several speaks for all.
    pub fn set_tells_alerts(&mut self, tells: bool, now: Instant, wall: UnixTime) {
        if self.tells_alerts != tells {
            self.tells_alerts = tells;
            self.publish(now, wall);
        }
    }

    /// Says to the mesh what this node's rules of what may come in are condensed to ([`crate::policy::digest`]).
    pub fn set_policy(&mut self, digest: u64, now: Instant, wall: UnixTime) {
        if self.policy != Some(digest) {
            self.policy = Some(digest);
            self.publish(now, wall);
        }
    }

    /// Replaces the members that the configuration names. Known peers stay known.
    pub fn set_bootstrap(&mut self, bootstrap: Vec<BootstrapPeer>, now: Instant) {
        self.settings.bootstrap = bootstrap;
        let named: Vec<WireguardKey> = self.settings.bootstrap.iter().map(|named| named.key).collect();
        self.bootstraps.retain(|key, _| named.contains(key));
        self.start_bootstraps(now);
    }

    /// Signs a fresh record of our own and tells the mesh.
    fn publish(&mut self, now: Instant, wall: UnixTime) {
        // The wall clock in milliseconds as a floor: the sequence goes up across restarts even where no state was kept.
        self.sequence = self.sequence.saturating_add(1).max(wall.as_secs().saturating_mul(1000));
        let issued = self.membership.present(wall);
        let record = Record {
            mesh: self.own.anchor.mesh,
            node: self.node,
            sequence: self.sequence,
            issued,
            expires: issued + RECORD_LIFETIME,
            endpoints: self.settings.endpoints.iter().copied().take(Record::MAX_ENDPOINTS).collect(),
            boot: self.boot,
            protocol_version: PROTOCOL_VERSION,
            certificate_serial: self.own.certificate.certificate().serial,
            features: [
                (self.own.authority.is_some(), FEATURE_RENEWS),
                (self.tells_alerts, FEATURE_TELLS_ALERTS),
                (self.settings.post_quantum != PostQuantum::Off, FEATURE_HYBRID),
                (self.settings.post_quantum == PostQuantum::Required, FEATURE_REQUIRES_HYBRID),
            ]
            .iter()
            .fold(0, |bits, (has, bit)| if *has { bits | bit } else { bits }),
            policy: self.policy,
        };
        let Ok(signed) = SignedRecord::sign(&record, &self.own.keys.signing) else {
            // Only a clock beyond what a record can express leads here; the next refresh tries again.
            return self.timers.set(TimerName::Record, now + CERTIFICATE_CHECK);
        };
        self.membership.merge_record(self.node, signed.bytes());
        self.spread(gossip::Object::Record(self.node), None, now);
        self.output(Output::Persist(Persist::Membership));
        let jitter = Duration::from_secs(u64::from(self.rng.next_u32()) % (RECORD_REFRESH.as_secs() / 10));
        self.timers.set(TimerName::Record, now + RECORD_REFRESH - jitter);
    }

    /// Our own record or introduction parts, as the wire carries them.
    fn own_record(&self) -> Option<&SignedRecord> {
        self.membership.get(self.node).and_then(|member| member.record.as_ref())
    }

    fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    fn event(&mut self, event: Event) {
        self.output(Output::Event(event));
    }
}
