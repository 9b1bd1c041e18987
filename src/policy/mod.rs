//! What may come in from the mesh: rules compiled against the members, and the connections that this side began.
//!
//! [`Policy`] is immutable and published beside the forwarding table; what outlives one of them (connections, counts, what
//! was refused) is its [`Ledger`]. The data threads ask; nothing here touches a clock or a packet's bytes. Pure.
//!
//! And what the kernel is to keep away by tables of its packet filter, as text: [`Addresses`], [`PublicSide`];
//! [`droppers`] says what the tables of others make of it.
#![forbid(unsafe_code)]

mod addresses;
mod connections;
mod digest;
mod flow;
mod ledger;
mod other_tables;
mod public_side;
mod ranges;
mod rules;
mod table;
mod trace;

pub use addresses::Addresses;
pub use connections::{Connections, Departure};
pub use digest::digest;
pub use flow::{Flags, Flow, ICMP, ICMPV6, TCP, UDP};
pub use ledger::{Denial, Ledger};
pub use other_tables::{Arrival, Dropper, droppers};
pub use public_side::{PublicSide, lift};
pub use rules::{Policy, Subject, Verdict};
pub use table::{Purpose, is_nameable, removal};
pub use trace::{Seen, Selection, Sighting, Stage, Trace};
