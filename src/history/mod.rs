//! Months of what the links did, in one SQLite file under the state directory.
//!
//! ```text
//! telemetry::Recorder ─▶ Batch ─▶ bounded queue ─▶ the writer's thread ─▶ recent   each half minute, as it comes
//!                                                                           │ each hour, moved whole
//!                                                                           ▼
//!                                                     minutes (30 d)  ten minutes (400 d)  days (5 y)  and events (5 y)
//! ```
//!
//! A bucket stands in `recent` or in all three tiers, never in both, and moves in one transaction: whatever the wall clock
//! and crashes do, each probe is counted once in each tier. Nothing here is ever waited for: the control task offers batches
//! to the queue and keeps what it does not take; readers have connections and threads of their own.
#![forbid(unsafe_code)]

mod block;
mod error;
mod reader;
mod schema;
mod store;
mod tier;
mod writer;

pub use error::HistoryError;
pub use reader::{Found, Reader, Wanted};
pub use store::{Batch, Sizes, Store, StoredEvent};
pub use tier::Tier;
pub use writer::{Backlog, Report, Writer};
