//! What was measured on the links, and what happened: rolling statistics and a ring of events. Pure; nothing is
//! written back to what it observes.
#![forbid(unsafe_code)]

pub mod alert;
pub mod bucket;
pub mod degraded;
pub mod distribution;
pub mod event;
pub mod jitter;
pub mod link;
pub mod link_counters;
pub mod loss;
pub mod matrix;
pub mod metrics;
pub mod one_way;
pub mod packed;
mod range_coder;
mod raw;
pub mod recorder;
pub mod sketch;
pub mod step;
pub mod usage;
pub mod varint;

pub use crate::control::path::LOSS_COST;
pub use bucket::{Bucket, Standing};
pub use degraded::{Degradation, Reason};
pub use distribution::Distribution;
pub use event::{Event, EventKind, EventRing};
pub use jitter::Jitter;
pub use link::{DelaySummary, LinkStatistics, LinkSummary, RttSummary};
pub use link_counters::{DelayHistogram, LinkCounters};
pub use loss::LossEstimate;
pub use one_way::OneWay;
pub use recorder::{ClockStep, Recorder, Sealed, TunnelTotals};
pub use sketch::Sketch;
pub use step::{Step, StepChange};
