//! What the engine does with the gateways of shared prefixes: watches their links, asks the others when one is in doubt,
//! moves a prefix.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use super::Engine;
use super::gateway::{Carrier, Choice, Fitness, Holder, Reach, Standing};
use super::output::{Event, Output};
use super::probe::LinkState;
use super::timer::TimerName;
use crate::identity::NodeId;
use crate::time::Instant;

/// Time between two probes of a link to or from a gateway that carries data. With it a gateway that dies is known after 1.2 s
/// at most (one interval and its jitter, 550 ms; the missed probe's time-out, 200 ms; [`PATIENCE`]), and two hundred nodes cost it 400 probes a second, 83 kB each way.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long a gateway in doubt is waited for: two more probes are sent, at once and after 250 ms, and the second has missed its
/// time-out of 200 ms by then. Three in a row are lost by chance once in 17 hours on a path that loses 1 % each way; on worse ones
/// what counts for paths counts here ([`super::condition::Condition`]).
const PATIENCE: Duration = Duration::from_millis(450);

/// The shared prefixes that others carry for this node.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    choices: BTreeMap<IpNet, (Vec<Holder>, Choice)>,
    /// Whether this node is a gateway of a shared prefix itself.
    is_one: bool,
    /// Whether the certificates may say something else by now; the timer is set.
    is_stale: bool,
}

impl Gateways {
    /// Whether a node is a gateway of any shared prefix.
    pub(super) fn has(&self, node: NodeId) -> bool {
        self.choices.values().any(|(holders, _)| holders.iter().any(|holder| holder.node == node))
    }

    /// Whether the link to a node is one to or from a gateway.
    pub(super) fn concern(&self, node: NodeId) -> bool {
        self.is_one || self.has(node)
    }
}

/// A shared prefix as this node sees it.
#[derive(Clone, Debug)]
pub struct SharedPrefix {
    /// The network.
    pub network: IpNet,
    /// Who carries it; `None` on a node that holds it itself.
    pub carrier: Option<Carrier>,
    /// All that hold it, this node included.
    pub holders: Vec<HolderView>,
}

/// One gateway of a shared prefix.
#[derive(Clone, Debug)]
pub struct HolderView {
    /// Who, and at which priority.
    pub holder: Holder,
    /// How fit it is.
    pub fitness: Fitness,
    /// Since when; `None` where this node is one of the gateways and does not choose.
    pub since: Option<Instant>,
    /// From when on its priority counts again, where it has failed.
    pub returns_at: Option<Instant>,
}

impl Engine {
    /// Something that the forwarding table is made of changed.
    pub(super) fn reroute(&mut self, now: Instant) {
        self.output(Output::Routing);
        // Once for many certificates that come together.
        self.gateways.is_stale = true;
        self.timers.set(TimerName::Gateways, now);
    }

    /// Who carries each shared prefix for this node.
    pub(super) fn carriers(&self, shared: &BTreeMap<IpNet, Vec<Holder>>) -> BTreeMap<IpNet, NodeId> {
        let carrier = |(network, holders): (&IpNet, &Vec<Holder>)| {
            let chosen = self.gateways.choices.get(network).and_then(|(_, choice)| choice.carrier());
            let holds = |node: &NodeId| holders.iter().any(|holder| holder.node == *node);
            // A prefix that has just become known is weighed in a moment.
            let first = holders.iter().max_by_key(|holder| holder.priority).map(|holder| holder.node);
            Some((*network, chosen.map(|carrier| carrier.node).filter(holds).or(first)?))
        };
        shared.iter().filter_map(carrier).collect()
    }

    /// The shared prefixes, as this node sees them.
    pub fn shared_prefixes(&self, now: Instant) -> Vec<SharedPrefix> {
        let view = |(network, holders): (IpNet, Vec<Holder>)| {
            let choice = self.gateways.choices.get(&network).map(|(_, choice)| choice);
            let holder = |holder: Holder| HolderView {
                holder,
                fitness: self.standing(network, holder, now).fitness(now),
                since: choice.and_then(|choice| choice.fitness(holder.node)).map(|(_, since)| since),
                returns_at: choice.and_then(|choice| choice.returns_at(holder.node)),
            };
            let carrier = choice.and_then(Choice::carrier);
            SharedPrefix { network, carrier, holders: holders.into_iter().map(holder).collect() }
        };
        self.claims().shared.into_iter().map(view).collect()
    }

    /// Takes over who holds which shared prefix, and weighs them all.
    pub(super) fn look_at_gateways(&mut self, now: Instant) {
        let shared = self.claims().shared;
        let own = self.node;
        let holds = |holders: &[Holder], node: NodeId| holders.iter().any(|holder| holder.node == node);
        self.gateways.is_stale = false;
        self.gateways.is_one = shared.values().any(|holders| holds(holders, own));
        let mut old = std::mem::take(&mut self.gateways.choices);
        let others = shared.into_iter().filter(|(_, holders)| !holds(holders, own));
        self.gateways.choices = others
            .map(|(network, holders)| {
                let choice = old.remove(&network).map(|(_, choice)| choice).unwrap_or_default();
                (network, (holders, choice))
            })
            .collect();
        self.weigh_gateways(now);
    }

    /// A link to a gateway was probed, or one has told of itself.
    pub(super) fn follow_gateway(&mut self, node: NodeId, before: LinkState, now: Instant) {
        if !self.gateways.has(node) {
            return;
        }
        if before == LinkState::Up && self.link_state(node) == Some(LinkState::Suspect) {
            self.ask_other_gateways(node, now);
        }
        self.weigh_gateways(now);
    }

    /// A gateway in use is in doubt: whether the others answer is to be known when it is none any more.
    fn ask_other_gateways(&mut self, doubtful: NodeId, now: Instant) {
        let carried = |choice: &Choice| choice.carrier().is_some_and(|carrier| carrier.node == doubtful);
        let others: Vec<NodeId> = self
            .gateways
            .choices
            .values()
            .filter(|(_, choice)| carried(choice))
            .flat_map(|(holders, _)| holders.iter().map(|holder| holder.node))
            .filter(|node| *node != doubtful)
            .collect();
        for node in others {
            if let Some(peer) = self.peers.get_mut(&node)
                && peer.prober.state() == LinkState::Up
            {
                peer.prober.demand(now);
                self.timers.set(TimerName::Probe(node), now);
            }
        }
    }

    fn weigh_gateways(&mut self, now: Instant) {
        let mut choices = std::mem::take(&mut self.gateways.choices);
        let mut switches = Vec::new();
        for (network, (holders, choice)) in &mut choices {
            let standings: Vec<Standing> = holders.iter().map(|holder| self.standing(*network, *holder, now)).collect();
            if let Some(switch) = choice.weigh(&standings, now) {
                switches.push((*network, switch));
            }
        }
        let next = choices.values().filter_map(|(_, choice)| choice.poll_timeout()).min();
        self.gateways.choices = choices;
        match next {
            _ if self.gateways.is_stale => {}
            Some(next) => self.timers.set(TimerName::Gateways, next),
            None => self.timers.cancel(TimerName::Gateways),
        }
        if switches.is_empty() {
            return;
        }
        self.output(Output::Routing);
        for (network, switch) in switches {
            self.event(Event::GatewayChanged { network, switch });
        }
    }

    fn standing(&self, network: IpNet, holder: Holder, now: Instant) -> Standing {
        let own = (holder.node == self.node).then(|| self.gateway_word());
        let word = own.or_else(|| self.gateway_states.of(holder.node));
        let drained = word.is_some_and(|word| word.drained);
        let healthy = word.is_none_or(|word| !word.failing.contains(&network));
        if own.is_some() {
            return Standing { holder, reach: Reach::Answers { heard: Some(now), since: now }, healthy, drained };
        }
        let peer = self.peers.get(&holder.node);
        let reach = peer.map_or(Reach::Never, |peer| {
            let since = peer.silent_since.unwrap_or_else(|| peer.prober.since());
            match peer.prober.state() {
                LinkState::New => Reach::Never,
                LinkState::Up => Reach::Answers { heard: peer.prober.heard(), since: peer.prober.since() },
                LinkState::Suspect => {
                    Reach::Suspect { since, silent_at: since + peer.condition().patience().max(PATIENCE) }
                }
                LinkState::Down | LinkState::Unknown => Reach::Silent { since },
            }
        });
        Standing { holder, reach, healthy, drained }
    }
}
