//! Forwards: TCP connections taken on this host and made again to a target in the mesh.
//!
//! [`Selection`] says which target is in use and is pure; a [`Forward`] admits connections to it and moves them to another
//! at a switch; [`Service`] owns the listening sockets and the thread that all of this runs on, so that neither the control
//! task nor the threads that move packets ever wait for a connection.
#![forbid(unsafe_code)]

mod admission;
pub mod proxy_header;
mod relay;
pub mod selection;
mod service;

pub use admission::{Connection, Forward, Picture, Standing, SwitchError, TargetPicture};
pub use selection::{Choice, Health, Selection};
pub use service::{Service, ServiceError};
