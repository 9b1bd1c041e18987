//! Signed objects from outside: only exactly what was signed, by whom it must be signed, is accepted.

mod fixtures;

use std::time::Duration;

use fixtures::*;
use meshd::identity::*;
use proptest::prelude::*;

/// One kind of object: its name, valid bytes, and its verification.
type Kind = (&'static str, Vec<u8>, fn(&[u8]) -> Result<(), ObjectError>);

fn kinds() -> Vec<Kind> {
    let delegated = delegation(&admission(2))
        .issue(&admission(2), &keys(2).public(), &Term::offline(NOW), &anchor(), &keys(1).signing)
        .unwrap();
    vec![
        ("certificate", certificate(1).bytes().to_vec(), |b| SignedCertificate::verify(b, &anchor()).map(drop)),
        ("delegated", delegated.bytes().to_vec(), |b| SignedCertificate::verify(b, &anchor()).map(drop)),
        ("delegation", delegation(&admission(2)).bytes().to_vec(), |b| {
            SignedDelegation::verify(b, &anchor()).map(drop)
        }),
        ("record", signed_record(1).bytes().to_vec(), |b| {
            SignedRecord::verify(b, certificate(1).certificate()).map(drop)
        }),
        ("revocation", revocation(1).bytes().to_vec(), |b| SignedRevocation::verify(b, &anchor()).map(drop)),
        ("request", request(1).bytes().to_vec(), |b| SignedRequest::verify(b).map(drop)),
    ]
}

/// A byte string in its shortest form, written independently of the product.
fn byte_string(bytes: &[u8]) -> Vec<u8> {
    let head = match bytes.len() {
        n @ 0..=23 => vec![0x40 + n as u8],
        n @ 24..=255 => vec![0x58, n as u8],
        n => vec![0x59, (n >> 8) as u8, n as u8],
    };
    [head, bytes.to_vec()].concat()
}

/// A COSE_Sign1, likewise.
fn cose(domain: &str, payload: &[u8], secret: &SigningSecret) -> Vec<u8> {
    let protected = [0xa1, 0x01, 0x27];
    let mut signed = vec![0x84, 0x6a];
    signed.extend(b"Signature1");
    signed.extend([byte_string(&protected), byte_string(domain.as_bytes()), byte_string(payload)].concat());
    let signature = secret.sign(&signed);
    [&[0xd2, 0x84], &byte_string(&protected)[..], &[0xa0], &byte_string(payload), &byte_string(&signature)].concat()
}

/// The payload of a signed object.
fn payload(bytes: &[u8]) -> Vec<u8> {
    let body = &bytes[7..bytes.len() - 66];
    let head = if body[0] == 0x59 { 3 } else { 2 };
    body[head..].to_vec()
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the test names bytes that are there");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

fn verify_certificate(payload: &[u8]) -> Result<SignedCertificate, ObjectError> {
    SignedCertificate::verify(&cose("meshd certificate v1", payload, &authority_secret(0xa1)), &anchor())
}

fn verify_record(payload: &[u8]) -> Result<SignedRecord, ObjectError> {
    SignedRecord::verify(&cose("meshd record v1", payload, &keys(1).signing), certificate(1).certificate())
}

#[test]
fn what_was_signed_is_accepted_and_an_independent_writer_writes_the_same() {
    for (name, bytes, verify) in kinds() {
        assert_eq!(verify(&bytes), Ok(()), "{name}");
    }
    let bytes = certificate(1).bytes().to_vec();
    assert_eq!(cose("meshd certificate v1", &payload(&bytes), &authority_secret(0xa1)), bytes);
}

#[test]
fn every_truncation_is_refused() {
    for (name, bytes, verify) in kinds() {
        for end in 0..bytes.len() {
            assert!(verify(&bytes[..end]).is_err(), "{name} cut at {end}");
        }
        assert!(verify(&[&bytes[..], &[0]].concat()).is_err(), "{name} with a byte more");
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for (name, bytes, verify) in kinds() {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&flipped).is_err(), "{name}, bit {bit}");
        }
    }
}

#[test]
fn no_object_passes_for_one_of_another_kind() {
    for (name, bytes, _) in kinds() {
        for (other, _, verify) in kinds() {
            let same = name == other
                || (name, other) == ("certificate", "delegated")
                || (name, other) == ("delegated", "certificate");
            assert!(same || verify(&bytes).is_err(), "{name} as {other}");
        }
    }
    // The same payload and key under another domain string.
    let foreign = cose("meshd revocation v1", &payload(certificate(1).bytes()), &authority_secret(0xa1));
    assert!(matches!(SignedCertificate::verify(&foreign, &anchor()), Err(ObjectError::Signature { .. })));
}

#[test]
fn a_signature_has_one_form() {
    // s + L verifies under loose rules: the group order L, little-endian (RFC 8032 §5.1).
    let mut order = [0_u8; 32];
    order[..16].copy_from_slice(&[
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    ]);
    order[31] = 0x10;
    for (name, bytes, verify) in kinds() {
        let mut second = bytes.clone();
        let at = second.len() - 32;
        let mut carry = 0;
        for (byte, add) in second[at..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        assert!(matches!(verify(&second), Err(ObjectError::Signature { .. })), "{name}");
    }
}

#[test]
fn an_envelope_has_one_encoding() {
    for (name, bytes, verify) in kinds() {
        let body = payload(&bytes);
        let tail = &bytes[bytes.len() - 66..];
        let long_head = [&bytes[..7], &[0x5a, 0, 0, (body.len() >> 8) as u8, body.len() as u8], &body, tail].concat();
        let indefinite = [&bytes[..7], &[0x5f], &byte_string(&body), &[0xff], tail].concat();
        let untagged = bytes[1..].to_vec();
        let header = replaced(&bytes, &[0xa1, 0x01, 0x27, 0xa0], &[0xa1, 0x01, 0x27, 0xa1, 0x04, 0x40]);
        let nested_tag = [&[0xd2], &bytes[..]].concat();
        for second in [long_head, indefinite, untagged, header, nested_tag] {
            assert!(matches!(verify(&second), Err(ObjectError::Encoding { .. })), "{name}");
        }
    }
}

#[test]
fn a_payload_has_one_encoding_even_for_its_signer() {
    let good = payload(certificate(1).bytes());
    assert!(verify_certificate(&good).is_ok());
    assert_eq!(good[0], 0xb0, "sixteen fields");
    let second = [
        [&[0xb8, 0x10], &good[1..]].concat(),                      // map length in two bytes
        [&[0xbf], &good[1..], &[0xff]].concat(),                   // indefinite map
        replaced(&good, &[0x0f, 0x07], &[0x0f, 0x18, 0x07]),       // serial in two bytes
        replaced(&good, &[0x0b, 0x02], &[0x0b, 0xf9, 0x40, 0x00]), // permissions as a float
        [&good[..], &[0x00]].concat(),                             // a byte more
        [&[0xb1], &good[1..], &[0x10, 0xf6]].concat(),             // an absent field as null
        replaced(&good, b"\x62db\x63web", b"\x63web\x62db"),       // tags in another order
        replaced(&good, b"\x82\x62db\x63web", b"\x83\x62db\x62db\x63web"), // a tag twice
        replaced(&good, b"\x45\xc0\xa8\x07\x00\x18", b"\x45\xc0\xa8\x07\x01\x18"), // host bits in a prefix
    ];
    for (i, payload) in second.iter().enumerate() {
        assert!(verify_certificate(payload).is_err(), "encoding {i}");
    }
}

#[test]
fn newer_writers_may_add_optional_fields_but_not_critical_ones() {
    let good = payload(signed_record(1).bytes());
    let optional = [&[good[0] + 1], &good[1..], &[0x18, 64, 0x63, b'n', b'e', b'w']].concat();
    let record = verify_record(&optional).unwrap();
    assert_eq!(record.record(), signed_record(1).record());
    assert_eq!(payload(record.bytes()), optional, "passed on as it was signed");
    let critical = [&[good[0] + 1], &good[1..], &[0x18, 63, 0x00]].concat();
    assert!(verify_record(&critical).is_err());
}

#[test]
fn other_meshes_and_other_authorities_are_refused() {
    let other_mesh = authority_of(0x34, 0xa1).issue(&admission(1), &keys(1).public(), &Term::offline(NOW)).unwrap();
    let refused = SignedCertificate::verify(other_mesh.bytes(), &anchor()).unwrap_err();
    assert_eq!(refused, ObjectError::Foreign { kind: ObjectKind::Certificate, what: "mesh" });
    let other_key = authority_of(0x33, 0xa2).issue(&admission(1), &keys(1).public(), &Term::offline(NOW)).unwrap();
    assert!(matches!(SignedCertificate::verify(other_key.bytes(), &anchor()), Err(ObjectError::Signature { .. })));
    let foreign = authority_of(0x33, 0xa2).revoke(&Revocation::of(certificate(1).certificate(), NOW)).unwrap();
    assert!(SignedRevocation::verify(foreign.bytes(), &anchor()).is_err());
    // While keys are exchanged, both are believed.
    let both = TrustAnchor { authorities: vec![anchor().authorities[0], authority_secret(0xa2).public()], ..anchor() };
    let issuer = SignedCertificate::verify(other_key.bytes(), &both).unwrap().issuer();
    assert_eq!(issuer, Issuer::Authority(authority_secret(0xa2).public()));
}

#[test]
fn keys_of_low_order_are_refused_in_certificates() {
    let good = payload(certificate(1).bytes());
    let public = keys(1).public();
    for weak in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        assert!(verify_certificate(&replaced(&good, public.wireguard.as_bytes(), &weak)).is_err());
        assert!(verify_certificate(&replaced(&good, public.verifying.as_bytes(), &weak)).is_err());
    }
    let mut second_form = *public.wireguard.as_bytes();
    second_form[31] |= 0x80;
    assert!(verify_certificate(&replaced(&good, public.wireguard.as_bytes(), &second_form)).is_err());
}

#[test]
fn certificates_keep_their_limits() {
    let issue = |change: &dyn Fn(&mut Admission)| {
        let mut changed = admission(1);
        change(&mut changed);
        authority().issue(&changed, &keys(1).public(), &Term::offline(NOW))
    };
    let prefixes = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    assert!(issue(&|a| a.serial = 0).is_err());
    assert!(issue(&|a| a.address_v4 = "10.78.0.1".parse().unwrap()).is_err());
    assert!(issue(&|a| a.address_v4 = "10.77.0.0".parse().unwrap()).is_err());
    assert!(issue(&|a| a.address_v4 = "10.77.255.255".parse().unwrap()).is_err());
    for bad in
        ["0.0.0.0/0", "::/0", "10.77.3.0/24", "10.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "169.254.1.0/24", "fe80::/64"]
    {
        assert!(issue(&|a| a.prefixes = prefixes(&[bad])).is_err(), "{bad}");
    }
    assert!(issue(&|a| a.prefixes = prefixes(&["192.168.0.0/16", "192.168.1.0/24"])).is_err());
    assert!(issue(&|a| a.tags = (0..17).map(|i| format!("t{i}").parse().unwrap()).collect()).is_err());
    assert!(issue(&|a| a.prefixes = (0..17).map(|i| format!("192.168.{i}.0/24").parse().unwrap()).collect()).is_err());
    let large = issue(&|a| a.tags = (10..26).map(|i| format!("{i}{}", "x".repeat(30)).parse().unwrap()).collect());
    assert!(large.is_ok());
    let too_large = issue(&|a| {
        a.tags = (10..26).map(|i| format!("{i}{}", "x".repeat(30)).parse().unwrap()).collect();
        a.prefixes = (0..16).map(|i| format!("2001:db8:{i:x}::/48").parse().unwrap()).collect();
    });
    assert!(matches!(too_large, Err(ObjectError::TooLong { .. })));
}

#[test]
fn terms_are_bounded_and_times_are_judged() {
    let issue = |term: Term| authority().issue(&admission(1), &keys(1).public(), &term);
    let second = Duration::from_secs(1);
    assert!(issue(Term::lasting(NOW, Certificate::LONGEST)).is_ok());
    assert!(issue(Term::lasting(NOW, Certificate::LONGEST + second)).is_err());
    assert!(issue(Term::lasting(NOW, Duration::ZERO)).is_err());
    assert!(issue(Term { not_before: NOW + second, ..Term::offline(NOW) }).is_err());
    assert!(issue(Term { not_before: NOW - Term::MAX_BACKDATING - second, ..Term::offline(NOW) }).is_err());
    let certificate = issue(Term::online(NOW)).unwrap();
    assert_eq!(certificate.validity(NOW - Term::BACKDATING), Validity::Valid, "a clock a day slow");
    assert_eq!(certificate.validity(NOW - Term::BACKDATING - second), Validity::NotYet);
    assert_eq!(certificate.validity(NOW + Term::ONLINE - second), Validity::Valid);
    assert_eq!(certificate.validity(NOW + Term::ONLINE), Validity::Expired);
}

#[test]
fn numbers_at_their_extremes_are_refused_or_harmless() {
    let good = payload(certificate(1).bytes());
    let issued = [&[0x0c, 0x1a][..], &(NOW.as_secs() as u32).to_be_bytes()].concat();
    let huge = [&[0x0c, 0x1b][..], &[0xff; 8]].concat();
    assert!(verify_certificate(&replaced(&good, &issued, &huge)).is_err());
    let serial = [&[0x0f, 0x1b][..], &[0xff; 8]].concat();
    assert!(verify_certificate(&replaced(&good, &[0x0f, 0x07], &serial)).is_ok());
    let largest =
        Record { sequence: u64::MAX, boot: u64::MAX, features: u32::MAX, policy: Some(u64::MAX), ..record(1) };
    assert!(SignedRecord::sign(&largest, &keys(1).signing).is_ok());
}

#[test]
fn only_the_subject_speaks_for_itself_and_within_limits() {
    let forged = SignedRecord::sign(&record(1), &keys(2).signing).unwrap();
    let certificate_1 = certificate(1);
    let verify = |bytes: &[u8]| SignedRecord::verify(bytes, certificate_1.certificate());
    assert!(matches!(verify(forged.bytes()), Err(ObjectError::Signature { .. })));
    assert!(matches!(verify(signed_record(2).bytes()), Err(ObjectError::Foreign { what: "node", .. })));
    assert_eq!(SignedRecord::peek_node(signed_record(2).bytes()), Some(record(2).node));
    let refused = |record: Record| {
        assert!(SignedRecord::sign(&record, &keys(1).signing).is_err(), "{record:?}");
    };
    refused(Record { sequence: 0, ..record(1) });
    refused(Record { expires: NOW, ..record(1) });
    refused(Record { expires: NOW + Record::LONGEST + Duration::from_secs(1), ..record(1) });
    for endpoint in ["0.0.0.0:7655", "203.0.113.5:0", "[::ffff:203.0.113.5]:7655", "224.0.0.1:1", "[ff02::1]:1"] {
        refused(Record { endpoints: vec![endpoint.parse().unwrap()], ..record(1) });
    }
    refused(Record { endpoints: vec!["203.0.113.5:1".parse().unwrap(); 2], ..record(1) });
    let endpoints = |count| (1..=count).map(|port| ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], port).into()).collect();
    refused(Record { endpoints: endpoints(17), ..record(1) });
    let widest = Record {
        endpoints: endpoints(16),
        sequence: u64::MAX,
        boot: u64::MAX,
        certificate_serial: u64::MAX,
        features: u32::MAX,
        policy: Some(u64::MAX),
        protocol_version: u16::MAX,
        ..record(1)
    };
    let signed = SignedRecord::sign(&widest, &keys(1).signing).unwrap();
    assert!(verify(signed.bytes()).is_ok());
}

#[test]
fn a_delegation_permits_one_admission_and_nothing_else() {
    let issue = |admission: &Admission, term: Term, by: u8| {
        delegation(&fixtures::admission(2)).issue(admission, &keys(2).public(), &term, &anchor(), &keys(by).signing)
    };
    let issued = issue(&admission(2), Term::offline(NOW), 1).unwrap();
    assert_eq!(issued.issuer(), Issuer::Delegate(keys(1).public().verifying));
    assert_eq!(issued.certificate().not_after, NOW + 110 * DAY, "cut to what is permitted");
    assert!(issue(&admission(2), Term::offline(NOW), 3).is_err(), "another member");
    assert!(issue(&admission(2), Term::offline(NOW + 10 * DAY), 1).is_err(), "after the window");
    assert!(issue(&admission(2), Term::offline(NOW - 2 * DAY), 1).is_err(), "before the window");
    let changes: [&dyn Fn(&mut Admission); 7] = [
        &|a| a.node = NodeId::from_bytes([9; 16]),
        &|a| a.name = "web9".parse().unwrap(),
        &|a| a.address_v4 = "10.77.0.9".parse().unwrap(),
        &|a| a.prefixes.push("192.168.9.0/24".parse().unwrap()),
        &|a| a.tags.clear(),
        &|a| a.permissions.authority = true,
        &|a| a.serial = 8,
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut other = admission(2);
        change(&mut other);
        assert!(issue(&other, Term::offline(NOW), 1).is_err(), "change {i}");
    }
    let own = delegation(&admission(2)).issue(
        &admission(2),
        &keys(1).public(),
        &Term::offline(NOW),
        &anchor(),
        &keys(1).signing,
    );
    assert!(own.is_err(), "a node does not admit itself");
}

#[test]
fn a_delegation_must_itself_be_an_authoritys() {
    // Node 1 writes its own delegation and a certificate under it.
    let rogue = authority_of(0x33, 0x81);
    let terms = DelegationTerms { delegate: keys(1).public().verifying, now: NOW, window: DAY, certificate: DAY };
    let delegation = rogue.delegate(&admission(2), &terms).unwrap();
    assert!(SignedDelegation::verify(delegation.bytes(), &anchor()).is_err());
    let issued = delegation
        .issue(&admission(2), &keys(2).public(), &Term::offline(NOW), rogue.anchor(), &keys(1).signing)
        .unwrap();
    assert!(matches!(SignedCertificate::verify(issued.bytes(), &anchor()), Err(ObjectError::Signature { .. })));
    let long = DelegationTerms { window: Delegation::LONGEST + DAY, ..terms };
    assert!(authority().delegate(&admission(2), &long).is_err());
}

#[test]
fn the_longest_revocation_fits() {
    let longest = Revocation {
        name: "n".repeat(63).parse().unwrap(),
        at: meshd::time::UnixTime::from_secs(253_402_300_799),
        not_after: meshd::time::UnixTime::from_secs(253_402_300_799),
        ..revocation(1).revocation().clone()
    };
    assert!(authority().revoke(&longest).is_ok());
}

#[test]
fn files_round_trip() {
    let certificate = certificate(1);
    assert_eq!(SignedCertificate::from_armor(&certificate.to_armor(), &anchor()), Ok(certificate));
    assert_eq!(SignedRequest::from_armor(&request(1).to_armor()), Ok(request(1)));
    assert_eq!(SignedRevocation::from_armor(&revocation(1).to_armor(), &anchor()), Ok(revocation(1)));
    let delegation = delegation(&admission(2));
    assert_eq!(SignedDelegation::from_armor(&delegation.to_armor(), &anchor()), Ok(delegation));
    assert!(matches!(SignedRequest::from_armor(&revocation(1).to_armor()), Err(ObjectError::Armor(_))));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
        for (name, _, verify) in kinds() {
            prop_assert!(verify(&bytes).is_err(), "{}", name);
        }
    }

    /// Payloads nobody signed are refused by their signature; these are signed, and any CBOR-like bytes.
    #[test]
    fn arbitrary_signed_payloads_never_panic(
        cut in 0..400_usize,
        with in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut payload = payload(certificate(1).bytes());
        let at = cut % payload.len();
        let end = (at + with.len()).min(payload.len());
        payload.splice(at..end, with);
        let changed = payload != self::payload(certificate(1).bytes());
        if let Ok(accepted) = verify_certificate(&payload) {
            prop_assert!(!changed || accepted.certificate() != certificate(1).certificate());
        }
    }
}
