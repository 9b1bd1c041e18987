//! The ledger: what an authority has granted, kept beside its key as a text that people can read and compare.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::admission::{Admission, overlap};
use super::anchor::TrustAnchor;
use super::certificate::{Certificate, Permissions, SignedCertificate};
use super::cose::ObjectError;
use super::id::{MeshId, NodeId};
use super::key::PublicKeys;
use super::name::{NodeName, Tag};
use super::revocation::Revocation;
use super::share::Shares;
use crate::time::UnixTime;

/// All admissions of one mesh. Assigns addresses and serials, and lets nothing be granted twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    pub(super) mesh: MeshId,
    pub(super) overlay_v4: Ipv4Net,
    pub(super) next_serial: u64,
    pub(super) entries: BTreeMap<NodeId, LedgerEntry>,
}

/// One node, as its authority knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// What it was granted last.
    pub admission: Admission,
    /// Its keys; absent while it is only invited, or where a delegate admitted it unseen.
    pub keys: Option<PublicKeys>,
    /// Until when a certificate for it can hold.
    pub not_after: UnixTime,
    /// When it was taken out.
    pub revoked: Option<UnixTime>,
}

/// What an administrator wants a node to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Its name; a name that is known means that node.
    pub name: NodeName,
    /// Its address; otherwise the one it has, or the lowest free one.
    pub address_v4: Option<Ipv4Addr>,
    /// Networks it may carry.
    pub prefixes: Vec<IpNet>,
    /// Which of them other nodes may carry as well.
    pub shares: Shares,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// What else it may do.
    pub permissions: Permissions,
    /// Its keys, or nothing for an invite.
    pub keys: Option<PublicKeys>,
    /// Whether a known name may get new keys: a host that was built again.
    pub replace_keys: bool,
    /// Until when the certificate, or the delegation to make one, can hold.
    pub not_after: UnixTime,
}

/// Why something cannot be granted, or a ledger not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The name belongs to a node with other keys.
    #[error("`{0}` is a node with other keys: choose another name, or say --replace if this is the same host rebuilt")]
    NameTaken(NodeName),
    /// The address belongs to another node.
    #[error("{address} belongs to `{owner}`: choose another address, or leave it away to get a free one")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Whose it is.
        owner: NodeName,
    },
    /// The prefix shares addresses with another node's.
    #[error(
        "{prefix} overlaps {other} of `{owner}`: two nodes carry the same addresses only where both were signed with \
         --shared and for the same prefix"
    )]
    PrefixTaken {
        /// The wished prefix.
        prefix: IpNet,
        /// The other's.
        other: IpNet,
        /// Whose that is.
        owner: NodeName,
    },
    /// A key belongs to another node, or to one that was taken out.
    #[error("one of the keys belongs to `{0}`: make new keys on the new host, never copy an identity file")]
    KeyTaken(NodeName),
    /// Every address is assigned.
    #[error("no address of {0} is free: revoke nodes that are gone")]
    NoAddressFree(Ipv4Net),
    /// There are too many entries.
    #[error("the ledger has {} entries, its limit", Ledger::MAX_ENTRIES)]
    Full,
    /// No node of that name.
    #[error("the ledger knows no node `{0}`")]
    UnknownNode(NodeName),
    /// Its keys are not known here.
    #[error(
        "the keys of `{0}` are not in this ledger, since a member admitted it: revoke it on a host that runs meshd"
    )]
    UnknownKeys(NodeName),
    /// The certificate is not what the ledger granted.
    #[error("the certificate of `{0}` is not what this ledger granted")]
    NotGranted(NodeName),
    /// The admission breaks a rule.
    #[error(transparent)]
    Admission(#[from] ObjectError),
    /// The text is no ledger of this mesh.
    #[error("the ledger cannot be read: {0}")]
    Content(String),
}

impl Ledger {
    /// The most entries: four times the members of the largest mesh, so that years of replaced hosts fit.
    pub const MAX_ENTRIES: usize = 16_384;

    /// Begins an empty ledger.
    pub fn new(anchor: &TrustAnchor) -> Self {
        Self { mesh: anchor.mesh, overlay_v4: anchor.overlay_v4, next_serial: 1, entries: BTreeMap::new() }
    }

    /// All entries, by node id.
    pub fn entries(&self) -> impl Iterator<Item = &LedgerEntry> {
        self.entries.values()
    }

    /// The node that has this name now.
    pub fn find(&self, name: &NodeName) -> Option<&LedgerEntry> {
        self.entries().find(|entry| entry.revoked.is_none() && entry.admission.name == *name)
    }

    /// Grants a wish: keeps or assigns node id and address, draws the serial, and enters the result.
    ///
    /// `fresh` becomes the node id where the name is new. The caller stores the ledger before it uses the admission.
    ///
    /// # Errors
    /// A collision with another node, or an admission that breaks a rule; the ledger is unchanged then.
    pub fn admit(
        &mut self,
        wish: &Wish,
        fresh: NodeId,
        anchor: &TrustAnchor,
        now: UnixTime,
    ) -> Result<Admission, LedgerError> {
        if (anchor.mesh, anchor.overlay_v4) != (self.mesh, self.overlay_v4) {
            return Err(LedgerError::Content("it belongs to another mesh".into()));
        }
        let known = self.find(&wish.name);
        if let Some(LedgerEntry { keys: Some(keys), .. }) = known
            && wish.keys != Some(*keys)
            && !wish.replace_keys
        {
            return Err(LedgerError::NameTaken(wish.name.clone()));
        }
        if known.is_none() && self.entries.len() >= Self::MAX_ENTRIES {
            return Err(LedgerError::Full);
        }
        let node = known.map_or(fresh, |entry| entry.admission.node);
        let address_v4 = match wish.address_v4.or(known.map(|entry| entry.admission.address_v4)) {
            Some(address) => address,
            None => self.lowest_free(now).ok_or(LedgerError::NoAddressFree(self.overlay_v4))?,
        };
        // A certificate that is out there may hold longer than the new one.
        let not_after = known.map_or(wish.not_after, |entry| entry.not_after.max(wish.not_after));
        let (prefixes, shares, tags) = (wish.prefixes.clone(), wish.shares.clone(), wish.tags.clone());
        let (name, permissions, serial) = (wish.name.clone(), wish.permissions, self.next_serial);
        let admission = Admission { node, name, address_v4, prefixes, tags, permissions, serial, shares }.ordered();
        admission.check(anchor)?;
        let entry = LedgerEntry { admission, keys: wish.keys, not_after, revoked: None };
        self.check_collisions(&entry, now)?;
        let admission = entry.admission.clone();
        self.next_serial = self.next_serial.saturating_add(1);
        self.entries.retain(|_, entry| !entry.is_lapsed(now));
        self.entries.insert(node, entry);
        Ok(admission)
    }

    /// Enters the keys of a node that was invited, once its certificate was issued.
    ///
    /// # Errors
    /// A certificate for something else than what was granted last, or with keys of another node.
    pub fn issued(&mut self, issued: &SignedCertificate, now: UnixTime) -> Result<(), LedgerError> {
        let certificate = issued.certificate();
        let known = self.entries.get(&certificate.node);
        let Some(known) = known.filter(|entry| entry.admission == certificate.admission()) else {
            return Err(LedgerError::NotGranted(certificate.name.clone()));
        };
        if known.keys.is_some_and(|keys| keys != certificate.keys()) {
            return Err(LedgerError::NameTaken(certificate.name.clone()));
        }
        let mut entry = known.clone();
        entry.keys = Some(certificate.keys());
        entry.not_after = entry.not_after.max(certificate.not_after);
        self.check_collisions(&entry, now)?;
        self.entries.insert(certificate.node, entry);
        Ok(())
    }

    /// Marks the node of that name as taken out and returns the revocation to sign.
    ///
    /// # Errors
    /// No such node, or one whose keys the ledger does not know.
    pub fn revoke(&mut self, name: &NodeName, now: UnixTime) -> Result<Revocation, LedgerError> {
        let entry = self.find(name).ok_or_else(|| LedgerError::UnknownNode(name.clone()))?;
        let keys = entry.keys.ok_or_else(|| LedgerError::UnknownKeys(name.clone()))?;
        let (node, not_after) = (entry.admission.node, entry.not_after);
        self.mark_revoked(node, now);
        Ok(Revocation {
            mesh: self.mesh,
            node,
            wireguard_key: keys.wireguard,
            verifying_key: keys.verifying,
            name: name.clone(),
            at: now,
            not_after,
        })
    }

    /// Marks a node as taken out, where its revocation was made from its certificate. The first time stays.
    pub fn mark_revoked(&mut self, node: NodeId, now: UnixTime) {
        if let Some(entry) = self.entries.get_mut(&node) {
            entry.revoked.get_or_insert(now);
        }
    }

    fn lowest_free(&self, now: UnixTime) -> Option<Ipv4Addr> {
        let held = self.entries().filter(|entry| entry.holds_address(now));
        let held: BTreeSet<Ipv4Addr> = held.map(|entry| entry.admission.address_v4).collect();
        self.overlay_v4.hosts().find(|address| !held.contains(address))
    }

    fn check_collisions(&self, wanted: &LedgerEntry, now: UnixTime) -> Result<(), LedgerError> {
        for other in self.entries().filter(|other| other.admission.node != wanted.admission.node) {
            let owner = || other.admission.name.clone();
            if let (Some(a), Some(b)) = (wanted.keys, other.keys)
                && (a.wireguard == b.wireguard || a.verifying == b.verifying)
            {
                return Err(LedgerError::KeyTaken(owner()));
            }
            let address = wanted.admission.address_v4;
            if other.holds_address(now) && other.admission.address_v4 == address {
                return Err(LedgerError::AddressTaken { address, owner: owner() });
            }
            if other.revoked.is_some() || other.is_lapsed(now) {
                continue;
            }
            if other.admission.name == wanted.admission.name {
                return Err(LedgerError::NameTaken(owner()));
            }
            for prefix in &wanted.admission.prefixes {
                let shared = |admission: &Admission| admission.shares.get(prefix).is_some();
                let agreed = shared(&wanted.admission) && shared(&other.admission);
                let clashes = |taken: &&IpNet| overlap(taken, prefix) && !(agreed && *taken == prefix);
                if let Some(taken) = other.admission.prefixes.iter().find(clashes) {
                    return Err(LedgerError::PrefixTaken { prefix: *prefix, other: *taken, owner: owner() });
                }
            }
        }
        Ok(())
    }
}

impl LedgerEntry {
    /// Whether it was an invite that nobody can use any more.
    pub fn is_lapsed(&self, now: UnixTime) -> bool {
        self.keys.is_none() && self.revoked.is_none() && now >= self.not_after
    }

    /// Whether its address may not be given to another: always while it is a member, even with an expired certificate;
    /// afterwards until no certificate for it can hold, since a node that missed the revocation would still believe it.
    fn holds_address(&self, now: UnixTime) -> bool {
        !self.is_lapsed(now) && (self.revoked.is_none() || now < self.not_after)
    }

    /// Whether its last certificate has expired.
    pub fn is_expired(&self, now: UnixTime) -> bool {
        now >= self.not_after
    }
}

impl Wish {
    /// What a node was granted, as a wish to have it again: for a renewal.
    pub fn again(certificate: &Certificate, not_after: UnixTime) -> Self {
        Self {
            name: certificate.name.clone(),
            address_v4: Some(certificate.address_v4),
            prefixes: certificate.prefixes.clone(),
            shares: certificate.shares.clone(),
            tags: certificate.tags.clone(),
            permissions: certificate.permissions,
            keys: Some(certificate.keys()),
            replace_keys: false,
            not_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Term;
    use crate::identity::testing::{NOW, authority, keys};
    use std::time::Duration;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn wish(name: &str, seed: u8) -> Wish {
        Wish {
            name: name.parse().unwrap(),
            address_v4: None,
            prefixes: vec![],
            shares: Shares::default(),
            tags: vec![],
            permissions: Permissions::default(),
            keys: (seed != 0).then(|| keys(seed).public()),
            replace_keys: false,
            not_after: NOW + YEAR,
        }
    }

    fn admit(ledger: &mut Ledger, wish: &Wish, now: UnixTime) -> Result<Admission, LedgerError> {
        let fresh = NodeId::from_bytes([ledger.next_serial as u8; 16]);
        let before = ledger.clone();
        let result = ledger.admit(wish, fresh, authority().anchor(), now);
        assert!(result.is_ok() || *ledger == before, "a refusal changes nothing");
        result
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(authority().anchor());
        for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
            admit(&mut ledger, &wish(name, seed), NOW).unwrap();
        }
        ledger
    }

    fn address(ledger: &Ledger, name: &str) -> String {
        ledger.find(&name.parse().unwrap()).unwrap().admission.address_v4.to_string()
    }

    #[test]
    fn the_lowest_free_address_is_assigned() {
        let mut ledger = ledger();
        assert_eq!(["a", "b", "c"].map(|name| address(&ledger, name)), ["10.77.0.1", "10.77.0.2", "10.77.0.3"]);
        let chosen = Wish { address_v4: Some(Ipv4Addr::new(10, 77, 0, 4)), ..wish("d", 4) };
        admit(&mut ledger, &chosen, NOW).unwrap();
        admit(&mut ledger, &wish("e", 5), NOW).unwrap();
        assert_eq!(address(&ledger, "e"), "10.77.0.5");
    }

    #[test]
    fn a_full_range_is_refused() {
        let anchor = TrustAnchor { overlay_v4: "10.77.0.0/29".parse().unwrap(), ..authority().anchor().clone() };
        let mut ledger = Ledger::new(&anchor);
        for seed in 1..=6 {
            ledger.admit(&wish(&format!("n{seed}"), seed), NodeId::from_bytes([seed; 16]), &anchor, NOW).unwrap();
        }
        let seventh = ledger.admit(&wish("n7", 7), NodeId::from_bytes([7; 16]), &anchor, NOW);
        assert_eq!(seventh, Err(LedgerError::NoAddressFree(anchor.overlay_v4)));
    }

    #[test]
    fn a_known_name_keeps_node_and_address_and_gets_a_higher_serial() {
        let mut ledger = ledger();
        let before = ledger.find(&"b".parse().unwrap()).unwrap().admission.clone();
        let again = admit(&mut ledger, &wish("b", 2), NOW).unwrap();
        assert_eq!((again.node, again.address_v4), (before.node, before.address_v4));
        assert!(again.serial > before.serial);
    }

    #[test]
    fn new_keys_for_a_known_name_need_a_word() {
        let mut ledger = ledger();
        assert_eq!(admit(&mut ledger, &wish("b", 9), NOW), Err(LedgerError::NameTaken("b".parse().unwrap())));
        let rebuilt = Wish { replace_keys: true, ..wish("b", 9) };
        assert!(admit(&mut ledger, &rebuilt, NOW).is_ok());
    }

    #[test]
    fn collisions_are_refused_by_name() {
        let mut ledger = ledger();
        let own = |prefix: &str, name: &str, seed| Wish { prefixes: vec![prefix.parse().unwrap()], ..wish(name, seed) };
        admit(&mut ledger, &own("192.168.0.0/16", "r", 4), NOW).unwrap();
        for prefix in ["192.168.0.0/16", "192.168.5.0/24", "192.0.0.0/8"] {
            let refused = admit(&mut ledger, &own(prefix, "s", 5), NOW).unwrap_err();
            assert!(matches!(&refused, LedgerError::PrefixTaken { owner, .. } if owner.as_str() == "r"), "{refused}");
        }
        let address = Wish { address_v4: Some(Ipv4Addr::new(10, 77, 0, 2)), ..wish("s", 5) };
        assert!(matches!(admit(&mut ledger, &address, NOW), Err(LedgerError::AddressTaken { .. })));
        assert_eq!(admit(&mut ledger, &wish("s", 1), NOW), Err(LedgerError::KeyTaken("a".parse().unwrap())));
        let outside = Wish { address_v4: Some(Ipv4Addr::new(10, 78, 0, 2)), ..wish("s", 5) };
        assert!(matches!(admit(&mut ledger, &outside, NOW), Err(LedgerError::Admission(_))));
    }

    #[test]
    fn one_prefix_may_be_granted_to_several_where_all_are_told() {
        let mut ledger = ledger();
        let shared = |prefix: &str, name: &str, seed, priority| {
            let prefixes: Vec<IpNet> = vec![prefix.parse().unwrap()];
            let shares = Shares::all(&prefixes, super::super::share::Priority::new(priority).unwrap());
            Wish { prefixes, shares, ..wish(name, seed) }
        };
        let alone =
            |prefix: &str, name: &str, seed| Wish { shares: Shares::default(), ..shared(prefix, name, seed, 1) };
        admit(&mut ledger, &shared("10.20.0.0/16", "gw1", 4, 110), NOW).unwrap();
        let second = admit(&mut ledger, &shared("10.20.0.0/16", "gw2", 5, 100), NOW).unwrap();
        assert_eq!(second.shares.get(&second.prefixes[0]).unwrap().get(), 100);
        admit(&mut ledger, &alone("10.21.0.0/16", "gw4", 6), NOW).unwrap();
        for refused in [
            alone("10.20.0.0/16", "gw3", 7),
            shared("10.20.1.0/24", "gw3", 7, 100),
            shared("10.16.0.0/12", "gw3", 7, 100),
            shared("10.21.0.0/16", "gw3", 7, 100),
        ] {
            let error = admit(&mut ledger, &refused, NOW).unwrap_err();
            assert!(matches!(error, LedgerError::PrefixTaken { .. }), "{error}");
        }
        // One of the two cannot become exclusive while the other is there.
        assert!(admit(&mut ledger, &alone("10.20.0.0/16", "gw1", 4), NOW).is_err());
        ledger.revoke(&"gw2".parse().unwrap(), NOW).unwrap();
        admit(&mut ledger, &alone("10.20.0.0/16", "gw1", 4), NOW).unwrap();
    }

    #[test]
    fn what_was_revoked_frees_its_name_at_once_its_address_later_its_keys_never() {
        let mut ledger = ledger();
        let revocation = ledger.revoke(&"b".parse().unwrap(), NOW).unwrap();
        assert_eq!(revocation.wireguard_key, keys(2).public().wireguard);
        assert_eq!(revocation.not_after, NOW + YEAR);
        assert!(ledger.find(&"b".parse().unwrap()).is_none());
        assert!(matches!(admit(&mut ledger, &wish("b", 2), NOW), Err(LedgerError::KeyTaken(_))));
        let again = admit(&mut ledger, &wish("b", 9), NOW).unwrap();
        assert_ne!(again.node, revocation.node);
        assert_eq!(address(&ledger, "b"), "10.77.0.4");
        admit(&mut ledger, &wish("d", 10), NOW + YEAR).unwrap();
        assert_eq!(address(&ledger, "d"), "10.77.0.2");
        assert!(matches!(admit(&mut ledger, &wish("e", 2), NOW + YEAR), Err(LedgerError::KeyTaken(_))));
    }

    #[test]
    fn invites_hold_name_and_address_until_they_lapse() {
        let mut ledger = ledger();
        let invite = Wish { not_after: NOW + Duration::from_secs(60), ..wish("d", 0) };
        admit(&mut ledger, &invite, NOW).unwrap();
        admit(&mut ledger, &wish("e", 5), NOW).unwrap();
        assert_eq!(address(&ledger, "e"), "10.77.0.5");
        assert_eq!(ledger.revoke(&"d".parse().unwrap(), NOW), Err(LedgerError::UnknownKeys("d".parse().unwrap())));
        admit(&mut ledger, &wish("f", 6), NOW + Duration::from_secs(60)).unwrap();
        assert_eq!(address(&ledger, "f"), "10.77.0.4");
        assert!(ledger.find(&"d".parse().unwrap()).is_none(), "lapsed");
    }

    #[test]
    fn an_issued_certificate_must_be_what_was_granted() {
        let mut ledger = ledger();
        let granted = admit(&mut ledger, &wish("d", 0), NOW).unwrap();
        let issue = |admission: &Admission, seed| {
            authority().issue(admission, &keys(seed).public(), &Term::online(NOW)).unwrap()
        };
        let more = Admission { permissions: Permissions { relay: true, authority: true }, ..granted.clone() };
        assert!(matches!(ledger.issued(&issue(&more, 4), NOW), Err(LedgerError::NotGranted(_))));
        assert!(matches!(ledger.issued(&issue(&granted, 1), NOW), Err(LedgerError::KeyTaken(_))));
        ledger.issued(&issue(&granted, 4), NOW).unwrap();
        ledger.issued(&issue(&granted, 4), NOW).unwrap();
        assert!(matches!(ledger.issued(&issue(&granted, 5), NOW), Err(LedgerError::NameTaken(_))));
        assert_eq!(ledger.find(&"d".parse().unwrap()).unwrap().keys, Some(keys(4).public()));
    }
}
