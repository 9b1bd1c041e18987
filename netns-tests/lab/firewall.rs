//! nftables inside a host: only some ports open, cuts, random loss, policing. Everything of ours is in one table,
//! `inet lab`, and each change is one transaction.

use std::fmt;
use std::net::IpAddr;

use super::error::{Context, Result};
use super::host::Host;
use super::package::{NFTABLES, Tree};

/// A host's firewall. Dropping it leaves the rules; they go with the host.
pub struct Firewall {
    host: Host,
    tree: Tree,
}

/// A port that stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// A UDP port.
    Udp(u16),
    /// A TCP port.
    Tcp(u16),
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Open::Udp(port) => write!(f, "udp dport {port}"),
            Open::Tcp(port) => write!(f, "tcp dport {port}"),
        }
    }
}

/// The empty table: `in_rules`, `out_rules` and `through_rules` take the rules that this file adds. They come
/// before connection tracking (-200), so that a cut hides packets from everything else.
const TABLE: &str = "
table inet lab {
    chain in_rules { type filter hook input priority -300; }
    chain out_rules { type filter hook output priority -300; }
    chain through_rules { type filter hook forward priority -300; }
}
";

impl Firewall {
    /// Prepares a host's firewall, which lets everything pass at first.
    ///
    /// # Errors
    /// NOT RUN where `nft` cannot be had.
    pub fn new(host: &Host) -> Result<Firewall> {
        let firewall = Firewall { host: host.clone(), tree: NFTABLES.fetch()? };
        firewall.apply(TABLE)?;
        Ok(firewall)
    }

    /// Applies a script of nft commands as one transaction.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn apply(&self, script: &str) -> Result<()> {
        let nft = self.host.command_from(&self.tree, "nft")?.args(["-f", "-"]).input(script);
        nft.check().map(drop).context(format_args!("nft script {script}"))
    }

    /// Returns the host's whole rule set as nft prints it.
    ///
    /// # Errors
    /// Where nft cannot be run.
    pub fn list(&self) -> Result<String> {
        self.host.command_from(&self.tree, "nft")?.args(["list", "ruleset"]).check()
    }

    /// Closes the host to everything that arrives on `dev` but answers and these ports.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn open_only(&self, dev: &str, ports: &[Open]) -> Result<()> {
        let mut rules = String::new();
        for port in ports {
            rules.push_str(&format!("iifname {dev} {port} accept\n"));
        }
        // Neighbour discovery is how IPv6 finds its link partner at all.
        self.apply(&format!(
            "table inet lab {{ chain closed {{ type filter hook input priority 0; policy accept;
             ct state established,related accept
             icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
             {rules} iifname {dev} counter drop
             }}
             }}"
        ))
    }

    /// Adds a rule to what arrives, such as `udp dport 7655 drop`.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn arriving(&self, rule: &str) -> Result<()> {
        self.apply(&format!("add rule inet lab in_rules {rule}"))
    }

    /// Adds a rule to what leaves.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn leaving(&self, rule: &str) -> Result<()> {
        self.apply(&format!("add rule inet lab out_rules {rule}"))
    }

    /// Adds a rule to what passes through.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn passing(&self, rule: &str) -> Result<()> {
        self.apply(&format!("add rule inet lab through_rules {rule}"))
    }

    /// Loses this share of what arrives on `dev` at random, in percent.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn lose_arriving(&self, dev: &str, percent: u8) -> Result<()> {
        let chance = if percent < 100 { format!("numgen random mod 100 < {percent}") } else { String::new() };
        self.arriving(&format!("iifname {dev} {chance} counter drop"))
    }

    /// Cuts the host off from an address, in both directions.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn cut(&self, address: IpAddr) -> Result<()> {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        self.apply(&format!(
            "add rule inet lab in_rules {family} saddr {address} drop
             add rule inet lab out_rules {family} daddr {address} drop"
        ))
    }

    /// Hides what this host forwards behind its own address on `dev`: a NAT router. `random` gives every connection
    /// another port, as carrier-grade NAT does.
    ///
    /// # Errors
    /// Where nft refuses it, or the host may not forward.
    pub fn masquerade(&self, dev: &str, random: bool) -> Result<()> {
        self.host.sysctl("net/ipv4/ip_forward", "1")?;
        let how = if random { "masquerade fully-random" } else { "masquerade" };
        self.apply(&format!(
            "table inet lab {{
             chain nat {{ type nat hook postrouting priority 100; oifname {dev} {how}; }}
             }}"
        ))
    }

    /// Takes every rule away that was added here; closed ports and NAT stay.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn heal(&self) -> Result<()> {
        self.apply("flush chain inet lab in_rules\nflush chain inet lab out_rules\nflush chain inet lab through_rules")
    }

    /// Takes the whole table away and puts the empty one in its place.
    ///
    /// # Errors
    /// Where nft refuses it.
    pub fn reset(&self) -> Result<()> {
        self.apply(&format!("table inet lab {{}}\ndelete table inet lab\n{TABLE}"))
    }
}
