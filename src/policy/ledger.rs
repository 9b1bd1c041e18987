//! What outlives one compiled policy.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::connections::Connections;
use super::flow::Flow;
use super::trace::Trace;
use crate::identity::NodeId;
use crate::time::Instant;

/// Refusals remembered: what fits a screen, and the rest of a port scan goes through it without pushing memory up.
const DENIALS: usize = 256;

/// Who was refused what: the sender's port makes no difference.
type Refused = (NodeId, IpAddr, IpAddr, u8, u16);

/// Packets refused to one peer, of one address, for one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Through whose tunnel they came.
    pub node: NodeId,
    /// The last of them.
    pub flow: Flow,
    /// How many.
    pub packets: u64,
    /// When the last one came.
    pub last: Instant,
}

/// Connections, counts of the rules and refusals. Made anew with the rules' text, kept while only the members change.
#[derive(Debug)]
pub struct Ledger {
    connections: Arc<Connections>,
    /// Of each rule.
    let_in: Box<[AtomicU64]>,
    denials: Mutex<BTreeMap<Refused, Denial>>,
    trace: Arc<Trace>,
}

impl Ledger {
    /// Makes one for this many rules.
    pub fn new(rules: usize, now: Instant) -> Self {
        Ledger::with(Arc::new(Connections::new(now)), Arc::default(), rules)
    }

    /// Makes one for other rules: what this side began goes on.
    #[must_use]
    pub fn renewed(&self, rules: usize) -> Self {
        Ledger::with(Arc::clone(&self.connections), Arc::clone(&self.trace), rules)
    }

    fn with(connections: Arc<Connections>, trace: Arc<Trace>, rules: usize) -> Self {
        let let_in = (0..rules).map(|_| AtomicU64::new(0)).collect();
        Ledger { connections, let_in, denials: Mutex::default(), trace }
    }

    /// Where packets are written down while somebody watches.
    pub fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    /// The conversations that this side began.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Returns how often each rule was the first to allow something. A lasting flow is judged once a second.
    pub fn let_in(&self) -> Vec<u64> {
        self.let_in.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Returns the refusals, the newest first.
    pub fn denials(&self) -> Vec<Denial> {
        let denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<Denial> = denials.values().copied().collect();
        list.sort_by_key(|denial| std::cmp::Reverse(denial.last));
        list
    }

    /// Notes a refused packet.
    pub fn deny(&self, node: NodeId, flow: &Flow, now: Instant) {
        let refused = (node, flow.source, flow.destination, flow.protocol, flow.destination_port);
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        if denials.len() >= DENIALS && !denials.contains_key(&refused) {
            let oldest = denials.iter().min_by_key(|(_, denial)| denial.last).map(|(refused, _)| *refused);
            oldest.and_then(|oldest| denials.remove(&oldest));
        }
        let denial = denials.entry(refused).or_insert(Denial { node, flow: *flow, packets: 0, last: now });
        (denial.flow, denial.packets, denial.last) = (*flow, denial.packets + 1, now);
    }

    pub(super) fn count(&self, rule: usize) {
        if let Some(count) = self.let_in.get(rule) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn refusals_are_counted_by_service_and_bounded() {
        let mut now = Instant::from_millis(1_000);
        let ledger = Ledger::new(0, now);
        let (source, destination) = ("10.1.0.2".parse().unwrap(), "10.1.0.1".parse().unwrap());
        let node = NodeId::from_bytes([2; 16]);
        for port in 0..1_000u16 {
            now += Duration::from_millis(1);
            for source_port in [1, 2] {
                let flow = Flow { source, destination, protocol: 6, source_port, destination_port: port };
                ledger.deny(node, &flow, now);
            }
        }
        let denials = ledger.denials();
        assert_eq!(denials.len(), DENIALS);
        assert!(denials.iter().all(|denial| denial.packets == 2));
        assert_eq!((denials[0].flow.destination_port, denials[0].last), (999, now));
    }
}
