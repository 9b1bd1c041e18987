//! Address honesty: the mesh's addresses are the mesh interface's alone, as a table of nftables. A gateway's NAT is in it, too.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::table::{Purpose, replacing};

/// What the kernel is to keep apart: what bears an address of the mesh and does not come through its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The mesh's interface, which rules can name ([`is_nameable`](super::is_nameable)).
    pub interface: String,
    /// This node's address in the mesh.
    pub address_v4: Ipv4Addr,
    /// The same of IPv6.
    pub address_v6: Ipv6Addr,
    /// The addresses of the mesh.
    pub overlay_v4: Ipv4Net,
    /// The same of IPv6.
    pub overlay_v6: Ipv6Net,
    /// Where the daemon's own packets come from.
    pub listen: SocketAddr,
    /// Whether what comes from the mesh and goes on gets this host's own address.
    pub masquerade: bool,
}

impl Addresses {
    /// The table's name.
    pub fn table(&self) -> String {
        Purpose::Addresses.table(&self.interface)
    }

    /// Returns the nft script that makes the table, or makes it anew, in one transaction.
    ///
    /// Packets are dropped that arrive on another interface and are for this node's address in the mesh, whoever sent them
    /// (CVE-2019-14899: a neighbour on the wire finds out by the answers what goes on inside), or that claim to come from the
    /// mesh. Loopback passes: a host's packets to itself go there. The hook comes before connection tracking and NAT, so
    /// that nothing of such a packet is remembered, and before forwarding, so that none is passed on.
    ///
    /// And the daemon's own packets never leave by the mesh's interface, where they would be packed again for ever.
    ///
    /// Masquerading is for what the kernel forwards; what may be forwarded is the certificate's, and has been judged before.
    /// Older kernels than 5.7 do not know there where a packet came in, and change nothing.
    pub fn script(&self) -> String {
        let Addresses { interface, address_v4, address_v6, overlay_v4, overlay_v6, listen, masquerade } = self;
        let port = listen.port();
        // Another program may have the same port at another address.
        let (v4, v6) = match listen {
            SocketAddr::V4(listen) if !listen.ip().is_unspecified() => (Some(*listen.ip()), None),
            SocketAddr::V6(listen) if !listen.ip().is_unspecified() => (None, Some(*listen.ip())),
            _ => (None, None),
        };
        let source = match (v4, v6) {
            (Some(v4), _) => format!("ip saddr {v4} "),
            (_, Some(v6)) => format!("ip6 saddr {v6} "),
            _ => String::new(),
        };
        let mut body = String::new();
        let mut line = |text: &str| {
            // Writing into a String cannot fail.
            let _ = writeln!(body, "{text}");
        };
        line("    chain arriving {");
        line("        type filter hook prerouting priority raw; policy accept;");
        line(&format!("        iifname {{ \"lo\", \"{interface}\" }} accept"));
        line(&format!("        ip daddr {address_v4} counter drop comment \"for this node's address in the mesh\""));
        line(&format!("        ip6 daddr {address_v6} counter drop comment \"for this node's address in the mesh\""));
        line(&format!("        ip saddr {overlay_v4} counter drop comment \"claims to come from the mesh\""));
        line(&format!("        ip6 saddr {overlay_v6} counter drop comment \"claims to come from the mesh\""));
        line("    }");
        line("    chain leaving {");
        line("        type filter hook output priority raw; policy accept;");
        line(&format!(
            "        oifname \"{interface}\" {source}udp sport {port} counter drop comment \"the daemon's own packets\""
        ));
        line("    }");
        if *masquerade {
            line("    chain passing {");
            line("        type nat hook postrouting priority srcnat; policy accept;");
            line(&format!("        iifname \"{interface}\" oifname != \"{interface}\" counter masquerade"));
            line("    }");
        }
        replacing(&self.table(), &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        Addresses {
            interface: "mesh0".to_owned(),
            address_v4: Ipv4Addr::new(10, 77, 0, 1),
            address_v6: "fd12:3456:789a::1".parse().unwrap(),
            overlay_v4: "10.77.0.0/16".parse().unwrap(),
            overlay_v6: "fd12:3456:789a::/48".parse().unwrap(),
            listen: "[::]:7655".parse().unwrap(),
            masquerade: false,
        }
    }

    #[test]
    fn the_table_is_made_whole() {
        insta::assert_snapshot!(addresses().script(), @r#"
        table inet meshd_mesh0 {
        }
        delete table inet meshd_mesh0
        table inet meshd_mesh0 {
            chain arriving {
                type filter hook prerouting priority raw; policy accept;
                iifname { "lo", "mesh0" } accept
                ip daddr 10.77.0.1 counter drop comment "for this node's address in the mesh"
                ip6 daddr fd12:3456:789a::1 counter drop comment "for this node's address in the mesh"
                ip saddr 10.77.0.0/16 counter drop comment "claims to come from the mesh"
                ip6 saddr fd12:3456:789a::/48 counter drop comment "claims to come from the mesh"
            }
            chain leaving {
                type filter hook output priority raw; policy accept;
                oifname "mesh0" udp sport 7655 counter drop comment "the daemon's own packets"
            }
        }
        "#);
    }

    #[test]
    fn a_gateway_gives_its_own_address_to_what_it_forwards_from_the_mesh() {
        let script = Addresses { masquerade: true, ..addresses() }.script();
        let own = addresses().script();
        let chain = script.strip_prefix(own.trim_end().trim_end_matches('}')).expect("more than the rest, behind it");
        assert_eq!(
            chain.lines().map(str::trim).collect::<Vec<_>>(),
            [
                "chain passing {",
                "type nat hook postrouting priority srcnat; policy accept;",
                "iifname \"mesh0\" oifname != \"mesh0\" counter masquerade",
                "}",
                "}"
            ]
        );
    }

    #[test]
    fn a_port_at_one_address_is_that_addresses() {
        let addresses = Addresses { listen: "192.0.2.1:7655".parse().unwrap(), ..addresses() };
        assert!(addresses.script().contains("oifname \"mesh0\" ip saddr 192.0.2.1 udp sport 7655 counter drop"));
    }
}
