//! The scene of most tests: hosts on an emulated internet, one millisecond apart, and a mesh of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::lab::flow::datagram;
use crate::lab::{Flow, Host, Lab, Mesh, Result, Wan};

/// Longer than anything a mesh does takes on a loaded machine; reached only in failure.
pub const LONG: Duration = Duration::from_secs(60);

/// One way between any two hosts.
pub const DELAY: Duration = Duration::from_millis(1);

/// Hosts, the network between them, and the mesh they are to be.
pub struct Scene {
    pub wan: Wan,
    pub hosts: Vec<Host>,
    /// Their addresses on the network, in the same order.
    pub underlay: Vec<Ipv4Addr>,
    /// Their IPv6 addresses there.
    pub v6: Vec<Ipv6Addr>,
    pub mesh: Mesh,
}

impl Scene {
    /// Makes the hosts and founds the mesh on the first, which is left alone in it and not started.
    pub fn founded(lab: &Lab, names: &[&str]) -> Result<Scene> {
        Scene::founded_with(lab, names, &[])
    }

    /// As [`Scene::founded`], with more arguments of `meshctl init`.
    pub fn founded_with(lab: &Lab, names: &[&str], more: &[&str]) -> Result<Scene> {
        Scene::prepared(lab, names, more, |_| Ok(()))
    }

    /// As [`Scene::founded_with`], with something done to each host before any of its files are made.
    pub fn prepared(lab: &Lab, names: &[&str], more: &[&str], prepare: impl Fn(&Host) -> Result<()>) -> Result<Scene> {
        let wan = lab.wan(11)?;
        let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect::<Result<_>>()?;
        let ports: Vec<_> = hosts.iter().map(|host| wan.attach(host)).collect::<Result<_>>()?;
        wan.all().delay(DELAY);
        let underlay: Vec<Ipv4Addr> = ports.iter().map(|port| port.v4).collect();
        hosts.iter().try_for_each(prepare)?;
        let v6 = ports.iter().map(|port| port.v6).collect();
        let mesh = Mesh::init_with(&hosts[0], underlay[0], more)?;
        Ok(Scene { wan, hosts, underlay, v6, mesh })
    }

    /// Makes the hosts and a mesh of all of them, running and all up. The first is the bootstrap of all others, which
    /// come in by the two ways there are: every other one over the network, the rest with files in place.
    pub fn running(lab: &Lab, names: &[&str]) -> Result<Scene> {
        let scene = Scene::founded(lab, names)?;
        scene.mesh.start(&[&scene.hosts[0]])?;
        for number in 1..names.len() {
            match number % 2 {
                0 => scene.mesh.admit_offline(&scene.hosts[number], scene.underlay[number])?,
                _ => scene.mesh.join(&scene.hosts[number], scene.underlay[number])?,
            }
        }
        let all: Vec<&Host> = scene.hosts.iter().collect();
        scene.mesh.start(&all[1..])?;
        scene.mesh.wait_until_all_up(&all, LONG)?;
        Ok(scene)
    }

    /// All hosts.
    pub fn all(&self) -> Vec<&Host> {
        self.hosts.iter().collect()
    }

    /// Opens a TCP connection through the mesh.
    pub fn flow(&self, from: usize, to: usize) -> Result<Flow> {
        let (from, to) = (&self.hosts[from], &self.hosts[to]);
        Flow::open(from, self.mesh.overlay(from).0.into(), to, self.mesh.overlay(to).0.into())
    }

    /// Checks that each of these hosts reaches each other one, by UDP and TCP, over IPv4 and IPv6.
    pub fn check_every_pair(&self, hosts: &[&Host]) -> Result<()> {
        for from in hosts {
            for to in hosts.iter().filter(|to| to.name() != from.name()) {
                let (near, far) = (self.mesh.overlay(from), self.mesh.overlay(to));
                let families: [(IpAddr, IpAddr); 2] = [(near.0.into(), far.0.into()), (near.1.into(), far.1.into())];
                for (source, target) in families {
                    datagram(from, source, to, target, b"one datagram")?;
                    Flow::open(from, source, to, target)?.exchange(b"one exchange")?;
                }
            }
        }
        Ok(())
    }
}
