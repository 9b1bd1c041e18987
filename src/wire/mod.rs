//! Every byte format of ours, one file per message. Pure.
#![forbid(unsafe_code)]

pub mod drop;

pub use drop::DropReason;
