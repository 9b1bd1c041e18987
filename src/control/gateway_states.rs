//! What gateways tell of themselves: what this node tells its peers, until each has heard it, and what they told.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;

use super::Engine;
use super::timer::TimerName;
use crate::identity::NodeId;
use crate::time::Instant;
use crate::wire::control::ControlMessage;
use crate::wire::gateway::{GatewayHeard, GatewayState, Networks};

/// How soon a state is told again to those who have not heard it: a round trip on most paths.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two of these, doubled up to here: peers of an older version never say that they have heard.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How a gateway is by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Whether flows are to go elsewhere.
    pub drained: bool,
    /// The prefixes behind it whose check fails.
    pub failing: BTreeSet<IpNet>,
}

impl Word {
    /// Its prefixes on the wire; nothing where there are none.
    fn networks(&self) -> Option<Networks> {
        (!self.failing.is_empty()).then(|| self.failing.iter().copied().collect())
    }

    /// Whether somebody who says to hold this holds this word. One of a version without checks holds what it can.
    fn is_held(&self, heard: &GatewayHeard) -> bool {
        let checks = heard.failing.as_ref().is_none_or(|held| held.iter().collect::<BTreeSet<_>>() == self.failing);
        heard.drained == self.drained && checks
    }
}

/// What was told, and what is being told.
#[derive(Debug, Default)]
pub(super) struct GatewayStates {
    own: Word,
    /// Counts the changes of it.
    version: u64,
    pause: Duration,
    tellings: BTreeMap<NodeId, Telling>,
    told: BTreeMap<NodeId, (u64, Word)>,
}

/// What one peer is told.
#[derive(Clone, Copy, Debug)]
struct Telling {
    /// The sequence of what it was told last. Each peer has its own, so that one that lies about it deceives itself alone.
    sequence: u64,
    version: u64,
    heard: bool,
}

impl GatewayStates {
    /// What a gateway said of itself last.
    pub(super) fn of(&self, node: NodeId) -> Option<&Word> {
        self.told.get(&node).map(|(_, word)| word)
    }

    /// A peer is gone.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.tellings.remove(&node);
        self.told.remove(&node);
    }
}

impl Engine {
    /// What this node says of itself as a gateway.
    pub fn gateway_word(&self) -> &Word {
        &self.gateway_states.own
    }

    /// Says to the mesh that flows are to go by other gateways, or that they may come again.
    pub fn set_drained(&mut self, drained: bool, now: Instant) {
        self.set_word(Word { drained, ..self.gateway_states.own.clone() }, now);
    }

    /// Says to the mesh behind which of this node's shared prefixes nothing answers.
    pub fn set_failing(&mut self, failing: BTreeSet<IpNet>, now: Instant) {
        self.set_word(Word { failing, ..self.gateway_states.own.clone() }, now);
    }

    fn set_word(&mut self, word: Word, now: Instant) {
        if self.gateway_states.own != word {
            self.gateway_states.own = word;
            self.gateway_states.version += 1;
            self.tell_gateway_state(true, now);
        }
    }

    /// A session with a peer was made, also where another one still stands: it may have restarted and know nothing any more.
    pub(super) fn greet_as_gateway(&mut self, node: NodeId, now: Instant) {
        if let Some(telling) = self.gateway_states.tellings.get_mut(&node) {
            telling.heard = false;
        }
        self.tell_gateway_state(true, now);
    }

    /// Tells every peer that has not heard it how this node is as a gateway; `afresh` after a change, else again.
    pub(super) fn tell_gateway_state(&mut self, afresh: bool, now: Instant) {
        if self.own.certificate.certificate().shares.is_empty() {
            return;
        }
        let version = self.gateway_states.version;
        let deaf = |telling: &Telling| !telling.heard || telling.version != version;
        let tellings = &self.gateway_states.tellings;
        let reached = self.peers.iter().filter(|(_, peer)| peer.contact.has_session()).map(|(node, _)| *node);
        let deaf: Vec<NodeId> = reached.filter(|node| tellings.get(node).is_none_or(deaf)).collect();
        if deaf.is_empty() {
            return;
        }
        deaf.iter().for_each(|node| self.tell_one(*node, 0));
        let states = &mut self.gateway_states;
        states.pause = if afresh { FIRST_PAUSE } else { (states.pause * 2).min(LONGEST_PAUSE) };
        let pause = states.pause;
        self.timers.set(TimerName::GatewayState, now + pause);
    }

    /// Tells one peer, under a sequence above `held` and above all it was told before.
    fn tell_one(&mut self, node: NodeId, held: u64) {
        // A record's sequence is at least the wall clock in milliseconds: above what was told before a restart.
        let (version, first) = (self.gateway_states.version, self.sequence);
        let states = &mut self.gateway_states;
        let telling = states.tellings.entry(node).or_insert(Telling { sequence: first, version, heard: false });
        if telling.version != version || telling.sequence <= held {
            telling.sequence = telling.sequence.max(held).saturating_add(1);
            (telling.version, telling.heard) = (version, false);
        }
        let (drained, failing) = (states.own.drained, states.own.networks());
        let state = GatewayState { sequence: telling.sequence, drained, failing };
        self.send(node, &ControlMessage::GatewayState(state));
    }

    /// A peer says which of our states it holds.
    pub(super) fn handle_gateway_heard(&mut self, from: NodeId, heard: GatewayHeard) {
        let is_held = self.gateway_states.own.is_held(&heard);
        let Some(telling) = self.gateway_states.tellings.get_mut(&from) else { return };
        match heard.sequence.cmp(&telling.sequence) {
            Ordering::Less => {}
            Ordering::Equal if is_held => telling.heard = true,
            // From before a restart, after which our clock was set back or our state lost.
            Ordering::Equal | Ordering::Greater => self.tell_one(from, heard.sequence),
        }
    }

    /// A peer tells how it is as a gateway: its word about itself.
    pub(super) fn handle_gateway_state(&mut self, from: NodeId, state: GatewayState, now: Instant) {
        let Some(member) = self.membership.get(from) else { return };
        let shares = &member.certificate().shares;
        if shares.is_empty() {
            return;
        }
        // Of more than the certificate names nobody need say anything.
        let failing = state.failing.iter().flat_map(Networks::iter).filter(|network| shares.get(network).is_some());
        let word = Word { drained: state.drained, failing: failing.collect() };
        let (held, known) = self.gateway_states.told.entry(from).or_default();
        let news = state.sequence > *held;
        if news {
            (*held, *known) = (state.sequence, word);
        }
        let failing = Some(known.failing.iter().copied().collect());
        let heard = GatewayHeard { sequence: *held, drained: known.drained, failing };
        self.send(from, &ControlMessage::GatewayHeard(heard));
        if news && let Some(state) = self.link_state(from) {
            self.follow_gateway(from, state, now);
        }
    }
}
