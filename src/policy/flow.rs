//! The ends of a packet, as rules and connections name them.

use std::net::IpAddr;

use crate::config::Service;

/// IP protocol numbers (IANA).
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
/// See [`TCP`].
pub const ICMP: u8 = 1;
/// See [`TCP`].
pub const ICMPV6: u8 = 58;

/// One direction of a conversation.
///
/// A question of ICMP has its identifier as source port and no destination port, its answer the other way round, so that
/// one is the other reversed, as with TCP and UDP. Other protocols have no ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Who sends.
    pub source: IpAddr,
    /// Who receives.
    pub destination: IpAddr,
    /// The IP protocol.
    pub protocol: u8,
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
}

impl Flow {
    /// Returns the other direction.
    #[must_use]
    pub const fn reversed(&self) -> Flow {
        Flow {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// Tells whether a service of a rule covers this direction.
    pub fn is(&self, service: Service) -> bool {
        let within = |first: u16, last: u16| (first..=last).contains(&self.destination_port);
        match service {
            Service::Any => true,
            Service::Icmp => self.is_icmp() && self.destination_port == 0,
            Service::Tcp(first, last) => self.protocol == TCP && within(first, last),
            Service::Udp(first, last) => self.protocol == UDP && within(first, last),
        }
    }

    /// Tells whether it is ICMP of its addresses' family.
    pub const fn is_icmp(&self) -> bool {
        self.protocol == if self.source.is_ipv4() { ICMP } else { ICMPV6 }
    }
}

/// The flags of a TCP header (RFC 9293 §3.1), as far as they tell where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// A connection begins.
    pub const SYN: u8 = 0x02;
    /// It ends at once.
    pub const RST: u8 = 0x04;
    /// Something is acknowledged.
    pub const ACK: u8 = 0x10;

    /// Tells whether any of `flags` is set.
    pub const fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// Tells whether the segment asks for a new connection.
    pub const fn begins(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// Tells whether the segment changes where its connection stands.
    pub const fn matters(self) -> bool {
        self.has(Self::SYN | Self::FIN | Self::RST)
    }
}
