//! The trust anchor: what a node must know of its mesh before it believes anyone.

use std::net::{Ipv4Addr, Ipv6Addr};

use blake2::{Blake2s256, Digest};
use ipnet::{Ipv4Net, Ipv6Net};
use minicbor::{Decode, Encode};

use super::id::MeshId;
use super::key::VerifyingKey;
use super::name::NodeName;

/// The mesh's identity, its address ranges and the keys that may admit nodes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TrustAnchor {
    /// The mesh.
    #[n(0)]
    pub mesh: MeshId,
    /// Its name: one DNS label.
    #[n(1)]
    pub mesh_name: String,
    /// The range of IPv4 overlay addresses, between /8 and /29.
    #[cbor(n(2), with = "super::cbor::octets")]
    pub overlay_v4: Ipv4Net,
    /// The range of IPv6 overlay addresses: always [`overlay_v6`] of the mesh.
    #[cbor(n(3), with = "super::cbor::octets")]
    pub overlay_v6: Ipv6Net,
    /// The keys that may admit nodes: one, or two while they are exchanged; at most [`TrustAnchor::MAX_AUTHORITIES`].
    #[n(4)]
    pub authorities: Vec<VerifyingKey>,
}

/// Why values make no trust anchor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mesh's {field} {problem}")]
pub struct AnchorError {
    /// "name", "overlay" or "authorities".
    pub field: &'static str,
    /// The rule that is broken.
    pub problem: String,
}

impl TrustAnchor {
    /// The most authority keys: the exchange of a key needs two; a third and fourth leave room for a spare each.
    pub const MAX_AUTHORITIES: usize = 4;
    /// The widest IPv4 range: more addresses than any mesh has nodes.
    pub const WIDEST_V4: u8 = 8;
    /// The narrowest IPv4 range: six hosts.
    pub const NARROWEST_V4: u8 = 29;

    /// Makes an anchor and checks it; the IPv6 range follows from the mesh's identifier.
    ///
    /// # Errors
    /// Says which value breaks which rule.
    pub fn new(
        mesh: MeshId,
        mesh_name: &str,
        overlay_v4: Ipv4Net,
        authorities: Vec<VerifyingKey>,
    ) -> Result<Self, AnchorError> {
        let overlay_v6 = overlay_v6(mesh);
        let anchor = Self { mesh, mesh_name: mesh_name.to_owned(), overlay_v4, overlay_v6, authorities };
        anchor.check()?;
        Ok(anchor)
    }

    /// Checks every rule; values from files and tokens go through here.
    ///
    /// # Errors
    /// Says which value breaks which rule.
    pub fn check(&self) -> Result<(), AnchorError> {
        let error = |field, problem: &str| Err(AnchorError { field, problem: problem.into() });
        if let Err(bad) = self.mesh_name.parse::<NodeName>() {
            return error("name", &format!("`{}` must be {}", bad.text, bad.expected));
        }
        let (net, first) = (self.overlay_v4, self.overlay_v4.network());
        if net.trunc() != net {
            return error("overlay", &format!("{net} has host bits: did you mean {}?", net.trunc()));
        }
        if !(Self::WIDEST_V4..=Self::NARROWEST_V4).contains(&net.prefix_len()) {
            return error("overlay", &format!("{net} must be between /8 and /29"));
        }
        if first.octets()[0] == 0 || first.is_loopback() || first.is_link_local() || first.octets()[0] >= 224 {
            return error("overlay", &format!("{net} is reserved: use a private range such as 10.77.0.0/16"));
        }
        if self.overlay_v6 != overlay_v6(self.mesh) {
            return error("overlay", &format!("IPv6 range must be {} (it follows from the id)", overlay_v6(self.mesh)));
        }
        let distinct = (1..self.authorities.len()).all(|i| !self.authorities[..i].contains(&self.authorities[i]));
        if self.authorities.is_empty() || self.authorities.len() > Self::MAX_AUTHORITIES || !distinct {
            return error("authorities", "must be one to four different keys");
        }
        Ok(())
    }

    /// The IPv6 overlay address that belongs to an IPv4 overlay address: the /64 of the mesh, the IPv4 address in the
    /// low 32 bits.
    pub fn address_v6(&self, address_v4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.overlay_v6.network()) | u128::from(u32::from(address_v4)))
    }

    /// Whether a node may have this address: inside the range, neither its first (network) nor last (broadcast).
    pub fn is_host(&self, address_v4: Ipv4Addr) -> bool {
        self.overlay_v4.contains(&address_v4)
            && address_v4 != self.overlay_v4.network()
            && address_v4 != self.overlay_v4.broadcast()
    }
}

/// The IPv6 range of a mesh: a unique local /64 (RFC 4193) whose 40-bit global identifier comes from BLAKE2s of the
/// mesh's identifier, with subnet 0.
pub fn overlay_v6(mesh: MeshId) -> Ipv6Net {
    let digest = Blake2s256::new().chain_update(b"meshd overlay v1").chain_update(mesh.as_bytes()).finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&digest[..5]);
    Ipv6Net::new_assert(octets.into(), 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::key::SigningSecret;

    fn anchor(overlay: &str) -> Result<TrustAnchor, AnchorError> {
        let key = SigningSecret::from_bytes(&[1; 32]).public();
        TrustAnchor::new(MeshId::from_bytes([3; 16]), "prod", overlay.parse().unwrap(), vec![key])
    }

    #[test]
    fn ranges_are_bounded() {
        for overlay in ["10.0.0.0/8", "10.77.0.0/16", "192.168.1.8/29", "100.64.0.0/10", "198.18.0.0/15"] {
            assert!(anchor(overlay).is_ok(), "{overlay}");
        }
        for overlay in
            ["8.0.0.0/7", "10.0.0.0/30", "10.77.0.1/16", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16"]
        {
            assert!(anchor(overlay).is_err(), "{overlay}");
        }
    }

    #[test]
    fn the_ipv6_address_follows_from_mesh_and_ipv4() {
        let anchor = anchor("10.77.0.0/16").unwrap();
        let address = anchor.address_v6(Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(address.octets()[0], 0xfd);
        assert_eq!(address.octets()[6..], [0, 0, 0, 0, 0, 0, 10, 77, 0, 1]);
        assert!(anchor.overlay_v6.contains(&address));
        assert_ne!(overlay_v6(MeshId::from_bytes([3; 16])), overlay_v6(MeshId::from_bytes([4; 16])));
    }

    #[test]
    fn network_and_broadcast_are_no_hosts() {
        let anchor = anchor("10.77.0.0/29").unwrap();
        let hosts = (0..9).filter(|host| anchor.is_host(Ipv4Addr::new(10, 77, 0, *host))).count();
        assert_eq!(hosts, 6);
    }

    #[test]
    fn authorities_are_one_to_four_and_distinct() {
        let mut anchor = anchor("10.77.0.0/16").unwrap();
        anchor.authorities.push(anchor.authorities[0]);
        assert_eq!(anchor.check().unwrap_err().field, "authorities");
        anchor.authorities = (1..=4).map(|seed| SigningSecret::from_bytes(&[seed; 32]).public()).collect();
        assert!(anchor.check().is_ok());
        anchor.authorities.push(SigningSecret::from_bytes(&[5; 32]).public());
        assert!(anchor.check().is_err());
        anchor.authorities.clear();
        assert!(anchor.check().is_err());
    }
}
