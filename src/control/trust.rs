//! Which authorities are trusted, while the daemon runs: two for as long as a key is exchanged, and who still rests on which.
//!
//! Trust is the operator's word alone, from each node's own configuration; nothing that a peer says changes it. A link belongs to
//! its keys and not to a certificate, so another authority's certificate for the same keys moves no session.

use super::output::{Departure, Output, Persist};
use super::timer::TimerName;
use super::{ANTI_ENTROPY_BUSY, CommandError, Engine};
use crate::identity::{NodeId, NodeName, VerifyingKey};
use crate::time::Instant;

/// A member whose certificate rests on none of the authorities in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outsider {
    /// The member.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Whether a session with it stands, so that a link would be cut.
    pub connected: bool,
}

impl Engine {
    /// The other members that would be gone if only these authorities were trusted, in the order of their ids.
    pub fn outsiders(&self, authorities: &[VerifyingKey]) -> Vec<Outsider> {
        let others = self.membership.outside(authorities).filter(|(node, _)| *node != self.node);
        let outsider = |(node, name)| {
            let connected = self.peers.get(&node).is_some_and(|peer| peer.contact.has_session());
            Outsider { node, name, connected }
        };
        others.map(|(node, member)| (node, member.certificate().name.clone())).map(outsider).collect()
    }

    /// Trusts these authorities from now on, and no others. Who rests on others is gone; nobody else's link is touched. What a
    /// new authority has signed was refused until now, so the memberships are compared again soon.
    ///
    /// # Errors
    /// This node's own certificate rests on none of them; nothing has changed then.
    pub fn set_authorities(&mut self, authorities: Vec<VerifyingKey>, now: Instant) -> Result<(), CommandError> {
        if !authorities.contains(&self.own.certificate.root()) {
            let why = "this node's own certificate rests on another authority";
            return Err(CommandError::Refused { what: "list of authorities", why });
        }
        self.own.anchor.authorities.clone_from(&authorities);
        let gone = self.membership.set_authorities(authorities);
        if !gone.is_empty() {
            self.drop_former(Departure::Untrusted, now);
            self.reroute(now);
        }
        self.last_change = now;
        self.timers.set_earlier(TimerName::AntiEntropy, now + ANTI_ENTROPY_BUSY);
        self.output(Output::Persist(Persist::Membership));
        Ok(())
    }

    /// How many members rest on each trusted authority, in the order of the configuration.
    pub fn followers(&self) -> Vec<(VerifyingKey, usize)> {
        let rests =
            |key: &VerifyingKey| self.membership.members().filter(|(_, m)| m.certificate.root() == *key).count();
        self.own.anchor.authorities.iter().map(|key| (*key, rests(key))).collect()
    }
}
