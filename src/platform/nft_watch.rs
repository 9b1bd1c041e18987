//! Being told when somebody changes our tables of the packet filter.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES`, as the bit of a multicast group (`linux/netfilter/nfnetlink.h`).
const GROUP: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES`: the high byte of the messages' types.
const SUBSYSTEM: u8 = 10;
/// Message header (`nlmsghdr`, 16 bytes) and that of the subsystem (`nfgenmsg`, 4 bytes).
const HEADERS: usize = 20;
/// Of tables, chains, rules, sets and their elements alike: the name of the table (`NFTA_TABLE_NAME` and others).
const TABLE: u16 = 1;
/// The kernel puts at most this much into one datagram of notifications.
const DATAGRAM: usize = 64 << 10;
/// Bytes of notifications that wait: other programs replace rule sets of thousands of rules at once.
const BUFFER: usize = 1 << 20;

/// A watch on the tables whose names begin with certain words, in the network namespace of whoever started it.
#[derive(Debug)]
pub struct NftWatch {
    socket: AsyncFd<OwnedFd>,
    prefixes: Vec<String>,
    buffer: Vec<u8>,
}

impl NftWatch {
    /// Starts a watch. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no such notifications, or this process may not have them.
    pub fn start(prefixes: Vec<String>) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        // What it has by default is enough for all but huge rule sets.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        // SAFETY: what is registered owns its descriptor and is given away whole, so that the number stays this socket's until
        // it is taken out again.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(NftWatch { socket, prefixes, buffer: vec![0; DATAGRAM] })
    }

    /// Waits until one of the tables, or something in it, changed, or may have. Our own changes count too.
    ///
    /// # Errors
    /// The socket has failed; the watch must be started again.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut touched = false;
            loop {
                match recv(self.socket.get_ref().as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                    Ok(length) => touched |= touches(&self.buffer[..length.min(DATAGRAM)], &self.prefixes),
                    Err(Errno::EINTR) => {}
                    // More than could be read: anything may have happened.
                    Err(Errno::ENOBUFS) => touched = true,
                    Err(Errno::EAGAIN) => break ready.clear_ready(),
                    Err(error) => return Err(error.into()),
                }
            }
            if touched {
                return Ok(());
            }
        }
    }
}

/// Tells whether a datagram of notifications names one of our tables.
fn touches(datagram: &[u8], prefixes: &[String]) -> bool {
    messages(datagram)
        .filter_map(table_of)
        .any(|table| prefixes.iter().any(|prefix| table.starts_with(prefix.as_bytes())))
}

/// The messages of a datagram, each with its header; what is cut off ends them.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADERS)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The name of the table that a message is about.
fn table_of(message: &[u8]) -> Option<&[u8]> {
    // In the machine's order, the type's high byte says the subsystem.
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    if kind.to_be_bytes()[0] != SUBSYSTEM {
        return None;
    }
    let mut attributes = message.get(HEADERS..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        if kind == TABLE {
            return Some(value.strip_suffix(&[0]).unwrap_or(value));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; HEADERS];
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap();
            body.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(body.len()).unwrap();
        body[..4].copy_from_slice(&length.to_ne_bytes());
        body[4..6].copy_from_slice(&kind.to_ne_bytes());
        body
    }

    #[test]
    fn only_our_tables_are_seen_wherever_they_stand() {
        let ours = vec!["meshd_mesh0".to_owned()];
        let deleted = 10 << 8 | 2;
        let other = message(deleted, &[(1, b"filter\0")]);
        let named = message(deleted, &[(2, &[0; 4]), (1, b"meshd_mesh0\0")]);
        assert!(!touches(&other, &ours));
        assert!(touches(&[other.clone(), named.clone()].concat(), &ours));
        assert!(!touches(&message(5 << 8 | 2, &[(1, b"meshd_mesh0\0")]), &ours), "another subsystem");
        // Whatever is cut off or says a wrong length ends the reading.
        for length in 0..named.len() {
            touches(&named[..length], &ours);
        }
        for length in 0..=255 {
            let mut wrong = named.clone();
            wrong[HEADERS] = length;
            touches(&wrong, &ours);
            wrong[0] = length;
            touches(&wrong, &ours);
        }
    }
}
