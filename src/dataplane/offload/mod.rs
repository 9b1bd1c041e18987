//! Super-packets: what the kernel hands over to be cut, and what it is handed to cut or take whole.
//!
//! ```text
//!  TUN read   [virtio header | super-packet]  ──▶ Segments: whole packets, one by one, in the bytes they came in  ──▶ seal
//!  TUN write  [virtio header | first packet | payloads…]  ◀── Coalescer: runs of one flow  ◀── opened packets in order
//! ```
//!
//! Everything here is a function of bytes: no socket, no clock, and no allocation per packet.

pub mod checksum;
mod coalesce;
mod split;
#[cfg(test)]
mod tests;
mod virtio;

pub use coalesce::{Coalescer, Delivery, MOST_PIECES, Offloads, Run};
pub use split::Segments;
pub use virtio::VirtioHeader;
