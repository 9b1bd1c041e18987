//! Whole meshes of the real control engine in virtual time, from one seed.
//!
//! The engines are the product's own; only tunnels are modelled (a handshake of one round trip between nodes that know each
//! other's keys; `hybrid` has real ones), and the network between them: delay by distance, loss, cuts, restarts, skewed clocks,
//! lying members. The same seed gives the same trace, byte by byte, so that a failure found once is found again.

mod gateways;
mod hybrid;
mod matrix;
mod mesh;
mod net;
mod paths;
mod probing;
mod relays;
mod scenarios;
mod silence;
mod sizes;
mod trace;
