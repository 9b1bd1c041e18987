//! Every link of the mesh, as `meshctl matrix` and the web page show it.

use serde::{Deserialize, Serialize};

use super::{PathKind, PeerState, Timestamp};

/// The links of every node, as that node says: rows were asked for a few seconds ago at most, where the node answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Matrix {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// The members by site, then by name: what the rows and the places in them stand for.
    pub nodes: Vec<MatrixNode>,
    /// A row for each node, in the same order.
    pub rows: Vec<MatrixRow>,
}

impl Matrix {
    /// Nodes of a matrix at most. A larger one would be tens of megabytes, and fits no screen: sites are shown instead.
    pub const NODE_LIMIT: usize = 400;
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MatrixNode {
    /// Its name.
    pub name: String,
    /// Its identifier in hexadecimal.
    pub node_id: String,
    /// Where it stands, as its tag `site-NAME` says.
    #[serde(default)]
    pub site: Option<String>,
    /// It is this node.
    #[serde(default)]
    pub is_self: bool,
}

/// What one node says of its links. Each list has a place for each node, which is empty where nothing is known, and at the
/// node's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MatrixRow {
    /// Seconds since the node said so; absent where it never did.
    #[serde(default)]
    pub age_seconds: Option<f64>,
    /// Why there is nothing newer; absent where the node has just answered.
    #[serde(default)]
    pub missing: Option<RowMissing>,
    /// Median round trips on the path in the last five minutes.
    pub rtt_seconds: Vec<Option<f64>>,
    /// Median round trips of the last seven days.
    pub baseline_seconds: Vec<Option<f64>>,
    /// Loss in the last five minutes, between 0 and 1.
    pub loss_ratio: Vec<Option<f64>>,
    /// Jitter.
    pub jitter_seconds: Vec<Option<f64>>,
    /// States.
    pub state: Vec<Option<PeerState>>,
    /// Kinds of the paths in use.
    pub path: Vec<Option<PathKind>>,
    /// Seconds since the link was last measured, when the row was made; 254 stand for more.
    pub measured_seconds: Vec<Option<u64>>,
    /// The places of the links whose round trip is outside its baseline: by more than 0.5 ms and 5 %.
    #[serde(default)]
    pub outside: Vec<u32>,
    /// The places of the links of which the other end says something else: another state, or a round trip that differs by
    /// more than 20 %.
    #[serde(default)]
    pub disagrees: Vec<u32>,
}

/// Why a node's row is not fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RowMissing {
    /// No session stands with it, so that it could not be asked.
    NoSession,
    /// It was asked and has not answered: overloaded, or older than this question.
    NoAnswer,
    /// It was not asked: of a large mesh only a part is asked.
    NotAsked,
}

/// The links between sites, together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SiteMatrix {
    /// The version of these types.
    pub schema: u32,
    /// When the answer was made.
    pub now: Timestamp,
    /// Members.
    pub nodes: u32,
    /// Members whose row is known.
    pub rows: u32,
    /// Members whose row is not fresh.
    pub missing: u32,
    /// Age of the oldest row.
    #[serde(default)]
    pub oldest_seconds: Option<f64>,
    /// The sites by name; nodes without a site together, last.
    pub sites: Vec<Site>,
    /// From each site (a line) to each site (a place in it), in the order of `sites`.
    pub pairs: Vec<Vec<SitePair>>,
}

/// A site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Site {
    /// Its name; absent for the nodes that have none.
    #[serde(default)]
    pub name: Option<String>,
    /// Its nodes.
    pub nodes: u32,
}

/// The links from one site to another, each as its node in the first says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SitePair {
    /// Links that are known.
    pub links: u32,
    /// Of those, the ones that are neither up nor new.
    pub troubled: u32,
    /// Of those, the ones whose round trip is outside its baseline.
    pub outside: u32,
    /// Of those, the ones whose two ends disagree.
    pub disagreeing: u32,
    /// The median of their median round trips.
    #[serde(default)]
    pub rtt_p50_seconds: Option<f64>,
    /// The largest of their median round trips.
    #[serde(default)]
    pub rtt_max_seconds: Option<f64>,
    /// The median of their baselines.
    #[serde(default)]
    pub baseline_seconds: Option<f64>,
    /// The largest loss, between 0 and 1.
    #[serde(default)]
    pub loss_max_ratio: Option<f64>,
}
