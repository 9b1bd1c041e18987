//! The lock-down of a host's public side, as a table of nftables.

use std::fmt::Write;

use ipnet::IpNet;

use super::table::{Purpose, removal, replacing};
use crate::config::{Opening, Service};

/// A host's public side: every interface but loopback and the mesh's, and what stays open there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicSide {
    /// The mesh's interface, which rules can name ([`is_nameable`](super::is_nameable)).
    pub interface: String,
    /// The mesh's UDP port.
    pub port: u16,
    /// What else stays open.
    pub allow: Vec<Opening>,
}

/// What a line of the file begins with that says what stays open.
const OPENING: &str = "# open: ";
/// What the line of the file begins with that names the interface.
const INTERFACE: &str = "# interface: ";

impl PublicSide {
    /// The name of the table for a purpose.
    pub fn table(&self, purpose: Purpose) -> String {
        purpose.table(&self.interface)
    }

    /// Returns the nft script that makes the table of a confirmed lock-down, or makes it anew, in one transaction.
    pub fn script(&self) -> String {
        replacing(&self.table(Purpose::Lockdown), &self.body())
    }

    /// Returns the script that makes the table of a trial, which belongs to the socket it is sent by: nobody else can
    /// change it, and the kernel removes it with that socket. One line, for a program that reads lines.
    pub fn trial(&self) -> String {
        let script = format!("table inet {} {{\nflags owner\n{}}}", self.table(Purpose::Trial), self.body());
        // Where a line ends, a semicolon may stand.
        script.lines().map(str::trim).collect::<Vec<_>>().join(";")
    }

    /// Returns the file that is loaded at boot: the script, and what it was made from.
    pub fn to_file(&self) -> String {
        let mut out = String::from("# What meshd's lock-down leaves open; `meshctl lockdown off` lifts it.\n");
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{INTERFACE}{}", self.interface);
        for opening in &self.allow {
            let _ = writeln!(out, "{OPENING}{opening}");
        }
        out + &self.script()
    }

    /// Reads what a file was made from, but for the port, which is the node's.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_file(text: &str, port: u16) -> Result<PublicSide, String> {
        let interface = text.lines().find_map(|line| line.strip_prefix(INTERFACE)).ok_or("it names no interface")?;
        let openings = text.lines().filter_map(|line| line.strip_prefix(OPENING));
        let read = |opening: &str| opening.parse::<Opening>().map_err(|why| format!("`{opening}`: {why}"));
        let allow = openings.map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(PublicSide { interface: interface.to_owned(), port, allow })
    }

    /// What arrives for this host, and what is passed on to a published port of a container: the rules in the order of
    /// frequency.
    fn body(&self) -> String {
        let PublicSide { interface, port, .. } = self;
        let mut body = String::new();
        let mut line = |text: &str| {
            // Writing into a String cannot fail.
            let _ = writeln!(body, "{text}");
        };
        line("    chain arriving {");
        // Before the chains of others: what is closed is counted here.
        line("        type filter hook input priority filter - 5; policy accept;");
        line(&format!("        iifname {{ \"lo\", \"{interface}\" }} accept"));
        line("        ct state established,related accept");
        line(&format!("        udp dport {port} accept"));
        // RFC 4890 section 4.4.1: errors, echoes, and what finds routers, neighbours and groups. Echoes also of IPv4: meshctl
        // ping compares with them, and a host that is found by its open ports is not hidden by silence.
        line("        icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept");
        line(
            "        icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, \
             mld-listener-query, nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
        );
        // Offers of DHCP are answers to broadcasts, which connection tracking does not know for answers.
        line("        udp sport 67 udp dport 68 accept");
        line("        ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept");
        for opening in &self.allow {
            line(&format!("        {}accept", arriving(opening)));
        }
        line("        counter drop comment \"closed\"");
        line("    }");
        // What a port of a container is published by, and nothing else that is passed on.
        line("    chain passing {");
        line("        type filter hook forward priority filter - 5; policy accept;");
        line(&format!("        iifname {{ \"lo\", \"{interface}\" }} accept"));
        line("        ct state established,related accept");
        line("        ct status and dnat == 0 accept");
        for opening in &self.allow {
            line(&format!("        {}accept", passing(opening)));
        }
        line("        counter drop comment \"closed\"");
        line("    }");
        body
    }
}

/// Returns the script that lifts the lock-down of an interface.
pub fn lift(interface: &str) -> String {
    removal(&Purpose::Lockdown.table(interface))
}

fn family(network: &IpNet) -> &'static str {
    match network {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

fn ports(first: u16, last: u16) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// From where an opening is one; nothing where from anywhere.
fn source(opening: &Opening) -> String {
    opening.from.as_ref().map(|from| format!("{} saddr {from} ", family(from))).unwrap_or_default()
}

/// What arrives for an opening.
fn arriving(opening: &Opening) -> String {
    let from = source(opening);
    match opening.service {
        Service::Tcp(first, last) => format!("{from}tcp dport {} ", ports(first, last)),
        Service::Udp(first, last) => format!("{from}udp dport {} ", ports(first, last)),
        Service::Icmp => format!("{from}meta l4proto {{ icmp, ipv6-icmp }} "),
        Service::Any => from,
    }
}

/// What is passed on for an opening: by the port it came to, which is not the one it goes to.
fn passing(opening: &Opening) -> String {
    let from = source(opening);
    match opening.service {
        Service::Tcp(first, last) => format!("{from}meta l4proto tcp ct original proto-dst {} ", ports(first, last)),
        Service::Udp(first, last) => format!("{from}meta l4proto udp ct original proto-dst {} ", ports(first, last)),
        Service::Icmp => format!("{from}meta l4proto {{ icmp, ipv6-icmp }} "),
        Service::Any => from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public_side() -> PublicSide {
        let allow = ["tcp/22 from 203.0.113.0/24", "tcp/80", "udp/4000-4010", "any from 2001:db8::7"];
        let allow = allow.iter().map(|opening| opening.parse().unwrap()).collect();
        PublicSide { interface: "mesh0".to_owned(), port: 7655, allow }
    }

    #[test]
    fn the_table_is_made_whole() {
        insta::assert_snapshot!(public_side().script(), @r#"
        table inet meshd-lockdown_mesh0 {
        }
        delete table inet meshd-lockdown_mesh0
        table inet meshd-lockdown_mesh0 {
            chain arriving {
                type filter hook input priority filter - 5; policy accept;
                iifname { "lo", "mesh0" } accept
                ct state established,related accept
                udp dport 7655 accept
                icmp type { destination-unreachable, time-exceeded, parameter-problem, echo-request } accept
                icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, mld-listener-query, nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
                udp sport 67 udp dport 68 accept
                ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
                ip saddr 203.0.113.0/24 tcp dport 22 accept
                tcp dport 80 accept
                udp dport 4000-4010 accept
                ip6 saddr 2001:db8::7/128 accept
                counter drop comment "closed"
            }
            chain passing {
                type filter hook forward priority filter - 5; policy accept;
                iifname { "lo", "mesh0" } accept
                ct state established,related accept
                ct status and dnat == 0 accept
                ip saddr 203.0.113.0/24 meta l4proto tcp ct original proto-dst 22 accept
                meta l4proto tcp ct original proto-dst 80 accept
                meta l4proto udp ct original proto-dst 4000-4010 accept
                ip6 saddr 2001:db8::7/128 accept
                counter drop comment "closed"
            }
        }
        "#);
    }

    #[test]
    fn a_trial_is_one_line_and_belongs_to_whoever_makes_it() {
        let trial = public_side().trial();
        assert!(
            !trial.contains('\n') && trial.starts_with("table inet meshd-trial_mesh0 {;flags owner;chain arriving {"),
            "{trial}"
        );
        assert!(!trial.contains("delete"), "what belongs to somebody else stays: {trial}");
    }

    #[test]
    fn a_file_says_what_it_was_made_from() {
        let text = public_side().to_file();
        assert_eq!(PublicSide::from_file(&text, 7655), Ok(public_side()));
        assert_eq!(PublicSide::from_file(&text, 7656).unwrap().port, 7656);
        let nothing = PublicSide { allow: Vec::new(), ..public_side() };
        assert_eq!(PublicSide::from_file(&nothing.to_file(), 7655), Ok(nothing));
        assert!(PublicSide::from_file("", 7655).is_err());
        assert!(PublicSide::from_file("# interface: mesh0\n# open: any\n", 7655).is_err());
    }
}
