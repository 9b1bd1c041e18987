//! Golden vectors: the bytes of `docs/protocol.md`, fixed. A change here is a change of the protocol.

mod fixtures;

use std::fmt::Write;

use fixtures::*;
use meshd::identity::*;
use meshd::wire::join::{JoinAttempt, JoinMember, JoinReply, JoinRequest, Joined};
use meshd::wire::{Recipient, introduction};

/// Reads `name = hex` lines; `#` begins a comment.
fn vector(file: &'static str, name: &str) -> Vec<u8> {
    let line = file
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
    let hex = line.unwrap_or_else(|| panic!("no vector `{name}`"));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn assert_vector(file: &'static str, name: &str, made: &[u8]) {
    assert_eq!(hex(made), hex(&vector(file, name)), "{name}");
}

const OBJECTS: &str = include_str!("vectors/objects.txt");
const INTRODUCTION: &str = include_str!("vectors/introduction.txt");
const JOIN: &str = include_str!("vectors/join.txt");

#[test]
fn signed_objects() {
    assert_vector(OBJECTS, "authority_seed", &[0xa1; 32]);
    assert_vector(OBJECTS, "node1_wireguard_secret", &[1; 32]);
    assert_vector(OBJECTS, "node1_wireguard_public", keys(1).public().wireguard.as_bytes());
    assert_vector(OBJECTS, "node1_signing_seed", &[0x81; 32]);
    assert_vector(OBJECTS, "node1_verifying_key", keys(1).public().verifying.as_bytes());
    assert_vector(OBJECTS, "certificate", certificate(1).bytes());
    let delegated = delegation(&admission(2))
        .issue(&admission(2), &keys(2).public(), &Term::offline(NOW), &anchor(), &keys(1).signing)
        .unwrap();
    assert_vector(OBJECTS, "delegation", delegation(&admission(2)).bytes());
    assert_vector(OBJECTS, "delegated_certificate", delegated.bytes());
    assert_vector(OBJECTS, "record", signed_record(1).bytes());
    assert_vector(OBJECTS, "revocation", revocation(1).bytes());
    assert_vector(OBJECTS, "request", request(2).bytes());
    // What is stored is also what is read.
    let certificate = SignedCertificate::verify(&vector(OBJECTS, "certificate"), &anchor()).unwrap();
    assert_eq!(certificate.certificate().admission(), admission(1));
    assert!(SignedCertificate::verify(&vector(OBJECTS, "delegated_certificate"), &anchor()).is_ok());
    assert!(SignedRecord::verify(&vector(OBJECTS, "record"), certificate.certificate()).is_ok());
    assert!(SignedRevocation::verify(&vector(OBJECTS, "revocation"), &anchor()).is_ok());
    assert!(SignedRequest::verify(&vector(OBJECTS, "request")).is_ok());
}

#[test]
fn introductions() {
    let made = introduction::seal(
        &keys(2).public().wireguard,
        &certificate(1),
        Some(&signed_record(1)),
        &keys(1).signing,
        NOW,
        true,
        &mut rng(7),
    );
    assert_vector(INTRODUCTION, "receiver_wireguard_secret", &[2; 32]);
    assert_vector(INTRODUCTION, "introduction", &made.unwrap());
    let receiver = keys(2);
    let datagram = vector(INTRODUCTION, "introduction");
    let opened = introduction::open(&Recipient::new(&receiver.wireguard), &anchor(), NOW, &datagram).unwrap();
    assert!(opened.answer_wanted);
    assert_eq!((opened.certificate, opened.record), (certificate(1), Some(signed_record(1))));
}

#[test]
fn joins() {
    assert_eq!(vector(JOIN, "token_text"), token(2).to_text().as_bytes());
    let endpoints = ["203.0.113.5:7655".parse().unwrap()];
    let (datagram, attempt) = JoinAttempt::new(&token(2), &keys(2), &endpoints, NOW, &mut rng(7)).unwrap();
    assert_vector(JOIN, "request", &datagram);
    let contact = keys(1);
    let request = JoinRequest::open(&Recipient::new(&contact.wireguard), &vector(JOIN, "request")).unwrap();
    let member = JoinMember {
        name: "web1".parse().unwrap(),
        wireguard_key: keys(1).public().wireguard,
        endpoint: "203.0.113.1:7655".parse().unwrap(),
    };
    let reply = JoinReply { now: NOW, outcome: Ok(Joined { certificate: certificate(2), members: vec![member] }) };
    assert_vector(JOIN, "reply", &request.reply(&token(2).key(), &reply, &mut rng(8)).unwrap());
    assert_eq!(attempt.open(&vector(JOIN, "reply")), Ok(reply));
}
