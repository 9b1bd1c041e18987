//! An admission: what an authority grants to one node, whatever keys that node will have.

use std::net::Ipv4Addr;

use blake2::{Blake2s256, Digest};
use ipnet::IpNet;
use minicbor::{Decode, Encode};

use super::anchor::TrustAnchor;
use super::cbor;
use super::certificate::{Certificate, Permissions};
use super::cose::{ObjectError, ObjectKind};
use super::id::NodeId;
use super::name::{NodeName, Tag};
use super::share::Shares;

/// Name, place and rights of one node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Admission {
    /// The node.
    #[n(0)]
    pub node: NodeId,
    /// Its name.
    #[n(1)]
    pub name: NodeName,
    /// Its IPv4 overlay address; the IPv6 address follows.
    #[cbor(n(2), with = "super::cbor::octets")]
    pub address_v4: Ipv4Addr,
    /// Networks it may carry.
    #[cbor(n(3), with = "super::cbor::octets_list")]
    pub prefixes: Vec<IpNet>,
    /// Its tags.
    #[n(4)]
    pub tags: Vec<Tag>,
    /// What else it may do.
    #[n(5)]
    pub permissions: Permissions,
    /// The serial of the certificate this becomes; higher ones replace lower ones.
    #[n(6)]
    pub serial: u64,
    /// Which of the prefixes other nodes may carry as well.
    #[n(7)]
    pub shares: Shares,
}

impl Admission {
    /// Puts prefixes and tags in the order certificates have, without repetitions.
    pub fn ordered(mut self) -> Self {
        self.prefixes.sort();
        self.prefixes.dedup();
        self.tags.sort();
        self.tags.dedup();
        self
    }

    /// Checks every rule a certificate's content must keep.
    ///
    /// # Errors
    /// Names the field and the rule.
    pub fn check(&self, anchor: &TrustAnchor) -> Result<(), ObjectError> {
        let error = |field, problem: String| Err(ObjectError::value(ObjectKind::Certificate, field, problem));
        if !anchor.is_host(self.address_v4) {
            return error("IPv4 address", format!("{} is no host of {}", self.address_v4, anchor.overlay_v4));
        }
        if self.serial == 0 {
            return error("serial", "must be at least 1".into());
        }
        if self.tags.len() > Certificate::MAX_TAGS {
            return error("tags", format!("are more than {}", Certificate::MAX_TAGS));
        }
        if !self.tags.is_sorted_by(|a, b| a < b) {
            return error("tags", "are not in ascending order".into());
        }
        if self.prefixes.len() > Certificate::MAX_PREFIXES {
            return error("prefixes", format!("are more than {}", Certificate::MAX_PREFIXES));
        }
        if !self.prefixes.is_sorted_by(|a, b| a < b) {
            return error("prefixes", "are not in ascending order".into());
        }
        for (i, prefix) in self.prefixes.iter().enumerate() {
            if let Some(problem) = refusal(prefix, anchor) {
                return error("prefixes", format!("contain {prefix}, which {problem}"));
            }
            if let Some(other) = self.prefixes[..i].iter().find(|other| overlap(other, prefix)) {
                return error("prefixes", format!("contain {other} and {prefix}, which overlap"));
            }
        }
        if let Some((prefix, _)) = self.shares.iter().find(|(prefix, _)| !self.prefixes.contains(prefix)) {
            return error("shares", format!("name {prefix}, which is none of the prefixes"));
        }
        Ok(())
    }

    /// A hash of the admission and of the mesh it is for: what a delegation names.
    pub(super) fn digest(&self, anchor: &TrustAnchor) -> [u8; 32] {
        Blake2s256::new()
            .chain_update(b"meshd admission v1")
            .chain_update(anchor.mesh.as_bytes())
            .chain_update(cbor::Octets::octets(&anchor.overlay_v4))
            .chain_update(cbor::Octets::octets(&anchor.overlay_v6))
            .chain_update(cbor::encode(self))
            .finalize()
            .into()
    }
}

/// Whether two networks share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Why a network may not be carried by any node.
fn refusal(prefix: &IpNet, anchor: &TrustAnchor) -> Option<&'static str> {
    if prefix.trunc() != *prefix {
        return Some("has host bits");
    }
    if overlap(prefix, &anchor.overlay_v4.into()) || overlap(prefix, &anchor.overlay_v6.into()) {
        return Some("overlaps the overlay itself");
    }
    is_reserved(prefix).then_some("is, or contains, a range with a meaning of its own")
}

/// Whether a network is, or contains, addresses with a meaning of their own: this host, loopback, link-local, multicast,
/// reserved. No mesh carries those.
pub fn is_reserved(prefix: &IpNet) -> bool {
    let reserved = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/8", "fe80::/10", "ff00::/8"];
    let reserved = reserved.iter().filter_map(|net| net.parse::<IpNet>().ok());
    // A wider prefix than a reserved one (a default route, say) is refused as well: it would carry what must not leave.
    reserved.into_iter().any(|net| overlap(&net, prefix))
}
