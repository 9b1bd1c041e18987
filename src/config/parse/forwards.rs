//! `[[forward]]`, read key by key.

use std::net::SocketAddr;
use std::time::Duration;

use toml::de::DeTable;

use super::{Reader, flag, listen_address, number, one_of, text, within};
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
            let check_interval = self.optional(&section, "check_interval", |value| {
                within(value, Duration::from_secs(1)..=Duration::from_secs(3_600))
            });
            let connect_timeout = self.optional(&section, "connect_timeout", |value| {
                within(value, Duration::from_millis(100)..=Duration::from_secs(60))
            });
            let source =
                self.optional(&section, "source", |value| one_of(value, ForwardSource::ALL, ForwardSource::name));
            let max_connections =
                self.optional(&section, "max_connections", |value| number(value, 1..=Forward::MOST_CONNECTIONS));
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
}
