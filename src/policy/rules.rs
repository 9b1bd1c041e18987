//! Rules compiled against the members.

use std::sync::Arc;

use ipnet::IpNet;

use super::connections::Departure;
use super::flow::{Flags, Flow};
use super::ledger::Ledger;
use super::ranges::Ranges;
use crate::config::{Allow, Selector, Service};
use crate::identity::{NodeName, Tag};
use crate::time::Instant;

/// Somebody whom rules can name: a member with its overlay addresses, by its certificate, or a stock peer declared here
/// with what it sends from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The name, where it is this one's alone.
    pub name: Option<NodeName>,
    /// A member's tags.
    pub tags: Vec<Tag>,
    /// Its addresses.
    pub networks: Vec<IpNet>,
}

/// Why something passes, or that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers what this side began.
    Answer,
    /// The rule of this number, from 0, is the first that allows it.
    Rule(usize),
    /// Neither.
    Refused,
}

/// The rules in force, with the addresses their names and tags mean now. Immutable: a change of membership makes another.
#[derive(Debug)]
pub struct Policy {
    generation: u64,
    rules: Box<[Rule]>,
    ledger: Arc<Ledger>,
}

#[derive(Debug)]
struct Rule {
    from: Ranges,
    /// Everything that is delivered here where `None`.
    to: Option<Ranges>,
    services: Box<[Service]>,
}

impl Policy {
    /// Compiles rules. No two policies of one process may have the same generation.
    pub fn compile(generation: u64, rules: &[Allow], subjects: &[Subject], ledger: Arc<Ledger>) -> Self {
        let compiled = rules.iter().map(|rule| Rule {
            from: ranges(&rule.from, subjects),
            to: (!rule.to.is_empty()).then(|| ranges(&rule.to, subjects)),
            services: match rule.ports.is_empty() {
                true => [Service::Any].into(),
                false => rule.ports.as_slice().into(),
            },
        });
        Policy { generation, rules: compiled.collect(), ledger }
    }

    /// Tells one policy from another.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What outlives it.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Returns the first rule that allows a flow, by its number from 0.
    pub fn rule_for(&self, flow: &Flow) -> Option<usize> {
        self.rules.iter().position(|rule| {
            rule.services.iter().any(|service| flow.is(*service))
                && rule.from.contains(flow.source)
                && rule.to.as_ref().is_none_or(|to| to.contains(flow.destination))
        })
    }

    /// Judges what comes in, and counts the rule that lets it.
    pub fn judge(&self, flow: &Flow, flags: Flags, now: Instant) -> Verdict {
        if self.ledger.connections().passes(flow, flags, now) {
            return Verdict::Answer;
        }
        match self.rule_for(flow) {
            Some(rule) => {
                self.ledger.count(rule);
                Verdict::Rule(rule)
            }
            None => Verdict::Refused,
        }
    }

    /// Tells whether an error may come in about `quoted`, which this side is said to have sent: it must belong to a
    /// conversation of this side, or answer something that a rule allows.
    pub fn takes_error(&self, quoted: &Flow, now: Instant) -> bool {
        self.ledger.connections().knows(quoted, now) || self.rule_for(&quoted.reversed()).is_some()
    }

    /// Notes what leaves, so that its answer passes.
    pub fn note(&self, departure: &Departure, now: Instant) {
        self.ledger.connections().note(departure, now, |answered| self.rule_for(answered).is_some());
    }
}

fn ranges(selectors: &[Selector], subjects: &[Subject]) -> Ranges {
    let mut networks = Vec::new();
    for selector in selectors {
        let mut all_of = |chosen: &dyn Fn(&Subject) -> bool| {
            networks.extend(subjects.iter().filter(|subject| chosen(subject)).flat_map(|subject| &subject.networks));
        };
        match selector {
            Selector::Any => networks.extend(everything()),
            Selector::Network(network) => networks.push(*network),
            Selector::Tag(tag) => all_of(&|subject| subject.tags.contains(tag)),
            Selector::Node(name) => all_of(&|subject| subject.name.as_ref() == Some(name)),
        }
    }
    Ranges::new(networks)
}

fn everything() -> [IpNet; 2] {
    [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::super::flow::{ICMP, ICMPV6, TCP, UDP};
    use super::*;

    fn subject(name: &str, tags: &[&str], networks: &[&str]) -> Subject {
        Subject {
            name: Some(name.parse().unwrap()),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        }
    }

    fn subjects() -> Vec<Subject> {
        vec![
            subject("web1", &["app"], &["10.1.0.1/32", "fd00::1/128"]),
            subject("web2", &["app", "edge"], &["10.1.0.2/32", "fd00::2/128"]),
            subject("db1", &["db"], &["10.1.0.3/32", "fd00::3/128"]),
            subject("phone", &[], &["10.8.0.0/30"]),
        ]
    }

    fn policy(rules: &[Allow], subjects: &[Subject]) -> Policy {
        let ledger = Arc::new(Ledger::new(rules.len(), Instant::from_millis(0)));
        Policy::compile(1, rules, subjects, ledger)
    }

    /// The rules as an operator reads them: name by name, one after the other, without ranges.
    fn reference(rules: &[Allow], subjects: &[Subject], flow: &Flow) -> Option<usize> {
        let is = |selector: &Selector, address: IpAddr| match selector {
            Selector::Any => true,
            Selector::Network(network) => network.contains(&address),
            Selector::Tag(tag) => {
                subjects.iter().any(|s| s.tags.contains(tag) && s.networks.iter().any(|net| net.contains(&address)))
            }
            Selector::Node(name) => subjects
                .iter()
                .any(|s| s.name.as_ref() == Some(name) && s.networks.iter().any(|net| net.contains(&address))),
        };
        let by = |service: &Service| match (*service, flow.protocol) {
            (Service::Any, _) => true,
            (Service::Tcp(first, last), TCP) | (Service::Udp(first, last), UDP) => {
                first <= flow.destination_port && flow.destination_port <= last
            }
            (Service::Icmp, ICMP) => flow.source.is_ipv4() && flow.destination_port == 0,
            (Service::Icmp, ICMPV6) => flow.source.is_ipv6() && flow.destination_port == 0,
            _ => false,
        };
        (0..rules.len()).find(|number| {
            let rule = &rules[*number];
            rule.from.iter().any(|from| is(from, flow.source))
                && (rule.to.is_empty() || rule.to.iter().any(|to| is(to, flow.destination)))
                && (rule.ports.is_empty() || rule.ports.iter().any(by))
        })
    }

    const SELECTORS: [&str; 12] = [
        "any",
        "tag:app",
        "tag:db",
        "tag:edge",
        "tag:none",
        "web1",
        "phone",
        "gone",
        "10.1.0.0/31",
        "10.1.0.3",
        "fd00::/126",
        "0.0.0.0/0",
    ];
    const SERVICES: [&str; 7] = ["any", "icmp", "tcp/3306", "tcp/3300-3306", "udp/53", "udp/1-65535", "tcp/65535"];
    const V4: [&str; 6] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.8.0.3", "10.8.0.4"];
    const V6: [&str; 4] = ["fd00::1", "fd00::2", "fd00::3", "fd00::4"];

    fn some<T: std::str::FromStr<Err = String>>(from: Vec<&'static str>) -> Vec<T> {
        from.into_iter().map(|text| text.parse().unwrap()).collect()
    }

    fn any_rule() -> impl Strategy<Value = Allow> {
        let selectors = |least| prop::collection::vec(select(&SELECTORS[..]), least..3);
        (selectors(1), selectors(0), prop::collection::vec(select(&SERVICES[..]), 0..3))
            .prop_map(|(from, to, ports)| Allow { from: some(from), to: some(to), ports: some(ports) })
    }

    fn any_flow() -> impl Strategy<Value = Flow> {
        let ports = select(vec![0, 1, 53, 3_299, 3_300, 3_306, 3_307, 65_535]);
        let protocol = select(vec![TCP, UDP, ICMP, ICMPV6, 47]);
        (any::<(bool, Index, Index)>(), protocol, ports, any::<u16>()).prop_map(
            |((v6, source, destination), protocol, destination_port, source_port)| {
                let all: &[&str] = if v6 { &V6 } else { &V4 };
                let [source, destination] = [source, destination].map(|index| index.get(all).parse().unwrap());
                Flow { source, destination, protocol, source_port, destination_port }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Five hundred sets of rules with twenty packets each.
        #[test]
        fn verdicts_are_those_of_the_rules_as_they_are_written(
            rules in prop::collection::vec(any_rule(), 1..6), flows in prop::collection::vec(any_flow(), 20),
        ) {
            let (subjects, now) = (subjects(), Instant::from_millis(1));
            let policy = policy(&rules, &subjects);
            for flow in flows {
                let expected = reference(&rules, &subjects, &flow);
                prop_assert_eq!(policy.rule_for(&flow), expected, "{:?}", flow);
                let verdict = expected.map_or(Verdict::Refused, Verdict::Rule);
                prop_assert_eq!(policy.judge(&flow, Flags(Flags::SYN), now), verdict);
            }
        }
    }

    #[test]
    fn answers_pass_and_rules_count_what_they_let_in() {
        let rules = [Allow { from: some(vec!["tag:app"]), to: vec![], ports: some(vec!["tcp/3306"]) }];
        let (policy, now) = (policy(&rules, &subjects()), Instant::from_millis(1));
        let (source, destination) = ("10.1.0.1".parse().unwrap(), "10.1.0.3".parse().unwrap());
        let asked = Flow { source, destination, protocol: TCP, source_port: 9, destination_port: 3_306 };
        assert_eq!(policy.judge(&asked, Flags(Flags::SYN), now), Verdict::Rule(0));
        // An error about the answer to it; and one about nothing.
        assert!(policy.takes_error(&asked.reversed(), now));
        let other = Flow { destination_port: 22, ..asked };
        assert!(!policy.takes_error(&other.reversed(), now));
        assert_eq!(policy.judge(&other, Flags(Flags::SYN), now), Verdict::Refused);
        let begun =
            Flow { source: destination, destination: source, source_port: 40_000, destination_port: 22, ..asked };
        policy.note(&Departure { flow: begun, flags: Flags(Flags::SYN), forwarded: false }, now);
        assert_eq!(policy.judge(&begun.reversed(), Flags(Flags::SYN | Flags::ACK), now), Verdict::Answer);
        assert!(policy.takes_error(&begun, now));
        assert_eq!(policy.ledger().let_in(), [1]);
    }

    #[test]
    fn a_name_means_whoever_has_it_now() {
        let rules = [Allow { from: some(vec!["web3", "tag:new"]), to: vec![], ports: vec![] }];
        let flow = Flow {
            source: "10.1.0.9".parse().unwrap(),
            destination: "10.1.0.3".parse().unwrap(),
            protocol: UDP,
            source_port: 1,
            destination_port: 1,
        };
        assert_eq!(policy(&rules, &subjects()).rule_for(&flow), None);
        for (name, tags) in [("web3", &[][..]), ("other", &["new"][..])] {
            let joined = [subjects(), vec![subject(name, tags, &["10.1.0.9/32"])]].concat();
            assert_eq!(policy(&rules, &joined).rule_for(&flow), Some(0));
        }
    }
}
