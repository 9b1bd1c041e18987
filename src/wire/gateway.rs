//! What a gateway of shared prefixes tells of itself (docs/protocol.md §6.6).

use minicbor::{Decode, Encode};

/// How the sender is as a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GatewayState {
    /// Of two states of one sender the higher holds.
    #[n(0)]
    pub sequence: u64,
    /// Whether flows are to go elsewhere.
    #[n(1)]
    pub drained: bool,
}

/// Which state of the receiver's the sender holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GatewayHeard {
    /// Its sequence.
    #[n(0)]
    pub sequence: u64,
    /// What it says: after a restart a sequence may come again for something else.
    #[n(1)]
    pub drained: bool,
}
