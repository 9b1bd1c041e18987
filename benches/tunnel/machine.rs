//! What the figures were taken on.

use std::fs;

/// The machine in one line.
pub fn describe() -> String {
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let kib: f64 = field(&memory, "MemTotal").split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0);
    let virtual_machine = if field(&processors, "flags").contains(" hypervisor") { "virtual machine, " } else { "" };
    format!(
        "{count} × {} ({virtual_machine}{:.0} GiB), Linux {}",
        field(&processors, "model name"),
        kib / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The load average over the last minute: how many wanted a processor at a time.
pub fn load() -> f64 {
    read("/proc/loadavg").split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// What others may take before the figures are not worth quoting. A benchmark that just ended leaves about this much of
/// itself in the average too.
const QUIET: f64 = 0.5;

/// A warning where the machine has other work to do.
pub fn warning(load: f64) -> Option<String> {
    let warn = format!("WARNING: the load average is {load:.2} before the first round: this machine is not quiet");
    (load > QUIET).then_some(warn)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
