//! `[lockdown]`, read key by key.

use toml::de::DeTable;

use super::{Reader, text};
use crate::config::lockdown::Lockdown;

impl Reader {
    /// A section without its one key says nothing.
    pub(super) fn lockdown(&mut self, document: &DeTable<'_>) -> Option<Lockdown> {
        let section = self.section(document, "lockdown");
        let allow = self.list(&section, "allow", Lockdown::LIMIT, |value| text(value)?.parse());
        section.get("allow")?;
        Some(Lockdown { allow: allow.unwrap_or_default() })
    }
}
