//! Signed objects, tokens, and the texts of names, identifiers and keys.

use meshd::identity::*;

use super::fixtures::*;
use super::forge::{self, cose};

/// The bytes themselves, or a payload signed by the one whose signature counts.
fn object(data: &[u8], domain: &str, secrets: &[SigningSecret]) -> Vec<u8> {
    match data.split_first() {
        Some((mode @ 1.., payload)) => {
            let secret = &secrets[(usize::from(*mode) - 1) % secrets.len()];
            cose(domain, &payload[..payload.len().min(2048)], secret)
        }
        Some((_, raw)) => raw.to_vec(),
        None => Vec::new(),
    }
}

/// What was signed again from the decoded fields is what was read, except for optional fields of a later version.
fn assert_one_encoding(read: &[u8], again: &[u8]) {
    assert!(read == again || read.len() > again.len(), "two encodings of one meaning");
}

/// Certificates, by the authority or by a delegate.
pub fn certificate(data: &[u8]) {
    let anchor = anchor();
    let bytes = object(data, "meshd certificate v1", &[authority_secret(0xa1), keys(1).signing]);
    let Ok(signed) = SignedCertificate::verify(&bytes, &anchor) else { return };
    let certificate = signed.certificate();
    assert_eq!(signed.bytes(), bytes);
    assert!(bytes.len() <= 1024);
    assert_eq!(SignedCertificate::peek_node(&bytes), Some(certificate.node));
    assert_eq!(SignedCertificate::from_armor(&signed.to_armor(), &anchor), Ok(signed.clone()));
    assert!(certificate.admission().check(&anchor).is_ok());
    assert!(certificate.not_before <= certificate.issued && certificate.issued < certificate.not_after);
    if let Issuer::Authority(_) = signed.issuer() {
        let Certificate { issued, not_before, not_after, .. } = *certificate;
        let term = Term { issued, not_before, not_after };
        let again = authority().issue(&certificate.admission(), &certificate.keys(), &term).expect("it was accepted");
        assert_eq!(again.certificate(), certificate);
        assert_one_encoding(&bytes, again.bytes());
    }
}

/// Delegations.
pub fn delegation(data: &[u8]) {
    let bytes = object(data, "meshd delegation v1", &[authority_secret(0xa1)]);
    let Ok(signed) = SignedDelegation::verify(&bytes, &anchor()) else { return };
    assert_eq!(signed.bytes(), bytes);
    assert!(bytes.len() <= 256);
    assert_eq!(SignedDelegation::from_armor(&signed.to_armor(), &anchor()), Ok(signed.clone()));
    // Only the admission it names can come of it.
    let term = Term::offline(NOW);
    if let Ok(issued) = signed.issue(&admission(2), &keys(2).public(), &term, &anchor(), &keys(1).signing) {
        assert!(issued.certificate().not_after <= signed.delegation().certificate_not_after);
    }
}

/// Records, by their subject.
pub fn record(data: &[u8]) {
    let subject = super::fixtures::certificate(1);
    let bytes = object(data, "meshd record v1", &[keys(1).signing]);
    let _ = SignedRecord::peek_node(&bytes);
    let Ok(signed) = SignedRecord::verify(&bytes, subject.certificate()) else { return };
    let record = signed.record();
    assert_eq!(signed.bytes(), bytes);
    assert!(bytes.len() <= 512 && record.endpoints.len() <= Record::MAX_ENDPOINTS);
    assert_eq!(record.node, subject.certificate().node);
    assert_eq!(SignedRecord::peek_node(&bytes), Some(record.node));
    let again = SignedRecord::sign(record, &keys(1).signing).expect("it was accepted");
    assert_one_encoding(&bytes, again.bytes());
}

/// Revocations.
pub fn revocation(data: &[u8]) {
    let bytes = object(data, "meshd revocation v1", &[authority_secret(0xa1)]);
    let Ok(signed) = SignedRevocation::verify(&bytes, &anchor()) else { return };
    assert_eq!(signed.bytes(), bytes);
    assert_eq!(SignedRevocation::from_armor(&signed.to_armor(), &anchor()), Ok(signed.clone()));
    let again = authority().revoke(signed.revocation()).expect("it was accepted");
    assert_one_encoding(&bytes, again.bytes());
}

/// Requests to be admitted.
pub fn request(data: &[u8]) {
    let bytes = object(data, "meshd request v1", &[keys(1).signing]);
    let Ok(signed) = SignedRequest::verify(&bytes) else { return };
    assert_eq!(signed.bytes(), bytes);
    assert_eq!(SignedRequest::from_armor(&signed.to_armor()), Ok(signed.clone()));
    let request = signed.request();
    assert!(request.endpoints.len() <= Request::MAX_ENDPOINTS);
    if request.keys() == keys(1).public() {
        let again = SignedRequest::new(&request.name, &request.endpoints, request.created, &keys(1));
        assert_one_encoding(&bytes, again.expect("it was accepted").bytes());
    }
}

/// Invite tokens: text, or the content under a checksum made here.
pub fn token(data: &[u8]) {
    let text = match data.split_first() {
        Some((1.., content)) => token_text(content),
        Some((_, raw)) => match std::str::from_utf8(raw) {
            Ok(text) => text.to_owned(),
            Err(_) => return,
        },
        None => return,
    };
    let Ok(token) = text.parse::<Token>() else { return };
    assert!(token.check().is_ok() && token.anchor().is_ok());
    assert!((1..=Token::MAX_ENDPOINTS).contains(&token.endpoints.len()));
    let again = token.to_text();
    let back: Token = again.parse().expect("what was written is read");
    assert_eq!(*back.to_text(), *again);
    assert!(*again == *text.trim() || again.len() < text.trim().len(), "two texts of one token");
    assert!(!format!("{token:?}").contains("secret: "), "a token is shown without its secret");
}

fn token_text(content: &[u8]) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use blake2::{Blake2s256, Digest};
    let sum = Blake2s256::new().chain_update(b"meshd token v1").chain_update(content).finalize();
    format!("meshd1-{}", URL_SAFE_NO_PAD.encode([content, &sum[..4]].concat()))
}

/// Names, identifiers and keys as text.
pub fn text(data: &[u8]) {
    fn round_trip<T: std::str::FromStr + std::fmt::Display + PartialEq>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            let written = value.to_string();
            assert!(written.parse::<T>().ok() == Some(value), "`{text}` became `{written}`");
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    round_trip::<NodeName>(text);
    round_trip::<Tag>(text);
    round_trip::<NodeId>(text);
    round_trip::<MeshId>(text);
    round_trip::<InviteId>(text);
    round_trip::<WireguardKey>(text);
    round_trip::<VerifyingKey>(text);
    if let Ok(duration) = meshd::config::duration::parse(text) {
        let written = meshd::config::duration::format(duration);
        assert_eq!(meshd::config::duration::parse(&written), Ok(duration), "`{text}` became `{written}`");
    }
}

/// Inputs to begin with.
pub mod seeds {
    use super::super::fixtures::*;
    use super::super::{Seed, with};
    use super::forge::payload;
    use meshd::identity::*;

    pub fn certificate() -> Vec<Seed> {
        let plain = fixture_certificate();
        let delegated = delegation_of(2)
            .issue(&admission(2), &keys(2).public(), &Term::offline(NOW), &anchor(), &keys(1).signing)
            .unwrap();
        let bare = Admission { prefixes: vec![], tags: vec![], ..admission(3) };
        let bare = authority().issue(&bare, &keys(3).public(), &Term::online(NOW)).unwrap();
        let prefixes = (0..16).map(|i| format!("2001:db8:{i:x}::/48").parse().unwrap()).collect();
        let tags = (10..23).map(|i| format!("{i}{}", "x".repeat(30)).parse().unwrap()).collect();
        let large = Admission { prefixes, tags, ..admission(4) };
        let large = authority().issue(&large, &keys(4).public(), &Term::offline(NOW)).unwrap();
        let mut optional = payload(plain.bytes());
        // One more entry in the map: 64 => 0, which an older reader may ignore.
        optional[0] += 1;
        optional.extend([0x18, 64, 0]);
        vec![
            ("empty", vec![]),
            ("signed", with(0, plain.bytes())),
            ("delegated", with(0, delegated.bytes())),
            ("payload", with(1, payload(plain.bytes()))),
            ("payload-bare", with(1, payload(bare.bytes()))),
            ("payload-large", with(1, payload(large.bytes()))),
            ("payload-optional-field", with(1, optional)),
            ("payload-delegated", with(2, payload(delegated.bytes()))),
            ("payload-not-a-map", with(1, [0x80])),
            ("payload-endless-array", with(1, [0xa1, 0x00, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
            ("payload-nested", with(1, [&[0xa1, 0x00][..], &[0x81; 200]].concat())),
        ]
    }

    fn fixture_certificate() -> SignedCertificate {
        super::super::fixtures::certificate(1)
    }

    fn delegation_of(number: u8) -> SignedDelegation {
        super::super::fixtures::delegation(&admission(number))
    }

    pub fn delegation() -> Vec<Seed> {
        let signed = delegation_of(2);
        vec![("signed", with(0, signed.bytes())), ("payload", with(1, payload(signed.bytes())))]
    }

    pub fn record() -> Vec<Seed> {
        let signed = signed_record(1);
        let endpoints = (1..=16).map(|port| ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], port).into()).collect();
        let (sequence, boot, features) = (u64::MAX, u64::MAX, u32::MAX);
        let large = Record { endpoints, sequence, boot, features, ..super::super::fixtures::record(1) };
        let large = SignedRecord::sign(&large, &keys(1).signing).unwrap();
        vec![
            ("signed", with(0, signed.bytes())),
            ("payload", with(1, payload(signed.bytes()))),
            ("payload-large", with(1, payload(large.bytes()))),
        ]
    }

    pub fn revocation() -> Vec<Seed> {
        let signed = super::super::fixtures::revocation(1);
        vec![("signed", with(0, signed.bytes())), ("payload", with(1, payload(signed.bytes())))]
    }

    pub fn request() -> Vec<Seed> {
        let signed = super::super::fixtures::request(1);
        vec![("signed", with(0, signed.bytes())), ("payload", with(1, payload(signed.bytes())))]
    }

    pub fn token() -> Vec<Seed> {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let text = super::super::fixtures::token(2).to_text();
        let bytes = URL_SAFE_NO_PAD.decode(&text["meshd1-".len()..]).unwrap();
        vec![
            ("text", with(0, text.as_bytes())),
            ("text-with-space", with(0, format!(" {}\r\n", text.as_str()))),
            ("text-newer", with(0, "meshd2-AAAA")),
            ("text-prefix-alone", with(0, "meshd1-")),
            ("content", with(1, &bytes[..bytes.len() - 4])),
        ]
    }

    pub fn text() -> Vec<Seed> {
        let long = "a".repeat(63);
        let texts = ["web-1", "-web", "", "db_2", "1h30m", "0", "90s", "ÅÅÅ", long.as_str()];
        let names = ["name", "dash", "empty", "tag", "duration", "zero", "seconds", "unicode", "long"];
        let mut seeds: Vec<Seed> =
            names.iter().zip(texts).map(|(name, text)| (*name, text.as_bytes().to_vec())).collect();
        seeds.push(("node-id", anchor().mesh.to_string().into_bytes()));
        seeds.push(("wireguard-key", keys(1).public().wireguard.to_string().into_bytes()));
        seeds.push(("verifying-key", keys(1).public().verifying.to_string().into_bytes()));
        seeds
    }
}
