//! Linux, and nothing but Linux: the only room that talks to the kernel directly and the only one with `unsafe`.
//!
//! | noun | file |
//! |---|---|
//! | clocks | `clock.rs` |
//! | the UDP socket and its batches | `udp.rs`, `udp_batch.rs`, `control_data.rs` |
//! | the TUN device | `tun.rs` |
//! | which queue and socket a packet comes to | `steering.rs` |
//! | waking a blocked thread | `wake.rs` |
//! | addresses, routes, link state | `netlink.rs`, `host_state.rs`, `host_watch.rs` |
//! | the packet filter | `nftables.rs`, `nft_watch.rs` |
//! | what a host is like, who listens on it | `host_facts.rs`, `listeners.rs` |
//! | files that must survive a crash, and private ones | `file.rs` |
//! | what stays open over a planned restart | `handover.rs` |
//! | what a service manager is told, and keeps open | `notify.rs` |
//! | whose a device is that outlived its daemon | `device_mark.rs` |
//! | giving up what is not needed | `privileges.rs`, `confinement.rs` |
//! | programs of this host that are run and end | `program.rs` |
//! | getting a processor in time | `scheduling.rs` |
//! | who calls the local API | `peer_credentials.rs` |
//! | looking up hosts, users and groups | `name_service.rs` |
//! | what the network alone takes | `icmp.rs` |
//! | seeds | `random.rs` |

pub mod clock;
pub mod confinement;
mod control_data;
pub mod device_mark;
pub mod file;
pub mod foreign_file;
pub mod handover;
pub mod host_facts;
pub mod host_state;
pub mod host_watch;
pub mod icmp;
pub mod interfaces;
pub mod listeners;
pub mod name_service;
pub mod netlink;
pub mod nft_watch;
pub mod nftables;
pub mod notify;
pub mod peer_credentials;
pub mod privileges;
pub mod program;
pub mod random;
pub mod scheduling;
pub mod steering;
pub mod tcp_sockets;
pub mod tun;
pub mod udp;
pub mod udp_batch;
pub mod wake;

#[cfg(test)]
pub(crate) mod test_device;
#[cfg(test)]
pub(crate) mod test_namespace;
#[cfg(test)]
mod test_process;
