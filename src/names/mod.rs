//! The members' names, answered by DNS.
//!
//! [`Picture`] says who has which name, [`Zone`] is what follows from it, [`answer()`] says what a question gets: all
//! three are pure. [`Wiring`] puts the same into the host's own resolver. [`Service`] has the socket and a thread of its own. Nothing is asked of anybody else: a name is known here
//! or it is none.
#![forbid(unsafe_code)]

mod answer;
mod askers;
mod handed;
mod hosts_block;
mod keeper;
mod picture;
mod service;
mod wiring;
mod zone;

pub use answer::{LARGEST, answer};
pub use handed::{Bounds, Handed};
pub use hosts_block::HostsBlock;
pub use keeper::{Wired, WiringStanding};
pub use picture::{Alias, Member, Picture, ReverseZones};
pub use service::{Counters, Order, Service, Standing};
pub use wiring::{Way, Wiring, WiringError, undo};
pub use zone::Zone;
