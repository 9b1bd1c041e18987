//! `[[allow]]`, read key by key.

use toml::de::DeTable;

use super::{Reader, Section, text};
use crate::config::allow::Allow;

impl Reader {
    pub(super) fn allow(&mut self, document: &DeTable<'_>) -> Vec<Allow> {
        let mut rules = Vec::new();
        for section in self.entries(document, "allow", Allow::LIMIT) {
            if section.get("from").is_none() {
                self.missing(&section, "from");
            }
            let from = self.list(&section, "from", Allow::LIST_LIMIT, |value| text(value)?.parse());
            let to = self.list(&section, "to", Allow::LIST_LIMIT, |value| text(value)?.parse());
            let ports = self.list(&section, "ports", Allow::LIST_LIMIT, |value| text(value)?.parse());
            self.refuse_empty(&section, "from", &from);
            self.refuse_empty(&section, "to", &to);
            self.refuse_empty(&section, "ports", &ports);
            if let Some(from) = from {
                rules.push(Allow { from, to: to.unwrap_or_default(), ports: ports.unwrap_or_default() });
            }
        }
        rules
    }

    /// An empty list could be taken for nothing as well as for everything.
    fn refuse_empty<T>(&mut self, section: &Section<'_, '_>, name: &str, list: &Option<Vec<T>>) {
        if list.as_ref().is_some_and(Vec::is_empty) {
            self.complain(section, name, "the list is empty");
        }
    }
}
