//! Whose a device is: a daemon writes its name on its own (the link's alias, `ip link` shows it), so that the next one knows
//! it again after a crash, and takes no stranger's.

use nix::errno::Errno;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use super::netlink::{Host, HostError, all, reading, refusal};

/// What the mark of every device of ours begins with; whose it is follows.
const MARK: &str = "meshd ";

/// A device found on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDevice {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whose it is, where it is one of ours at all.
    pub owner: Option<String>,
    /// Whether somebody holds it open: a TUN device has a carrier only then.
    pub held: bool,
}

impl FoundDevice {
    /// Tells whether it is ours, or another mesh's of this host, and no daemon holds it.
    pub fn is_orphan(&self) -> bool {
        self.owner.is_some() && !self.held
    }

    fn of(link: &LinkMessage) -> Option<FoundDevice> {
        let mut found = FoundDevice { index: link.header.index, name: String::new(), owner: None, held: true };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => found.owner = alias.strip_prefix(MARK).map(str::to_owned),
                LinkAttribute::Carrier(carrier) => found.held = *carrier != 0,
                _ => {}
            }
        }
        (!found.name.is_empty()).then_some(found)
    }
}

impl Host {
    /// Lists all devices of this host.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub async fn devices(&self) -> Result<Vec<FoundDevice>, HostError> {
        let links = all(self.handle.link().get().execute()).await.map_err(|error| reading("links", &error))?;
        Ok(links.iter().filter_map(FoundDevice::of).collect())
    }

    /// Writes on a device whose it is.
    ///
    /// # Errors
    /// Where there is no such device, or the kernel refuses.
    pub async fn mark_device(&self, name: &str, owner: &str) -> Result<(), HostError> {
        let found = self.devices().await?.into_iter().find(|device| device.name == name);
        let device = found.ok_or_else(|| HostError::NoDevice(name.to_owned()))?;
        if device.owner.as_deref() == Some(owner) {
            return Ok(());
        }
        let alias = LinkAttribute::IfAlias(format!("{MARK}{owner}"));
        let change = LinkUnspec::new_with_index(device.index).append_extra_attribute(alias).build();
        let marked = refusal(self.handle.link().set(change).execute().await);
        marked.map_err(|errno| HostError::Read { what: "links for a mark", reason: errno.desc().into() })
    }

    /// Removes a device.
    ///
    /// # Errors
    /// Where the kernel refuses; a device that is gone already is no error.
    pub async fn remove_device(&self, device: &FoundDevice) -> Result<(), HostError> {
        match refusal(self.handle.link().del(device.index).execute().await) {
            Ok(()) | Err(Errno::ENODEV) => Ok(()),
            Err(errno) => Err(HostError::Read { what: "links for removal", reason: errno.desc().into() }),
        }
    }

    /// Removes every device of ours that a crashed daemon left, and returns how many. Addresses and routes go with it.
    ///
    /// # Errors
    /// Where the kernel does not tell, or refuses.
    pub async fn remove_orphans(&self) -> Result<usize, HostError> {
        let mut removed = 0;
        for device in self.devices().await?.iter().filter(|device| device.is_orphan()) {
            self.remove_device(device).await?;
            removed += 1;
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::test_namespace::{in_namespace, runtime};
    use crate::platform::tun::Tun;

    #[test]
    fn a_device_left_behind_is_known_again_and_a_strangers_is_not_touched() {
        in_namespace("a_device_left_behind_is_known_again_and_a_strangers_is_not_touched", || {
            runtime().block_on(async {
                let host = Host::connect().unwrap();
                let [ours, theirs] = [Tun::create("mesh%d").unwrap(), Tun::create("mesh%d").unwrap()];
                host.mark_device(ours.name(), "node-a").await.unwrap();
                for tun in [&ours, &theirs] {
                    tun.set_persistent(true).unwrap();
                }
                let found = async |name: &str| {
                    let devices = host.devices().await.unwrap();
                    devices.into_iter().find(|device| device.name == name)
                };
                let name = ours.name().to_owned();
                let before = found(&name).await.unwrap();
                assert_eq!((before.owner.as_deref(), before.held), (Some("node-a"), true));
                assert_eq!(host.remove_orphans().await.unwrap(), 0, "a daemon holds it");
                let stranger = theirs.name().to_owned();
                drop((ours, theirs));
                let after = found(&name).await.unwrap();
                assert!(after.is_orphan() && after.index == before.index, "{after:?}");
                let again = Tun::create(&name).unwrap();
                assert!(!found(&name).await.unwrap().is_orphan(), "held again");
                assert_eq!(found(&name).await.unwrap().index, before.index, "the same device");
                drop(again);
                assert_eq!(host.remove_orphans().await.unwrap(), 1);
                assert_eq!(found(&name).await, None);
                assert!(found(&stranger).await.is_some());
                assert!(host.mark_device(&name, "node-a").await.is_err(), "there is none");
            });
        });
    }

    #[test]
    fn a_device_that_need_not_stay_goes_with_its_daemon() {
        in_namespace("a_device_that_need_not_stay_goes_with_its_daemon", || {
            runtime().block_on(async {
                let host = Host::connect().unwrap();
                let tun = Tun::create("mesh%d").unwrap();
                let name = tun.name().to_owned();
                tun.set_persistent(true).unwrap();
                tun.set_persistent(false).unwrap();
                drop(tun);
                assert!(host.devices().await.unwrap().iter().all(|device| device.name != name));
            });
        });
    }
}
