//! What answers WireGuard's own tools: `wg show`.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::backend::LocalBackend;
use crate::api::{Server, UAPI_DIRECTORY};

/// What answers at the socket for WireGuard's tools; nothing where they have no directory on this host.
pub(super) struct Tools(Option<JoinHandle<()>>);

impl Tools {
    /// Answers on the socket of an interface, where there is a directory of such sockets: one that is not there, nobody looks
    /// into. What is in the way is no reason not to start.
    pub(super) fn serve(interface: &str, backend: Arc<LocalBackend>) -> Tools {
        let directory = Path::new(UAPI_DIRECTORY);
        if !directory.is_dir() {
            tracing::debug!("`wg show` is not answered: there is no {UAPI_DIRECTORY}");
            return Tools(None);
        }
        match Server::bind(&directory.join(format!("{interface}.sock")), None) {
            Ok(server) => Tools(Some(tokio::spawn(server.serve_uapi(backend, pending())))),
            Err(error) => {
                tracing::info!("`wg show` is not answered: {error}");
                Tools(None)
            }
        }
    }

    /// Ends it at once; its socket goes with it.
    pub(super) async fn stop(self) {
        if let Tools(Some(task)) = self {
            task.abort();
            // An end that was asked for is no failure.
            let _ = task.await;
        }
    }
}
