//! What a gateway checks behind itself, as `[[gateway_check]]` says it.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::duration;
use super::template::{list, quoted};

/// The check of what lies behind this node, for one prefix that it shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayCheck {
    /// The prefix, as the certificate has it; no other entry has it.
    pub prefix: IpNet,
    /// What is looked at, 1 to [`GatewayCheck::CHECK_LIMIT`], none twice; one that answers is enough.
    pub check: Vec<CheckTarget>,
    /// Time between two looks, 100 ms to 60 s.
    pub interval: Duration,
    /// Looks in a row that must fail, 1 to 10.
    pub tries: u8,
}

/// Something behind a gateway that answers while the way to it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckTarget {
    /// It takes TCP connections there.
    Connect(SocketAddr),
    /// It answers ICMP echoes.
    Echo(IpAddr),
}

impl GatewayCheck {
    /// Checks at most: as many as a certificate has prefixes.
    pub const LIMIT: usize = 16;
    /// Targets of a check at most: two or three hosts tell whether it is the way or one of them that is gone.
    pub const CHECK_LIMIT: usize = 4;
    /// Time between two looks unless the file says otherwise. With [`GatewayCheck::TRIES`] a cut is known after 1.2 s at most: one
    /// interval until the next look, and one for each look to go unanswered.
    pub const INTERVAL: Duration = Duration::from_millis(300);
    /// Looks in a row that must fail unless the file says otherwise: networks behind a gateway are local and lose next to nothing,
    /// and of two packets lost in a row one is made good for by the third.
    pub const TRIES: u8 = 3;

    /// Renders the check as a `[[gateway_check]]` entry.
    pub fn to_toml(&self) -> String {
        let mut out = String::from("[[gateway_check]]\n");
        let mut line = |key: &str, value: String| {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{key} = {value}");
        };
        line("prefix", quoted(self.prefix.to_string()));
        line("check", list(&self.check));
        line("interval", quoted(duration::format(self.interval)));
        line("tries", self.tries.to_string());
        out
    }

    /// What contradicts itself or an entry above, with the key it is about.
    pub(super) fn clashes(&self, above: &[GatewayCheck]) -> Vec<(&'static str, String)> {
        let mut clashes = Vec::new();
        if above.iter().any(|other| other.prefix == self.prefix) {
            clashes.push(("prefix", "an entry above has the same prefix".to_owned()));
        }
        for target in self.check.iter().filter(|target| !self.prefix.contains(&target.ip())) {
            clashes.push(("check", format!("{target} does not lie behind {}", self.prefix)));
        }
        clashes
    }
}

impl CheckTarget {
    /// The address that is looked at.
    pub fn ip(&self) -> IpAddr {
        match self {
            CheckTarget::Connect(address) => address.ip(),
            CheckTarget::Echo(address) => *address,
        }
    }
}

impl fmt::Display for CheckTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckTarget::Connect(address) => address.fmt(f),
            CheckTarget::Echo(address) => address.fmt(f),
        }
    }
}

impl FromStr for CheckTarget {
    type Err = String;

    /// Reads `ADDRESS:PORT` or `ADDRESS`.
    fn from_str(text: &str) -> Result<CheckTarget, String> {
        let target = match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
            (Ok(address), _) => CheckTarget::Echo(address),
            (_, Ok(address)) if address.port() == 0 => return Err("port 0 is no port of anybody".to_owned()),
            (_, Ok(address)) => CheckTarget::Connect(address),
            _ => return Err("it is no address; names are not looked up".to_owned()),
        };
        match target.ip() {
            ip if ip.is_unspecified() || ip.is_multicast() => Err(format!("{ip} is no host")),
            _ => Ok(target),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_they_are_written() {
        for text in ["10.20.0.5", "10.20.0.5:3306", "fd12::1", "[fd12::1]:5432"] {
            assert_eq!(text.parse::<CheckTarget>().unwrap().to_string(), text);
        }
        for wrong in ["", "db1", "db1:3306", "10.20.0.5:0", "10.20.0:3306", "0.0.0.0", "[::]:1", "224.0.0.1"] {
            assert!(wrong.parse::<CheckTarget>().is_err(), "{wrong}");
        }
    }
}
