//! The threads that move packets: TUN to UDP (`outbound.rs`), UDP to TUN (`inbound.rs`), both by one thread (`shard.rs`).
//!
//! ```text
//!  applications                                                              other nodes
//!       │ ▲                                                                      │ ▲
//!   ┌───▼─┴───┐   outbound: read, look up, cut and seal, one sendmmsg        ┌───▼─┴───┐
//!   │   TUN   │ ───────────────────────────────────────────────────────────▶ │   UDP   │
//!   │         │ ◀─────────────────────────────────────────────────────────── │         │
//!   └─────────┘   inbound: recvmmsg, open, check source, join, writev        └─────────┘
//!                      │ handshakes, introductions   │ control packets   │ events
//!                      ▼                             ▼                   ▼
//!                 bounded queues to the control task, which never makes a data thread wait
//! ```
//!
//! One read of the device may bring, and one write of it may take, a packet that stands for many (`offload/`); so may one
//! datagram of the socket. The control task publishes a [`ForwardingTable`] by swap. The thread takes a peer's lock for the
//! packets of one batch, makes no system call while it holds it, and allocates nothing per packet. Every dropped packet has one
//! [`DropReason`](crate::wire::DropReason), counted in [`Counters`].
#![forbid(unsafe_code)]

mod brought;
mod counters;
mod ecn;
pub mod flows;
mod forwarding;
pub mod gate;
pub mod icmp;
mod inbound;
pub mod inner;
mod large;
mod mss;
pub mod offload;
mod outbound;
mod passing;
mod peer;
mod polling;
mod prefix_map;
mod pulse;
mod queues;
mod relay;
mod retained;
mod shard;
mod stages;
#[cfg(test)]
mod tests;
mod threads;
mod transmit;

pub use counters::{Counters, CountersReading};
pub use forwarding::{ForwardingTable, Local, Owner};
pub use inner::InnerPacket;
pub use peer::{Path, Peer};
pub use queues::{ControlPacket, Event, Origin, Queues, Receivers, UnopenedDatagram, queues};
pub use relay::RelayPath;
pub use stages::{DelayReading, Stage};
pub use threads::{Dataplane, Habits, Ports, StartError};
pub use transmit::Transmitter;
