//! The daemon's end of the socket.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::access::{Caller, Policy};
use super::backend::Backend;
use super::router::{Deadline, REQUEST_TIMEOUT, router};
use super::{ApiError, ErrorKind};

/// Clients served at once; more are told that the daemon is busy. A monitor, a few people and a script need ten.
pub const CLIENT_LIMIT: usize = 64;
/// Bytes of a request's head after which it is refused; ours stay below one KiB. hyper looks between two reads, so that
/// it may take twice as much before it does.
const HEAD_LIMIT: usize = 16 * 1024;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error("another daemon answers at {}; stop it, or give this one another files.socket", .0.display())]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{} is there and is no socket; remove it, or choose another files.socket", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error("cannot make the socket {}: {source}", path.display())]
    System {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound socket. The file goes when this goes.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    policy: Policy,
}

impl Server {
    /// Binds the socket: mode 0600, or 0660 for `reader_group`. Needs a tokio runtime.
    ///
    /// A socket a dead daemon left behind is replaced. The file appears under its name with its final mode, so that
    /// nobody can connect in between.
    ///
    /// # Errors
    /// Another daemon answers there, or the path is no place for a socket.
    pub fn bind(path: &Path, reader_group: Option<u32>) -> Result<Server, BindError> {
        let system = |source| BindError::System { path: path.to_path_buf(), source };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(BindError::NoSocket(path.to_path_buf())),
            Ok(_) if blocking::UnixStream::connect(path).is_ok() => return Err(BindError::InUse(path.to_path_buf())),
            _ => {}
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(system)?;
        }
        let fresh = path.with_extension(format!("new-{}", std::process::id()));
        // One that a process of the same number left behind.
        let _ = fs::remove_file(&fresh);
        let bound = Self::bind_fresh(&fresh, path, reader_group);
        if bound.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        let (listener, inode) = bound.map_err(system)?;
        let own_uid = nix::unistd::geteuid().as_raw();
        Ok(Server { listener, path: path.to_path_buf(), inode, policy: Policy { own_uid, reader_group } })
    }

    fn bind_fresh(fresh: &Path, path: &Path, reader_group: Option<u32>) -> io::Result<(UnixListener, u64)> {
        let listener = UnixListener::bind(fresh)?;
        if reader_group.is_some() {
            chown(fresh, None, reader_group)?;
        }
        let mode = if reader_group.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(fresh, fs::Permissions::from_mode(mode))?;
        let inode = fs::symlink_metadata(fresh)?.ino();
        fs::rename(fresh, path)?;
        Ok((listener, inode))
    }

    /// Answers WireGuard's own tools instead, until `shutdown` is done.
    pub async fn serve_uapi<B: Backend>(self, backend: Arc<B>, shutdown: impl Future<Output = ()>) {
        super::uapi::serve(&self.listener, backend, shutdown).await;
    }

    /// Serves until `shutdown` is done; calls under way are then broken off.
    pub async fn serve<B: Backend>(self, backend: Arc<B>, shutdown: impl Future<Output = ()>) {
        let router = router(backend, self.policy);
        let permits = Arc::new(Semaphore::new(CLIENT_LIMIT));
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => return,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: the client waits in the backlog until some are free.
                    tracing::warn!(%error, "cannot accept a client of the socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(credentials) = stream.peer_cred() else { continue };
            let caller = Caller { uid: credentials.uid(), gid: credentials.gid() };
            match permits.clone().try_acquire_owned() {
                Ok(permit) => {
                    let router = router.clone();
                    connections.spawn(async move {
                        serve_one(stream, caller, router).await;
                        drop(permit);
                    });
                }
                Err(_) => refuse_busy(&stream),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A successor may have put its own socket there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Serves one request of one client, within its deadline.
async fn serve_one(stream: UnixStream, caller: Caller, router: Router) {
    let (deadline, mut moved) = watch::channel(Instant::now() + REQUEST_TIMEOUT);
    let deadline = Deadline(Arc::new(deadline));
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(deadline.clone());
        hyper::service::Service::call(&TowerToHyperService::new(router.clone()), request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    loop {
        let deadline = *moved.borrow_and_update();
        tokio::select! {
            _ = &mut connection => return,
            Ok(()) = moved.changed() => {}
            () = sleep_until(deadline) => return,
        }
    }
}

/// Tells a client there is no room, as far as the socket's buffer takes it: nobody waits for it to be read.
fn refuse_busy(stream: &UnixStream) {
    let error = ApiError::new(ErrorKind::Busy, format!("the daemon already serves {CLIENT_LIMIT} clients"))
        .advise("try again in a moment");
    let body = serde_json::to_string(&error).unwrap_or_default();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let _ = stream.try_write(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes());
}
