//! Every byte format of ours, one file per message. Pure.
#![forbid(unsafe_code)]

pub mod control;
pub mod drop;
pub mod gateway;
pub mod hybrid;
pub mod introduction;
pub mod join;
pub mod overlay;
pub mod probe;
pub mod receipts;
pub mod relayed;
pub mod row;
mod sealed;
pub mod size_probe;

pub use drop::DropReason;
pub use sealed::Recipient;
