//! `[[allow]]`, read key by key.

use toml::de::DeTable;

use super::{Reader, text};
use crate::config::allow::Allow;

impl Reader {
    pub(super) fn allow(&mut self, document: &DeTable<'_>) -> Vec<Allow> {
        let mut rules = Vec::new();
        for section in self.entries(document, "allow", Allow::LIMIT) {
            let from = self.filled(&section, "from", Allow::LIST_LIMIT, |value| text(value)?.parse());
            let to = self.given(&section, "to", Allow::LIST_LIMIT, |value| text(value)?.parse());
            let ports = self.given(&section, "ports", Allow::LIST_LIMIT, |value| text(value)?.parse());
            if let Some(from) = from {
                rules.push(Allow { from, to: to.unwrap_or_default(), ports: ports.unwrap_or_default() });
            }
        }
        rules
    }
}
