//! The policy's place on the way in: what a packet's bytes are to the rules, and what was judged a moment ago.

use super::forwarding::Local;
use super::inner::{ICMP, ICMPV6, InnerPacket, TCP, UDP};
use crate::identity::NodeId;
use crate::policy::{Departure, Flags, Flow, Policy, Sighting, Stage, Verdict};
use crate::time::Instant;
use crate::wire::DropReason;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Flows whose verdict is remembered: many more than a thread serves in one second, in some 100 KB.
const VERDICTS: usize = 1_024;

/// For how long it is: connections and counts are a second behind at most.
const FRESH: Duration = Duration::from_secs(1);

/// Fragmented packets that are followed at a time.
const FRAGMENTS: usize = 256;

/// How long a packet's fragments may take (Linux puts together what comes within 30 s).
const FRAGMENT_PATIENCE: Duration = Duration::from_secs(30);

/// What one thread remembers of what it judged.
pub struct Gate {
    verdicts: Box<[Option<(Flow, u64, Instant)>]>,
    /// Packets whose first fragment passed.
    fragments: Box<[Option<(Fragment, u64, Instant)>]>,
}

/// What the fragments of one packet have in common (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Fragment {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    identification: u32,
}

/// What a packet is to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// One of a flow, with TCP's flags.
    Of(Flow, Flags),
    /// An error about a packet of the flow, which this side is said to have sent.
    ErrorAbout(Flow),
    /// A fragment without the ports.
    LaterFragment,
    /// What must not pass whatever the rules say.
    Never,
}

impl Default for Gate {
    /// One that remembers nothing yet.
    fn default() -> Self {
        Gate { verdicts: vec![None; VERDICTS].into(), fragments: vec![None; FRAGMENTS].into() }
    }
}

impl Gate {
    /// Judges a packet that came from a peer for this host, or for a stock peer of it.
    ///
    /// # Errors
    /// [`DropReason::Policy`].
    pub fn judge(
        &mut self,
        policy: &Policy,
        from: NodeId,
        packet: &[u8],
        inner: &InnerPacket,
        now: Instant,
    ) -> Result<(), DropReason> {
        let generation = policy.generation();
        let watched = policy.ledger().trace().is_on();
        let mut remembered = false;
        let what = content(packet, inner);
        let passes = match what {
            Content::Of(flow, flags) => {
                let verdict = &mut self.verdicts[place(&flow, VERDICTS)];
                let fresh = |(known, of, at): &(Flow, u64, Instant)| {
                    *known == flow && *of == generation && now.saturating_since(*at) < FRESH
                };
                let is_fresh = verdict.as_ref().is_some_and(fresh);
                remembered = is_fresh;
                if flags.matters() || !is_fresh {
                    *verdict = None;
                    if policy.judge(&flow, flags, now) != Verdict::Refused {
                        *verdict = Some((flow, generation, now));
                    }
                }
                verdict.is_some()
            }
            Content::ErrorAbout(quoted) => policy.takes_error(&quoted, now),
            Content::LaterFragment => fragment(packet, inner).is_some_and(|fragment| {
                let known = &self.fragments[place(&fragment, FRAGMENTS)];
                known.is_some_and(|(known, of, at)| {
                    known == fragment && of == generation && now.saturating_since(at) < FRAGMENT_PATIENCE
                })
            }),
            Content::Never => false,
        };
        if watched {
            tell(policy, packet, inner, &what, Told { passes, remembered }, now);
        }
        if !passes {
            policy.ledger().deny(from, &named(packet, inner), now);
            return Err(DropReason::Policy);
        }
        if inner.is_fragment
            && inner.has_header
            && let Some(fragment) = fragment(packet, inner)
        {
            self.fragments[place(&fragment, FRAGMENTS)] = Some((fragment, generation, now));
        }
        Ok(())
    }
}

/// Notes a packet on its way into the mesh, so that what answers it may come in.
pub fn note(policy: &Policy, local: &Local, packet: &[u8], inner: &InnerPacket, now: Instant) {
    if let Content::Of(flow, flags) = content(packet, inner) {
        let trace = policy.ledger().trace();
        if trace.is_on() {
            trace.see(Sighting { at: now, flow, length: inner.length, stage: Stage::Departing, outcome: Ok(None) });
        }
        policy.note(&Departure { flow, flags, forwarded: !local.has(inner.source) }, now);
    }
}

/// What was found of a packet.
struct Told {
    passes: bool,
    /// One of its flow had passed a moment ago.
    remembered: bool,
}

/// Writes down what became of a packet that came in, for whoever watches.
#[cold]
fn tell(policy: &Policy, packet: &[u8], inner: &InnerPacket, what: &Content, told: Told, now: Instant) {
    let Told { passes, remembered } = told;
    let sighting = |flow, stage, outcome| Sighting { at: now, flow, length: inner.length, stage, outcome };
    let or = |refusal| if passes { Ok(None) } else { Err(refusal) };
    policy.ledger().trace().see(match what {
        Content::Of(flow, _) if passes && policy.ledger().connections().knows(&flow.reversed(), now) => {
            sighting(*flow, Stage::Reply, Ok(None))
        }
        Content::Of(flow, flags) => {
            let begins = if flow.protocol == TCP { flags.begins() } else { !remembered };
            let stage = if begins { Stage::New } else { Stage::Established };
            let outcome = if passes { Ok(policy.rule_for(flow)) } else { Err("no rule allows it") };
            sighting(*flow, stage, outcome)
        }
        Content::ErrorAbout(quoted) => sighting(*quoted, Stage::Error, or("it is about nothing that this side sent")),
        Content::LaterFragment => {
            sighting(named(packet, inner), Stage::Fragment, or("no first fragment of it has passed"))
        }
        Content::Never => {
            sighting(named(packet, inner), Stage::Fragment, Err("its headers are cut off, overlaid, or not for a mesh"))
        }
    });
}

/// What a refused packet is called in the list of them; without ports where they cannot be told.
fn named(packet: &[u8], inner: &InnerPacket) -> Flow {
    match content(packet, inner) {
        Content::Of(flow, _) => flow,
        _ => Flow {
            source: inner.source,
            destination: inner.destination,
            protocol: inner.protocol,
            source_port: 0,
            destination_port: 0,
        },
    }
}

fn place(of: &impl Hash, places: usize) -> usize {
    // A peer that makes two of its own flows share a place makes them slower, and nobody else's: the thread judges again.
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish() as usize % places
}

fn content(packet: &[u8], inner: &InnerPacket) -> Content {
    let payload = packet.get(inner.payload..inner.length).unwrap_or_default();
    if !inner.has_header {
        // Laid over the first one, it could rewrite the flags that were judged (RFC 1858 §3.2.1).
        return if inner.protocol == TCP && offset(packet, inner) == 1 {
            Content::Never
        } else {
            Content::LaterFragment
        };
    }
    // A first fragment of TCP ends behind the whole header (RFC 3128 §4); what is shorter in one piece is no TCP.
    if inner.protocol == TCP && payload.len() < 20 {
        return Content::Never;
    }
    if is_icmp(inner.source, inner.protocol) && is_error(inner.source, payload) {
        let quoted = payload.get(8..).and_then(quoted);
        return quoted.filter(|quoted| quoted.source == inner.destination).map_or(Content::Never, Content::ErrorAbout);
    }
    flow_of(inner.source, inner.destination, inner.protocol, payload).map_or(Content::Never, |flow| {
        let flags = if inner.protocol == TCP { payload[13] } else { 0 };
        Content::Of(flow, Flags(flags))
    })
}

/// Reads the ports of a payload; `None` where it is cut off inside them, and for ICMP that is neither question nor answer.
fn flow_of(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Flow> {
    let word = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    let (source_port, destination_port) = match protocol {
        TCP | UDP => (word(0)?, word(2)?),
        _ if is_icmp(source, protocol) => {
            let identifier = word(4)?;
            match (source.is_ipv4(), *payload.first()?) {
                // Echo and timestamp (RFC 792), echo (RFC 4443 §4).
                (true, 8 | 13) | (false, 128) => (identifier, 0),
                (true, 0 | 14) | (false, 129) => (0, identifier),
                // Redirects, neighbours and the like are a link's own affair, and the mesh is none.
                _ => return None,
            }
        }
        _ => (0, 0),
    };
    Some(Flow { source, destination, protocol, source_port, destination_port })
}

fn is_icmp(source: IpAddr, protocol: u8) -> bool {
    protocol == if source.is_ipv4() { ICMP } else { ICMPV6 }
}

/// Unreachable, too big, time exceeded, parameter problem (RFC 792, RFC 4443 §3).
fn is_error(source: IpAddr, payload: &[u8]) -> bool {
    match payload.first() {
        Some(kind) if source.is_ipv4() => matches!(kind, 3 | 11 | 12),
        Some(kind) => matches!(kind, 1..=4),
        None => false,
    }
}

/// Reads the flow of a packet that an error quotes, of which there may be no more than the ports. Behind extension headers
/// other than a fragment's it is not looked for: senders of what is quoted here use none.
fn quoted(bytes: &[u8]) -> Option<Flow> {
    match bytes.first()? >> 4 {
        4 => {
            let header = bytes.first_chunk::<20>()?;
            let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
            let payload = bytes.get(usize::from(header[0] & 0x0f) * 4..).filter(|_| first)?;
            let address =
                |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
            flow_of(address(12), address(16), header[9], payload)
        }
        6 => {
            let header = bytes.first_chunk::<40>()?;
            let address =
                |at: usize| IpAddr::V6(Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|byte| header[at + byte])));
            let (mut protocol, mut payload) = (header[6], &bytes[40..]);
            if protocol == 44 {
                let fragment = payload.first_chunk::<8>()?;
                let first = u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff8 == 0;
                (protocol, payload) = (fragment[0], payload.get(8..).filter(|_| first)?);
            }
            flow_of(address(8), address(24), protocol, payload)
        }
        _ => None,
    }
}

/// Where a fragment's data belongs, in units of eight bytes.
fn offset(packet: &[u8], inner: &InnerPacket) -> u16 {
    let word = |at: usize| packet.get(at..at + 2).map_or(0, |word| u16::from_be_bytes([word[0], word[1]]));
    match inner.source {
        IpAddr::V4(_) => word(6) & 0x1fff,
        IpAddr::V6(_) => header_of_fragment(packet, inner).map_or(0, |at| word(at + 2) >> 3),
    }
}

fn fragment(packet: &[u8], inner: &InnerPacket) -> Option<Fragment> {
    let (protocol, identification) = match inner.source {
        IpAddr::V4(_) => (inner.protocol, u32::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]))),
        IpAddr::V6(_) => {
            let at = header_of_fragment(packet, inner)?;
            let header = packet.get(at..)?.first_chunk::<8>()?;
            // Of the first fragment, the protocol behind further headers is known; all have the next header in common.
            (header[0], u32::from_be_bytes([header[4], header[5], header[6], header[7]]))
        }
    };
    Some(Fragment { source: inner.source, destination: inner.destination, protocol, identification })
}

/// Finds the fragment header of an IPv6 packet whose headers were found to be whole.
fn header_of_fragment(packet: &[u8], inner: &InnerPacket) -> Option<usize> {
    let (mut next, mut at) = (*packet.get(6)?, 40);
    while at < inner.payload {
        if next == 44 {
            return Some(at);
        }
        let length = usize::from(*packet.get(at + 1)?);
        let bytes = if next == 51 { (length + 2) * 4 } else { (length + 1) * 8 };
        (next, at) = (*packet.get(at)?, at + bytes);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::{packet, udp};
    use super::*;
    use crate::config::Allow;
    use crate::policy::{Ledger, Selection};
    use proptest::prelude::*;
    use std::sync::Arc;

    const PEER: NodeId = NodeId::from_bytes([2; 16]);
    const NOW: Instant = Instant::from_millis(1_000_000);

    fn policy(ports: &str) -> Policy {
        let ports = vec![ports.parse().unwrap()];
        let rule = Allow { from: vec!["any".parse().unwrap()], to: vec![], ports };
        Policy::compile(1, &[rule], &[], Arc::new(Ledger::new(1, NOW)))
    }

    fn local() -> Local {
        Local {
            address_v4: "10.1.0.1".parse().unwrap(),
            address_v6: "fd00::1".parse().unwrap(),
            overlay_v4: "10.1.0.0/16".parse().unwrap(),
            overlay_v6: "fd00::/64".parse().unwrap(),
            prefixes: vec![],
            relays: false,
        }
    }

    fn passes(gate: &mut Gate, policy: &Policy, packet: &[u8]) -> bool {
        let inner = InnerPacket::parse(packet).unwrap();
        gate.judge(policy, PEER, packet, &inner, NOW).is_ok()
    }

    fn leaves(policy: &Policy, packet: &[u8]) {
        note(policy, &local(), packet, &InnerPacket::parse(packet).unwrap(), NOW);
    }

    fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn both_families_obey_rules_and_answers_come_back() {
        for (here, there) in [("10.1.0.1", "10.1.0.2"), ("fd00::1", "fd00::2")] {
            let (mut gate, policy) = (Gate::default(), policy("tcp/3306"));
            assert!(passes(&mut gate, &policy, &packet(there, here, TCP, &tcp(9, 3_306, Flags::SYN))));
            assert!(passes(&mut gate, &policy, &packet(there, here, TCP, &tcp(9, 3_306, Flags::ACK))));
            assert!(!passes(&mut gate, &policy, &packet(there, here, TCP, &tcp(9, 22, Flags::SYN))));
            assert!(!passes(&mut gate, &policy, &packet(there, here, UDP, &udp(3_306, b""))));
            let answer = packet(there, here, TCP, &tcp(22, 40_000, Flags::SYN | Flags::ACK));
            assert!(!passes(&mut gate, &policy, &answer));
            leaves(&policy, &packet(here, there, TCP, &tcp(40_000, 22, Flags::SYN)));
            assert!(passes(&mut gate, &policy, &answer));
            let denied = policy.ledger().denials();
            assert_eq!(denied.iter().map(|denial| denial.packets).sum::<u64>(), 3);
        }
    }

    #[test]
    fn whoever_watches_is_told_what_was_judged() {
        let (mut gate, policy) = (Gate::default(), policy("tcp/3306"));
        let (here, there) = ("10.1.0.1", "10.1.0.2");
        let trace = Arc::clone(policy.ledger().trace());
        let watch = |service: &str| {
            let pairs = vec![(there.parse().unwrap(), here.parse().unwrap())];
            assert!(trace.begin(Selection { pairs, service: service.parse().unwrap() }, 10));
        };
        let seen = || {
            let seen = trace.take().sightings.into_iter().map(|sighting| (sighting.stage, sighting.outcome)).collect();
            trace.end();
            let seen: Vec<_> = seen;
            seen
        };
        watch("tcp/3306");
        for flags in [Flags::SYN, Flags::ACK, Flags::ACK] {
            assert!(passes(&mut gate, &policy, &packet(there, here, TCP, &tcp(9, 3_306, flags))));
        }
        assert!(passes(&mut gate, &policy, &packet(there, here, TCP, &tcp(9, 3_306, Flags::ACK))));
        leaves(&policy, &packet(here, there, TCP, &tcp(3_306, 9, Flags::ACK)));
        let by_rule = |stage| (stage, Ok(Some(0)));
        let established = by_rule(Stage::Established);
        let departing = (Stage::Departing, Ok(None));
        assert_eq!(seen(), [by_rule(Stage::New), established, established, established, departing]);
        watch("tcp/22");
        assert!(!passes(&mut gate, &policy, &packet(there, here, TCP, &tcp(9, 22, Flags::SYN))));
        leaves(&policy, &packet(here, there, TCP, &tcp(22, 40_000, Flags::SYN)));
        assert_eq!(seen(), [(Stage::New, Err("no rule allows it")), departing]);
        // What this side began is watched by the far end's port.
        assert!(trace.begin(
            Selection {
                pairs: vec![(here.parse().unwrap(), there.parse().unwrap())],
                service: "tcp/25".parse().unwrap()
            },
            10
        ));
        leaves(&policy, &packet(here, there, TCP, &tcp(40_000, 25, Flags::SYN)));
        assert!(passes(&mut gate, &policy, &packet(there, here, TCP, &tcp(25, 40_000, Flags::SYN | Flags::ACK))));
        assert_eq!(seen(), [departing, (Stage::Reply, Ok(None))]);
        watch("udp/53");
        assert!(!passes(&mut gate, &policy, &packet(there, here, UDP, &udp(53, b""))));
        assert_eq!(seen(), [(Stage::New, Err("no rule allows it"))]);
    }

    #[test]
    fn a_verdict_ends_with_its_policy() {
        let (mut gate, before) = (Gate::default(), policy("tcp/3306"));
        let segment = packet("10.1.0.2", "10.1.0.1", TCP, &tcp(9, 3_306, Flags::ACK));
        assert!(passes(&mut gate, &before, &segment));
        let after = Policy::compile(2, &[], &[], Arc::clone(before.ledger()));
        assert!(!passes(&mut gate, &after, &segment));
    }

    #[test]
    fn echoes_are_asked_by_rule_and_answered_without() {
        for (here, there, protocol, [ask, answer]) in
            [("10.1.0.1", "10.1.0.2", ICMP, [8, 0]), ("fd00::1", "fd00::2", ICMPV6, [128, 129])]
        {
            let (mut gate, closed, open) = (Gate::default(), policy("tcp/1"), policy("icmp"));
            let echo = |kind: u8| [kind, 0, 0, 0, 7, 7, 0, 1];
            assert!(!passes(&mut gate, &closed, &packet(there, here, protocol, &echo(ask))));
            assert!(!passes(&mut gate, &closed, &packet(there, here, protocol, &echo(answer))));
            leaves(&closed, &packet(here, there, protocol, &echo(ask)));
            assert!(passes(&mut gate, &closed, &packet(there, here, protocol, &echo(answer))));
            assert!(!passes(&mut gate, &closed, &packet(there, here, protocol, &echo(ask))));
            let mut gate = Gate::default();
            assert!(passes(&mut gate, &open, &packet(there, here, protocol, &echo(ask))));
            assert!(!passes(&mut gate, &open, &packet(there, here, protocol, &echo(answer))));
            let redirect = if protocol == ICMP { 5 } else { 137 };
            assert!(!passes(&mut gate, &open, &packet(there, here, protocol, &echo(redirect))));
        }
    }

    #[test]
    fn errors_pass_about_what_was_sent_and_nothing_else() {
        for (here, there, other, protocol, kind) in
            [("10.1.0.1", "10.1.0.2", "10.1.0.3", ICMP, 3), ("fd00::1", "fd00::2", "fd00::3", ICMPV6, 2)]
        {
            let (mut gate, policy) = (Gate::default(), policy("tcp/3306"));
            let about = |sent: &[u8]| packet(there, here, protocol, &[&[kind, 0, 0, 0, 0, 0, 5, 0][..], sent].concat());
            let begun = packet(here, there, TCP, &tcp(40_000, 22, Flags::SYN));
            assert!(!passes(&mut gate, &policy, &about(&begun)));
            leaves(&policy, &begun);
            assert!(passes(&mut gate, &policy, &about(&begun)));
            let header = begun.len() - 20;
            assert!(passes(&mut gate, &policy, &about(&begun[..header + 8])), "eight bytes are enough");
            assert!(!passes(&mut gate, &policy, &about(&begun[..header + 3])));
            // About the answer to what a rule allows; about what another host is said to have sent; about an error.
            assert!(passes(&mut gate, &policy, &about(&packet(here, there, TCP, &tcp(3_306, 9, Flags::ACK)))));
            assert!(!passes(&mut gate, &policy, &about(&packet(other, there, TCP, &tcp(3_306, 9, Flags::ACK)))));
            assert!(!passes(&mut gate, &policy, &about(&about(&begun))));
        }
    }

    /// Of both families: a fragment at an offset in units of eight bytes.
    fn piece(v6: bool, identification: u8, offset: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
        if v6 {
            let [high, low] = (offset << 3 | 1).to_be_bytes();
            let header = [protocol, 0, high, low, 0, 0, 0, identification];
            return packet("fd00::2", "fd00::1", 44, &[&header[..], payload].concat());
        }
        let mut bytes = packet("10.1.0.2", "10.1.0.1", protocol, payload);
        bytes[5] = identification;
        bytes[6..8].copy_from_slice(&(offset | 0x2000).to_be_bytes());
        bytes
    }

    #[test]
    fn fragments_pass_behind_their_first_one_only() {
        for v6 in [false, true] {
            let (mut gate, policy) = (Gate::default(), policy("udp/53"));
            let first = |id: u8, port: u16| piece(v6, id, 0, UDP, &udp(port, &[0; 8]));
            assert!(!passes(&mut gate, &policy, &piece(v6, 1, 2, UDP, &[0; 16])));
            assert!(passes(&mut gate, &policy, &first(1, 53)));
            assert!(passes(&mut gate, &policy, &piece(v6, 1, 2, UDP, &[0; 16])));
            assert!(!passes(&mut gate, &policy, &piece(v6, 2, 2, UDP, &[0; 16])), "another packet's");
            assert!(!passes(&mut gate, &policy, &piece(v6, 1, 2, TCP, &[0; 16])), "another protocol's");
            assert!(!passes(&mut gate, &policy, &first(3, 54)));
            assert!(!passes(&mut gate, &policy, &piece(v6, 3, 2, UDP, &[0; 16])));
        }
    }

    #[test]
    fn headers_of_tcp_are_whole_and_stay_as_they_were_judged() {
        for v6 in [false, true] {
            let (mut gate, policy) = (Gate::default(), policy("any"));
            let whole = tcp(9, 22, Flags::SYN);
            assert!(!passes(&mut gate, &policy, &piece(v6, 1, 0, TCP, &whole[..16])));
            assert!(passes(&mut gate, &policy, &piece(v6, 1, 0, TCP, &[&whole[..], &[0; 4]].concat())));
            assert!(!passes(&mut gate, &policy, &piece(v6, 1, 1, TCP, &whole[8..])));
            assert!(passes(&mut gate, &policy, &piece(v6, 1, 3, TCP, &[0; 16])));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(
            payload in prop::collection::vec(any::<u8>(), 0..80), protocol in any::<u8>(), v6 in any::<bool>(),
            fragment in any::<u16>(),
        ) {
            let (here, there) = if v6 { ("fd00::1", "fd00::2") } else { ("10.1.0.1", "10.1.0.2") };
            let mut bytes = packet(there, here, protocol, &payload);
            if !v6 {
                bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
            }
            if let Ok(inner) = InnerPacket::parse(&bytes) {
                let (mut gate, policy) = (Gate::default(), policy("tcp/1-9"));
                let _ = gate.judge(&policy, PEER, &bytes, &inner, NOW);
                leaves(&policy, &bytes);
            }
        }
    }
}
