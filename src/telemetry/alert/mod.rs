//! Alerts: rules, looked at again and again, and what is told of them to whom.
//!
//! [`AlertEngine`] holds the rules against what the daemon observes and says what begins and what is over; a [`Delivery`]
//! per receiver says what is to be sent when, and what after a failure. Both are told the time, and touch nothing.
//!
//! ```text
//!  observe_link, observe_node ──▶ pending ──for──▶ firing ──wait──▶ told ──over──▶ hold ──▶ told that it is over
//!                                    ▲               │ ≥ 3 peers or most links at once: told as one
//!                                    └── not the case: forgotten
//! ```

mod burn;
mod delivery;
mod engine;
mod notice;

pub use burn::Burn;
pub use delivery::{Delivery, Failure, Health, Parcel, body};
pub use engine::{AlertEngine, CHECK_INTERVAL, GROUP_WAIT, HOLD, LinkObservation, NodeObservation, Phase, Standing};
pub use notice::{Notice, NoticeStatus, Reading, Subject, Value};

#[cfg(test)]
mod tests;
