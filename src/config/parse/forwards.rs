//! `[[forward]]`, read key by key.

use std::net::SocketAddr;
use std::time::Duration;

use toml::de::DeTable;

use super::{Reader, Section, Value, flag, found, listen_address, one_of, text};
use crate::config::duration;
use crate::config::forward::{Forward, ForwardSource, Target};

impl Reader {
    pub(super) fn forwards(&mut self, document: &DeTable<'_>) -> Vec<Forward> {
        let mut list: Vec<Forward> = Vec::new();
        for section in self.entries(document, "forward", Forward::LIMIT) {
            let name = self.required(&section, "name", super::text_as);
            let listen: Option<Vec<SocketAddr>> =
                self.filled(&section, "listen", Forward::LISTEN_LIMIT, listen_address);
            let targets: Option<Vec<Target>> =
                self.filled(&section, "targets", Forward::TARGET_LIMIT, |value| text(value)?.parse());
            let failover = self.optional(&section, "failover", flag).unwrap_or(true);
            let within = |least: u64, most: u64| move |value: &Value<'_>| between(value, least, most);
            let check_interval = self.optional(&section, "check_interval", within(1_000, 3_600_000));
            let connect_timeout = self.optional(&section, "connect_timeout", within(100, 60_000));
            let source =
                self.optional(&section, "source", |value| one_of(value, ForwardSource::ALL, ForwardSource::name));
            let max_connections = self.optional(&section, "max_connections", connections);
            let (Some(name), Some(listen), Some(targets)) = (name, listen, targets) else { continue };
            let forward = Forward {
                name,
                listen,
                targets,
                failover,
                check_interval: check_interval.unwrap_or(Forward::CHECK_INTERVAL),
                connect_timeout: connect_timeout.unwrap_or(Forward::CONNECT_TIMEOUT),
                source: source.unwrap_or_default(),
                max_connections: max_connections.unwrap_or(Forward::CONNECTIONS),
            };
            for (key, problem) in forward.clashes(&list) {
                self.complain(&section, key, &problem);
            }
            list.push(forward);
        }
        list
    }

    /// A list that must be given and hold something.
    fn filled<T: PartialEq>(
        &mut self,
        section: &Section<'_, '_>,
        name: &str,
        limit: usize,
        read: impl Fn(&Value<'_>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        if section.get(name).is_none() {
            self.missing(section, name);
        }
        let list = self.list(section, name, limit, read)?;
        if list.is_empty() {
            self.complain(section, name, "the list is empty");
            return None;
        }
        Some(list)
    }
}

/// A duration between two numbers of milliseconds.
fn between(value: &Value<'_>, least: u64, most: u64) -> Result<Duration, String> {
    let parsed = duration::parse(text(value)?)?;
    let fits = (Duration::from_millis(least)..=Duration::from_millis(most)).contains(&parsed);
    if fits { Ok(parsed) } else { Err(found(value)) }
}

fn connections(value: &Value<'_>) -> Result<u16, String> {
    let number = value.get_ref().as_integer().ok_or_else(|| found(value))?;
    let parsed = u16::from_str_radix(number.as_str(), number.radix()).ok();
    parsed.filter(|count| (1..=Forward::MOST_CONNECTIONS).contains(count)).ok_or_else(|| found(value))
}
