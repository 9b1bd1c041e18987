//! Introductions: how a node makes itself known to another that does not have its certificate yet.
//!
//! The receiver answers with a WireGuard handshake (148 bytes), with an introduction of its own where the sender wants one, or not
//! at all; never with more than it was sent, so that a replayed introduction makes no flood at a forged address. One that wants an
//! answer has the full length for that reason. `docs/protocol.md` §3 has the bytes.

use blake2::{Blake2s256, Digest};
use minicbor::{Decode, Encode};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use super::drop::DropReason;
use super::sealed::{self, Channel, Format, Recipient};
use crate::identity::{SignedCertificate, SignedRecord, SigningSecret, TrustAnchor, Validity, WireguardKey};
use crate::time::UnixTime;

/// The first byte of an introduction.
pub const TYPE: u8 = 0x10;
/// The shortest: longer than WireGuard's handshake initiation, which is the only answer to one that wants no introduction.
pub const SHORTEST: usize = 256;
/// The longest: what fits an IPv6 path of the least MTU (1,280 − 40 − 8, RFC 8200 §5) unfragmented.
pub const LONGEST: usize = 1232;

const FORMAT: Format = Format {
    kind: TYPE,
    domain: "meshd introduction v1",
    mac_domain: "meshd introduction mac",
    lengths: SHORTEST..=LONGEST,
};

/// An introduction whose certificate, record and signature were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Who it is; holds now by the receiver's clock. Whether it is revoked, the receiver knows.
    pub certificate: SignedCertificate,
    /// What it says about itself, where there was room.
    pub record: Option<SignedRecord>,
    /// When it was sent, by the sender's clock, which may be wrong: for the log.
    pub sent: UnixTime,
    /// The sender knows only our key, or cannot start a handshake itself: it wants our introduction and our handshake.
    pub answer_wanted: bool,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Content<'b> {
    #[cbor(b(0), with = "minicbor::bytes")]
    certificate: &'b [u8],
    #[cbor(b(1), with = "minicbor::bytes")]
    record: Option<&'b [u8]>,
    #[n(2)]
    sent: u64,
    #[cbor(n(3), with = "minicbor::bytes")]
    signature: [u8; 64],
    #[n(4)]
    answer_wanted: bool,
}

/// Whether a datagram is an introduction made by someone who knows this node's public key. Costs one hash; the caller
/// limits the rate of what passes before it calls [`open`].
pub fn check_mac(me: &WireguardKey, datagram: &[u8]) -> bool {
    sealed::check_mac(&FORMAT, me, datagram)
}

/// Makes an introduction of this node (its certificate, record and signing secret) to the node with key `to`.
///
/// A record that would not fit is left out: it follows through the tunnel. One that wants an answer is padded to
/// [`LONGEST`]. Returns nothing where `to` is no usable key, which checked keys always are.
pub fn seal(
    to: &WireguardKey,
    certificate: &SignedCertificate,
    record: Option<&SignedRecord>,
    signing: &SigningSecret,
    now: UnixTime,
    answer_wanted: bool,
    rng: &mut impl CryptoRngCore,
) -> Option<Vec<u8>> {
    let channel = Channel::to(to, rng)?;
    let content = |record: Option<&SignedRecord>| {
        let record = record.map(SignedRecord::bytes);
        let signed = to_be_signed(&channel, now.as_secs(), answer_wanted, certificate.bytes(), record);
        let (certificate, sent) = (certificate.bytes(), now.as_secs());
        let content = Content { certificate, record, sent, signature: signing.sign(&signed), answer_wanted };
        let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST));
        minicbor::encode(&content, &mut *bytes).ok().map(|()| bytes)
    };
    let whole = content(record)?;
    let fits = whole.len() + sealed::OVERHEAD <= LONGEST;
    let mut content = if fits { whole } else { content(None)? };
    if answer_wanted && content.len() + sealed::OVERHEAD < LONGEST {
        content.resize(LONGEST - sealed::OVERHEAD, 0);
    }
    channel.seal(&FORMAT, content)
}

/// Opens an introduction: length, mac, seal, certificate, signature, record, in this order, each before the next costs
/// anything.
///
/// `now` is the receiver's clock, never behind what it has seen signed.
///
/// # Errors
/// The reason to count; no answer is ever given. Where the certificate does not hold now, or is none of this mesh, that
/// is [`DropReason::NotAdmitted`].
pub fn open(
    me: &Recipient<'_>,
    anchor: &TrustAnchor,
    now: UnixTime,
    datagram: &[u8],
) -> Result<Introduction, DropReason> {
    let (channel, bytes) = sealed::open(&FORMAT, me, datagram)?;
    let content: Content<'_> = sealed::decode(&bytes)?;
    let sent = UnixTime::from_secs(content.sent);
    let certificate = SignedCertificate::verify(content.certificate, anchor).map_err(|_| DropReason::NotAdmitted)?;
    // One that holds only later shows that our clock is behind, not that its bearer lies.
    if certificate.validity(now) == Validity::Expired {
        return Err(DropReason::NotAdmitted);
    }
    let signed = to_be_signed(&channel, content.sent, content.answer_wanted, content.certificate, content.record);
    if !certificate.certificate().verifying_key.verify(&signed, &content.signature) {
        return Err(DropReason::BadSeal);
    }
    let record = content.record.map(|bytes| SignedRecord::verify(bytes, certificate.certificate()));
    let record = record.transpose().map_err(|_| DropReason::Malformed)?;
    // A shorter one may want what it likes: the answer could be longer than it is.
    let answer_wanted = content.answer_wanted && datagram.len() == LONGEST;
    Ok(Introduction { certificate, record, sent, answer_wanted })
}

/// What the sender signs: for this receiver, this datagram and this time only.
fn to_be_signed(
    channel: &Channel,
    sent: u64,
    answer_wanted: bool,
    certificate: &[u8],
    record: Option<&[u8]>,
) -> Vec<u8> {
    let mut bytes = b"meshd introduction v1".to_vec();
    bytes.extend(channel.recipient.as_bytes());
    bytes.extend(channel.ephemeral);
    bytes.extend(sent.to_be_bytes());
    bytes.push(u8::from(answer_wanted));
    bytes.extend(Blake2s256::digest(certificate));
    bytes.extend(Blake2s256::digest(record.unwrap_or_default()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{NOW, admission, authority, certificate, keys, record, rng};
    use crate::identity::{Admission, Term};
    use proptest::prelude::*;
    use std::time::Duration;

    fn introduce(number: u8, to: u8) -> Vec<u8> {
        let certificate = certificate(number);
        let record = record(number, 2);
        seal(&keys(to).public().wireguard, &certificate, Some(&record), &keys(number).signing, NOW, false, &mut rng(1))
            .unwrap()
    }

    fn opened(by: u8, now: UnixTime, datagram: &[u8]) -> Result<Introduction, DropReason> {
        let keys = keys(by);
        open(&Recipient::new(&keys.wireguard), authority().anchor(), now, datagram)
    }

    #[test]
    fn a_node_makes_itself_known() {
        let datagram = introduce(1, 2);
        assert!(check_mac(&keys(2).public().wireguard, &datagram));
        assert!((SHORTEST..=LONGEST).contains(&datagram.len()));
        let introduction = opened(2, NOW, &datagram).unwrap();
        assert_eq!(introduction.certificate, certificate(1));
        assert_eq!(introduction.record, Some(record(1, 2)));
        assert_eq!(introduction.sent, NOW);
        assert!(!introduction.answer_wanted);
    }

    #[test]
    fn only_one_of_full_length_is_answered() {
        let (to, own) = (keys(2).public().wireguard, keys(1));
        let asking = seal(&to, &certificate(1), None, &own.signing, NOW, true, &mut rng(1)).unwrap();
        assert_eq!(asking.len(), LONGEST);
        assert!(opened(2, NOW, &asking).unwrap().answer_wanted);
        // The same without its padding, made by a sender that keeps to no rule.
        let keys_2 = keys(2);
        let (_, content) = sealed::open(&FORMAT, &Recipient::new(&keys_2.wireguard), &asking).ok().unwrap();
        let end = content.len() - content.iter().rev().take_while(|byte| **byte == 0).count();
        let channel = Channel::to(&to, &mut rng(1)).unwrap();
        let short = channel.seal(&FORMAT, Zeroizing::new(content[..end].to_vec())).unwrap();
        assert!(short.len() < LONGEST);
        assert!(!opened(2, NOW, &short).unwrap().answer_wanted);
    }

    #[test]
    fn strangers_to_the_key_get_silence() {
        let datagram = introduce(1, 2);
        assert!(!check_mac(&keys(3).public().wireguard, &datagram));
        assert_eq!(opened(3, NOW, &datagram), Err(DropReason::BadMac));
    }

    #[test]
    fn every_bit_and_every_length_counts() {
        let datagram = introduce(1, 2);
        for end in 0..datagram.len() {
            assert!(opened(2, NOW, &datagram[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(opened(2, NOW, &flipped).is_err(), "bit {bit}");
            // The same by someone who can make macs, which needs no secret.
            let end = flipped.len() - 16;
            let again = remac(&flipped[..end]);
            assert!(bit >= end * 8 || opened(2, NOW, &again).is_err(), "bit {bit} under a new mac");
        }
    }

    fn remac(covered: &[u8]) -> Vec<u8> {
        let key = Blake2s256::new()
            .chain_update(b"meshd introduction mac")
            .chain_update(keys(2).public().wireguard.as_bytes())
            .finalize();
        use blake2::digest::{KeyInit, Mac};
        let mut mac = <blake2::Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new_from_slice(&key).unwrap();
        mac.update(covered);
        [covered, &mac.finalize().into_bytes()].concat()
    }

    #[test]
    fn the_receiver_cannot_pass_it_on_as_its_own_introduction() {
        // Node 2 opens an introduction of node 1 and seals its content to node 3: the signature names node 2.
        let keys_2 = keys(2);
        let (_, content) = sealed::open(&FORMAT, &Recipient::new(&keys_2.wireguard), &introduce(1, 2)).ok().unwrap();
        let channel = Channel::to(&keys(3).public().wireguard, &mut rng(9)).unwrap();
        let forged = channel.seal(&FORMAT, content).unwrap();
        assert_eq!(opened(3, NOW, &forged), Err(DropReason::BadSeal));
    }

    #[test]
    fn another_node_cannot_speak_with_a_certificate_that_is_not_its_own() {
        let to = keys(2).public().wireguard;
        let stolen = seal(&to, &certificate(1), None, &keys(3).signing, NOW, false, &mut rng(1)).unwrap();
        assert_eq!(opened(2, NOW, &stolen), Err(DropReason::BadSeal));
        let foreign =
            seal(&to, &certificate(1), Some(&record(3, 1)), &keys(1).signing, NOW, false, &mut rng(1)).unwrap();
        assert_eq!(opened(2, NOW, &foreign), Err(DropReason::Malformed));
    }

    #[test]
    fn the_signature_covers_receiver_datagram_time_and_content() {
        let [two, three] = [2, 3].map(|number| keys(number).public().wireguard);
        let channel = |to, seed| Channel::to(to, &mut rng(seed)).unwrap();
        let base = to_be_signed(&channel(&two, 1), 5, false, b"certificate", Some(b"record"));
        assert_eq!(base, to_be_signed(&channel(&two, 1), 5, false, b"certificate", Some(b"record")));
        for other in [
            to_be_signed(&channel(&two, 1), 5, true, b"certificate", Some(b"record")),
            to_be_signed(&channel(&three, 1), 5, false, b"certificate", Some(b"record")),
            to_be_signed(&channel(&two, 2), 5, false, b"certificate", Some(b"record")),
            to_be_signed(&channel(&two, 1), 6, false, b"certificate", Some(b"record")),
            to_be_signed(&channel(&two, 1), 5, false, b"certificatf", Some(b"record")),
            to_be_signed(&channel(&two, 1), 5, false, b"certificate", Some(b"recore")),
            to_be_signed(&channel(&two, 1), 5, false, b"certificat", Some(b"erecord")),
            to_be_signed(&channel(&two, 1), 5, false, b"certificate", None),
        ] {
            assert_ne!(other, base);
        }
    }

    #[test]
    fn padding_is_zero() {
        let keys_2 = keys(2);
        let (_, content) = sealed::open(&FORMAT, &Recipient::new(&keys_2.wireguard), &introduce(1, 2)).ok().unwrap();
        for (padding, accepted) in [(vec![0, 0, 0], true), (vec![0, 1, 0], false), (vec![0xff], false)] {
            let padded = Zeroizing::new([content.as_slice(), &padding].concat());
            assert_eq!(sealed::decode::<Content<'_>>(&padded).is_ok(), accepted, "{padding:?}");
        }
    }

    #[test]
    fn a_wrong_clock_shuts_nobody_out_but_an_ended_certificate_does() {
        let datagram = introduce(1, 2);
        let early = UnixTime::from_secs(1_000_000_000);
        assert!(opened(2, early, &datagram).is_ok(), "the receiver's clock is years behind");
        let month = Duration::from_secs(30 * 86_400);
        assert!(opened(2, NOW + month, &datagram).is_ok(), "the sender's clock is a month behind");
        let expired = NOW + Term::OFFLINE;
        let late =
            seal(&keys(2).public().wireguard, &certificate(1), None, &keys(1).signing, expired, false, &mut rng(1));
        assert_eq!(opened(2, expired, &late.unwrap()), Err(DropReason::NotAdmitted));
    }

    #[test]
    fn the_longest_certificate_still_fits_without_its_record() {
        let prefixes = (0..16).map(|i| format!("2001:db8:{i:x}::/48").parse().unwrap()).collect();
        let tags = (10..23).map(|i| format!("{i}{}", "x".repeat(30)).parse().unwrap()).collect();
        let large = Admission { prefixes, tags, ..admission(1) };
        let certificate = authority().issue(&large, &keys(1).public(), &Term::offline(NOW)).unwrap();
        assert!(certificate.bytes().len() > 980, "{}", certificate.bytes().len());
        let to = keys(2).public().wireguard;
        let datagram =
            seal(&to, &certificate, Some(&record(1, 16)), &keys(1).signing, NOW, false, &mut rng(1)).unwrap();
        let introduction = opened(2, NOW, &datagram).unwrap();
        assert_eq!((introduction.certificate, introduction.record), (certificate, None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
            prop_assert!(opened(2, NOW, &bytes).is_err());
            prop_assert!(!check_mac(&keys(2).public().wireguard, &bytes));
        }

        #[test]
        fn arbitrary_content_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let channel = Channel::to(&keys(2).public().wireguard, &mut rng(1)).unwrap();
            let datagram = channel.seal(&FORMAT, Zeroizing::new(bytes)).unwrap();
            prop_assert!(opened(2, NOW, &datagram).is_err());
        }
    }
}
