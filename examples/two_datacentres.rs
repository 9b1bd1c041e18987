//! Five hosts in two datacentres, 10 ms apart, on this one machine: a mesh from nothing, a database replicated through it,
//! a daemon killed under it, and what `meshctl status` says of it all.
//!
//! ```text
//!          paris                        london
//!   paris1 paris2 paris3  ── 10 ms ──  london1 london2      eth0 of each: UDP 7655 and nothing else
//!             │                           │
//!          MariaDB  ◀──── the mesh ────▶  MariaDB           on overlay addresses only
//! ```
//!
//! Run it by `examples/demo`. Real processes of meshd, meshctl and mariadbd, each in its host's network namespace; the
//! public network between the hosts is the lab's emulator.

#[path = "../netns-tests/lab/mod.rs"]
mod lab;
#[path = "two_datacentres/mesh.rs"]
mod mesh;
#[path = "two_datacentres/shop.rs"]
mod shop;
#[path = "two_datacentres/stage.rs"]
mod stage;
#[path = "two_datacentres/supervisor.rs"]
mod supervisor;

use std::io::BufRead;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::{Capture, Error, Lab, Result, package};
use mesh::{Mesh, PORT};
use shop::Shop;
use stage::Stage;

/// One way between the datacentres.
const BETWEEN: Duration = Duration::from_millis(5);

const USAGE: &str = "usage: examples/demo [--keep]

Five hosts in two datacentres on this machine, meshed, with a database replicated between them. Takes about a minute.

  --keep   waits at the end, so that you can look around in another terminal";

fn main() -> ExitCode {
    let mut keep = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--keep" => keep = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("unknown argument {other}\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    supervisor::run(&[&package::NFTABLES, &package::MARIADB], || play(keep))
}

/// The scene from beginning to end, and nothing after it.
fn play(keep: bool) -> Result<()> {
    let began = Instant::now();
    let stage = Stage::new();
    let lab = Lab::new("two-datacentres")?;
    let played = scenes(&stage, &lab, keep);
    // Logs and captures of what went wrong are kept below the build directory.
    if let Err(Error::Failed(_)) = &played {
        lab.fail();
    }
    drop(lab);
    played.inspect(|()| stage.end(began.elapsed()))
}

fn scenes(stage: &Stage, lab: &Lab, keep: bool) -> Result<()> {
    stage.scene("Five hosts in two datacentres, 10 ms apart");
    let wan = lab.wan(1)?;
    wan.sites("paris", "london").delay(BETWEEN);
    let mut mesh = Mesh::new(stage)?;
    for name in ["paris1", "paris2", "paris3", "london1", "london2"] {
        let host = lab.host(name)?;
        let port = wan.site(name.trim_end_matches(char::is_numeric)).attach(&host)?;
        mesh.add(host, port)?;
    }
    mesh.introduce();
    mesh.found("paris1")?;
    for (title, names) in
        [("paris2 joins with a token", ["paris2"].as_slice()), ("so do paris3 and london1", &["paris3", "london1"])]
    {
        stage.scene(title);
        names.iter().try_for_each(|name| mesh.join(name, "paris1"))?;
    }
    mesh.admit_by_files("london2", "paris1")?;
    mesh.look_around()?;
    match Shop::fetch() {
        Ok(()) => {
            let capture = Capture::start(lab, mesh.host("paris2"), "eth0")?;
            let shop = Shop::open(stage, &mesh, "paris2", "london1")?;
            shop.sell_while(|| mesh.kill_and_restart("london1", "paris1"))?;
            shop.tell_what_the_wire_saw(&capture)?;
            finale(stage, &mesh)?;
            shop.count()?;
        }
        Err(error) => {
            stage.warn(&format!("without the databases: {error}"));
            mesh.kill_and_restart("london1", "paris1")?;
            finale(stage, &mesh)?;
        }
    }
    if keep {
        wait_for_enter(stage, &mesh)?;
    }
    mesh.stop()
}

fn finale(stage: &Stage, mesh: &Mesh<'_>) -> Result<()> {
    mesh.wait_until_all_are_up()?;
    stage.scene("What an operator sees, one node in each datacentre");
    for name in ["paris1", "london2"] {
        mesh.show(name, &["status"])?;
    }
    Ok(())
}

fn wait_for_enter(stage: &Stage, mesh: &Mesh<'_>) -> Result<()> {
    stage.scene("It stays until you press Enter. In another terminal:");
    for hint in mesh.hints("london1", "paris2")? {
        stage.output(&hint);
    }
    let mut line = String::new();
    // At the end of its input there is nobody to press it.
    let _ = std::io::stdin().lock().read_line(&mut line);
    Ok(())
}

// The port stands in the drawing above and in the firewall.
const _: () = assert!(PORT == 7655);
