//! `meshctl` as a user runs it: files written, what is on which stream, exit codes.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn meshctl(directory: &Path, arguments: &[&str], input: &str) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(arguments).current_dir(directory).env_clear();
    command.env("MESHD_CONFIG", directory.join("meshd.toml"));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshctl starts");
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("meshctl ends");
    Run {
        code: status.code().expect("no signal"),
        out: String::from_utf8(stdout).expect("UTF-8"),
        err: String::from_utf8(stderr).expect("UTF-8"),
    }
}

const INIT: [&str; 7] = ["init", "--mesh", "example", "--node", "web1", "--endpoint", "203.0.113.5:7700"];

fn initialised() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let run = meshctl(directory.path(), &INIT, "");
    assert_eq!(run.code, 0, "{}", run.err);
    directory
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_writes_five_files_with_their_modes_and_a_valid_configuration() {
    let directory = initialised();
    for (name, expected) in [
        ("authority.key", 0o600),
        ("authority.ledger", 0o600),
        ("identity.key", 0o600),
        ("node.cert", 0o644),
        ("meshd.toml", 0o644),
    ] {
        assert_eq!(mode(&directory.path().join(name)), expected, "{name}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 5);
    let run = meshctl(directory.path(), &["check"], "");
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("is valid: node web1 of mesh example, 10.77.0.0/16"), "{}", run.out);
    let text = std::fs::read_to_string(directory.path().join("meshd.toml")).unwrap();
    assert!(text.contains("\nlisten = \"[::]:7700\"") && text.contains("\nauthority = \"authority.key\""), "{text}");
}

#[test]
fn init_refuses_whole_where_any_file_is_there() {
    for taken in ["authority.key", "authority.ledger", "identity.key", "node.cert", "meshd.toml"] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(taken), "precious").unwrap();
        let run = meshctl(directory.path(), &INIT, "");
        assert_eq!(run.code, 1, "{}", run.err);
        assert!(run.err.contains(taken), "{}", run.err);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else was written");
        assert_eq!(std::fs::read_to_string(directory.path().join(taken)).unwrap(), "precious");
    }
}

#[test]
fn init_refuses_endpoints_nobody_can_send_to_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let run =
        meshctl(directory.path(), &["init", "--mesh", "example", "--node", "web1", "--endpoint", "0.0.0.0:7655"], "");
    assert_eq!(run.code, 6, "{}", run.err);
    assert!(run.err.contains("nobody can send to 0.0.0.0"), "{}", run.err);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_request_becomes_a_certificate_and_the_ledger_remembers() {
    let authority = initialised();
    let host = tempfile::tempdir().unwrap();
    let request = meshctl(host.path(), &["request", "--node", "web2", "--endpoint", "198.51.100.7:7655"], "");
    assert_eq!(request.code, 0, "{}", request.err);
    assert!(request.out.starts_with("-----BEGIN MESHD REQUEST-----\n"), "{}", request.out);
    assert_eq!(mode(&host.path().join("identity.key")), 0o600);
    let sign = ["sign", "-", "--authority", "authority.key", "--tag", "web", "--route", "192.0.2.0/24", "--days", "90"];
    let signed = meshctl(authority.path(), &sign, &request.out);
    assert_eq!(signed.code, 0, "{}", signed.err);
    assert!(signed.out.starts_with("-----BEGIN MESHD CERTIFICATE-----\n"), "{}", signed.out);
    assert!(signed.err.contains("web2 is 10.77.0.2"), "{}", signed.err);

    // The same host asks again: same keys, same address, no new file.
    let again = meshctl(host.path(), &["request", "--node", "web2"], "");
    assert!(again.err.contains("used the keys in"), "{}", again.err);
    let renewed = meshctl(authority.path(), &["--json", "sign", "-", "--authority", "authority.key"], &again.out);
    let renewed: serde_json::Value = serde_json::from_str(&renewed.out).unwrap();
    assert_eq!((renewed["address_v4"].as_str(), renewed["schema"].as_u64()), (Some("10.77.0.2"), Some(1)));

    // Another host with the same name is refused until it is said to be the same one.
    let rebuilt = tempfile::tempdir().unwrap();
    let request = meshctl(rebuilt.path(), &["request", "--node", "web2"], "").out;
    let refused = meshctl(authority.path(), &["sign", "-", "--authority", "authority.key"], &request);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{}", refused.err);
    assert!(refused.err.contains("--replace"), "{}", refused.err);
    let replaced = meshctl(authority.path(), &["sign", "-", "--authority", "authority.key", "--replace"], &request);
    assert_eq!(replaced.code, 0, "{}", replaced.err);
    assert!(replaced.err.contains("web2 is 10.77.0.2"), "{}", replaced.err);
}

#[test]
fn signing_needs_the_ledger_and_a_private_key_file() {
    let authority = initialised();
    let request = meshctl(tempfile::tempdir().unwrap().path(), &["request", "--node", "web2"], "").out;
    let sign = ["sign", "-", "--authority", "authority.key"];
    let ledger = authority.path().join("authority.ledger");
    std::fs::rename(&ledger, authority.path().join("elsewhere")).unwrap();
    let run = meshctl(authority.path(), &sign, &request);
    assert_eq!(run.code, 4, "{}", run.err);
    assert!(run.err.contains("authority.ledger is missing"), "{}", run.err);
    std::fs::rename(authority.path().join("elsewhere"), &ledger).unwrap();
    let key = authority.path().join("authority.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let run = meshctl(authority.path(), &sign, &request);
    assert_eq!(run.code, 1, "{}", run.err);
    assert!(run.err.contains("chmod 600"), "{}", run.err);
}

#[test]
fn a_protected_authority_asks_for_its_passphrase_file() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "correct horse battery\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let init = [&INIT[..], &["--authority-passphrase-file", "secret"]].concat();
    assert_eq!(meshctl(directory.path(), &init, "").code, 0);
    let text = std::fs::read_to_string(directory.path().join("meshd.toml")).unwrap();
    assert!(text.contains("\nauthority_passphrase_file = \"secret\""), "{text}");
    let request = meshctl(tempfile::tempdir().unwrap().path(), &["request", "--node", "web2"], "").out;
    let sign = ["sign", "-", "--authority", "authority.key", "--passphrase-file", "secret"];
    assert_eq!(meshctl(directory.path(), &sign, &request).code, 0);
    std::fs::write(&secret, "wrong horse\n").unwrap();
    let run = meshctl(directory.path(), &sign, &request);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("wrong passphrase"), "{}", run.err);
}

#[test]
fn exit_codes_tell_what_failed() {
    let directory = initialised();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["status"], 3, "no daemon answers at"),
        (&["ping", "web2"], 3, "no daemon answers at"),
        (&["status", "--frobnicate"], 2, "unexpected argument"),
        (&["ping", "web2", "-c", "3", "--interval", "1ms"], 2, "--interval must lie"),
        (&["ping", "web2", "-n", "3", "--interval", "1ms"], 2, "--interval must lie"),
        (&["check", "nothing.toml"], 4, "nothing.toml"),
        (&["sign", "node.cert", "--authority", "nothing.key"], 1, "node.cert"),
        (&["invite", "web2", "--expires", "90d"], 2, "--expires must lie"),
    ];
    for (arguments, code, message) in cases {
        let run = meshctl(directory.path(), arguments, "");
        assert_eq!(run.code, code, "{arguments:?}: {}", run.err);
        assert!(run.err.contains(message), "{arguments:?}: {}", run.err);
        assert_eq!(run.out, "", "{arguments:?}");
    }
    std::fs::write(directory.path().join("meshd.toml"), "node = 1\nnod = 2\n").unwrap();
    for arguments in [&["check"][..], &["status"]] {
        let run = meshctl(directory.path(), arguments, "");
        assert_eq!(run.code, 6, "{}", run.err);
        assert!(run.err.contains("did you mean `node`?") && run.err.contains("found the number 1"), "{}", run.err);
        assert!(!run.err.contains('\x1b'), "no colour where there is no terminal");
    }
    let run = meshctl(directory.path(), &["--json", "check"], "");
    let report: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, report["valid"].as_bool()), (6, Some(false)));
}

#[test]
fn json_errors_are_json() {
    let directory = initialised();
    let run = meshctl(directory.path(), &["--json", "status"], "");
    let error: serde_json::Value = serde_json::from_str(&run.err).unwrap();
    assert_eq!((run.code, error["exit_code"].as_u64(), error["schema"].as_u64()), (3, Some(3), Some(1)));
    assert_eq!(run.out, "");
}

#[test]
fn a_package_gets_its_pages_and_completions() {
    let directory = tempfile::tempdir().unwrap();
    let run = meshctl(directory.path(), &["gen", "out"], "");
    assert_eq!(run.code, 0, "{}", run.err);
    for name in
        ["meshctl.1", "meshd.8", "meshd.toml.5", "meshctl-status.1", "meshctl.bash", "meshctl.zsh", "meshctl.fish"]
    {
        assert!(std::fs::metadata(directory.path().join("out").join(name)).unwrap().len() > 100, "{name}");
    }
    let completions = meshctl(directory.path(), &["completions", "bash"], "");
    assert!(completions.out.contains("_meshctl"));
}

#[test]
fn without_arguments_there_is_help() {
    let run = meshctl(tempfile::tempdir().unwrap().path(), &[], "");
    assert_eq!(run.code, 2);
    assert!(run.err.contains("Examples:") && run.err.contains("Exit codes:"), "{}", run.err);
}
