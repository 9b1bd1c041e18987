//! Tests with several hosts on one machine: real kernel, real processes, emulated internet.

mod admission;
mod browser;
mod calibration;
mod confined;
mod dark;
mod databases;
mod databases_over_the_mesh;
mod doctor;
mod faults;
mod firewall;
mod forwards;
mod gateways;
mod guide;
mod harness;
mod hold;
mod host_faults;
mod hybrid;
mod lab;
mod ledger;
mod links;
mod meshes;
mod monitors;
mod names;
mod nat;
mod networks;
mod night;
mod outages;
mod page_fixture;
mod past;
mod path_mtu;
mod paths;
mod policy;
mod rebuilt;
mod restart;
mod revocation;
mod scene;
mod service;
mod state;
mod stranger;
mod supervised;
mod tools;
mod trust;
mod verdicts;
mod views;
mod wireguard;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = networks::leave_a_run_behind() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    harness::run(
        &[
            networks::CASES,
            calibration::CASES,
            faults::CASES,
            databases::CASES,
            meshes::CASES,
            links::CASES,
            outages::CASES,
            gateways::CASES,
            paths::CASES,
            nat::CASES,
            admission::CASES,
            revocation::CASES,
            trust::CASES,
            stranger::CASES,
            dark::CASES,
            confined::CASES,
            state::CASES,
            views::CASES,
            path_mtu::CASES,
            past::CASES,
            tools::CASES,
            wireguard::CASES,
            policy::CASES,
            firewall::CASES,
            verdicts::CASES,
            names::CASES,
            browser::CASES,
            service::CASES,
            doctor::CASES,
            restart::CASES,
            guide::CASES,
            host_faults::CASES,
            forwards::CASES,
            rebuilt::CASES,
            supervised::CASES,
            hold::CASES,
            hybrid::CASES,
        ],
        &[
            databases_over_the_mesh::CASES,
            monitors::LONG_CASES,
            ledger::LONG_CASES,
            night::LONG_CASES,
            wireguard::LONG_CASES,
        ],
    )
}
