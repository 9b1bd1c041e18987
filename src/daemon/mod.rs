//! The daemon: wiring between the control engine, the tunnels, the data threads, the host and the operator.
//!
//! One task owns everything that decides (`driver::Driver`); it waits for whatever comes first (a datagram the data threads
//! handed up, a deadline, a command of the local interface, a signal, a change of the host's network), gives it to the
//! engine, and does what the engine asks for. The data threads never wait for it.
#![forbid(unsafe_code)]

mod alerts;
mod backend;
mod checks;
mod commands;
pub mod config_files;
mod confinement;
mod courier;
mod device;
mod driver;
mod firewall;
mod forwards;
mod gateways;
mod handshakes;
mod history;
mod hold;
mod host;
mod hybrid;
mod intake;
mod ledger;
mod ledger_file;
mod links;
mod lockdown;
mod matrix;
mod metrics;
mod monitor;
pub(crate) mod names;
mod observer;
mod outage;
mod pages;
mod path_mtu;
mod paths;
mod policy;
mod ports;
mod reload;
mod restart;
mod service;
mod signals;
mod startup;
mod state;
pub mod state_file;
mod status;
mod stock;
mod switches;
mod tools;
mod trace;
mod trust;
mod underlay;
mod witness;

pub use confinement::withheld;
pub use startup::{StartError, cleanup, run};
