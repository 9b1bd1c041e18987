//! The product's tunnel, driven on the product's own clock as its daemon and data plane drive it.

use crate::end::{Outgoing, Tunnel};
use boringtun::x25519::{PublicKey, StaticSecret};
use meshd::platform::clock;
use meshd::tunnel::{Host, Outbox, Sealed, TunnelOptions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const BUFFER: usize = 2048;

/// The inner size of a usual link.
const MTU: usize = 1420;

/// What one end is told about the other.
#[derive(Clone)]
pub struct Peer {
    pub public: PublicKey,
    /// Where its datagrams come from.
    pub source: SocketAddr,
    /// Whether it is another implementation of WireGuard.
    pub stock: bool,
    /// Whether a session is wanted from the beginning, before there is a packet.
    pub keep_up: bool,
}

pub struct Seam {
    host: Arc<Host>,
    tunnel: Arc<meshd::tunnel::Tunnel>,
    source: SocketAddr,
    /// A session is to be asked for at the next tick.
    wanted: bool,
    due: meshd::time::Instant,
}

impl Seam {
    /// Makes a host with one peer. `seed` must be fresh.
    pub fn new(secret: StaticSecret, seed: [u8; 32], peer: &Peer) -> Seam {
        let host = Host::new(secret, seed);
        let options = TunnelOptions {
            mtu: MTU,
            keep_up: peer.keep_up,
            stock: peer.stock,
            persistent_keepalive: None,
            preshared_key: None,
        };
        let tunnel = host.add(peer.public.to_bytes(), options).expect("a random key is neither ours nor of low order");
        Seam { host, tunnel, source: peer.source, wanted: false, due: clock::now() }
    }

    /// The same, asking for a session at once: the daemon does so with every peer when it starts.
    pub fn restarted(secret: StaticSecret, seed: [u8; 32], peer: &Peer) -> Seam {
        Seam { wanted: true, ..Seam::new(secret, seed, peer) }
    }

    fn handshake(&mut self, datagram: &[u8], out: &mut Outbox) -> Result<Option<Vec<u8>>, String> {
        let handled = self.host.handle_handshake(clock::now(), clock::wall(), self.source, datagram, out);
        self.due = self.tunnel.deadline();
        handled.map(|_| None).map_err(|reason| reason.name().to_owned())
    }

    fn data(&mut self, datagram: &[u8], out: &mut Outbox) -> Result<Option<Vec<u8>>, String> {
        let index = datagram.get(4..8).and_then(|index| index.first_chunk()).copied().ok_or("short")?;
        let tunnel = self.host.by_index(u32::from_le_bytes(index)).ok_or("no session has this index")?;
        let (now, mut buffer) = (clock::now(), [0u8; BUFFER]);
        let mut guard = tunnel.lock();
        let opened = guard.open(now, datagram, &mut buffer);
        self.due = guard.flush(now, clock::wall(), out);
        let length = opened.map_err(|reason| reason.name().to_owned())?.length;
        Ok((length > 0).then(|| buffer[..length].to_vec()))
    }
}

impl Tunnel for Seam {
    fn send(&mut self, inner: &[u8], out: &mut Vec<Outgoing>) -> Result<(), String> {
        let (now, mut buffer, mut outbox) = (clock::now(), [0u8; BUFFER], Outbox::new());
        let mut guard = self.tunnel.lock();
        let sealed = guard.seal(now, inner, &mut buffer);
        self.due = guard.flush(now, clock::wall(), &mut outbox);
        drop(guard);
        // A packet sealed into our buffer precedes what the flush found due.
        if let Ok(Sealed::Datagram(length)) = sealed {
            out.push(("seal", buffer[..length].to_vec()));
        }
        empty(outbox, "flush", out);
        sealed.map(|_| ()).map_err(|reason| reason.name().to_owned())
    }

    fn receive(&mut self, datagram: &[u8], out: &mut Vec<Outgoing>) -> Result<Option<Vec<u8>>, String> {
        let mut outbox = Outbox::new();
        let inner = match datagram.first() {
            Some(4) => self.data(datagram, &mut outbox),
            _ => self.handshake(datagram, &mut outbox),
        };
        empty(outbox, "receive", out);
        inner
    }

    fn tick(&mut self, out: &mut Vec<Outgoing>) -> Result<(), String> {
        let mut outbox = Outbox::new();
        if std::mem::take(&mut self.wanted) {
            let _ = self.tunnel.initiate(clock::now(), clock::wall(), &mut outbox);
        }
        self.due = self.tunnel.tick(clock::now(), clock::wall(), &mut outbox);
        empty(outbox, "tick", out);
        Ok(())
    }

    fn wait(&self) -> Duration {
        self.due.saturating_since(clock::now())
    }
}

/// Both destinations are the connected socket's: there is one peer and one path.
fn empty(mut outbox: Outbox, step: &'static str, out: &mut Vec<Outgoing>) {
    while let Some(outgoing) = outbox.pop() {
        out.push((step, outgoing.bytes));
    }
}
