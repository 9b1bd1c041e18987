//! meshd: one encrypted private network between servers on the public internet, found without a central server, measured all
//! the time.
//!
//! Two binaries share this library: `meshd`, the daemon on every server, and `meshctl`, the command that sets it up and shows
//! it. Each module is a room; arrows point one way (`tests/layering.rs` keeps them so):
//!
//! ```text
//!                     bin/meshd.rs   bin/meshctl.rs
//!                              │        │
//!                              ▼        ▼
//!                            cli ──▶ daemon            wiring, arguments, rendering
//!                              │        │
//!        ┌─────────────┬───────┴──┬─────┴──────┐
//!        ▼             ▼          ▼            ▼
//!       api         history   dataplane ──▶ platform    the world: sockets, threads, files, the kernel (the only `unsafe`)
//!        │             ▼          │            │
//!        │         telemetry      │            │        what was measured; `history` keeps it, on `platform`'s files
//!        │             │          │            │
//!        └─────────────┴────┬─────┴────────────┘
//!                           ▼
//!                  control     tunnel                   what decides; boringtun behind its seam
//!                           │
//!                           ▼
//!                config  identity  wire  time           values and bytes
//! ```
//!
//! Beside `control` stands `policy`, what may come in from the mesh: the daemon compiles it, the data plane asks it. It also
//! makes the text of our tables in the kernel's packet filter, which `daemon` applies and `cli` shows.
//! `identity`, `wire`, `config`, `control`, `policy` and `telemetry` are pure: time and randomness are arguments, nothing is touched.
//! `telemetry` uses `config` for the rules of alerts. `forward` stands beside `dataplane`, on `platform` and `config`: it moves
//! connections, which are the kernel's, not packets. Beside it `names` answers who the members are. A
//! packet's way, a control message's way, a probe's way and a change of membership are each told from top to bottom in
//! `docs/architecture.md`.
//!
//! The words (mesh, node, authority, certificate, record, peer, link, path, endpoint, overlay address, prefix, session, probe)
//! mean the same in code, on the wire, in the configuration and on the screen; `docs/protocol.md` §1 defines them.

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod forward;
pub mod history;
pub mod identity;
pub mod names;
pub mod platform;
pub mod policy;
pub mod telemetry;
pub mod time;
pub mod tunnel;
pub mod wire;
