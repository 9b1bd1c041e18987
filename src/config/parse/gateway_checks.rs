//! `[[gateway_check]]`, read key by key.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::de::DeTable;

use super::{Reader, Value, found, interval, number, text};
use crate::config::gateway_check::{CheckTarget, GatewayCheck};

impl Reader {
    pub(super) fn gateway_checks(&mut self, document: &DeTable<'_>) -> Vec<GatewayCheck> {
        let mut list: Vec<GatewayCheck> = Vec::new();
        for section in self.entries(document, "gateway_check", GatewayCheck::LIMIT) {
            let prefix = self.required(&section, "prefix", network);
            let check: Option<Vec<CheckTarget>> =
                self.filled(&section, "check", GatewayCheck::CHECK_LIMIT, |value| text(value)?.parse());
            let interval = self.optional(&section, "interval", interval);
            let tries = self
                .optional(&section, "tries", |value| u8::try_from(number(value, 1..=10)?).map_err(|_| found(value)));
            let (Some(prefix), Some(check)) = (prefix, check) else { continue };
            let gateway = GatewayCheck {
                prefix,
                check,
                interval: interval.unwrap_or(GatewayCheck::INTERVAL),
                tries: tries.unwrap_or(GatewayCheck::TRIES),
            };
            for (key, problem) in gateway.clashes(&list) {
                self.complain(&section, key, &problem);
            }
            list.push(gateway);
        }
        list
    }
}

fn network(value: &Value<'_>) -> Result<IpNet, String> {
    let net = text(value)?;
    let net: IpNet = match net.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => net.parse().map_err(|_| found(value))?,
    };
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!("the range starts at another address; did you mean {}?", net.trunc()))
    }
}
