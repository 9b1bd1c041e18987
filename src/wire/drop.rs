//! Why a packet was dropped: one reason each, counted, never answered.

/// The reason a packet or datagram went no further.
///
/// The names are the values of the `reason` label in metrics and of `drops` in `meshctl status --json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// A datagram too short for its type, or of no known type.
    Malformed,
    /// MAC1 (or our own introduction's MAC) does not fit our key: a scanner, or a node with an old key.
    BadMac,
    /// The source or the whole host sends more handshakes than we serve.
    RateLimited,
    /// A handshake from a key that is no member we know.
    UnknownPeer,
    /// A receiver index that names no session.
    UnknownSession,
    /// Authentication failed: forged, corrupted, or sealed under a forgotten key.
    BadSeal,
    /// The counter was seen before.
    Replayed,
    /// The counter fell out of the window behind newer packets.
    TooOld,
    /// The counter is above the ceiling at which a session must have been replaced.
    CounterCeiling,
    /// A handshake's TAI64N mark is not newer than the last one, or lies too far ahead.
    StaleHandshake,
    /// The inner packet is no valid IPv4 or IPv6.
    BadInnerPacket,
    /// The inner source address does not belong to the sender.
    ForeignSource,
    /// No peer owns the destination address.
    NoRoute,
    /// The destination's peer has no session and its hold queue is full.
    HoldFull,
    /// A packet from this host to the reserved control port of the overlay.
    ReservedPort,
    /// A bounded queue inside the daemon was full.
    QueueFull,
    /// The kernel refused the datagram or packet.
    SystemRefused,
    /// The packet is larger than the link can carry.
    TooBig,
    /// The peer is revoked or its certificate is no longer valid.
    NotAdmitted,
    /// The packet was to be passed on and has no hop left.
    HopLimit,
    /// A control message that does not decode, breaks a limit or says what its sender may not say.
    BadControl,
    /// The underlay marked congestion on a packet whose transport cannot be told (RFC 6040 §4.2).
    Congestion,
    /// No rule of this node allows it, and it answers nothing of this side.
    Policy,
    /// A member's datagram came by a relay, or was to be relayed, without the permission that this takes, or by two relays.
    NoRelay,
    /// Two members send each other more through this relay than it passes on for a pair.
    RelayQuota,
    /// A packet under a session without a hybrid key, which `pq = "required"` demands on one side.
    NotHybrid,
}

impl DropReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [DropReason; 26] = [
        DropReason::Malformed,
        DropReason::BadMac,
        DropReason::RateLimited,
        DropReason::UnknownPeer,
        DropReason::UnknownSession,
        DropReason::BadSeal,
        DropReason::Replayed,
        DropReason::TooOld,
        DropReason::CounterCeiling,
        DropReason::StaleHandshake,
        DropReason::BadInnerPacket,
        DropReason::ForeignSource,
        DropReason::NoRoute,
        DropReason::HoldFull,
        DropReason::ReservedPort,
        DropReason::QueueFull,
        DropReason::SystemRefused,
        DropReason::TooBig,
        DropReason::NotAdmitted,
        DropReason::HopLimit,
        DropReason::BadControl,
        DropReason::Congestion,
        DropReason::Policy,
        DropReason::NoRelay,
        DropReason::RelayQuota,
        DropReason::NotHybrid,
    ];

    /// The reason's name in metrics and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::BadMac => "bad_mac",
            DropReason::RateLimited => "rate_limited",
            DropReason::UnknownPeer => "unknown_peer",
            DropReason::UnknownSession => "unknown_session",
            DropReason::BadSeal => "bad_seal",
            DropReason::Replayed => "replayed",
            DropReason::TooOld => "too_old",
            DropReason::CounterCeiling => "counter_ceiling",
            DropReason::StaleHandshake => "stale_handshake",
            DropReason::BadInnerPacket => "bad_inner_packet",
            DropReason::ForeignSource => "foreign_source",
            DropReason::NoRoute => "no_route",
            DropReason::HoldFull => "hold_full",
            DropReason::ReservedPort => "reserved_port",
            DropReason::QueueFull => "queue_full",
            DropReason::SystemRefused => "system_refused",
            DropReason::TooBig => "too_big",
            DropReason::NotAdmitted => "not_admitted",
            DropReason::HopLimit => "hop_limit",
            DropReason::BadControl => "bad_control",
            DropReason::Congestion => "congestion",
            DropReason::Policy => "policy",
            DropReason::NoRelay => "no_relay",
            DropReason::RelayQuota => "relay_quota",
            DropReason::NotHybrid => "not_hybrid",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_discriminant_order() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i, "{}", reason.name());
        }
    }
}
