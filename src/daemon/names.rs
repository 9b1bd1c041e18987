//! The members' names: who has which, and where they are answered.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::driver::Driver;
use crate::api::{NameEntry, NameList, NameQuestions, SCHEMA, Timestamp};
use crate::config::{AliasTarget, Config, Resolver, Suffix, Target, TargetHost};
use crate::identity::{Certificate, NodeName};
use crate::names::{self, Alias, Member, Order, Picture, Service, Wired, Wiring};
use crate::platform::clock;
use crate::time::Instant;

/// How often forwards are looked at that move by themselves: their names follow within this time. After
/// `meshctl forward switch` nobody waits for it.
const LOOK: Duration = Duration::from_millis(500);

/// The names, as far as they are wanted.
#[derive(Default)]
pub(super) struct Names {
    service: Option<Service>,
    /// Why they are not answered although they should be.
    failure: Option<String>,
    /// When to look at the forwards again.
    due: Option<Instant>,
    /// What these used when the names were published.
    targets: Vec<(NodeName, Target)>,
}

/// Checks that names are answered on this node's own address, where it is an overlay address.
///
/// # Errors
/// What is wrong, and what would be right.
pub(super) fn check(config: &Config, certificate: &Certificate) -> Result<(), String> {
    let own = [IpAddr::V4(certificate.address_v4), IpAddr::V6(certificate.address_v6)];
    match config.names.listen.map(|address| address.ip()) {
        Some(address) if !address.is_loopback() && !own.contains(&address) => Err(format!(
            "names.listen: {address} is another node's overlay address; this node has {} and {}",
            own[0], own[1]
        )),
        _ => Ok(()),
    }
}

impl Names {
    /// When the forwards are to be looked at; `None` where nobody needs it.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    /// What is wrong, and what to do.
    pub(super) fn problems(&self) -> Vec<(String, &'static str)> {
        let standing = self.service.as_ref().map(Service::standing).unwrap_or_default();
        let advice = "see what else has the port (`ss -lunp`), or give names.listen another";
        let unanswered = standing.failure.or_else(|| self.failure.clone());
        let unanswered = unanswered.map(|why| (format!("names are not answered: {why}"), advice));
        let advice = "mend it, or choose another names.resolver; it is tried again and again";
        let unknown =
            standing.wiring.problem.map(|why| (format!("names are not in this host's resolver: {why}"), advice));
        unanswered.into_iter().chain(unknown).collect()
    }

    /// Ends answering. At a stop the host's resolver forgets the names; a restart leaves them there.
    pub(super) fn end(&mut self, stops: bool) {
        if let Some(service) = self.service.take().filter(|_| stops) {
            service.stop();
        }
    }
}

impl Driver {
    /// Answers what the configuration and the members say now; at a start, after a reload, and whenever members change.
    pub(super) fn publish_names(&mut self) {
        let Some(order) = self.name_order() else {
            self.names.end(true);
            self.names = Names::default();
            return;
        };
        self.names.due = (!self.config.forwards.is_empty()).then(|| clock::now() + LOOK);
        self.names.targets = self.forwards.targets();
        match &self.names.service {
            Some(service) => service.order(order),
            None => match Service::start(order) {
                Ok(service) => (self.names.service, self.names.failure) = (Some(service), None),
                Err(error) => {
                    tracing::error!("names are not answered: {error}");
                    self.names.failure = Some(error.to_string());
                }
            },
        }
    }

    /// Looks whether a forward moved by itself.
    pub(super) fn look_at_names(&mut self, now: Instant) {
        if self.names.due.is_none_or(|due| due > now) {
            return;
        }
        if self.names.service.is_none() || self.forwards.targets() != self.names.targets {
            self.publish_names();
        } else {
            self.names.due = Some(now + LOOK);
        }
    }

    fn name_order(&self) -> Option<Order> {
        let settings = &self.config.names;
        if settings.listen.is_none() && settings.resolver == Resolver::Off {
            return None;
        }
        let picture = self.named()?;
        let wired = (settings.resolver != Resolver::Off).then(|| Wired {
            wiring: Wiring {
                resolver: settings.resolver,
                mesh: self.config.mesh.name.clone(),
                interface: self.interface.clone(),
                server: settings.listen,
                domains: Wiring::domains(&picture.suffix, picture.overlay),
                hosts: picture.hosts(),
            },
            handed: (!nix::unistd::geteuid().is_root()).then(|| handed_over(&self.config)),
        });
        Some(Order { listen: settings.listen, picture, wired })
    }

    /// Takes out of the host's resolver what a crashed predecessor left there that this configuration does not want.
    pub(super) async fn clear_names(&self) {
        if self.config.names.resolver != Resolver::Off || !nix::unistd::geteuid().is_root() {
            return;
        }
        if let Err(error) = names::undo(&self.config.mesh.name).await {
            tracing::debug!("what names a predecessor left stays: {error}");
        }
    }

    /// Who has which name; `None` where the configuration gives no suffix, which it has been checked for.
    fn named(&self) -> Option<Picture> {
        let suffix = suffix(&self.config)?;
        let own = self.engine.certificate().certificate();
        let members = self.engine.membership().members().map(|(_, member)| member.certificate());
        let guests = self.config.wireguard.iter().flat_map(|peer| &peer.addresses);
        let mut picture = Picture {
            suffix,
            own: member(own),
            members: members.filter(|other| other.node != own.node).map(member).collect(),
            aliases: Vec::new(),
            overlay: (own.overlay_v4, own.overlay_v6),
            guests: guests.filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr()).collect(),
        };
        let forwards = self.forwards.targets();
        let followed = |name: String, forward: &NodeName| {
            let target = forwards.iter().find(|(known, _)| known == forward).map(|(_, target)| &target.host);
            match target {
                Some(TargetHost::Node(node)) => picture.alias_of(name, node),
                Some(TargetHost::Address(address)) => {
                    Alias { name, of: address.to_string(), addresses: vec![*address] }
                }
                None => Alias { name, of: Picture::forward_name(forward), addresses: Vec::new() },
            }
        };
        let aliases = self.config.aliases.iter().map(|alias| match &alias.to {
            AliasTarget::Node(node) => picture.alias_of(alias.name.to_string(), node),
            AliasTarget::Forward(forward) => followed(alias.name.to_string(), forward),
        });
        let of_forwards = forwards.iter().map(|(forward, _)| followed(Picture::forward_name(forward), forward));
        let aliases = aliases.chain(of_forwards).collect();
        picture.aliases = aliases;
        Some(picture)
    }

    /// The names and their server.
    pub(super) fn name_list(&self) -> NameList {
        let now = Timestamp(clock::wall());
        let Some(picture) = self.named() else {
            return NameList {
                schema: SCHEMA,
                now,
                suffix: String::new(),
                listen: None,
                failure: None,
                resolver: None,
                resolver_failure: None,
                questions: None,
                names: Vec::new(),
            };
        };
        let standing = self.names.service.as_ref().map(Service::standing);
        let wiring = standing.as_ref().map(|standing| standing.wiring.clone()).unwrap_or_default();
        let shown = |name: &str| format!("{name}.{}", picture.suffix);
        let of_member = |member: &Member| NameEntry {
            name: shown(member.name.as_str()),
            addresses: vec![member.v4.into(), member.v6.into()],
            alias_of: None,
        };
        let mut names: Vec<NameEntry> = [&picture.own].into_iter().chain(&picture.members).map(of_member).collect();
        names.extend(picture.aliases.iter().map(|alias| NameEntry {
            name: shown(&alias.name),
            addresses: alias.addresses.clone(),
            alias_of: Some(alias.of.clone()),
        }));
        names.sort_by(|a, b| a.name.cmp(&b.name));
        NameList {
            schema: SCHEMA,
            now,
            suffix: picture.suffix.to_string(),
            listen: standing.as_ref().and_then(|standing| standing.bound),
            failure: standing
                .as_ref()
                .and_then(|standing| standing.failure.clone())
                .or_else(|| self.names.failure.clone()),
            resolver: wiring.way.map(|way| way.to_string()),
            resolver_failure: wiring.problem,
            questions: standing.map(|standing| NameQuestions {
                answered: standing.counters.answered,
                strangers: standing.counters.strangers,
                too_many: standing.counters.too_many,
                malformed: standing.counters.malformed,
            }),
            names,
        }
    }
}

/// Where a daemon without root's rights hands its names to root, and root looks for them: beside the socket.
pub(crate) fn handed_over(config: &Config) -> PathBuf {
    config.files.socket.with_file_name("names")
}

/// What stands behind every name; `None` where the mesh's name cannot, and the configuration gives nothing else.
pub(crate) fn suffix(config: &Config) -> Option<Suffix> {
    config.names.suffix.clone().or_else(|| config.mesh.name.parse().ok())
}

fn member(certificate: &Certificate) -> Member {
    Member { name: certificate.name.clone(), v4: certificate.address_v4, v6: certificate.address_v6 }
}
