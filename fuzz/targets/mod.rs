//! What every parser must hold against: one function per parser, shared by the fuzzer (`fuzz/fuzz_targets`) and by the test
//! that replays the corpus (`tests/fuzz_corpus.rs`).
//!
//! A target takes any bytes. It panics where an invariant breaks: what is accepted can be written again and read back as the
//! same, lengths lie inside the input, tables stay inside their caps. Where a parser stands behind a signature, a seal or
//! a checksum, the first byte chooses between the bytes as they are and bytes that are signed, sealed or summed up here, so
//! that a mutation gets past the lock and reaches what lies behind it.
#![allow(dead_code)] // the fuzzer links one target at a time

mod control;
mod files;
#[path = "../../tests/fixtures/mod.rs"]
pub mod fixtures;
mod forge;
mod identity;
mod names;
mod offload;
mod tunnel;
mod wire;

/// A named input.
pub type Seed = (&'static str, Vec<u8>);

/// A fuzz target.
pub struct Target {
    /// Its name, which is also the name of its file in `fuzz_targets` and of its directory in `corpus`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Valid inputs and edge cases, the same on every call.
    pub seeds: fn() -> Vec<Seed>,
}

macro_rules! targets {
    ($($room:ident :: $name:ident),* $(,)?) => {
        &[$(Target { name: stringify!($name), run: $room::$name, seeds: $room::seeds::$name }),*]
    };
}

/// Every target.
pub const ALL: &[Target] = targets![
    tunnel::datagram,
    tunnel::inner_packet,
    offload::split,
    offload::coalesce,
    wire::introduction,
    wire::join_request,
    wire::join_reply,
    wire::overlay,
    wire::probe,
    identity::certificate,
    identity::delegation,
    identity::record,
    identity::revocation,
    identity::request,
    identity::token,
    identity::text,
    files::armor,
    files::identity_file,
    files::authority_file,
    files::ledger,
    files::invite_book,
    files::state_file,
    files::config,
    files::api_request,
    names::dns_question,
    names::handed_names,
    control::control_message,
    control::snapshot,
    control::engine,
];

/// Runs the target of a name.
pub fn run(name: &str, data: &[u8]) {
    let target = ALL.iter().find(|target| target.name == name).expect("every program names a target");
    (target.run)(data);
}

/// Puts a mode byte in front of a seed.
fn with(mode: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&[mode], bytes.as_ref()].concat()
}
