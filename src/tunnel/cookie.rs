//! WireGuard's MAC1, MAC2 and cookie replies (WireGuard paper §5.4.4 and §5.4.7), computed here on both sides.
//!
//! The cookie we hand out is bound to address *and* port, so that hosts behind one NAT do not share it. The one we
//! receive belongs to the peer, not to one handshake, so that every retry of ours carries it.

use blake2::Blake2sMac;
use blake2::digest::Mac;
use blake2::digest::consts::U16;
use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use rand_core::RngCore;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::noise::hash;
use crate::time::Instant;

/// Bytes of a cookie reply: shorter than any message it answers.
pub(super) const REPLY: usize = 64;

/// Life of the secret behind our cookies (paper §6.6).
const SECRET_LIFE: Duration = Duration::from_secs(120);

/// Life of a received cookie: five seconds less than the secret it was made with, as the kernel has it.
pub(super) const COOKIE_LIFE: Duration = Duration::from_secs(115);

/// A secret of sixteen bytes by which a sender proves that it receives at its address.
pub(super) type Cookie = Zeroizing<[u8; 16]>;

/// The two keys derived from a responder's public key.
pub(super) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    pub(super) fn of(public: &[u8; 32]) -> MacKeys {
        MacKeys { mac1: hash(&[b"mac1----", public]), cookie: hash(&[b"cookie--", public]) }
    }

    /// Whether the message's MAC1 was made for this key. The message is a handshake message: at least 32 bytes.
    pub(super) fn fits(&self, message: &[u8]) -> bool {
        let Some((body, macs)) = split(message) else { return false };
        mac(&self.mac1, &[body]).ct_eq(&macs[..16]).into()
    }

    /// Opens a cookie reply to the message that carried `mac1`.
    pub(super) fn open_reply(&self, reply: &[u8; REPLY], mac1: &[u8; 16]) -> Option<Cookie> {
        let mut cookie = Zeroizing::new([0u8; 16]);
        cookie.copy_from_slice(&reply[32..48]);
        XChaCha20Poly1305::new(Key::from_slice(&self.cookie))
            .decrypt_in_place_detached(
                XNonce::from_slice(&reply[8..32]),
                mac1,
                &mut *cookie,
                Tag::from_slice(&reply[48..]),
            )
            .ok()?;
        Some(cookie)
    }
}

/// Makes the cookies of this host and checks what comes back.
pub(super) struct CookieJar {
    secret: Zeroizing<[u8; 32]>,
    made: Option<Instant>,
}

impl CookieJar {
    pub(super) fn new() -> CookieJar {
        CookieJar { secret: Zeroizing::new([0; 32]), made: None }
    }

    fn cookie(&mut self, now: Instant, rng: &mut impl RngCore, source: SocketAddr) -> Cookie {
        if self.made.is_none_or(|made| now.saturating_since(made) >= SECRET_LIFE) {
            rng.fill_bytes(&mut *self.secret);
            self.made = Some(now);
        }
        let address = match source.ip().to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Zeroizing::new(mac(&*self.secret, &[&address, &source.port().to_be_bytes()]))
    }

    /// Whether the message carries the MAC2 that only the receiver of a cookie at `source` can make.
    pub(super) fn fits(&mut self, now: Instant, rng: &mut impl RngCore, source: SocketAddr, message: &[u8]) -> bool {
        let cookie = self.cookie(now, rng, source);
        let Some((_, macs)) = split(message) else { return false };
        mac2(&cookie, message).ct_eq(&macs[16..]).into()
    }

    /// Answers a handshake message with a cookie for `source`.
    pub(super) fn reply(
        &mut self,
        now: Instant,
        rng: &mut impl RngCore,
        keys: &MacKeys,
        source: SocketAddr,
        message: &[u8],
    ) -> Option<[u8; REPLY]> {
        let (_, macs) = split(message)?;
        let cookie = self.cookie(now, rng, source);
        let mut reply = [0u8; REPLY];
        reply[0] = 3;
        reply[4..8].copy_from_slice(&message[4..8]);
        rng.fill_bytes(&mut reply[8..32]);
        reply[32..48].copy_from_slice(&*cookie);
        let (head, sealed) = reply.split_at_mut(32);
        let (text, tag) = sealed.split_at_mut(16);
        let made = XChaCha20Poly1305::new(Key::from_slice(&keys.cookie))
            .encrypt_in_place_detached(XNonce::from_slice(&head[8..32]), &macs[..16], text)
            .ok()?;
        tag.copy_from_slice(&made);
        Some(reply)
    }
}

/// Writes the MAC2 of a handshake message we send to a peer whose cookie we hold.
pub(super) fn stamp(cookie: &Cookie, message: &mut [u8]) {
    let at = message.len() - 16;
    let mac2 = mac2(cookie, message);
    message[at..].copy_from_slice(&mac2);
}

/// The MAC1 of a handshake message of ours.
pub(super) fn mac1_of(message: &[u8]) -> [u8; 16] {
    let mut mac1 = [0u8; 16];
    mac1.copy_from_slice(&message[message.len() - 32..message.len() - 16]);
    mac1
}

fn split(message: &[u8]) -> Option<(&[u8], &[u8])> {
    message.split_at_checked(message.len().checked_sub(32)?)
}

fn mac2(cookie: &Cookie, message: &[u8]) -> [u8; 16] {
    mac(&**cookie, &[&message[..message.len() - 16]])
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut state = <Blake2sMac<U16> as Mac>::new_from_slice(key).expect("BLAKE2s takes keys of up to 32 bytes");
    for part in parts {
        Mac::update(&mut state, part);
    }
    state.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn message() -> Vec<u8> {
        (0..148u8).collect()
    }

    #[test]
    fn a_cookie_holds_for_one_address_one_port_and_two_minutes() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let (mut jar, keys) = (CookieJar::new(), MacKeys::of(&[9; 32]));
        let source: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let mut message = message();
        let reply = jar.reply(Instant::ZERO, &mut rng, &keys, source, &message).unwrap();
        assert!(reply.len() < message.len());
        assert_eq!(reply[4..8], message[4..8]);
        let cookie = keys.open_reply(&reply, &mac1_of(&message)).unwrap();
        assert!(!jar.fits(Instant::ZERO, &mut rng, source, &message));
        stamp(&cookie, &mut message);
        assert!(jar.fits(Instant::ZERO, &mut rng, source, &message));
        assert!(!jar.fits(Instant::ZERO, &mut rng, "192.0.2.1:1001".parse().unwrap(), &message));
        assert!(!jar.fits(Instant::ZERO, &mut rng, "192.0.2.2:1000".parse().unwrap(), &message));
        assert!(jar.fits(Instant::from_millis(119_999), &mut rng, source, &message));
        assert!(!jar.fits(Instant::from_millis(120_000), &mut rng, source, &message));
    }

    #[test]
    fn a_reply_to_another_message_is_refused() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let keys = MacKeys::of(&[9; 32]);
        let source: SocketAddr = "[2001:db8::1]:1000".parse().unwrap();
        let reply = CookieJar::new().reply(Instant::ZERO, &mut rng, &keys, source, &message()).unwrap();
        assert!(keys.open_reply(&reply, &[0; 16]).is_none());
        assert!(MacKeys::of(&[8; 32]).open_reply(&reply, &mac1_of(&message())).is_none());
    }
}
