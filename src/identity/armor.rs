//! Armored files: base64 between a line that says what it is and a line that says it again.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// What an armored file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArmorKind {
    /// A node's secrets.
    Identity,
    /// An authority's secret, perhaps under a passphrase.
    Authority,
    /// A signed certificate.
    Certificate,
    /// A node's request to be admitted.
    Request,
    /// A signed revocation.
    Revocation,
    /// A delegation to issue one certificate.
    Delegation,
    /// Pending invites.
    Invites,
}

/// Why a text is no armored file of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArmorError {
    /// The first or last line is missing or different.
    #[error("expected `-----BEGIN MESHD {kind}-----` … `-----END MESHD {kind}-----`, found {found}")]
    Frame {
        /// The wanted kind.
        kind: &'static str,
        /// What stands there instead.
        found: String,
    },
    /// A line between the two is not what the writer writes.
    #[error("line {line}: not base64 in lines of 64 characters: the file is damaged, copy it again")]
    Line {
        /// The line's number, from 1.
        line: usize,
    },
    /// More than [`MAX_TEXT`] bytes.
    #[error("{length} bytes are too long for a {kind} file (at most {MAX_TEXT})")]
    TooLong {
        /// The wanted kind.
        kind: &'static str,
        /// The text's length in bytes.
        length: usize,
    },
}

/// The longest armored text, in bytes: the largest content (pending invites) is far below it.
pub const MAX_TEXT: usize = 2 << 20;
/// Characters on a full line, as PEM has them (RFC 7468 §2).
const LINE: usize = 64;

impl ArmorKind {
    const ALL: [ArmorKind; 7] = [
        ArmorKind::Identity,
        ArmorKind::Authority,
        ArmorKind::Certificate,
        ArmorKind::Request,
        ArmorKind::Revocation,
        ArmorKind::Delegation,
        ArmorKind::Invites,
    ];

    /// The word in the first and last line.
    pub const fn word(self) -> &'static str {
        match self {
            ArmorKind::Identity => "IDENTITY",
            ArmorKind::Authority => "AUTHORITY",
            ArmorKind::Certificate => "CERTIFICATE",
            ArmorKind::Request => "REQUEST",
            ArmorKind::Revocation => "REVOCATION",
            ArmorKind::Delegation => "DELEGATION",
            ArmorKind::Invites => "INVITES",
        }
    }
}

/// Writes bytes as an armored file, ending in a newline.
pub fn write(kind: ArmorKind, bytes: &[u8]) -> String {
    std::mem::take(&mut *write_secret(kind, bytes))
}

/// Writes secret bytes; the text and what was used to make it wipe themselves.
pub fn write_secret(kind: ArmorKind, bytes: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(STANDARD.encode(bytes));
    // Reserved in full, so that the secret is never left behind in a smaller buffer.
    let mut text = Zeroizing::new(String::with_capacity(base64.len() / LINE + base64.len() + 100));
    text.push_str(&format!("-----BEGIN MESHD {}-----\n", kind.word()));
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END MESHD {}-----\n", kind.word()));
    text
}

/// Reads an armored file. Carriage returns before newlines, and a missing last newline, are forgiven; nothing else.
///
/// # Errors
/// Says which line is wrong, or what kind of file was found instead.
pub fn read(kind: ArmorKind, text: &str) -> Result<Vec<u8>, ArmorError> {
    read_secret(kind, text).map(|mut bytes| std::mem::take(&mut *bytes))
}

/// Reads an armored file into bytes that wipe themselves.
///
/// # Errors
/// As [`read`].
pub fn read_secret(kind: ArmorKind, text: &str) -> Result<Zeroizing<Vec<u8>>, ArmorError> {
    if text.len() > MAX_TEXT {
        return Err(ArmorError::TooLong { kind: kind.word(), length: text.len() });
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let frame = |found: &str| ArmorError::Frame { kind: kind.word(), found: found.to_owned() };
    let [first, body @ .., last] = lines.as_slice() else { return Err(frame("too few lines")) };
    if *first != format!("-----BEGIN MESHD {}-----", kind.word()) {
        let other = ArmorKind::ALL.iter().find(|other| *first == format!("-----BEGIN MESHD {}-----", other.word()));
        return Err(frame(
            &other.map_or("another first line".into(), |other| format!("a file of kind {}", other.word())),
        ));
    }
    if *last != format!("-----END MESHD {}-----", kind.word()) {
        return Err(frame("another last line: the file is cut short"));
    }
    let (final_line, full) = body.split_last().ok_or_else(|| frame("nothing in between"))?;
    if let Some(line) = full.iter().position(|line| line.len() != LINE) {
        return Err(ArmorError::Line { line: line + 2 });
    }
    if final_line.is_empty() || final_line.len() > LINE {
        return Err(ArmorError::Line { line: body.len() + 1 });
    }
    let base64 = Zeroizing::new(body.concat());
    let bytes = STANDARD.decode(base64.as_bytes()).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => base64.len() - 1,
        };
        ArmorError::Line { line: (at / LINE).min(full.len()) + 2 }
    })?;
    Ok(Zeroizing::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_form_is_fixed() {
        let text = write(ArmorKind::Certificate, &[0; 50]);
        let zeros = "A".repeat(64);
        assert_eq!(
            text,
            format!("-----BEGIN MESHD CERTIFICATE-----\n{zeros}\nAAA=\n-----END MESHD CERTIFICATE-----\n")
        );
    }

    #[test]
    fn what_transport_does_to_text_is_forgiven() {
        let text = write(ArmorKind::Request, &[1; 100]);
        assert_eq!(read(ArmorKind::Request, text.trim_end()), Ok(vec![1; 100]));
        assert_eq!(read(ArmorKind::Request, &text.replace('\n', "\r\n")), Ok(vec![1; 100]));
    }

    #[test]
    fn other_forms_are_refused_with_their_place() {
        let text = write(ArmorKind::Request, &[1; 100]);
        assert!(read(ArmorKind::Certificate, &text).unwrap_err().to_string().contains("a file of kind REQUEST"));
        assert_eq!(read(ArmorKind::Request, &text.replacen("AQEB", "A!EB", 1)), Err(ArmorError::Line { line: 2 }));
        assert_eq!(read(ArmorKind::Request, &text.replacen("AQEB", "AQE", 1)), Err(ArmorError::Line { line: 2 }));
        assert!(read(ArmorKind::Request, &format!("\n{text}")).is_err());
        assert!(read(ArmorKind::Request, &format!("{text}\n")).is_err());
        assert!(read(ArmorKind::Request, &text.replace("\n-----END", "\n\n-----END")).is_err());
        assert!(read(ArmorKind::Request, "-----BEGIN MESHD REQUEST-----\n-----END MESHD REQUEST-----").is_err());
        assert!(read(ArmorKind::Request, &"x".repeat(MAX_TEXT + 1)).is_err());
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
            prop_assert_eq!(read(ArmorKind::Revocation, &write(ArmorKind::Revocation, &bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_answered(text in "(-----BEGIN MESHD REQUEST-----\n)?(.|\n){0,200}(\n-----END MESHD REQUEST-----)?") {
            let _ = read(ArmorKind::Request, &text);
        }
    }
}
