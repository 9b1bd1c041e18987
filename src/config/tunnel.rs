//! How the tunnels to the other members are made.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The tunnels to the other members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSettings {
    /// How much hybrid keys are worth.
    pub pq: PostQuantum,
    /// How long one of them serves, in [`PostQuantum::RENEWALS`].
    pub pq_renewal: Duration,
}

impl Default for TunnelSettings {
    fn default() -> TunnelSettings {
        TunnelSettings { pq: PostQuantum::On, pq_renewal: PostQuantum::RENEWAL }
    }
}

/// How much it is worth that recorded traffic stays secret when there are quantum computers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostQuantum {
    /// A hybrid key with every member that knows how; data does not wait for it.
    On,
    /// None.
    Off,
    /// Data passes under a hybrid key alone.
    Required,
}

impl PostQuantum {
    /// All, the default first.
    pub const ALL: [PostQuantum; 3] = [PostQuantum::On, PostQuantum::Off, PostQuantum::Required];

    /// How long a hybrid key serves unless told otherwise. Of what was recorded, whoever takes the memory of a host and has a quantum
    /// computer reads what passed under the key in it: an hour of it. Renewal costs a link 3 KB and each end a millisecond.
    pub const RENEWAL: Duration = Duration::from_secs(3_600);

    /// How long a hybrid key may serve: two seconds are more than an exchange and its handshake take between continents.
    pub const RENEWALS: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(86_400);

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            PostQuantum::On => "on",
            PostQuantum::Off => "off",
            PostQuantum::Required => "required",
        }
    }
}
