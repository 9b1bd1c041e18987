//! Names of nodes and tags: short, lower-case, safe in file names, DNS, metrics and shells.

use std::fmt;
use std::str::FromStr;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};

/// A node's (or a mesh's) name: one DNS label of 1 to 63 characters `a-z 0-9 -`, with no `-` at either end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// A tag on a node: 1 to 32 characters `a-z 0-9 _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

/// A text that cannot be a name or a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}: expected {expected}")]
pub struct NameError {
    /// "node name" or "tag".
    pub what: &'static str,
    /// The beginning of what was read, cut after 70 characters, control characters escaped.
    pub text: String,
    /// What would have been right.
    pub expected: &'static str,
}

impl NodeName {
    /// The longest name, in bytes: a DNS label (RFC 1035 §2.3.4).
    pub const MAX_LEN: usize = 63;

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// The longest tag, in bytes; sixteen of them still leave room in a certificate.
    pub const MAX_LEN: usize = 32;
    /// How the tag begins that says where a node stands: `site-paris`.
    const SITE: &str = "site-";

    /// Returns the tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the site that the tag names: `paris` for `site-paris`.
    pub fn site(&self) -> Option<&str> {
        self.0.strip_prefix(Self::SITE).filter(|site| !site.is_empty())
    }
}

impl FromStr for NodeName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        let length = (1..=Self::MAX_LEN).contains(&text.len());
        if allowed && length && !text.starts_with('-') && !text.ends_with('-') {
            return Ok(NodeName(text.to_owned()));
        }
        let expected = "1 to 63 characters a-z 0-9 -, beginning and ending with a letter or digit";
        Err(NameError { what: "node name", text: shown(text), expected })
    }
}

impl FromStr for Tag {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_');
        if allowed && (1..=Self::MAX_LEN).contains(&text.len()) {
            return Ok(Tag(text.to_owned()));
        }
        Err(NameError { what: "tag", text: shown(text), expected: "1 to 32 characters a-z 0-9 _ -" })
    }
}

/// What an error message may show of hostile text: no control characters (they steer terminals), not much of it.
fn shown(text: &str) -> String {
    text.chars().take(70).flat_map(char::escape_debug).collect()
}

macro_rules! text_codec {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                d.str()?.parse().map_err(|error: NameError| DecodeError::message(error.to_string()))
            }
        }
    };
}

text_codec!(NodeName);
text_codec!(Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_names() {
        for text in ["a", "web1", "a-b", "0", &"x".repeat(63)] {
            assert_eq!(text.parse::<NodeName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a\0", "a b", &"x".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
        for text in ["", "A", "a.b", "ä", &"x".repeat(33)] {
            assert!(text.parse::<Tag>().is_err(), "{text}");
        }
        assert!("-db_primary".parse::<Tag>().is_ok());
    }

    #[test]
    fn a_tag_may_name_a_site() {
        let site = |text: &str| text.parse::<Tag>().unwrap().site().map(str::to_owned);
        assert_eq!(site("site-paris"), Some("paris".to_owned()));
        assert_eq!((site("site-"), site("db"), site("site")), (None, None, None));
    }

    #[test]
    fn errors_cannot_steer_a_terminal() {
        let error = "\x1b[2J".parse::<NodeName>().unwrap_err();
        assert!(!error.to_string().contains('\x1b'));
    }
}
