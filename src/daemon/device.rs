//! The device over a crash: it stays with its addresses and routes, so that connections do not notice, and the next daemon
//! finds it by the mark on it. At a stop it goes.

use std::sync::Arc;

use super::ports::is_named;
use super::startup::StartError;
use crate::dataplane::Ports;
use crate::platform::device_mark::FoundDevice;
use crate::platform::netlink::{Host, HostError};
use crate::platform::tun::{Tun, TunError};

/// What to do with the devices found at the start.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Ours, left by a daemon that crashed: it is taken over.
    orphan: Option<FoundDevice>,
    /// Ours too, but of no use any more.
    surplus: Vec<FoundDevice>,
}

impl Plan {
    /// Looks for what the daemon of node `owner` left under a name that `pattern` asks for. Whatever others made, and what
    /// is held by somebody, is left alone.
    fn of(found: Vec<FoundDevice>, pattern: &str, owner: &str) -> Result<Plan, TunError> {
        // A plain name is one device's; another's is not taken, whatever kind it is of.
        let taken = found.iter().find(|device| device.name == pattern);
        if taken.is_some_and(|device| device.held || device.owner.as_deref() != Some(owner)) {
            return Err(TunError::Busy(pattern.to_owned()));
        }
        let ours = found.into_iter().filter(|device| device.is_orphan() && device.owner.as_deref() == Some(owner));
        let (mut fitting, mut surplus): (Vec<_>, Vec<_>) = ours.partition(|device| is_named(&device.name, pattern));
        let rest = fitting.split_off(fitting.len().min(1));
        surplus.extend(rest);
        Ok(Plan { orphan: fitting.pop(), surplus })
    }
}

/// Finds the device that a crashed daemon of this node left, and removes what else it left.
///
/// # Errors
/// [`TunError::Busy`] where the name is somebody else's or in use; [`HostError`] where the kernel does not tell.
pub(super) async fn find_orphan(host: &Host, pattern: &str, owner: &str) -> Result<Option<FoundDevice>, StartError> {
    let plan = Plan::of(host.devices().await?, pattern, owner)?;
    for device in &plan.surplus {
        tracing::info!("{}: a device of this node's that is of no use any more is removed", device.name);
        host.remove_device(device).await?;
    }
    Ok(plan.orphan)
}

/// Has the device stay when the daemon dies. Dropped, at a stop or a planned restart, it goes with its last descriptor.
pub(super) struct Kept {
    device: Arc<Tun>,
}

impl Kept {
    /// Marks the device as ours and has it stay; `None` where the kernel does not let it.
    pub(super) async fn keep(host: &Host, ports: &[Ports], owner: &str) -> Option<Kept> {
        let device = Arc::clone(ports.first()?.lanes.first()?);
        // First the mark: what stays must be known again.
        let marked = host.mark_device(device.name(), owner).await;
        let kept = marked.map_err(|error: HostError| error.to_string());
        match kept.and_then(|()| device.set_persistent(true).map_err(|error| error.to_string())) {
            Ok(()) => Some(Kept { device }),
            Err(error) => {
                tracing::warn!("a crash would take {} with its routes: {error}", device.name());
                None
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A device that was deleted needs no more.
        let _ = self.device.set_persistent(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str, owner: Option<&str>, held: bool) -> FoundDevice {
        FoundDevice { index, name: name.into(), owner: owner.map(str::to_owned), held }
    }

    #[test]
    fn only_what_this_node_left_is_taken_over_or_removed() {
        let eth = device(2, "eth0", None, true);
        let left = device(3, "mesh0", Some("a"), false);
        let former = device(4, "vpn0", Some("a"), false);
        let other = device(5, "mesh1", Some("b"), false);
        let found = vec![eth.clone(), left.clone(), former.clone(), other.clone()];
        for pattern in ["mesh0", "mesh%d"] {
            let plan = Plan::of(found.clone(), pattern, "a").unwrap();
            assert_eq!(plan, Plan { orphan: Some(left.clone()), surplus: vec![former.clone()] }, "{pattern}");
        }
        let plan = Plan::of(vec![eth, former.clone(), other], "mesh%d", "a").unwrap();
        assert_eq!(plan, Plan { orphan: None, surplus: vec![former] });
    }

    #[test]
    fn a_name_that_is_somebody_elses_is_refused() {
        for (owner, held) in [(None, false), (None, true), (Some("b"), false), (Some("a"), true)] {
            let found = vec![device(3, "mesh0", owner, held)];
            assert!(matches!(Plan::of(found, "mesh0", "a"), Err(TunError::Busy(_))), "{owner:?} {held}");
        }
    }
}
