//! The older text format of Prometheus (0.0.4), made of the text of OpenMetrics.
//!
//! The two differ in what names a family: in the older one, the name of its samples. So `# TYPE x counter` becomes
//! `# TYPE x_total counter`, and the kinds that it does not know become gauges. Samples are the same in both.

use std::fmt::Write;

/// Rewrites the text that our own [`super::render`] made.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    // The help of a family comes before its type, which decides its name.
    let mut help = "";
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        // Writing into a String cannot fail.
        let _ = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), text) => {
                help = text.unwrap_or_default();
                Ok(())
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    kind => ("", kind),
                };
                writeln!(plain, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}")
            }
            (Some("#"), ..) => Ok(()),
            _ => writeln!(plain, "{line}"),
        };
    }
    plain
}
