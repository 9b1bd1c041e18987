//! What happened, in order: the evidence that a run can be repeated.

use std::fmt::Write;

use blake2::{Blake2s256, Digest};

/// A trace: every event goes into a running hash, the newest lines are kept to be read after a failure.
#[derive(Default)]
pub struct Trace {
    hash: Blake2s256,
    recent: std::collections::VecDeque<String>,
    lines: u64,
}

impl Trace {
    const KEPT: usize = 40;

    /// Adds a line.
    pub fn line(&mut self, line: String) {
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        self.lines += 1;
        if self.recent.len() == Self::KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// The number of lines and their hash.
    pub fn digest(&self) -> String {
        let mut out = format!("{} lines ", self.lines);
        for byte in self.hash.clone().finalize() {
            let _ = write!(out, "{byte:02x}");
        }
        out
    }

    /// The newest lines.
    pub fn tail(&self) -> String {
        self.recent.iter().map(|line| format!("{line}\n")).collect()
    }
}
