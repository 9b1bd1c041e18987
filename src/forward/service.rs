//! The thread of the forwards, and their listening sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

use super::admission::{Addresses, Forward};
use crate::config;
use crate::identity::NodeName;

/// Connections that the kernel keeps until they are accepted; it takes no more than its own limit.
const BACKLOG: i32 = 4_096;
/// How long the door stays closed when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors that are left to the rest of the daemon.
const RESERVED: u64 = 256;
/// Connections at least, whatever the system's limit says: beyond it, accepting fails and is tried again.
const LEAST: usize = 16;

/// Why the forwards cannot be as they are configured; those that there were go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// An address cannot be listened on.
    #[error("[[forward]] {forward}: cannot listen on {address}: {source} (does something else listen there?)")]
    Listen {
        /// The forward.
        forward: NodeName,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread does not start.
    #[error("the forwards cannot start: {0}")]
    Start(#[from] io::Error),
}

/// The forwards of this node, on a thread of their own.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    addresses: Addresses,
    forwards: BTreeMap<NodeName, Running>,
    listeners: BTreeMap<SocketAddr, Listener>,
    /// Two descriptors for each connection.
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Running {
    forward: Arc<Forward>,
    watch: AbortHandle,
}

/// A listening socket, and whose connections it takes: a reload may give it to another forward without closing it.
#[derive(Debug)]
struct Listener {
    forward: Arc<ArcSwap<Forward>>,
    bound: SocketAddr,
    task: AbortHandle,
}

impl Service {
    /// Starts the thread, without a forward.
    ///
    /// # Errors
    /// The system gives no thread or event loop.
    pub fn start() -> Result<Service, ServiceError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("forwards".to_owned()).spawn(move || {
            // Its other end is dropped, or says so: both mean the end.
            let _ = runtime.block_on(stopped);
        })?;
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
        let connections = usize::try_from(descriptors.saturating_sub(RESERVED) / 2).unwrap_or(usize::MAX);
        Ok(Service {
            handle,
            stop: Some(stop),
            thread: Some(thread),
            addresses: Addresses::default(),
            forwards: BTreeMap::new(),
            listeners: BTreeMap::new(),
            room: Arc::new(Semaphore::new(connections.clamp(LEAST, Semaphore::MAX_PERMITS))),
        })
    }

    /// The event loop of the forwards' thread, where whatever waits for them belongs.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Says which overlay addresses the members have.
    pub fn set_addresses(&self, addresses: BTreeMap<NodeName, IpAddr>) {
        self.addresses.store(Arc::new(addresses));
    }

    /// A forward by name.
    pub fn get(&self, name: &str) -> Option<&Arc<Forward>> {
        self.forwards.iter().find(|(known, _)| known.as_str() == name).map(|(_, running)| &running.forward)
    }

    /// All forwards, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &Arc<Forward>)> {
        self.forwards.iter().map(|(name, running)| (name, &running.forward))
    }

    /// Makes the forwards those of a configuration. Sockets and targets of those that stay are left alone; connections
    /// outlive their forward.
    ///
    /// # Errors
    /// A socket cannot be had; then nothing has changed.
    pub fn apply(&mut self, wanted: &[config::Forward]) -> Result<(), ServiceError> {
        let mut bound = BTreeMap::new();
        for forward in wanted {
            for address in forward.listen.iter().filter(|address| !self.listeners.contains_key(address)) {
                let listen = |source| ServiceError::Listen { forward: forward.name.clone(), address: *address, source };
                bound.insert(*address, bind(*address).map_err(listen)?);
            }
        }
        let _inside = self.handle.enter();
        self.forwards.retain(|name, running| {
            let stays = wanted.iter().any(|forward| forward.name == *name);
            if !stays {
                running.watch.abort();
            }
            stays
        });
        self.listeners.retain(|address, listener| {
            let stays = wanted.iter().any(|forward| forward.listen.contains(address));
            if !stays {
                listener.task.abort();
            }
            stays
        });
        for settings in wanted {
            let running = self.forwards.entry(settings.name.clone()).or_insert_with(|| {
                let forward = Arc::new(Forward::new(settings.clone(), Arc::clone(&self.addresses)));
                let watch = self.handle.spawn(Arc::clone(&forward).watch()).abort_handle();
                Running { forward, watch }
            });
            running.forward.configure(settings);
            for address in &settings.listen {
                if let Some(listener) = self.listeners.get(address) {
                    listener.forward.store(Arc::clone(&running.forward));
                } else if let Some(socket) = bound.remove(address) {
                    let bound = socket.local_addr().unwrap_or(*address);
                    let forward = Arc::new(ArcSwap::new(Arc::clone(&running.forward)));
                    let accepting = accept(socket, Arc::clone(&forward), Arc::clone(&self.room));
                    let task = self.handle.spawn(accepting).abort_handle();
                    self.listeners.insert(*address, Listener { forward, bound, task });
                }
            }
        }
        Ok(())
    }

    /// Where it listens.
    pub fn listening(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.values().map(|listener| listener.bound)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has told so itself.
            let _ = thread.join();
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // What a predecessor's connections leave behind must not keep its successor out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes connections for ever, each for the forward that has the socket then.
async fn accept(socket: std::net::TcpListener, forward: Arc<ArcSwap<Forward>>, room: Arc<Semaphore>) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("a forward cannot take connections: {error}"),
    };
    loop {
        // Without room the kernel keeps them waiting. It is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let forward = forward.load_full();
                tokio::spawn(async move {
                    forward.serve(stream, client).await;
                    drop(place);
                });
            }
            // A client that went before it was taken, or no descriptor left: both pass.
            Err(error) => {
                tracing::debug!("a connection could not be taken: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
