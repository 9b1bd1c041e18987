//! The TCP pages: bound as the configuration says, also when it changes, and whenever the address becomes free.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio::task::AbortHandle;

use super::backend::LocalBackend;
use crate::api::{PageGuard, PageServer, metrics_pages, web_pages};
use crate::config::Config;
use crate::identity::Certificate;

/// How long an address that is taken is left alone: whoever holds it may be about to end.
const BIND_PAUSE: Duration = Duration::from_secs(1);

/// A page with an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Page {
    /// What monitors read.
    Metrics,
    /// What people look at.
    Web,
}

/// The pages that are served.
pub(super) struct Pages {
    backend: Arc<LocalBackend>,
    guard: PageGuard,
    served: BTreeMap<Page, Served>,
}

struct Served {
    address: SocketAddr,
    /// Why it is not bound now, if it is not.
    failure: Arc<Mutex<Option<String>>>,
    task: AbortHandle,
}

impl Page {
    /// The key that says where it is served.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Page::Metrics => "metrics.listen",
            Page::Web => "web.listen",
        }
    }

    fn router(self, backend: Arc<LocalBackend>) -> Router {
        match self {
            Page::Metrics => metrics_pages(backend),
            Page::Web => web_pages(backend),
        }
    }
}

/// The pages that a configuration asks for.
fn wanted(config: &Config) -> BTreeMap<Page, SocketAddr> {
    let pages = [(Page::Metrics, config.metrics.listen), (Page::Web, config.web.listen)];
    pages.into_iter().filter_map(|(page, address)| Some((page, address?))).collect()
}

/// Checks that pages on overlay addresses are on this node's own.
///
/// # Errors
/// The key, what is wrong with its value, and what would be right.
pub(super) fn check(config: &Config, certificate: &Certificate) -> Result<(), String> {
    let own = [IpAddr::V4(certificate.address_v4), IpAddr::V6(certificate.address_v6)];
    for (page, address) in wanted(config) {
        if !address.ip().is_loopback() && !own.contains(&address.ip()) {
            return Err(format!(
                "{}: {} is another node's overlay address; this node has {} and {}",
                page.key(),
                address.ip(),
                own[0],
                own[1]
            ));
        }
    }
    Ok(())
}

impl Pages {
    /// Starts without a page.
    pub(super) fn new(backend: Arc<LocalBackend>, certificate: &Certificate) -> Pages {
        let guard = PageGuard {
            names: vec![certificate.name.to_string()],
            networks: vec![certificate.overlay_v4.into(), certificate.overlay_v6.into()],
        };
        Pages { backend, guard, served: BTreeMap::new() }
    }

    /// Serves what the configuration asks for; pages whose address stays are left alone.
    pub(super) fn serve(&mut self, config: &Config) {
        let wanted = wanted(config);
        self.served.retain(|page, served| wanted.get(page) == Some(&served.address));
        for (page, address) in wanted {
            self.served.entry(page).or_insert_with(|| Served::start(page, address, &self.backend, &self.guard));
        }
    }

    /// The pages that cannot be served, with their keys and why.
    pub(super) fn failures(&self) -> Vec<String> {
        let failure = |served: &Served| served.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failed = |(page, served): (&Page, &Served)| {
            failure(served).map(|why| format!("{}: cannot listen on {}: {why}", page.key(), served.address))
        };
        self.served.iter().filter_map(failed).collect()
    }
}

impl Served {
    fn start(page: Page, address: SocketAddr, backend: &Arc<LocalBackend>, guard: &PageGuard) -> Served {
        let failure = Arc::new(Mutex::new(None));
        let (router, guard, told) = (page.router(Arc::clone(backend)), guard.clone(), Arc::clone(&failure));
        let task = tokio::spawn(async move {
            loop {
                let bound = PageServer::bind(address);
                let news = bound.as_ref().err().map(ToString::to_string);
                let before = std::mem::replace(&mut *told.lock().unwrap_or_else(PoisonError::into_inner), news.clone());
                match (bound, news) {
                    (Ok(server), _) => {
                        tracing::info!("{} is served on {address}", page.key());
                        return server.serve(router, guard, std::future::pending()).await;
                    }
                    (Err(_), news) => {
                        if news != before {
                            tracing::warn!("{}: cannot listen on {address}: {}", page.key(), news.unwrap_or_default());
                        }
                        tokio::time::sleep(BIND_PAUSE).await;
                    }
                }
            }
        });
        Served { address, failure, task: task.abort_handle() }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}
