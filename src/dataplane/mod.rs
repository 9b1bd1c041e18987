//! The threads that move packets: TUN to UDP (`outbound.rs`), UDP to TUN (`inbound.rs`).
//!
//! ```text
//!  applications                                                          other nodes
//!       │ ▲                                                                  │ ▲
//!   ┌───▼─┴───┐   outbound thread: parse, look up, seal, one sendmmsg    ┌───▼─┴───┐
//!   │   TUN   │ ───────────────────────────────────────────────────────▶ │   UDP   │
//!   │         │ ◀─────────────────────────────────────────────────────── │         │
//!   └─────────┘   inbound thread: recvmmsg, open, check source, write    └─────────┘
//!                      │ handshakes, introductions   │ control packets   │ events
//!                      ▼                             ▼                   ▼
//!                 bounded queues to the control task, which never makes a data thread wait
//! ```
//!
//! The control task publishes a [`ForwardingTable`] by swap. The threads take a peer's lock for the packets of one batch,
//! make no system call while they hold it, and allocate nothing per packet. Every dropped packet has one
//! [`DropReason`](crate::wire::DropReason), counted in [`Counters`].
#![forbid(unsafe_code)]

mod counters;
mod forwarding;
pub mod icmp;
mod inbound;
pub mod inner;
pub mod offload;
mod outbound;
mod peer;
mod prefix_map;
mod queues;
#[cfg(test)]
mod tests;
mod threads;
mod transmit;

pub use counters::{Counters, CountersReading};
pub use forwarding::{ForwardingTable, Local, Owner};
pub use inner::InnerPacket;
pub use peer::{Path, Peer};
pub use queues::{ControlPacket, Event, Queues, Receivers, UnopenedDatagram, queues};
pub use threads::{Dataplane, DataplaneOptions, StartError};
pub use transmit::Transmitter;
