//! Which connections use which link: read from the data threads, kept over restarts, and told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::driver::Driver;
use crate::api::{self, CanGo, ConnectionEnds, LedgerConnection, LinkUsage, SCHEMA, Timestamp};
use crate::dataplane::flows::{FlowReading, Side};
use crate::dataplane::{ForwardingTable, Owner};
use crate::platform::clock;
use crate::telemetry::usage::{Connection, Ends, Seen, Usage, Verdict};
use crate::time::{Instant, UnixTime};

/// What used the links.
#[derive(Default)]
pub(super) struct Ledger {
    usage: Usage,
    /// What is written down.
    written: Usage,
}

impl Ledger {
    /// Goes on from what was known before the daemon started.
    pub(super) fn new(usage: Usage) -> Ledger {
        Ledger { written: usage.clone(), usage }
    }
}

impl Driver {
    /// Takes what the data threads have counted, and writes it down where it is news.
    pub(super) fn keep_ledger(&mut self, now: Instant, wall: UnixTime) {
        self.read_flows(now, wall);
        if self.ledger.usage != self.ledger.written {
            self.files.write_usage(&self.ledger.usage);
            self.ledger.written = self.ledger.usage.clone();
        }
    }

    fn read_flows(&mut self, now: Instant, wall: UnixTime) {
        let at = |instant: Instant| wall - now.saturating_since(instant);
        for (node, link) in self.links.iter() {
            self.ledger.usage.watch(node, &self.name_of(node), link.peer.last_flow().map(at), wall);
        }
        let Some(dataplane) = &self.dataplane else { return };
        let table = self.links.table().load();
        let shards = (0u8..).zip(dataplane.flows());
        let seen = shards.flat_map(|(shard, flows)| flows.into_iter().map(move |flow| (shard, flow)));
        let seen = seen.filter_map(|(shard, flow)| seen_of(shard, &flow, &table));
        self.ledger.usage.take(seen, now, wall);
    }

    /// What uses the links, and whether they can go.
    pub(super) fn ledger_answer(&mut self) -> api::LinkLedger {
        let (now, wall) = (clock::now(), clock::wall());
        self.read_flows(now, wall);
        let names = self.names_by_address();
        let usage = &self.ledger.usage;
        let named = |ends: &Ends, opened_near| ends_of(ends, opened_near, &names);
        let told = |connection: &Connection| LedgerConnection {
            ends: named(&connection.ends, connection.opened_near),
            began: Timestamp(connection.began),
            last: Timestamp(connection.last),
            sent_bytes: connection.sent,
            received_bytes: connection.received,
        };
        let links = self.links.iter().filter_map(|(node, _)| {
            let link = usage.link(node)?;
            let mut connections: Vec<_> = usage.open(node).map(told).collect();
            connections.sort_by_key(|connection| connection.began.0);
            Some(LinkUsage {
                name: link.name.clone(),
                node_id: node.to_string(),
                can_go: match usage.verdict(node, wall) {
                    Verdict::No => CanGo::No,
                    Verdict::Unsure => CanGo::Unsure,
                    Verdict::Yes => CanGo::Yes,
                },
                watched_since: Timestamp(link.since),
                last: link.last.map(Timestamp),
                last_connection: link.last_ends.as_ref().map(|(ends, opened_near)| named(ends, *opened_near)),
                connections,
                ended: usage.ended().rev().filter(|ended| ended.node == node).map(told).collect(),
            })
        });
        let mut links: Vec<LinkUsage> = links.collect();
        links.sort_by(|a, b| a.name.cmp(&b.name));
        api::LinkLedger {
            schema: SCHEMA,
            now: Timestamp(wall),
            evicted: self.dataplane.as_ref().map_or(0, crate::dataplane::Dataplane::evicted_flows),
            left_out: usage.left_out(),
            links,
        }
    }

    /// The names of this node and of the members, by their addresses in the mesh.
    fn names_by_address(&self) -> BTreeMap<IpAddr, String> {
        let own = self.engine.certificate().certificate();
        let members = self.engine.membership().members().map(|(_, member)| member.certificate());
        let both = members.chain([own]).flat_map(|certificate| {
            let name = certificate.name.to_string();
            [(certificate.address_v4.into(), name.clone()), (certificate.address_v6.into(), name)]
        });
        both.collect()
    }
}

/// A flow with the peer whose tunnel it crosses; `None` where that is nobody's any more.
fn seen_of(shard: u8, flow: &FlowReading, table: &ForwardingTable) -> Option<Seen> {
    let Owner::Peer(_, peer) = table.owner_of(flow.ends.far.ip()) else { return None };
    Some(Seen {
        shard,
        node: peer.node(),
        ends: Ends { near: flow.ends.near, far: flow.ends.far, protocol: flow.ends.protocol },
        opened_near: flow.opener.map(|side| side == Side::Near),
        ended: flow.ended,
        half_closed: flow.half_closed,
        first: flow.first,
        last: flow.last,
        sent: flow.sent,
        received: flow.received,
    })
}

fn ends_of(ends: &Ends, opened_near: Option<bool>, names: &BTreeMap<IpAddr, String>) -> ConnectionEnds {
    let name = |end: &SocketAddr| names.get(&end.ip()).cloned();
    ConnectionEnds {
        near: ends.near,
        near_name: name(&ends.near),
        far: ends.far,
        far_name: name(&ends.far),
        protocol: match ends.protocol {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            132 => "sctp".to_owned(),
            other => format!("ip/{other}"),
        },
        opened_near,
    }
}
