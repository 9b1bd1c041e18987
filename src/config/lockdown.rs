//! What everybody may reach on the underlay, as `[lockdown]` says it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::allow::Service;

/// What stays open when everything else of the public side is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lockdown {
    /// What may be reached, in the order of the file, at most [`Lockdown::LIMIT`]; nothing but the mesh's port where empty.
    pub allow: Vec<Opening>,
}

/// Something that stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What may be reached: ports, or everything by whom it names.
    pub service: Service,
    /// By whom; by everybody where absent. Without host bits.
    pub from: Option<IpNet>,
}

impl Lockdown {
    /// Openings at most: each is a rule that a new connection is compared with.
    pub const LIMIT: usize = 256;
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        match &self.from {
            Some(from) => write!(f, " from {}", super::wireguard::shown(from)),
            None => Ok(()),
        }
    }
}

impl FromStr for Opening {
    type Err = String;

    /// Reads `tcp/22`, or `tcp/22 from 203.0.113.0/24`.
    fn from_str(text: &str) -> Result<Opening, String> {
        let (service, from) = match text.split_once(" from ") {
            Some((service, from)) => (service, Some(network(from)?)),
            None => (text, None),
        };
        match (service.parse::<Service>()?, from) {
            (Service::Any, None) => {
                Err("that opens everything; say from where, as in `any from 203.0.113.7`".to_owned())
            }
            (Service::Icmp, _) => Err("what of ICMP a host needs, and echoes, always pass".to_owned()),
            (service, from) => Ok(Opening { service, from }),
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network =
        address.or_else(|_| text.parse::<IpNet>()).map_err(|_| format!("`{text}` is no address or prefix"))?;
    if network.trunc() != network {
        return Err(format!("the prefix starts at another address; did you mean {}?", network.trunc()));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_read_as_they_are_written() {
        for text in ["tcp/22 from 203.0.113.0/24", "tcp/80", "udp/4000-4010 from 2001:db8::/32", "any from 203.0.113.7"]
        {
            assert_eq!(text.parse::<Opening>().unwrap().to_string(), text);
        }
        for text in ["", "any", "icmp", "tcp/22 from", "tcp/22 from ", "tcp/22 from web1", "tcp/22 from 203.0.113.1/24"]
        {
            assert!(text.parse::<Opening>().is_err(), "{text}");
        }
    }
}
