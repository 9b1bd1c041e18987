//! What follows where another gateway carries a shared prefix.

use ipnet::IpNet;

use super::driver::Driver;
use crate::control::gateway::{Cause, Switch};
use crate::telemetry::EventKind;

impl Driver {
    /// Another gateway carries a prefix, and the forwarding table says so already: flows that stand still go on by it.
    pub(super) fn follow_gateway(&mut self, network: IpNet, switch: Switch) {
        let Switch { from, to, cause } = switch;
        let woken = match (from, self.links.get(to), &self.dataplane) {
            (Some(from), Some(link), Some(dataplane)) => dataplane.move_flows(from, &network, &link.peer),
            _ => 0,
        };
        let name = self.name_of(to);
        let before = from.map(|from| self.name_of(from));
        let why = match (cause, &before) {
            (Cause::Priority, None) => "it has the highest priority of those that serve".to_owned(),
            (Cause::Priority, Some(before)) => format!("it serves and goes before {before}"),
            (Cause::Silence, Some(before)) => format!("{before} does not answer"),
            (Cause::Health, Some(before)) => format!("what lies behind {before} does not answer its check"),
            (Cause::Drained, Some(before)) => format!("{before} is drained"),
            (cause, _) => format!("the one before is {}", cause.name()),
        };
        let mut text = format!("carries {network} from now on: {why}");
        if woken > 0 {
            text.push_str(&format!("; {woken} TCP flows that stood still were woken"));
        }
        if before.is_some() {
            tracing::warn!(peer = %name, "{text}");
        } else {
            tracing::info!(peer = %name, "{text}");
        }
        self.note(EventKind::GatewayChanged, Some(name), text);
    }
}
