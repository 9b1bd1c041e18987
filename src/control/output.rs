//! What the engine asks of the daemon, in the order in which it must happen.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::gateway::Switch;
use super::measurement::Measurement;
use super::membership::Refusal;
use super::path::{Path, Reason};
use super::probe::LinkState;
use super::verdict::Verdict;
use crate::identity::{HybridKey, NodeId, NodeName, SignedCertificate, WireguardKey};
use crate::wire::row::Cell;

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a datagram of ours (an introduction, an answer to a join) outside any tunnel.
    Datagram {
        /// The receiver.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Send a control payload through a peer's tunnel; dropped where no session stands.
    Message {
        /// The peer.
        to: NodeId,
        /// How to send the sealed datagram instead of by the path in use: a look at another path, or the answer to one.
        via: Option<Path>,
        /// The payload, without overlay headers.
        bytes: Vec<u8>,
    },
    /// Make, change or remove a peer's tunnel.
    Peer(PeerChange),
    /// Start a handshake with a peer now.
    Initiate {
        /// The peer.
        node: NodeId,
        /// The path to try, whatever path its packets take.
        path: Path,
    },
    /// Datagrams may be fragmented on their way from now on, or may not; at the start they may not.
    Fragmentation {
        /// Whether they may.
        allowed: bool,
    },
    /// The forwarding table changed: read [`super::Engine::routing`] again.
    Routing,
    /// Write state to disk before anything that follows is done.
    Persist(Persist),
    /// Something happened that telemetry, logs or operators want to know.
    Event(Event),
}

/// A change to the set of tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// A peer to have a tunnel with.
    Add {
        /// The peer.
        node: NodeId,
        /// Its WireGuard key.
        key: WireguardKey,
        /// Its overlay address for control messages.
        address: Ipv6Addr,
        /// Where to reach it, if known.
        endpoint: Option<SocketAddr>,
    },
    /// The peer's datagrams take this path from now on.
    Path {
        /// The peer.
        node: NodeId,
        /// The path.
        path: Path,
    },
    /// Packets by the path in use may be lost, or need no longer be feared for: it answered, or another one is taken.
    Doubt {
        /// The peer.
        node: NodeId,
        /// Whether they may be lost.
        doubted: bool,
    },
    /// The path to the peer carries packets up to that size.
    Mtu {
        /// The peer.
        node: NodeId,
        /// The largest inner packet, in bytes.
        mtu: u16,
    },
    /// A hybrid key that is shared with the peer.
    Key {
        /// The peer.
        node: NodeId,
        /// The key.
        key: HybridKey,
        /// Whether the peer is known to have it, so that the next handshakes use it. Otherwise they use the one before, and
        /// the peer's are answered with either.
        leads: bool,
    },
    /// The key that was shared last is none, unless it is in use already.
    WithdrawKey {
        /// The peer.
        node: NodeId,
    },
    /// What holds for hybrid keys with the peer. At first, neither.
    Hybrid {
        /// The peer.
        node: NodeId,
        /// Whether its handshakes name the key that they use.
        names: bool,
        /// Whether data to and from it passes under such a key alone.
        required: bool,
    },
    /// There are to be no hybrid keys with the peer any more.
    ForgetKeys {
        /// The peer.
        node: NodeId,
    },
    /// The peer is no member any more: end its sessions at once.
    Remove {
        /// The peer.
        node: NodeId,
    },
}

/// What to write.
#[derive(Clone, Debug)]
pub enum Persist {
    /// The membership snapshot; may be gathered over a second.
    Membership,
    /// The membership snapshot, now: it holds a revocation.
    Revocation,
    /// The invites, before the answer that follows is sent.
    Invites,
    /// Our own renewed certificate.
    Certificate(Box<SignedCertificate>),
}

/// Why a peer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// The authority revoked it.
    Revoked,
    /// Its certificate ended.
    Expired,
    /// Its certificate rests on an authority that is not trusted any more.
    Untrusted,
    /// Its certificate was replaced by one with other keys, or another node took over its key.
    Replaced,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A peer is about to restart and asks to hold back what is for it, for a time that is bounded already.
    HoldAsked {
        /// The peer.
        by: NodeId,
        /// What the answer repeats.
        number: u32,
        /// For how long.
        time: Duration,
    },
    /// A peer that was asked to hold packets back does.
    Holding {
        /// The peer.
        node: NodeId,
        /// The number it was asked with.
        number: u32,
    },
    /// A member was learned.
    PeerLearned {
        /// The peer.
        node: NodeId,
        /// Its name.
        name: NodeName,
    },
    /// A member is gone.
    PeerGone {
        /// The peer.
        node: NodeId,
        /// Why.
        departure: Departure,
    },
    /// A link changed its state.
    Link {
        /// The peer.
        node: NodeId,
        /// The state it left.
        from: LinkState,
        /// The state it entered.
        to: LinkState,
    },
    /// Others were asked about a silent peer.
    Judged {
        /// The peer.
        node: NodeId,
        /// What they say.
        verdict: Verdict,
        /// Which of those who see it so tells it for all.
        reporter: NodeId,
    },
    /// Most links of this node fell silent together, or speak again: it is this node's own uplink.
    Uplink {
        /// Whether it is lost.
        lost: bool,
        /// How many links are silent.
        silent: usize,
        /// Of how many.
        links: usize,
    },
    /// A link was measured.
    Measured {
        /// The peer.
        node: NodeId,
        /// What the probe gave.
        measurement: Measurement,
    },
    /// An operator's ping was answered.
    Pong {
        /// The number the ping was given.
        number: u32,
        /// Round trip on the network.
        path_rtt: Duration,
        /// Round trip with both daemons' queues.
        tunnel_rtt: Duration,
    },
    /// A peer asks for our row of the matrix: answer with [`super::Engine::answer_row`].
    RowAsked {
        /// The peer.
        by: NodeId,
        /// The number of its request.
        number: u32,
    },
    /// A peer's row of the matrix.
    Row {
        /// The peer.
        from: NodeId,
        /// What it says of its links, by the member at the other end; only members we know.
        links: BTreeMap<NodeId, Cell>,
    },
    /// Every peer that was asked for its row has answered, or will not.
    RowsPulled,
    /// A link's packets take another path, which has answered.
    PathChanged {
        /// The peer.
        node: NodeId,
        /// The path before.
        from: Option<Path>,
        /// The new path.
        to: Path,
        /// Why.
        reason: Reason,
    },
    /// Another gateway carries a shared prefix.
    GatewayChanged {
        /// The prefix.
        network: IpNet,
        /// Which, and why.
        switch: Switch,
    },
    /// The size of the largest packet that the path to a peer carries was found to be another.
    PathMtu {
        /// The peer.
        node: NodeId,
        /// The size before, in bytes of inner packets.
        from: u16,
        /// The size from now on.
        to: u16,
        /// Whether the path carries not even that, so that datagrams may be fragmented.
        narrow: bool,
    },
    /// This node signed a certificate for a joining or renewing node.
    Issued {
        /// The certificate.
        certificate: Box<SignedCertificate>,
    },
    /// This node's own certificate was renewed.
    Renewed,
    /// This node was revoked.
    Revoked,
    /// Another host speaks with this node's keys.
    Cloned,
    /// A peer sent an object that is not accepted.
    Refused {
        /// The peer that sent it.
        from: NodeId,
        /// Why.
        refusal: Refusal,
    },
}
