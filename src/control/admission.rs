//! Letting nodes in, keeping their certificates fresh, and throwing them out.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::RngCore;

use super::gossip::Object;
use super::link::SECOND_MOVE;
use super::membership::{self, Merge};
use super::output::{Departure, Event, Output, Persist};
use super::timer::TimerName;
use super::{CERTIFICATE_CHECK, Engine, FEATURE_RENEWS};
use crate::identity::{
    Invite, InviteBook, InviteBookError, InviteId, NodeId, NodeName, PublicKeys, Refusal, Revocation,
    SignedCertificate, Term,
};
use crate::time::{Instant, UnixTime};
use crate::wire::control::{ControlMessage, RenewalReply};
use crate::wire::join::{self, JoinMember, JoinRefusal, JoinReply, JoinRequest, Joined};
use crate::wire::{DropReason, Recipient, introduction};

/// How long a node waits for the answer to a renewal request before it asks another authority node.
const RENEWAL_RETRY: Duration = Duration::from_secs(300);
/// Shortest time between two certificates for one node, so that a member cannot keep an authority node busy signing.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// An introduction to a peer answers the one it crosses, if sent within this time.
const INTRODUCED_LATELY: Duration = Duration::from_secs(1);

/// Why an operator's command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No member of that name.
    #[error("no member is named {0}")]
    NoSuchMember(NodeName),
    /// The signed object is not accepted.
    #[error("the {what} is not accepted: {why}")]
    Refused {
        /// What it is.
        what: &'static str,
        /// Why.
        why: &'static str,
    },
    /// This node cannot sign.
    #[error("this node does not hold the authority's key")]
    NotAuthority,
    /// Nobody can sign.
    #[error("no authority node answers; sign a certificate offline, or try again when one is up")]
    NoSigner,
    /// A renewal would shorten it.
    #[error("the certificate holds until {0}, longer than a renewed one would")]
    NotDue(UnixTime),
    /// The invite cannot be kept.
    #[error(transparent)]
    Invite(#[from] InviteBookError),
}

impl Engine {
    /// Takes a datagram of ours that came outside any tunnel: an introduction or a request to join.
    ///
    /// # Errors
    /// The reason to count it under; whoever sent it hears nothing.
    pub fn handle_datagram(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Instant,
        wall: UnixTime,
    ) -> Result<(), DropReason> {
        let key = self.own.certificate.certificate().wireguard_key;
        let check_mac = match datagram.first() {
            Some(&introduction::TYPE) => introduction::check_mac,
            Some(&join::TYPE_REQUEST) => join::check_mac,
            _ => return Err(DropReason::Malformed),
        };
        if !check_mac(&key, datagram) {
            return Err(DropReason::BadMac);
        }
        if self.served.contains(datagram) {
            return Err(DropReason::Replayed);
        }
        self.admit_stranger(source, now)?;
        if datagram.first() == Some(&introduction::TYPE) {
            self.handle_introduction(source, datagram, now, wall)?;
        } else {
            self.handle_join(source, datagram, now, wall)?;
        }
        self.served.note(datagram);
        Ok(())
    }

    fn admit_stranger(&mut self, source: SocketAddr, now: Instant) -> Result<(), DropReason> {
        if self.strangers.admit(source.ip(), now) { Ok(()) } else { Err(DropReason::RateLimited) }
    }

    fn handle_introduction(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Instant,
        wall: UnixTime,
    ) -> Result<(), DropReason> {
        let me = Recipient::new(&self.own.keys.wireguard);
        let at = self.membership.present(wall);
        // The sender proves that it holds the certificate's signing key, so a copied certificate introduces nobody.
        let opened = introduction::open(&me, &self.own.anchor, at, datagram)?;
        let node = opened.certificate.certificate().node;
        if node == self.node {
            return Err(DropReason::NotAdmitted);
        }
        if let Merge::Refused(_) = self.take_verified(opened.certificate, None, now, wall) {
            return Err(DropReason::NotAdmitted);
        }
        if let Some(record) = &opened.record {
            self.take_record(node, record.bytes(), None, now, wall);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return Err(DropReason::NotAdmitted) };
        peer.contact.set_observed(source);
        let key = peer.key;
        let introduced = peer.introduced_at().is_some_and(|at| now.saturating_since(at) < INTRODUCED_LATELY);
        if opened.answer_wanted && !introduced {
            // It knows only our key, or its clock keeps it from starting a handshake itself: tell it who we are and start
            // one. It has proved who it is, and no introduction is longer than one that wants an answer.
            self.introduce(key, source, false, now, wall);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.contact.start(now);
            }
        } else if !opened.answer_wanted
            && introduced
            && let Some(peer) = self.peers.get_mut(&node)
            && !peer.contact.has_session()
        {
            // It answers our introduction and starts a handshake itself; ours follows if that one is lost.
            peer.contact.start(now + SECOND_MOVE);
        }
        self.arm_contact(node);
        Ok(())
    }

    fn handle_join(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Instant,
        wall: UnixTime,
    ) -> Result<(), DropReason> {
        let me = Recipient::new(&self.own.keys.wireguard);
        let request = JoinRequest::open(&me, datagram)?;
        let shown = request.presentation();
        let invite = self.own.invites.get(shown.invite).cloned().ok_or(DropReason::NotAdmitted)?;
        let mut issued = None;
        let outcome = if self.is_key_taken(&shown.keys, invite.admission.node) {
            // Only whoever knows the invite's secret is told.
            if !invite.key.check(shown.transcript, shown.proof) {
                return Err(DropReason::NotAdmitted);
            }
            Err(JoinRefusal::KeyInUse)
        } else {
            match self.own.invites.present(&shown, wall) {
                Err(Refusal::Unproven) => return Err(DropReason::NotAdmitted),
                Err(refusal) => Err(JoinRefusal::Invite(refusal)),
                Ok(grant) => {
                    let authority = self.own.authority.as_ref();
                    let at = self.membership.present(wall);
                    match grant.issue(authority, &self.own.keys.signing, &self.own.anchor, at) {
                        Err(_) => Err(JoinRefusal::Unavailable),
                        Ok(certificate) => {
                            self.own.invites.issued(shown.invite, &certificate);
                            issued = Some((certificate.clone(), grant.certificate.is_none()));
                            Ok(Joined { certificate, members: self.members_to_name() })
                        }
                    }
                }
            }
        };
        let reply = JoinReply { now: wall, outcome };
        let bytes = request.reply(&invite.key, &reply, &mut self.rng).ok_or(DropReason::NotAdmitted)?;
        // On disk before it is answered: a crash in between lets the same keys ask again, and nobody else.
        self.output(Output::Persist(Persist::Invites));
        self.output(Output::Datagram { to: source, bytes });
        if let Some((certificate, first)) = issued {
            if first {
                self.event(Event::Issued { certificate: Box::new(certificate.clone()) });
            }
            self.take_verified(certificate, None, now, wall);
        }
        Ok(())
    }

    /// Whether a key that wants to join belongs to another member, or to a node that was revoked.
    fn is_key_taken(&self, keys: &PublicKeys, node: NodeId) -> bool {
        self.membership.is_revoked_key(keys)
            || self.membership.by_key(&keys.wireguard).is_some_and(|holder| holder != node)
    }

    /// Forgets the answer that waits to be sent next: the driver could not write what it depends on.
    pub fn discard_answer(&mut self) {
        if let Some(Output::Datagram { .. }) = self.outputs.front() {
            self.outputs.pop_front();
        }
    }

    /// The members a new node is told to contact first: ourselves, then up to three that answer.
    fn members_to_name(&self) -> Vec<JoinMember> {
        let own = self.own.certificate.certificate();
        let mut members = Vec::new();
        if let Some(endpoint) = self.settings.endpoints.first() {
            let (name, wireguard_key) = (own.name.clone(), own.wireguard_key);
            members.push(JoinMember { name, wireguard_key, endpoint: *endpoint });
        }
        for (node, peer) in &self.peers {
            if members.len() >= join::MAX_MEMBERS {
                break;
            }
            if let (true, Some(endpoint), Some(member)) =
                (peer.contact.has_session(), peer.contact.current(), self.membership.get(*node))
            {
                let name = member.certificate().name.clone();
                members.push(JoinMember { name, wireguard_key: peer.key, endpoint });
            }
        }
        members
    }

    /// The invites this node has given out.
    pub fn invites(&self) -> &InviteBook {
        &self.own.invites
    }

    /// Keeps an invite. Its admission was entered into the ledger, or delegated to this node, before.
    ///
    /// # Errors
    /// [`CommandError`]; nothing is kept then.
    pub fn invite(&mut self, invite: Invite, wall: UnixTime) -> Result<(), CommandError> {
        if invite.delegation.is_none() && self.own.authority.is_none() {
            return Err(CommandError::NotAuthority);
        }
        self.own.invites.add(invite, wall)?;
        self.output(Output::Persist(Persist::Invites));
        Ok(())
    }

    /// Takes an invite back; false where it is unknown or used.
    pub fn withdraw_invite(&mut self, invite: InviteId) -> bool {
        let withdrawn = self.own.invites.withdraw(invite);
        if withdrawn {
            self.output(Output::Persist(Persist::Invites));
        }
        withdrawn
    }

    /// Takes a revocation from an operator and spreads it.
    ///
    /// # Errors
    /// One that the authority did not sign.
    pub fn accept_revocation(&mut self, bytes: &[u8], now: Instant) -> Result<(), CommandError> {
        match self.take_revocation(bytes, None, now) {
            Merge::Refused(membership::Refusal::Full) => {
                Err(CommandError::Refused { what: "revocation", why: "there are too many; renew the authority" })
            }
            Merge::Refused(_) => {
                Err(CommandError::Refused { what: "revocation", why: "no authority of this mesh signed it" })
            }
            _ => Ok(()),
        }
    }

    /// Revokes the member of a name with the authority's key, and returns its node id.
    ///
    /// # Errors
    /// No such member, or this node holds no authority key.
    pub fn revoke(&mut self, name: &NodeName, now: Instant, wall: UnixTime) -> Result<NodeId, CommandError> {
        let Some(authority) = self.own.authority.as_ref() else { return Err(CommandError::NotAuthority) };
        let subject = self.membership.members().find(|(_, member)| member.certificate().name == *name);
        let Some((node, member)) = subject else { return Err(CommandError::NoSuchMember(name.clone())) };
        let revocation = Revocation::of(member.certificate(), self.membership.present(wall));
        let signed = authority
            .revoke(&revocation)
            .map_err(|_| CommandError::Refused { what: "revocation", why: "the member is of another mesh" })?;
        self.accept_revocation(signed.bytes(), now)?;
        Ok(node)
    }

    /// Takes a certificate from an operator: our own, renewed offline, or another member's.
    ///
    /// # Errors
    /// One that is not accepted, with the reason.
    pub fn accept_certificate(&mut self, bytes: &[u8], now: Instant, wall: UnixTime) -> Result<(), CommandError> {
        let why = match self.take_certificate(bytes, None, now, wall) {
            Merge::Refused(membership::Refusal::Revoked) => "its node is revoked",
            Merge::Refused(membership::Refusal::Expired) => "it has expired",
            Merge::Refused(membership::Refusal::Full) => "the mesh has too many members",
            Merge::Refused(membership::Refusal::KeyInUse) => "another member holds its key",
            Merge::Refused(_) => "no authority of this mesh signed it",
            _ => return Ok(()),
        };
        Err(CommandError::Refused { what: "certificate", why })
    }

    /// Looks at the certificates: those that ended, and whether ours is due for renewal.
    pub(super) fn check_certificates(&mut self, now: Instant, wall: UnixTime) {
        if !self.membership.expire(wall).is_empty() {
            self.drop_former(Departure::Expired, now);
            self.reroute(now);
            self.output(Output::Persist(Persist::Membership));
        }
        // Our own certificate stays ours, whatever the membership says: the status warns, the operator acts.
        let own = self.own.certificate.clone();
        if self.membership.get(self.node).is_none() && !self.revoked {
            self.membership.merge_verified(own, wall);
        }
        self.ask_for_renewal(now, wall);
        self.timers.set(TimerName::Certificates, now + CERTIFICATE_CHECK);
    }

    fn ask_for_renewal(&mut self, now: Instant, wall: UnixTime) {
        let certificate = self.own.certificate.certificate();
        let term = certificate.not_after.saturating_since(certificate.issued).min(Term::ONLINE);
        let at = self.membership.present(wall);
        // Half of what an authority node gives: a certificate that was signed offline for a year is not cut short.
        if certificate.not_after.saturating_since(at) > term / 2 {
            return;
        }
        if self.own.authority.is_some() {
            return self.renew_own(now, wall);
        }
        if self.renewal_asked.is_some_and(|asked| now.saturating_since(asked) < RENEWAL_RETRY) {
            return;
        }
        self.ask_a_signer(now);
    }

    /// Renews this node's certificate now: an authority node by itself, any other by asking one.
    ///
    /// # Errors
    /// No authority node answers at present, or the certificate holds longer than a renewed one would.
    pub fn renew(&mut self, now: Instant, wall: UnixTime) -> Result<(), CommandError> {
        let at = self.membership.present(wall);
        if Term::online(at).not_after <= self.own.certificate.certificate().not_after {
            return Err(CommandError::NotDue(self.own.certificate.certificate().not_after));
        }
        if self.own.authority.is_some() {
            self.renew_own(now, wall);
            return Ok(());
        }
        if self.ask_a_signer(now) { Ok(()) } else { Err(CommandError::NoSigner) }
    }

    /// Whether somebody who can renew this node's certificate answers, this node itself included.
    pub fn can_renew(&self) -> bool {
        self.own.authority.is_some() || !self.signers().is_empty()
    }

    fn ask_a_signer(&mut self, now: Instant) -> bool {
        let signers = self.signers();
        if signers.is_empty() {
            return false;
        }
        let signer = signers[self.rng.next_u32() as usize % signers.len()];
        self.renewal_asked = Some(now);
        self.send(signer, &ControlMessage::RenewalRequest);
        true
    }

    /// The peers that say they renew. What they answer needs the authority's signature, so one that says it falsely can only
    /// stay silent, and another is asked next.
    fn signers(&self) -> Vec<NodeId> {
        let record = |peer: &NodeId| self.membership.get(*peer).and_then(|member| member.record.as_ref());
        let renews = |peer: &NodeId| record(peer).is_some_and(|record| record.record().features & FEATURE_RENEWS != 0);
        self.gossip.peers().filter(renews).collect()
    }

    /// An authority node renews itself.
    fn renew_own(&mut self, now: Instant, wall: UnixTime) {
        let node = self.node;
        if let Some(certificate) = self.renewed_certificate(node, wall) {
            self.event(Event::Issued { certificate: Box::new(certificate.clone()) });
            self.take_certificate(certificate.bytes(), None, now, wall);
        }
    }

    /// A member asks for a fresh certificate. It gets what it has, for longer: nothing is widened without an operator.
    pub(super) fn handle_renewal_request(&mut self, from: NodeId, now: Instant, wall: UnixTime) {
        if self.renewed.get(&from).is_some_and(|at| now.saturating_since(*at) < RENEWAL_PAUSE) {
            return;
        }
        let Some(certificate) = self.renewed_certificate(from, wall) else { return };
        self.renewed.retain(|_, at| now.saturating_since(*at) < RENEWAL_PAUSE);
        self.renewed.insert(from, now);
        self.event(Event::Issued { certificate: Box::new(certificate.clone()) });
        let reply = RenewalReply { certificate: certificate.bytes().to_vec().into() };
        self.send(from, &ControlMessage::RenewalReply(reply));
    }

    fn renewed_certificate(&self, node: NodeId, wall: UnixTime) -> Option<SignedCertificate> {
        let authority = self.own.authority.as_ref()?;
        let old = self.membership.get(node)?.certificate();
        // Of two certificates of one second and serial neither is the newer, and the renewed one would not be taken.
        let at = self.membership.present(wall).max(old.issued + Duration::from_secs(1));
        let term = Term::online(at);
        if term.not_after <= old.not_after {
            return None;
        }
        authority.issue(&old.admission(), &old.keys(), &term).ok()
    }

    pub(super) fn handle_renewal_reply(&mut self, bytes: &[u8], now: Instant, wall: UnixTime) {
        let ours = self.own.certificate.certificate();
        // Only a certificate for us, with our keys, may come this way.
        if let Ok(signed) = SignedCertificate::verify(bytes, &self.own.anchor)
            && signed.certificate().node == self.node
            && signed.certificate().keys() == ours.keys()
        {
            self.take_certificate(bytes, None, now, wall);
        }
    }

    /// A newer certificate of our own was merged, whichever way it came: by renewal, or from a peer that had it.
    pub(super) fn adopt_own_certificate(&mut self, now: Instant, wall: UnixTime) {
        let Some(member) = self.membership.get(self.node) else { return };
        if member.certificate().keys() != self.own.certificate.certificate().keys() {
            return;
        }
        self.own.certificate = member.certificate.clone();
        self.renewal_asked = None;
        self.output(Output::Persist(Persist::Certificate(Box::new(self.own.certificate.clone()))));
        self.event(Event::Renewed);
        self.publish(now, wall);
        self.spread(Object::Certificate(self.node), None, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::path::Path;
    use crate::control::{Arrival, BootstrapPeer, OwnNode, SessionEvent, Settings};
    use crate::identity::testing::{NOW, admission, authority, keys};

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, number], 7655))
    }

    fn engine(number: u8, signs: bool, bootstrap: Option<u8>) -> Engine {
        engine_until(number, signs, bootstrap, &Term::online(NOW))
    }

    fn engine_until(number: u8, signs: bool, bootstrap: Option<u8>, term: &Term) -> Engine {
        let own = OwnNode {
            keys: keys(number),
            certificate: authority().issue(&admission(number), &keys(number).public(), term).expect("valid"),
            anchor: authority().anchor().clone(),
            authority: signs.then(authority),
            invites: InviteBook::default(),
        };
        let named = |other: u8| BootstrapPeer { key: keys(other).public().wireguard, endpoint: address(other) };
        let settings = Settings {
            endpoints: vec![address(number)],
            addresses: vec![address(number).ip()],
            bootstrap: bootstrap.into_iter().map(named).collect(),
            ..Settings::bare()
        };
        Engine::new(own, settings, None, [number; 32], Instant::ZERO, NOW)
    }

    /// Lets two engines talk until neither has anything to say, as if the network took no time.
    fn talk(one: &mut Engine, two: &mut Engine, now: Instant, wall: UnixTime) {
        let mut quiet = 0;
        while quiet < 2 {
            for number in [1, 2] {
                let (from, to) = if number == 1 { (&mut *one, &mut *two) } else { (&mut *two, &mut *one) };
                let endpoint = address(number);
                quiet += 1;
                let arrival = Arrival::at(from.node(), Path::to(endpoint), now);
                while let Some(output) = from.poll_output() {
                    let taken = match output {
                        Output::Datagram { bytes, .. } => to.handle_datagram(endpoint, &bytes, now, wall),
                        Output::Message { bytes, .. } => to.handle_message(arrival, &bytes, now, wall),
                        _ => continue,
                    };
                    taken.expect("both are honest");
                    quiet = 0;
                }
            }
        }
    }

    /// The second introduces itself to the first, and a session comes up.
    fn meet(one: &mut Engine, two: &mut Engine, now: Instant) {
        two.handle_timeout(now, NOW);
        talk(one, two, now, NOW);
        let nodes = (one.node(), two.node());
        one.handle_session(nodes.1, SessionEvent::Established { path: Path::to(address(2)) }, now);
        two.handle_session(nodes.0, SessionEvent::Established { path: Path::to(address(1)) }, now);
        talk(one, two, now, NOW);
    }

    #[test]
    fn a_node_is_renewed_by_one_that_holds_the_authoritys_key() {
        let (mut signer, mut node) = (engine(1, true, None), engine(2, false, Some(1)));
        let now = Instant::from_millis(10);
        meet(&mut signer, &mut node, now);
        let later = NOW + Duration::from_secs(3_600);
        node.renew(now, later).expect("an authority node answers");
        talk(&mut signer, &mut node, now, later);
        let renewed = node.certificate().certificate();
        assert_eq!((renewed.issued, renewed.not_after), (later, later + Term::ONLINE));
        assert_eq!(renewed.admission(), admission(2), "nothing but the term changes");
    }

    #[test]
    fn a_certificate_is_renewed_in_the_very_second_it_was_issued() {
        let mut signer = engine(1, true, None);
        let mut node = engine_until(2, false, Some(1), &Term::lasting(NOW, Duration::from_secs(86_400)));
        let now = Instant::from_millis(10);
        meet(&mut signer, &mut node, now);
        node.renew(now, NOW).expect("an authority node answers");
        talk(&mut signer, &mut node, now, NOW);
        assert_eq!(node.certificate().certificate().issued, NOW + Duration::from_secs(1));
    }

    #[test]
    fn a_copy_of_an_introduction_gets_no_answer() {
        let (mut plain, mut node) = (engine(1, false, None), engine(2, false, Some(1)));
        let now = Instant::from_millis(10);
        node.handle_timeout(now, NOW);
        let introduction = std::iter::from_fn(|| node.poll_output()).find_map(|output| match output {
            Output::Datagram { bytes, .. } => Some(bytes),
            _ => None,
        });
        let introduction = introduction.expect("it greets its bootstrap");
        plain.handle_datagram(address(2), &introduction, now, NOW).expect("an honest one");
        let answers = |engine: &mut Engine| {
            std::iter::from_fn(|| engine.poll_output())
                .filter(|output| matches!(output, Output::Datagram { .. }))
                .count()
        };
        assert_eq!(answers(&mut plain), 1, "it is answered");
        // From the stranger's own address, and late enough for the peer to be introduced to again.
        let later = now + Duration::from_secs(5);
        let copied = plain.handle_datagram(address(9), &introduction, later, NOW);
        assert_eq!((copied, answers(&mut plain)), (Err(DropReason::Replayed), 0));
    }

    #[test]
    fn without_one_the_operator_is_told() {
        let (mut plain, mut node) = (engine(1, false, None), engine(2, false, Some(1)));
        let now = Instant::from_millis(10);
        meet(&mut plain, &mut node, now);
        assert_eq!(node.renew(now, NOW + Duration::from_secs(3_600)), Err(CommandError::NoSigner));
    }

    #[test]
    fn a_certificate_of_a_year_is_not_cut_to_a_month() {
        let mut signer = engine(1, true, None);
        let mut node = engine_until(2, false, Some(1), &Term::offline(NOW));
        let now = Instant::from_millis(10);
        meet(&mut signer, &mut node, now);
        let until = NOW + Term::OFFLINE;
        assert_eq!(node.renew(now, NOW), Err(CommandError::NotDue(until)));
        // Nor does a signer do it for a node that asks all the same.
        signer.handle_renewal_request(node.node(), now, NOW);
        talk(&mut signer, &mut node, now, NOW);
        assert_eq!(node.certificate().certificate().not_after, until);
    }
}
