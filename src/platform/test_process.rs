//! A process of a test's own, for what cannot be undone.

use std::process::Command;

/// Runs an ignored test of this program, by its whole name, in a process of its own, and fails where that fails. `without` is a
/// variable of the environment that it shall not have.
pub(super) fn in_process(test: &str, without: Option<&str>) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored", "--nocapture"]);
    if let Some(name) = without {
        child.env_remove(name);
    }
    let child = child.output().unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{text}");
    assert!(text.contains("1 passed"), "the child did not run its test: {text}");
}
