//! The lab: several hosts on one machine, the networks between them, and what watches them.
//!
//! A [`Lab`] makes hosts in network namespaces of their own and removes everything on drop, also after a panic; what
//! a killed run left behind is removed by the next one. It needs root, or a kernel that lets an ordinary user make a
//! user namespace ([`reexec::ensure_namespaces`] enters one). Nothing is installed and nothing outside is touched.
//!
//! ```text
//! let lab = Lab::new("demo")?;
//! let wan = lab.wan(7)?;                               // emulated internet, seed 7
//! let web = lab.host("web")?;
//! let db = lab.host("db")?;
//! wan.site("paris").attach(&web)?;                     // eth0, a public address, default routes
//! wan.site("london").attach(&db)?;
//! wan.sites("paris", "london").delay(Duration::from_millis(5));   // one way, both directions
//! wan.way(&web, &db).loss(0.02);                       // one direction only, live
//! wan.link(&web, &db).cut(true);                       // as if the fibre were cut
//!
//! let lan = lab.plain("lan")?;                         // veth pairs and a bridge: throughput, floods, scans
//! lan.attach(&web)?;
//!
//! let daemon = web.command(place::binary("meshd")?).arg("run").spawn()?;   // killed with the lab
//! daemon.wait_for_output("ready", Duration::from_secs(10))?;
//! let text = db.command("ping").args(["-c1", "198.18.0.1"]).check()?;
//! let socket = db.enter(|| std::net::UdpSocket::bind("0.0.0.0:0"))?;   // a socket of this process, in that host
//! ```
//!
//! | file | what it makes |
//! |---|---|
//! | `host` | [`Lab`], [`Host`]: namespaces, directories, removal |
//! | `process` | [`HostCommand`], [`Proc`]: processes inside a host, their output |
//! | `plain` | [`Plain`]: veth pairs and a bridge; [`Lab::wire`]: one veth pair between two hosts |
//! | `wan` | [`Wan`]: the seeded WAN emulator and its truth log |
//! | `netlink` | links, addresses and routes inside a host |
//! | `package` | programs this machine lacks, unpacked beside the build |
//! | `firewall` | [`Firewall`]: nftables in a host |
//! | `mariadb` | database servers and their replication |
//! | `mesh` | [`Mesh`]: real daemons, admitted as an operator does it, and their status |
//! | `service_manager` | [`ServiceManager`]: what systemd does for a daemon, as far as the daemon can tell |
//! | `wireguard_go` | wireguard-go on a host, a stock peer |
//! | `flow` | [`Flow`]: connections through whatever lies between two hosts |
//! | `footprint` | [`footprint()`]: what a host's kernel knows, to see what was left behind |
//! | `look` | [`wait()`]: looking again until something is as wanted |
//! | `browser` | [`Browser`]: a real browser on a host |
//! | `capture` | [`Capture`]: packets on a device, searched and kept as pcap |
//!
//! Included by `#[path]` from a test or an example, so nothing here may name `crate::`.
#![allow(dead_code, unused_imports, reason = "each program that includes the lab uses its own part of it")]

pub mod browser;
pub mod capture;
pub mod error;
pub mod firewall;
pub mod flow;
pub mod footprint;
pub mod host;
pub mod look;
pub mod mariadb;
pub mod mesh;
pub mod netlink;
pub mod netns;
pub mod package;
pub mod place;
pub mod plain;
pub mod process;
pub mod reexec;
pub mod service_manager;
pub mod sweep;
pub mod wan;
pub mod wireguard_go;

pub use browser::Browser;
pub use capture::Capture;
pub use error::{Error, Result};
pub use firewall::{Firewall, Open};
pub use flow::Flow;
pub use footprint::footprint;
pub use host::{Host, Lab};
pub use mesh::Mesh;
pub use plain::Plain;
pub use process::{HostCommand, Proc};
pub use service_manager::ServiceManager;
pub use wan::{Fate, Wan};
