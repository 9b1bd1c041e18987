//! meshd: one encrypted private network between servers on the public internet.

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod identity;
pub mod platform;
pub mod telemetry;
pub mod time;
pub mod tunnel;
pub mod wire;
