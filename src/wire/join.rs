//! Joining: a new host shows an invite's secret to a member and gets its certificate.
//!
//! One datagram each way. The request is sealed to the member and padded to more than any reply; the reply is sealed
//! under a key for which one must know both the request's secret and the invite's. `docs/protocol.md` §4 has the bytes.

use std::net::SocketAddr;

use minicbor::{Decode, Encode};
use rand_core::CryptoRngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::drop::DropReason;
use super::sealed::{self, Channel, Format, HEAD, Recipient, TAG, VERSION};
use crate::identity::{
    InviteId, InviteKey, NodeKeys, NodeName, Presentation, PublicKeys, Refusal, SignedCertificate, SignedRequest,
    Token, TrustAnchor, WireguardKey,
};
use crate::time::UnixTime;

/// The first byte of a join request.
pub const TYPE_REQUEST: u8 = 0x11;
/// The first byte of a join reply.
pub const TYPE_REPLY: u8 = 0x12;
/// The length of every request, in bytes; no reply is longer.
pub const LENGTH: usize = 1200;
/// The most members a reply names.
pub const MAX_MEMBERS: usize = 4;

/// Where a reply's sealed part begins: type, version, reserved, and a salt of 32 bytes.
const REPLY_SEALED: usize = HEAD + 32;

const FORMAT: Format =
    Format { kind: TYPE_REQUEST, domain: "meshd join v1", mac_domain: "meshd join mac", lengths: LENGTH..=LENGTH };

/// The joining host's side of one request; opens the reply to it.
pub struct JoinAttempt {
    channel: Channel,
    transcript: [u8; 32],
    key: InviteKey,
    anchor: TrustAnchor,
    name: NodeName,
    keys: PublicKeys,
}

/// A join request as the member sees it. Nothing is granted yet: see `InviteBook::present`.
pub struct JoinRequest {
    channel: Channel,
    transcript: [u8; 32],
    invite: InviteId,
    request: SignedRequest,
    proof: [u8; 32],
}

/// A member the new node can speak to first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinMember {
    /// Its name.
    #[n(0)]
    pub name: NodeName,
    /// The key of its tunnels.
    #[n(1)]
    pub wireguard_key: WireguardKey,
    /// Where it can be reached.
    #[cbor(n(2), with = "crate::identity::cbor::octets")]
    pub endpoint: SocketAddr,
}

/// A member's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinReply {
    /// The member's clock, so that the new host can tell that its own is wrong.
    pub now: UnixTime,
    /// What the new host gets.
    pub outcome: Result<Joined, JoinRefusal>,
}

/// What an admitted host gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its certificate.
    pub certificate: SignedCertificate,
    /// Up to [`MAX_MEMBERS`] members to speak to first; as many as fit.
    pub members: Vec<JoinMember>,
}

/// Why a host that proved its invite is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// The invite says no.
    #[error(transparent)]
    Invite(Refusal),
    /// The member cannot sign at the moment.
    #[error("the inviting node cannot issue certificates now: look at its log, then run the same command again")]
    Unavailable,
    /// One of the host's keys belongs to another node, or was revoked.
    #[error("one of this host's keys belongs to another node: remove the identity file and join with new keys")]
    KeyInUse,
    /// A code this version does not know.
    #[error("the inviting node refused with code {0}, which this version does not know: update meshctl")]
    Other(u8),
}

impl JoinRefusal {
    /// The code on the wire; nothing for [`Refusal::Unproven`], which is never answered.
    fn code(self) -> Option<u8> {
        match self {
            JoinRefusal::Invite(Refusal::Unproven) => None,
            JoinRefusal::Invite(Refusal::Expired) => Some(1),
            JoinRefusal::Invite(Refusal::Used) => Some(2),
            JoinRefusal::Invite(Refusal::Withdrawn) => Some(3),
            JoinRefusal::Invite(Refusal::OtherName) => Some(4),
            JoinRefusal::Unavailable => Some(5),
            JoinRefusal::KeyInUse => Some(6),
            JoinRefusal::Other(code) => Some(code),
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => JoinRefusal::Invite(Refusal::Expired),
            2 => JoinRefusal::Invite(Refusal::Used),
            3 => JoinRefusal::Invite(Refusal::Withdrawn),
            4 => JoinRefusal::Invite(Refusal::OtherName),
            5 => JoinRefusal::Unavailable,
            6 => JoinRefusal::KeyInUse,
            other => JoinRefusal::Other(other),
        }
    }
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct RequestContent<'b> {
    #[n(0)]
    invite: InviteId,
    #[cbor(b(1), with = "minicbor::bytes")]
    request: &'b [u8],
    #[cbor(n(2), with = "minicbor::bytes")]
    proof: [u8; 32],
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct ReplyContent<'b> {
    #[n(0)]
    now: UnixTime,
    #[cbor(b(1), with = "minicbor::bytes")]
    certificate: Option<&'b [u8]>,
    #[n(2)]
    members: Option<Vec<JoinMember>>,
    #[n(3)]
    refusal: Option<u8>,
}

/// Whether a datagram is a join request made by someone who knows this node's public key. Costs one hash; the caller
/// limits the rate of what passes before it calls [`JoinRequest::open`].
pub fn check_mac(me: &WireguardKey, datagram: &[u8]) -> bool {
    sealed::check_mac(&FORMAT, me, datagram)
}

impl JoinAttempt {
    /// Makes a join request and what is needed to open its reply. Each attempt is sealed anew; all attempts with the
    /// same keys get the same certificate.
    ///
    /// Returns nothing where the token or the endpoints cannot be used, which parsed ones can.
    pub fn new(
        token: &Token,
        keys: &NodeKeys,
        endpoints: &[SocketAddr],
        now: UnixTime,
        rng: &mut impl CryptoRngCore,
    ) -> Option<(Vec<u8>, Self)> {
        let request = SignedRequest::new(&token.name, endpoints, now, keys).ok()?;
        let (anchor, key) = (token.anchor().ok()?, token.key());
        let channel = Channel::to(&token.contact, rng)?;
        let transcript = transcript(&channel, token.invite, request.bytes());
        let proof = key.prove(&transcript);
        let content = RequestContent { invite: token.invite, request: request.bytes(), proof };
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH));
        minicbor::encode(&content, &mut *bytes).ok()?;
        let datagram = channel.seal(&FORMAT, bytes)?;
        let attempt = Self { channel, transcript, key, anchor, name: token.name.clone(), keys: keys.public() };
        Some((datagram, attempt))
    }

    /// Opens the reply to this attempt.
    ///
    /// # Errors
    /// Anything but a reply of the member the token names, with a certificate that an authority the token names gave
    /// to these keys under this name: ignore it and wait on.
    pub fn open(&self, datagram: &[u8]) -> Result<JoinReply, DropReason> {
        if datagram.len() > LENGTH || !datagram.starts_with(&[TYPE_REPLY, VERSION, 0, 0]) {
            return Err(DropReason::Malformed);
        }
        let (head, sealed) = datagram.split_at_checked(REPLY_SEALED).ok_or(DropReason::Malformed)?;
        let key = reply_key(&self.channel, &self.transcript, &self.key, &head[HEAD..]);
        let bytes = sealed::decrypt(&key, head, sealed).ok_or(DropReason::BadSeal)?;
        let content: ReplyContent<'_> = sealed::decode(&bytes)?;
        let outcome = match (content.certificate, content.refusal) {
            (Some(bytes), None) => {
                let certificate =
                    SignedCertificate::verify(bytes, &self.anchor).map_err(|_| DropReason::NotAdmitted)?;
                let given = certificate.certificate();
                if given.keys() != self.keys || given.name != self.name {
                    return Err(DropReason::NotAdmitted);
                }
                let mut members = content.members.unwrap_or_default();
                members.truncate(MAX_MEMBERS);
                Ok(Joined { certificate, members })
            }
            (None, Some(code)) => Err(JoinRefusal::from_code(code)),
            _ => return Err(DropReason::Malformed),
        };
        Ok(JoinReply { now: content.now, outcome })
    }
}

impl JoinRequest {
    /// Opens a join request: length, mac, seal, the joiner's signature. Its right to the invite is not checked yet.
    ///
    /// # Errors
    /// The reason to count; no answer is given.
    pub fn open(me: &Recipient<'_>, datagram: &[u8]) -> Result<Self, DropReason> {
        let (channel, bytes) = sealed::open(&FORMAT, me, datagram)?;
        let content: RequestContent<'_> = sealed::decode(&bytes)?;
        let request = SignedRequest::verify(content.request).map_err(|_| DropReason::Malformed)?;
        let transcript = transcript(&channel, content.invite, content.request);
        Ok(Self { channel, transcript, invite: content.invite, request, proof: content.proof })
    }

    /// What to show to the book of invites.
    pub fn presentation(&self) -> Presentation<'_> {
        let request = self.request.request();
        Presentation {
            invite: self.invite,
            name: &request.name,
            keys: request.keys(),
            transcript: &self.transcript,
            proof: &self.proof,
        }
    }

    /// What the joining host says about itself.
    pub fn request(&self) -> &SignedRequest {
        &self.request
    }

    /// Makes the reply, with as many members as fit, under the invite's key.
    ///
    /// Returns nothing for [`Refusal::Unproven`]: whoever proved nothing gets no answer.
    pub fn reply(&self, key: &InviteKey, reply: &JoinReply, rng: &mut impl CryptoRngCore) -> Option<Vec<u8>> {
        let mut head = [0; REPLY_SEALED];
        head[..HEAD].copy_from_slice(&[TYPE_REPLY, VERSION, 0, 0]);
        rng.fill_bytes(&mut head[HEAD..]);
        let mut content = ReplyContent { now: reply.now, certificate: None, members: None, refusal: None };
        match &reply.outcome {
            Ok(joined) => {
                content.certificate = Some(joined.certificate.bytes());
                content.members = Some(joined.members.iter().take(MAX_MEMBERS).cloned().collect());
            }
            Err(refusal) => content.refusal = Some(refusal.code()?),
        }
        let room = LENGTH - REPLY_SEALED - TAG;
        let bytes = loop {
            let mut bytes = Vec::with_capacity(LENGTH);
            minicbor::encode(&content, &mut bytes).ok()?;
            if bytes.len() <= room {
                break bytes;
            }
            content.members.as_mut()?.pop()?;
        };
        let key = reply_key(&self.channel, &self.transcript, key, &head[HEAD..]);
        let sealed = sealed::encrypt(&key, &head, &bytes)?;
        Some([head.as_slice(), &sealed].concat())
    }
}

/// Binds proof and reply to this request: its keys, its content, its receiver.
fn transcript(channel: &Channel, invite: InviteId, request: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"meshd join transcript v1")
        .chain_update(channel.recipient.as_bytes())
        .chain_update(channel.ephemeral)
        .chain_update(invite.as_bytes())
        .chain_update(request)
        .finalize()
        .into()
}

/// A key for one reply; the salt makes it another for each.
fn reply_key(channel: &Channel, transcript: &[u8; 32], key: &InviteKey, salt: &[u8]) -> Zeroizing<[u8; 32]> {
    let more = Zeroizing::new([key.as_bytes().as_slice(), transcript, salt].concat());
    channel.key("meshd join reply v1", &more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{keys, rng};

    #[test]
    fn the_transcript_covers_receiver_datagram_invite_and_request() {
        let [two, three] = [2, 3].map(|number| keys(number).public().wireguard);
        let channel = |to, seed| Channel::to(to, &mut rng(seed)).unwrap();
        let [a, b] = [1, 2].map(|number| InviteId::from_bytes([number; 16]));
        let base = transcript(&channel(&two, 1), a, b"request");
        assert_eq!(base, transcript(&channel(&two, 1), a, b"request"));
        for other in [
            transcript(&channel(&three, 1), a, b"request"),
            transcript(&channel(&two, 2), a, b"request"),
            transcript(&channel(&two, 1), b, b"request"),
            transcript(&channel(&two, 1), a, b"requesu"),
        ] {
            assert_ne!(other, base);
        }
    }

    #[test]
    fn every_reply_has_its_own_key() {
        let channel = Channel::to(&keys(2).public().wireguard, &mut rng(1)).unwrap();
        let key = InviteKey::from_bytes([7; 32]);
        let base = reply_key(&channel, &[1; 32], &key, &[3; 32]);
        assert_ne!(*base, *reply_key(&channel, &[1; 32], &key, &[4; 32]), "salt");
        assert_ne!(*base, *reply_key(&channel, &[2; 32], &key, &[3; 32]), "transcript");
        assert_ne!(*base, *reply_key(&channel, &[1; 32], &InviteKey::from_bytes([8; 32]), &[3; 32]), "invite");
        let other = Channel::to(&keys(2).public().wireguard, &mut rng(2)).unwrap();
        assert_ne!(*base, *reply_key(&other, &[1; 32], &key, &[3; 32]), "request");
    }

    #[test]
    fn refusals_round_trip_and_later_ones_are_shown_by_number() {
        for code in 1..=u8::MAX {
            assert_eq!(JoinRefusal::from_code(code).code(), Some(code));
        }
        assert_eq!(JoinRefusal::Invite(Refusal::Unproven).code(), None, "never answered");
    }
}
