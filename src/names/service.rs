//! The thread of the names, and its socket.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::answer::{LARGEST, answer};
use super::askers::{Admission, Askers};
use super::keeper::{Wired, WiringStanding, keep};
use super::picture::Picture;
use super::zone::Zone;
use crate::platform::clock;

/// How long an address that cannot be had is left alone: it may be about to come, or whoever has it about to end.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// How long a socket is left alone that cannot be read: the system may be short of memory.
const READ_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a question that are read: one name, and whatever options somebody may add. The rest would be cut off by the
/// kernel, and the question not understood.
const QUESTION: usize = 1_232;

/// What is to be answered, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Where questions are answered; nowhere where `None`.
    pub listen: Option<SocketAddr>,
    /// The names.
    pub picture: Picture,
    /// What the host's resolver is to know; nothing where `None`.
    pub wired: Option<Wired>,
}

/// Questions since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Those that were answered.
    pub answered: u64,
    /// Those from outside this host and the mesh, which got silence.
    pub strangers: u64,
    /// Those that were too many.
    pub too_many: u64,
    /// Those that were no questions.
    pub malformed: u64,
}

/// How the service does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Where it answers now; `None` where it does not.
    pub bound: Option<SocketAddr>,
    /// Why it does not answer where it should.
    pub failure: Option<String>,
    /// Its questions.
    pub counters: Counters,
    /// Whether the host's resolver knows the names.
    pub wiring: WiringStanding,
}

/// Where it answers now, or why it does not where it should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    bound: Option<SocketAddr>,
    failure: Option<String>,
}

/// What the thread tells.
#[derive(Debug, Default)]
pub(super) struct Shared {
    place: Mutex<Place>,
    wiring: Mutex<WiringStanding>,
    answered: AtomicU64,
    strangers: AtomicU64,
    too_many: AtomicU64,
    malformed: AtomicU64,
}

/// The names of a mesh, answered on a thread of their own: whoever asks a thousand questions a second keeps nobody waiting.
#[derive(Debug)]
pub struct Service {
    /// Dropped to end the thread.
    orders: Option<watch::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Service {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no thread or event loop. An address that cannot be had is no error: it is tried again, and
    /// [`Service::standing`] says why.
    pub fn start(order: Order) -> io::Result<Service> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, taken) = watch::channel(order);
        let shared = Arc::<Shared>::default();
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("names".to_owned()).spawn(move || {
            runtime.block_on(async { tokio::join!(serve(taken.clone(), &told), keep(taken, &told)) });
            // A look-up may still wait for a resolver that says nothing.
            runtime.shutdown_background();
        })?;
        Ok(Service { orders: Some(orders), thread: Some(thread), shared })
    }

    /// Changes what is answered, at once.
    pub fn order(&self, order: Order) {
        let Some(orders) = &self.orders else { return };
        orders.send_if_modified(|current| {
            let changes = *current != order;
            if changes {
                *current = order;
            }
            changes
        });
    }

    /// Ends it, and takes the names out of the host's resolver; merely dropped, it leaves them there for its successor.
    pub fn stop(self) {
        if let Some(orders) = &self.orders {
            orders.send_modify(|order| order.wired = None);
        }
    }

    /// How it does.
    pub fn standing(&self) -> Standing {
        let shared = &self.shared;
        let Place { bound, failure } = shared.place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Standing {
            bound,
            failure,
            counters: Counters {
                answered: count(&shared.answered),
                strangers: count(&shared.strangers),
                too_many: count(&shared.too_many),
                malformed: count(&shared.malformed),
            },
            wiring: shared.wiring(),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.orders.take();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has told so itself.
            let _ = thread.join();
        }
    }
}

/// A socket that answers until it is dropped.
struct Listener {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Does what is ordered, until the end is.
async fn serve(mut orders: watch::Receiver<Order>, shared: &Arc<Shared>) {
    let mut serial = 0_u32;
    let mut zone_of = |order: &Order| {
        // It rises also over restarts, as long as names change less than once a second on average.
        let wall = u32::try_from(clock::wall().as_secs() & u64::from(u32::MAX)).unwrap_or_default();
        serial = u32::max(serial.wrapping_add(1), wall);
        Arc::new(Zone::new(&order.picture, serial))
    };
    let order = orders.borrow_and_update().clone();
    let zone = Arc::new(ArcSwap::new(zone_of(&order)));
    let mut listener = None;
    loop {
        let order = orders.borrow_and_update().clone();
        zone.store(zone_of(&order));
        if listener.as_ref().map(|listener: &Listener| listener.address) != order.listen {
            // The old one first: the new one may want part of its place.
            drop(listener.take());
            shared.tell(Place::default());
            listener = order.listen.map(|address| {
                let answering = listen(address, Arc::clone(&zone), Arc::clone(shared));
                Listener { address, task: tokio::spawn(answering).abort_handle() }
            });
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

impl Shared {
    pub(super) fn tell_wiring(&self, news: WiringStanding) {
        *self.wiring.lock().unwrap_or_else(PoisonError::into_inner) = news;
    }

    pub(super) fn wiring(&self) -> WiringStanding {
        self.wiring.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says where it answers, or why it does not; returns whether that is news.
    fn tell(&self, news: Place) -> bool {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = *place != news;
        *place = news;
        changes
    }
}

/// Answers at an address for ever, as soon as it can be had.
async fn listen(address: SocketAddr, zone: Arc<ArcSwap<Zone>>, shared: Arc<Shared>) {
    let socket = loop {
        match UdpSocket::bind(address).await {
            Ok(socket) => break socket,
            Err(error) => {
                let why = format!("cannot listen on {address}: {error} (does another name server run there?)");
                if shared.tell(Place { bound: None, failure: Some(why.clone()) }) {
                    tracing::warn!("names.listen: {why}");
                }
                tokio::time::sleep(BIND_PAUSE).await;
            }
        }
    };
    let bound = socket.local_addr().unwrap_or(address);
    shared.tell(Place { bound: Some(bound), failure: None });
    tracing::info!("names are answered on {bound}");
    let mut askers = Askers::new(clock::now());
    let mut question = [0; QUESTION];
    loop {
        let (length, source) = match socket.recv_from(&mut question).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!("a question could not be read: {error}");
                tokio::time::sleep(READ_PAUSE).await;
                continue;
            }
        };
        let zone = zone.load();
        let counter = match askers.admit(&zone, source.ip(), clock::now()) {
            Admission::Stranger => &shared.strangers,
            Admission::TooMany => &shared.too_many,
            Admission::Answered => match question.get(..length).and_then(|question| answer(&zone, question)) {
                None => &shared.malformed,
                Some(bytes) => {
                    debug_assert!(bytes.len() <= LARGEST);
                    // What finds no room is lost, as datagrams are; it will be asked again.
                    let _ = socket.try_send_to(&bytes, source);
                    &shared.answered
                }
            },
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
