//! The members' certificates: who rests on which authority, and certificates that an operator brings.

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The members' certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Certificates {
    /// The version of these types.
    pub schema: u32,
    /// The authorities that this node trusts, their keys in base64.
    pub authorities: Vec<String>,
    /// The certificates, by name.
    pub certificates: Vec<MemberCertificate>,
}

/// The certificate of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemberCertificate {
    /// The member's name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// The authority it rests on: its key in base64.
    pub authority: String,
    /// When it stops being valid.
    pub expires: Timestamp,
    /// It is this node's own.
    pub is_self: bool,
    /// The signed bytes in base64. Nothing in them is secret.
    pub certificate: String,
}

/// Has the daemon take certificates of members and spread them: all, or none where one is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CertificatesRequest {
    /// The signed bytes in base64, one of each certificate.
    pub certificates: Vec<String>,
}

/// The certificates were taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CertificatesTaken {
    /// The version of these types.
    pub schema: u32,
    /// How many.
    pub taken: u64,
}
