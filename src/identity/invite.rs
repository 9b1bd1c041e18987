//! Invites: pending admissions, each worth one node, kept by the member that will issue the certificate.

use std::collections::BTreeMap;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use super::admission::Admission;
use super::anchor::TrustAnchor;
use super::armor::{self, ArmorError, ArmorKind};
use super::authority::Authority;
use super::cbor;
use super::certificate::{SignedCertificate, Term};
use super::cose::{ObjectError, ObjectKind};
use super::delegation::SignedDelegation;
use super::id::InviteId;
use super::key::{PublicKeys, SigningSecret, VerifyingKey, WireguardKey};
use super::name::NodeName;
use super::token::InviteKey;
use crate::time::UnixTime;

/// One pending admission.
#[derive(Clone)]
pub struct Invite {
    /// Its public identifier.
    pub id: InviteId,
    /// What the presenter must prove to know.
    pub key: InviteKey,
    /// What the presenter gets.
    pub admission: Admission,
    /// The authority's permission, where this member does not hold the authority's key.
    pub delegation: Option<SignedDelegation>,
    /// The first second in which it is worth nothing.
    pub expires: UnixTime,
    /// Where it stands.
    pub state: InviteState,
}

/// Where an invite stands. It only ever moves forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InviteState {
    /// Nobody has presented it.
    Open,
    /// It belongs to these keys; the certificate is there once it was issued.
    Bound {
        /// The keys of its first presenter.
        keys: PublicKeys,
        /// What was issued, so that a presenter that lost the answer gets the same again.
        certificate: Option<SignedCertificate>,
    },
    /// An administrator took it back.
    Withdrawn,
}

/// What someone who wants to join shows.
#[derive(Clone, Copy, Debug)]
pub struct Presentation<'a> {
    /// The invite.
    pub invite: InviteId,
    /// The name it wishes for.
    pub name: &'a NodeName,
    /// Its keys, whose possession was proved.
    pub keys: PublicKeys,
    /// The transcript the proof is over; contains keys and name.
    pub transcript: &'a [u8; 32],
    /// The proof.
    pub proof: &'a [u8; 32],
}

/// What an accepted presenter gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The invite it comes from.
    pub invite: InviteId,
    /// Its place in the mesh.
    pub admission: Admission,
    /// Its keys.
    pub keys: PublicKeys,
    /// The authority's permission, where needed.
    pub delegation: Option<SignedDelegation>,
    /// The certificate, where one was issued before: answer with this one.
    pub certificate: Option<SignedCertificate>,
}

/// Why a presenter gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such invite, or the proof is wrong. Whoever cannot prove anything gets no answer.
    #[error("unknown invite or wrong proof")]
    Unproven,
    /// Its time is over.
    #[error("the invite has expired: make a new one with `meshctl invite`")]
    Expired,
    /// It belongs to other keys.
    #[error("the invite was already used by another host: make a new one with `meshctl invite`")]
    Used,
    /// An administrator took it back.
    #[error("the invite was withdrawn: make a new one with `meshctl invite`")]
    Withdrawn,
    /// It is for a node of another name.
    #[error("the invite is for a node of another name")]
    OtherName,
}

/// Why an invite cannot be kept, or a book not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteBookError {
    /// There are too many.
    #[error("{} invites are pending already: withdraw some with `meshctl invite --revoke`", InviteBook::MAX)]
    Full,
    /// There is one with the same identifier or for the same name.
    #[error("an invite for `{0}` is pending already: withdraw it with `meshctl invite --revoke`")]
    Pending(NodeName),
    /// It would hold too long, or not at all.
    #[error("an invite must expire within 30 days from now")]
    Term,
    /// The text around the bytes is wrong.
    #[error(transparent)]
    Armor(#[from] ArmorError),
    /// An object in it is wrong.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The bytes are no book.
    #[error("the file of pending invites is damaged ({0}): remove it, and invite again")]
    Content(String),
}

/// All pending invites of a member. Each binds to the first keys that present it and to no others, ever.
#[derive(Clone, Default)]
pub struct InviteBook {
    invites: BTreeMap<InviteId, Invite>,
}

impl InviteBook {
    /// The most pending invites: more than anyone sets up in a day, and small enough to store at every change.
    pub const MAX: usize = 256;
    /// The longest an invite may be pending.
    pub const LONGEST: Duration = Duration::from_secs(30 * 86_400);
    /// How long a finished invite is kept, so that a late presenter hears why it gets nothing.
    pub const KEEP: Duration = Duration::from_secs(86_400);

    /// Adds an invite.
    ///
    /// # Errors
    /// A full book, a second open invite for one name, a term beyond the limit.
    pub fn add(&mut self, invite: Invite, now: UnixTime) -> Result<(), InviteBookError> {
        self.purge(now);
        if invite.expires <= now || invite.expires.saturating_since(now) > Self::LONGEST {
            return Err(InviteBookError::Term);
        }
        let open = |other: &&Invite| other.state == InviteState::Open && other.expires > now;
        let same_name = self.iter().filter(open).any(|other| other.admission.name == invite.admission.name);
        if same_name || self.invites.contains_key(&invite.id) {
            return Err(InviteBookError::Pending(invite.admission.name));
        }
        if self.invites.len() >= Self::MAX {
            return Err(InviteBookError::Full);
        }
        self.invites.insert(invite.id, invite);
        Ok(())
    }

    /// Checks a presenter's proof and binds the invite to its keys, in one step.
    ///
    /// The caller stores the book before it answers, so that a crash cannot give the invite to two.
    ///
    /// # Errors
    /// Why it gets nothing. [`Refusal::Unproven`] must not be answered.
    pub fn present(&mut self, shown: &Presentation<'_>, now: UnixTime) -> Result<Grant, Refusal> {
        let invite = self.invites.get_mut(&shown.invite).ok_or(Refusal::Unproven)?;
        if !invite.key.check(shown.transcript, shown.proof) {
            return Err(Refusal::Unproven);
        }
        if invite.state == InviteState::Withdrawn {
            return Err(Refusal::Withdrawn);
        }
        if now >= invite.expires {
            return Err(Refusal::Expired);
        }
        if *shown.name != invite.admission.name {
            return Err(Refusal::OtherName);
        }
        let certificate = match &invite.state {
            InviteState::Bound { keys, .. } if *keys != shown.keys => return Err(Refusal::Used),
            InviteState::Bound { certificate, .. } => certificate.clone(),
            InviteState::Open | InviteState::Withdrawn => None,
        };
        invite.state = InviteState::Bound { keys: shown.keys, certificate: certificate.clone() };
        let (admission, delegation) = (invite.admission.clone(), invite.delegation.clone());
        Ok(Grant { invite: invite.id, admission, keys: shown.keys, delegation, certificate })
    }

    /// Remembers what was issued; the first one stays.
    pub fn issued(&mut self, invite: InviteId, issued: &SignedCertificate) {
        if let Some(Invite { state: InviteState::Bound { keys, certificate }, .. }) = self.invites.get_mut(&invite)
            && *keys == issued.certificate().keys()
            && certificate.is_none()
        {
            *certificate = Some(issued.clone());
        }
    }

    /// Takes an invite back; says whether there was one to take back.
    ///
    /// One that was already used stays used: its node is taken out by revocation.
    pub fn withdraw(&mut self, invite: InviteId) -> bool {
        match self.invites.get_mut(&invite) {
            Some(invite) if invite.state == InviteState::Open => {
                invite.state = InviteState::Withdrawn;
                true
            }
            _ => false,
        }
    }

    /// Forgets invites whose time was over for a day.
    pub fn purge(&mut self, now: UnixTime) {
        self.invites.retain(|_, invite| now < invite.expires + Self::KEEP);
    }

    /// Returns an invite.
    pub fn get(&self, invite: InviteId) -> Option<&Invite> {
        self.invites.get(&invite)
    }

    /// All invites, by identifier.
    pub fn iter(&self) -> impl Iterator<Item = &Invite> {
        self.invites.values()
    }

    /// Writes the book. The caller stores it readable by its owner alone.
    pub fn to_armor(&self) -> Zeroizing<String> {
        let invites = self.iter().map(StoredInvite::from).collect();
        armor::write_secret(ArmorKind::Invites, &Zeroizing::new(cbor::encode(&StoredBook { version: 1, invites })))
    }

    /// Reads a book back.
    ///
    /// # Errors
    /// Text that is no book, or one with objects of another mesh.
    pub fn from_armor(text: &str, anchor: &TrustAnchor) -> Result<Self, InviteBookError> {
        let bytes = armor::read_secret(ArmorKind::Invites, text)?;
        let stored: StoredBook = cbor::decode_strict(&bytes).map_err(InviteBookError::Content)?;
        if stored.version != 1 || stored.invites.len() > Self::MAX {
            return Err(InviteBookError::Content("another version, or too many invites".into()));
        }
        let mut book = Self::default();
        for stored in stored.invites {
            let invite = stored.invite(anchor)?;
            if book.invites.insert(invite.id, invite).is_some() {
                return Err(InviteBookError::Content("one invite twice".into()));
            }
        }
        Ok(book)
    }
}

impl Grant {
    /// Issues the certificate: under the delegation where there is one (with this member's own secret), with the
    /// authority's key otherwise. Where one was issued before, that one is returned.
    ///
    /// # Errors
    /// Neither delegation nor authority, or terms that break a rule.
    pub fn issue(
        &self,
        authority: Option<&Authority>,
        member: &SigningSecret,
        anchor: &TrustAnchor,
        now: UnixTime,
    ) -> Result<SignedCertificate, ObjectError> {
        if let Some(certificate) = &self.certificate {
            return Ok(certificate.clone());
        }
        match (&self.delegation, authority) {
            // Nobody renews such a certificate but the authority by hand, so it holds as long as the delegation permits.
            (Some(delegation), _) => delegation.issue(&self.admission, &self.keys, &Term::offline(now), anchor, member),
            (None, Some(authority)) => authority.issue(&self.admission, &self.keys, &Term::online(now)),
            (None, None) => {
                let problem = "cannot be made here: this node holds neither the authority's key nor a delegation";
                Err(ObjectError::value(ObjectKind::Certificate, "signature", problem))
            }
        }
    }
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredBook {
    #[n(0)]
    version: u8,
    #[n(1)]
    invites: Vec<StoredInvite>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct StoredInvite {
    #[n(0)]
    id: InviteId,
    #[cbor(n(1), with = "minicbor::bytes")]
    key: [u8; 32],
    #[n(2)]
    admission: Admission,
    #[n(3)]
    delegation: Option<ByteVec>,
    #[n(4)]
    expires: UnixTime,
    #[n(5)]
    withdrawn: bool,
    #[n(6)]
    wireguard_key: Option<WireguardKey>,
    #[n(7)]
    verifying_key: Option<VerifyingKey>,
    #[n(8)]
    certificate: Option<ByteVec>,
}

impl From<&Invite> for StoredInvite {
    fn from(invite: &Invite) -> Self {
        let bytes = |bytes: &[u8]| ByteVec::from(bytes.to_vec());
        let (keys, certificate) = match &invite.state {
            InviteState::Bound { keys, certificate } => (Some(*keys), certificate.as_ref()),
            InviteState::Open | InviteState::Withdrawn => (None, None),
        };
        Self {
            id: invite.id,
            key: *invite.key.as_bytes(),
            admission: invite.admission.clone(),
            delegation: invite.delegation.as_ref().map(|delegation| bytes(delegation.bytes())),
            expires: invite.expires,
            withdrawn: invite.state == InviteState::Withdrawn,
            wireguard_key: keys.map(|keys| keys.wireguard),
            verifying_key: keys.map(|keys| keys.verifying),
            certificate: certificate.map(|certificate| bytes(certificate.bytes())),
        }
    }
}

impl StoredInvite {
    fn invite(&self, anchor: &TrustAnchor) -> Result<Invite, InviteBookError> {
        let delegation = self.delegation.as_ref().map(|bytes| SignedDelegation::verify(bytes, anchor)).transpose()?;
        let certificate =
            self.certificate.as_ref().map(|bytes| SignedCertificate::verify(bytes, anchor)).transpose()?;
        let state = match (self.withdrawn, self.wireguard_key, self.verifying_key, certificate) {
            (false, None, None, None) => InviteState::Open,
            (true, None, None, None) => InviteState::Withdrawn,
            (false, Some(wireguard), Some(verifying), certificate) => {
                InviteState::Bound { keys: PublicKeys { wireguard, verifying }, certificate }
            }
            _ => return Err(InviteBookError::Content("an invite that is both withdrawn and used".into())),
        };
        let (key, admission) = (InviteKey::from_bytes(self.key), self.admission.clone());
        Ok(Invite { id: self.id, key, admission, delegation, expires: self.expires, state })
    }
}

impl Drop for StoredInvite {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}
