//! The form of a state file: what it is, a checksum, and a payload that is read again only where both fit.

use blake2::{Blake2s256, Digest};
use minicbor::{Decode, Encode};

use crate::time::UnixTime;
use crate::tunnel::{Mark, Marks, PeerKey};

/// First line of every state file of ours.
const MAGIC: &[u8] = b"meshd state 1\n";

/// Puts the first line and a checksum in front of a payload.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let mut framed = MAGIC.to_vec();
    framed.extend_from_slice(&Blake2s256::digest(payload));
    framed.extend_from_slice(payload);
    framed
}

/// Returns the payload of a state file.
///
/// # Errors
/// Says why the bytes are no whole state file; the caller sets the file aside.
pub fn unframe(bytes: &[u8]) -> Result<&[u8], String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no state file of this version")?;
    let (checksum, payload) = rest.split_at_checked(32).ok_or("it is cut off")?;
    if Blake2s256::digest(payload).as_slice() != checksum {
        return Err("its checksum does not fit".to_owned());
    }
    Ok(payload)
}

#[derive(Encode, Decode)]
struct SavedMarks {
    #[cbor(n(0), with = "minicbor::bytes")]
    key: [u8; 32],
    #[cbor(n(1), with = "minicbor::bytes")]
    received: [u8; 12],
    #[n(2)]
    sent: u64,
}

/// Encodes the marks of handshakes, the payload of the file `marks`.
pub fn encode_marks(marks: &[(PeerKey, Marks)]) -> Vec<u8> {
    let saved: Vec<SavedMarks> = marks
        .iter()
        .map(|(key, marks)| SavedMarks { key: *key, received: *marks.received.as_bytes(), sent: marks.sent.as_secs() })
        .collect();
    // Encoding into memory cannot fail; an empty payload would be set aside at the next start, not believed.
    minicbor::to_vec(&saved).unwrap_or_default()
}

/// Decodes the marks of handshakes.
///
/// # Errors
/// Says what is wrong with the payload.
pub fn parse_marks(payload: &[u8]) -> Result<Vec<(PeerKey, Marks)>, String> {
    let saved: Vec<SavedMarks> = minicbor::decode(payload).map_err(|error| error.to_string())?;
    Ok(saved
        .into_iter()
        .map(|saved| {
            let marks = Marks { received: Mark::from_bytes(saved.received), sent: UnixTime::from_secs(saved.sent) };
            (saved.key, marks)
        })
        .collect())
}

/// Encodes since when this node is drained: eight bytes, or none.
pub(super) fn encode_drained(since: Option<UnixTime>) -> Vec<u8> {
    since.map(|since| since.as_secs().to_be_bytes().to_vec()).unwrap_or_default()
}

/// Reads what [`encode_drained`] made.
pub(super) fn parse_drained(payload: &[u8]) -> Result<Option<UnixTime>, String> {
    match payload {
        [] => Ok(None),
        _ => match payload.try_into() {
            Ok(secs) => Ok(Some(UnixTime::from_secs(u64::from_be_bytes(secs)))),
            Err(_) => Err(format!("a time of {} bytes", payload.len())),
        },
    }
}
