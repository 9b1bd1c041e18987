//! What may come in: compiled from the rules and the certificates, published with the forwarding table, and shown.

use std::net::IpAddr;
use std::sync::Arc;

use super::driver::Driver;
use crate::api::{
    Answer, ApiError, ErrorKind, Gravity, PeerStatus, PolicyAgreement, PolicyCheckRequest, PolicyChecked, PolicyDenial,
    PolicyInfo, PolicyRule, PolicyVerdict, Problem, SCHEMA, Timestamp,
};
use crate::config::{Config, Service};
use crate::control::PeerView;
use crate::control::routing::{Claim, RouteEntry, Routing};
use crate::dataplane::Owner;
use crate::identity::NodeId;
use crate::platform::{clock, tcp_sockets};
use crate::policy::{Connections, Flow, ICMP, ICMPV6, Ledger, Policy, Subject, TCP, UDP, digest};
use crate::time::Instant;
use crate::wire::DropReason;

/// Peers named in one sentence at most.
const NAMED: usize = 10;

/// What outlives one compiled policy.
#[derive(Default)]
pub(super) struct Rules {
    /// Where there are rules.
    ledger: Option<Arc<Ledger>>,
    /// Counts the policies compiled.
    generation: u64,
}

impl Driver {
    /// Publishes who owns which address, and what may come in, as certificates and rules say now.
    pub(super) fn publish(&mut self) {
        let routing = self.engine.routing();
        let policy = self.compile(&routing);
        self.links.publish(&routing, self.engine.node(), policy);
    }

    /// Makes a configuration the one in force. Where its rules are others, what this side began goes on; everything else is
    /// judged anew at once.
    pub(super) fn take_config(&mut self, new: Config) {
        let changed = self.config.allow != new.allow;
        self.config = new;
        self.engine.set_policy(self.policy_digest(), clock::now(), clock::wall());
        if !changed {
            return;
        }
        let ledger = self.links.policy().map(|policy| policy.ledger().renewed(self.config.allow.len()));
        self.links.rules.ledger = ledger.filter(|_| !self.config.allow.is_empty()).map(Arc::new);
        self.publish();
    }

    fn policy_digest(&self) -> u64 {
        digest(&self.config.mesh.id, &self.config.allow)
    }

    /// How a peer's rules are to this node's; nothing where it does not say.
    pub(super) fn agreement(&self, peer: &PeerView) -> Option<PolicyAgreement> {
        let theirs = peer.policy?;
        Some(match theirs {
            _ if theirs == self.policy_digest() => PolicyAgreement::Same,
            0 => PolicyAgreement::None,
            _ => PolicyAgreement::Differs,
        })
    }

    /// Says which peers have other rules: the same entries may stand on every node, and one that was forgotten is open.
    pub(super) fn policy_problem(&self, peers: &[PeerStatus]) -> Option<Problem> {
        let message = difference(self.config.allow.is_empty(), peers)?;
        Some(Problem {
            gravity: Gravity::Notice,
            kind: "policy_differs".into(),
            peer: None,
            message,
            advice: "where it is not meant so: give every node the same [[allow]] entries, then meshctl reload".into(),
            since: None,
        })
    }

    fn compile(&mut self, routing: &Routing) -> Option<Arc<Policy>> {
        if self.config.allow.is_empty() {
            return None;
        }
        let allow = &self.config.allow;
        let rules = &mut self.links.rules;
        let ledger = Arc::clone(rules.ledger.get_or_insert_with(|| begin(allow.len(), clock::now())));
        rules.generation += 1;
        let generation = rules.generation;
        Some(Arc::new(Policy::compile(generation, &self.config.allow, &self.subjects(routing), ledger)))
    }

    /// Whom rules can name. A member has what the certificates leave to it, and so its name.
    fn subjects(&self, routing: &Routing) -> Vec<Subject> {
        // They are sorted.
        let owns = |node: NodeId, address: IpAddr| {
            routing.entries.binary_search(&RouteEntry { network: address.into(), node }).is_ok()
        };
        let ignored = |node: NodeId| {
            routing.collisions.iter().any(|clash| clash.ignored == node && matches!(clash.what, Claim::Name(_)))
        };
        let members = self.engine.membership().members().map(|(node, member)| {
            let certificate = member.certificate();
            let addresses = [certificate.address_v4.into(), certificate.address_v6.into()];
            Subject {
                name: (!ignored(node)).then(|| certificate.name.clone()),
                tags: certificate.tags.clone(),
                networks: addresses.into_iter().filter(|address| owns(node, *address)).map(Into::into).collect(),
            }
        });
        let own = self.engine.node();
        let stocks = self.links.stocks().map(|(_, _, stock)| Subject {
            // A member has the older right to its name.
            name: (self.member_named(stock.declared.name.as_str()).is_none()).then(|| stock.declared.name.clone()),
            tags: Vec::new(),
            networks: self.links.placed(stock, routing, own).map(|(network, _)| network).collect(),
        });
        members.chain(stocks).collect()
    }

    fn member_named(&self, name: &str) -> Option<[IpAddr; 2]> {
        let mut members = self.engine.membership().members();
        members.find_map(|(_, member)| {
            let certificate = member.certificate();
            (certificate.name.as_str() == name).then(|| [certificate.address_v4.into(), certificate.address_v6.into()])
        })
    }

    /// The rules in force, and what they did.
    pub(super) fn policy_info(&self) -> PolicyInfo {
        let (now, wall) = (clock::now(), clock::wall());
        let ledger = self.links.rules.ledger.as_deref();
        let let_in = ledger.map(Ledger::let_in).unwrap_or_default();
        let rules = (1..).zip(self.config.allow.iter().zip(let_in)).map(|(number, (rule, let_in))| PolicyRule {
            number,
            from: texts(&rule.from),
            to: texts(&rule.to),
            ports: texts(&rule.ports),
            let_in,
        });
        let denied = ledger.map(Ledger::denials).unwrap_or_default().into_iter().map(|denial| PolicyDenial {
            peer: self.name_of(denial.node),
            source: denial.flow.source,
            destination: denial.flow.destination,
            service: service(&denial.flow),
            packets: denial.packets,
            last: Timestamp(wall - now.saturating_since(denial.last)),
        });
        PolicyInfo {
            schema: SCHEMA,
            now: Timestamp(wall),
            restricted: ledger.is_some(),
            rules: rules.collect(),
            connections: ledger.map_or(0, |ledger| ledger.connections().count(now) as u64),
            connections_limit: Connections::LIMIT as u64,
            refused_packets: self.dataplane.as_ref().map_or(0, |plane| plane.inbound().dropped(DropReason::Policy)),
            denied: denied.collect(),
        }
    }

    /// Says what the rules in force make of something.
    pub(super) fn policy_check(&self, request: &PolicyCheckRequest) -> Answer<PolicyChecked> {
        let (pairs, service) = self.pairs_of(request)?;
        let (v4, v6, port) = match service {
            Service::Tcp(port, _) => (TCP, TCP, port),
            Service::Udp(port, _) => (UDP, UDP, port),
            _ => (ICMP, ICMPV6, 0),
        };
        let policy = self.links.policy();
        let verdicts = pairs.into_iter().map(|(source, destination)| {
            let protocol = if source.is_ipv4() { v4 } else { v6 };
            let flow = Flow { source, destination, protocol, source_port: 0, destination_port: port };
            let rule = policy.as_ref().and_then(|policy| policy.rule_for(&flow));
            PolicyVerdict {
                source,
                destination,
                allowed: policy.is_none() || rule.is_some(),
                rule: rule.map(|number| number as u64 + 1),
                here: self.is_behind_here(destination),
            }
        });
        Ok(PolicyChecked { schema: SCHEMA, restricted: policy.is_some(), verdicts: verdicts.collect() })
    }

    /// The addresses that a question is about, one family each, and by what; a single port.
    pub(super) fn pairs_of(&self, request: &PolicyCheckRequest) -> Answer<(Vec<(IpAddr, IpAddr)>, Service)> {
        let bad = |message: String| ApiError::new(ErrorKind::BadRequest, message);
        let service: Service = request
            .service
            .parse()
            .map_err(|problem: String| bad(problem).advise("give tcp/PORT, udp/PORT or icmp, for example tcp/3306"))?;
        match service {
            Service::Tcp(port, last) | Service::Udp(port, last) if port == last => {}
            Service::Icmp => {}
            _ => return Err(bad(format!("`{}` is more than one thing", request.service)).advise("give a single port")),
        }
        let (from, to) = (self.addresses_of(&request.from)?, self.addresses_of(&request.to)?);
        let of_one_family = |source: &IpAddr| {
            let source = *source;
            to.iter().filter(move |to| to.is_ipv4() == source.is_ipv4()).map(move |to| (source, *to))
        };
        let pairs: Vec<(IpAddr, IpAddr)> = from.iter().flat_map(of_one_family).collect();
        if pairs.is_empty() {
            return Err(bad(format!("{} and {} have no address of one family", request.from, request.to)));
        }
        Ok((pairs, service))
    }

    fn addresses_of(&self, text: &str) -> Answer<Vec<IpAddr>> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(vec![address]);
        }
        if let Some(addresses) = self.member_named(text) {
            return Ok(addresses.into());
        }
        let mut stocks = self.links.stocks();
        let stock = stocks.find(|(_, _, stock)| stock.declared.name.as_str() == text);
        stock.map(|(_, _, stock)| stock.declared.addresses.iter().map(|network| network.addr()).collect()).ok_or_else(
            || {
                ApiError::new(ErrorKind::NotFound, format!("no member or stock peer is named {text}"))
                    .advise("give an address, or see who is: meshctl members")
            },
        )
    }

    /// Whether what goes to an address is judged by this node.
    fn is_behind_here(&self, address: IpAddr) -> bool {
        match self.links.table().load().owner_of(address) {
            Owner::Local => true,
            Owner::Peer(_, peer) => peer.is_stock(),
            Owner::Nobody => false,
        }
    }
}

/// Which peers have other rules, as a sentence.
fn difference(own_is_none: bool, peers: &[PeerStatus]) -> Option<String> {
    let names = |wanted: &[PolicyAgreement]| -> Vec<&str> {
        let chosen = peers.iter().filter(|peer| peer.policy.is_some_and(|policy| wanted.contains(&policy)));
        let mut names: Vec<&str> = chosen.map(|peer| peer.name.as_str()).collect();
        names.sort_unstable();
        names
    };
    let others = names(&[PolicyAgreement::Differs, PolicyAgreement::None]);
    if others.is_empty() {
        return None;
    }
    let said = peers.iter().filter(|peer| peer.policy.is_some()).count();
    let open = names(&[PolicyAgreement::None]);
    let without = match (own_is_none, open.is_empty()) {
        (true, _) => "; this node has no [[allow]]".to_owned(),
        (false, true) => String::new(),
        (false, false) => format!("; without any [[allow]]: {}", listed(&open)),
    };
    Some(format!("policy differs from {} of {said} peers: {}{without}", others.len(), listed(&others)))
}

/// Names, as many as a line holds.
fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Begins to keep connections, with those that this host has open: their other ends may be the next to speak.
fn begin(rules: usize, now: Instant) -> Arc<Ledger> {
    let ledger = Ledger::new(rules, now);
    match tcp_sockets::opened(Connections::LIMIT) {
        Ok(opened) => {
            for tcp_sockets::Opened { local, remote } in opened {
                let (source, destination) = (local.ip(), remote.ip());
                let (source_port, destination_port) = (local.port(), remote.port());
                let flow = Flow { source, destination, protocol: TCP, source_port, destination_port };
                ledger.connections().take_up(flow, now);
            }
        }
        Err(error) => tracing::warn!(
            "cannot read this host's open connections from /proc/net/tcp ({error}): those through the mesh stand still if \
             the other end is the next to speak"
        ),
    }
    Arc::new(ledger)
}

/// What a flow is for, as a rule would name it.
fn service(flow: &Flow) -> String {
    let port = flow.destination_port;
    match flow.protocol {
        TCP => Service::Tcp(port, port).to_string(),
        UDP => Service::Udp(port, port).to_string(),
        _ if flow.is_icmp() => Service::Icmp.to_string(),
        other => format!("protocol {other}"),
    }
}

fn texts(list: &[impl ToString]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::healthy_status;

    #[test]
    fn who_has_other_rules_is_named_and_who_has_none_apart() {
        let peer =
            |name: &str, policy| PeerStatus { name: name.into(), policy, ..healthy_status().peers.swap_remove(0) };
        let same = peer("a", Some(PolicyAgreement::Same));
        let older = peer("b", None);
        assert_eq!(difference(false, &[same.clone(), older.clone()]), None);
        let (other, open) = (peer("d", Some(PolicyAgreement::Differs)), peer("c", Some(PolicyAgreement::None)));
        let all = [same, older, other.clone(), open];
        let told = difference(false, &all).unwrap();
        assert_eq!(told, "policy differs from 2 of 3 peers: c, d; without any [[allow]]: c");
        let told = difference(true, &[other]).unwrap();
        assert_eq!(told, "policy differs from 1 of 1 peers: d; this node has no [[allow]]");
        let many: Vec<PeerStatus> =
            (10..25).map(|number| peer(&format!("n{number}"), Some(PolicyAgreement::Differs))).collect();
        assert!(difference(false, &many).unwrap().ends_with("n18, n19 and 5 more"));
    }
}
