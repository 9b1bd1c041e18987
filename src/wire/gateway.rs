//! What a gateway of shared prefixes tells of itself (docs/protocol.md §6.6).

use ipnet::IpNet;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::identity::cbor::Octets;

/// How the sender is as a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GatewayState {
    /// Of two states of one sender the higher holds.
    #[n(0)]
    pub sequence: u64,
    /// Whether flows are to go elsewhere.
    #[n(1)]
    pub drained: bool,
    /// The prefixes whose check behind it fails; absent where none does.
    #[n(2)]
    pub failing: Option<Networks>,
}

/// Which state of the receiver's the sender holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GatewayHeard {
    /// Its sequence.
    #[n(0)]
    pub sequence: u64,
    /// What it says: after a restart a sequence may come again for something else.
    #[n(1)]
    pub drained: bool,
    /// What it says of checks; absent from a node of a version that knows of none.
    #[n(2)]
    pub failing: Option<Networks>,
}

/// Networks, each as its address and one byte of prefix length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Networks(#[n(0)] Vec<ByteVec>);

impl Networks {
    /// Those that are networks; what is none is passed over.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.0.iter().filter_map(|octets| IpNet::from_octets(octets))
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Self {
        Networks(networks.into_iter().map(|network| ByteVec::from(network.octets())).collect())
    }
}
