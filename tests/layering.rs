//! The walls of the house: which room may use which, and what each room may not touch. See `src/lib.rs` for the picture.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each room with the rooms below it that it may use. Nothing else, and never upward.
///
/// Inside the bottom layer the order is `time`, `identity`, then `wire` and `config`: datagrams carry signed objects, and the
/// configuration names keys and identifiers. Side by side in the middle, `dataplane` uses `platform`, because moving packets
/// is system calls. At the top, `cli` starts the daemon for the binary `meshd`.
const ARROWS: &[(&str, &[&str])] = &[
    ("time", &[]),
    ("identity", &["time"]),
    ("wire", &["identity", "time"]),
    ("config", &["identity", "time"]),
    ("control", &["config", "identity", "time", "wire"]),
    ("tunnel", &["identity", "time", "wire"]),
    // `config` for the rules: they are values that the configuration has checked.
    ("policy", &["config", "identity", "time"]),
    // `config` for the rules of alerts: they are values that the configuration has checked.
    ("telemetry", &["config", "control", "identity", "time", "wire"]),
    ("platform", &["time"]),
    ("dataplane", &["identity", "platform", "policy", "time", "tunnel", "wire"]),
    // Beside the daemon's other work, because it is files and a thread: telemetry fills its buckets and stays pure.
    ("history", &["identity", "platform", "telemetry", "time"]),
    // A thread and sockets, beside the data plane and apart from it: connections are the kernel's, packets are ours.
    // `telemetry` for how times are counted.
    ("forward", &["config", "identity", "platform", "telemetry", "time"]),
    // A thread and a socket as well, and what they answer; `control` for its token buckets.
    ("names", &["config", "control", "identity", "platform", "time"]),
    ("api", &["identity", "time", "wire"]),
    (
        "daemon",
        &[
            "api",
            "config",
            "control",
            "dataplane",
            "forward",
            "history",
            "identity",
            "names",
            "platform",
            "policy",
            "telemetry",
            "time",
            "tunnel",
            "wire",
        ],
    ),
    // Not control, tunnel or dataplane: a command asks the daemon, or works on files. `policy` for the tables of the packet
    // filter, which are looked at, shown and lifted also where no daemon runs.
    ("cli", &["api", "config", "daemon", "identity", "names", "platform", "policy", "telemetry", "time", "wire"]),
    ("bin", &["cli"]),
];

/// Rooms that decide and compute: everything they know is an argument.
const PURE: &[&str] = &["time", "identity", "wire", "config", "control", "policy", "telemetry"];

/// What would make a pure room depend on the world.
const WORLD: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "thread::",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "OsRng",
    "thread_rng",
    "getrandom",
    "tokio",
    "libc::",
    "nix::",
    "HashMap",
    "HashSet",
];

/// What would make the tunnel read a clock of its own.
const CLOCK: &[&str] = &["Instant::now", "SystemTime::now", "thread::sleep"];

/// Where a rule gives way: file, words, reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[(
    "src/tunnel/session.rs",
    "SystemTime::now",
    "boringtun reads that clock itself and panics where it stands before 1970, so it is looked at first",
)];

/// Lines of production code in one file at most.
const MOST_LINES: usize = 600;

/// Names that say nothing about what is inside.
const NAMELESS: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

/// One source file of the product, without its tests.
struct Source {
    room: String,
    path: String,
    /// Production lines without comments; the line's number is its place, from 1.
    code: Vec<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a directory whose path `wanted` accepts.
fn files(directory: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        match path.is_dir() {
            true if path.file_name().is_some_and(|name| name == "target" || name == ".git") => {}
            true => files(&path, wanted, found),
            false if wanted(&path) => found.push(path),
            false => {}
        }
    }
    found.sort();
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// Scripts and styles of the page for browsers, which follow the rules of the sources they lie beside.
fn is_of_the_page(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "js" || extension == "css")
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned()
}

/// The name in a line such as `pub(crate) mod name;`.
fn module(line: &str) -> Option<&str> {
    let rest = line.trim().strip_prefix("pub(crate) ").or(line.trim().strip_prefix("pub(super) "));
    let rest = rest.unwrap_or(line.trim());
    rest.strip_prefix("pub ").unwrap_or(rest).strip_prefix("mod ")
}

/// The production code of the crate: no files and modules that exist for tests only, no comments.
fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files(&root().join("src"), &is_rust, &mut paths);
    let texts: Vec<(String, String)> =
        paths.iter().map(|path| (relative(path), std::fs::read_to_string(path).expect("UTF-8"))).collect();
    let mut test_only = BTreeSet::new();
    for (path, text) in &texts {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            if let (true, Some(name)) = (pair[0].trim() == "#[cfg(test)]", module(pair[1]))
                && let Some(name) = name.strip_suffix(';')
            {
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                test_only.insert(format!("{directory}/{name}.rs"));
                test_only.insert(format!("{directory}/{name}/"));
            }
        }
    }
    assert!(!test_only.is_empty(), "the tests of a room stand in files of their own somewhere");
    let is_test =
        |path: &str| test_only.iter().any(|test| path == test || test.ends_with('/') && path.starts_with(test));
    texts.iter().filter(|(path, _)| !is_test(path)).map(|(path, text)| source(path, text)).collect()
}

fn source(path: &str, text: &str) -> Source {
    let inside = path.strip_prefix("src/").expect("a source");
    let room = inside.split_once('/').map_or(inside.trim_end_matches(".rs"), |(room, _)| room).to_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0] == "#[cfg(test)]" && module(pair[1]).is_some_and(|name| name.trim_end().ends_with('{'))
    });
    let production = &lines[..tests.unwrap_or(lines.len())];
    let code = production.iter().map(|line| line.split_once("//").map_or(*line, |(code, _)| code).to_owned()).collect();
    Source { room, path: path.to_owned(), code }
}

/// The rooms a line or group of lines names behind `crate::` (or `meshd::`, in the binaries).
fn used_rooms(code: &str) -> BTreeSet<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = BTreeSet::new();
    for prefix in ["crate::", "meshd::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = code[at + prefix.len()..].trim_start();
            let Some(group) = rest.strip_prefix('{') else {
                rooms.insert(name(rest));
                continue;
            };
            let (mut depth, mut first) = (0, true);
            for (place, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => first = true,
                    c if first && !c.is_whitespace() => {
                        rooms.insert(name(&group[place..]));
                        first = false;
                    }
                    _ => {}
                }
            }
        }
    }
    rooms
}

/// Complains about every line that has one of `words` as a whole, except where the rule gives way.
fn forbid(source: &Source, words: &[&str], complaints: &mut Vec<String>) {
    for (at, line) in source.code.iter().enumerate() {
        for word in words {
            let excepted = EXCEPTIONS.iter().any(|(path, given, _)| *path == source.path && given == word);
            if has_word(line, word) && !excepted {
                complaints.push(format!("{}:{}: {word}", source.path, at + 1));
            }
        }
    }
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = line[at + word.len()..].chars().next().is_some_and(part);
        !before && (!after || word.ends_with(':'))
    })
}

fn assert_none(rule: &str, complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{rule}:\n{}", complaints.join("\n"));
}

#[test]
fn arrows_point_one_way() {
    let rooms: BTreeSet<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    for (place, (room, below)) in ARROWS.iter().enumerate() {
        let lower: BTreeSet<&str> = ARROWS[..place].iter().map(|(room, _)| *room).collect();
        assert!(below.iter().all(|used| lower.contains(used)), "the list is in the order of the layers: {room}");
    }
    let mut complaints = Vec::new();
    for source in sources() {
        if source.room == "lib" {
            continue;
        }
        let Some((_, below)) = ARROWS.iter().find(|(room, _)| *room == source.room) else {
            complaints.push(format!("{}: the room `{}` has no place in ARROWS", source.path, source.room));
            continue;
        };
        for used in used_rooms(&source.code.join("\n")) {
            if rooms.contains(used.as_str()) && used != source.room && !below.contains(&used.as_str()) {
                complaints.push(format!("{}: `{}` may not use `{used}`", source.path, source.room));
            }
        }
    }
    assert_none("a room uses another that is not below it", complaints);
}

#[test]
fn pure_rooms_touch_nothing() {
    let mut complaints = Vec::new();
    for source in sources() {
        if PURE.contains(&source.room.as_str()) {
            forbid(&source, WORLD, &mut complaints);
        }
        if source.room == "tunnel" {
            forbid(&source, CLOCK, &mut complaints);
        }
    }
    assert_none("a pure room reaches for the world (pass it in), or a room reads a clock", complaints);
    for (path, word, reason) in EXCEPTIONS {
        let used = sources().iter().any(|s| s.path == *path && s.code.iter().any(|line| has_word(line, word)));
        assert!(used && !reason.is_empty(), "the exception of {path} for {word} is not needed any more");
    }
}

#[test]
fn only_the_platform_is_unsafe() {
    let mut complaints = Vec::new();
    let mut forbidding = BTreeSet::new();
    for source in sources() {
        if source.code.iter().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
            forbidding.insert(source.room.clone());
        }
        if source.room != "platform" {
            forbid(&source, &["unsafe"], &mut complaints);
        }
    }
    for (room, _) in ARROWS {
        if *room != "platform" && !forbidding.contains(*room) {
            complaints.push(format!("`{room}` does not say #![forbid(unsafe_code)]"));
        }
    }
    assert_none("unsafe code outside the platform", complaints);
}

#[test]
fn files_are_small_and_named_for_what_they_are() {
    let mut complaints = Vec::new();
    for source in sources() {
        if source.code.len() > MOST_LINES {
            complaints.push(format!("{}: {} lines", source.path, source.code.len()));
        }
    }
    let mut scripts = Vec::new();
    files(&root().join("src"), &is_of_the_page, &mut scripts);
    assert!(!scripts.is_empty(), "the page is looked at");
    for path in scripts {
        let lines = std::fs::read_to_string(&path).expect("UTF-8").lines().count();
        if lines > MOST_LINES {
            complaints.push(format!("{}: {lines} lines", relative(&path)));
        }
    }
    let mut all = Vec::new();
    files(&root(), &is_rust, &mut all);
    for path in all {
        let named = |name: &std::ffi::OsStr| NAMELESS.iter().any(|nameless| name == *nameless);
        if path.file_stem().is_some_and(named) || path.parent().and_then(Path::file_name).is_some_and(named) {
            complaints.push(format!("{}: say what it holds", relative(&path)));
        }
    }
    assert_none("a file of more than one noun", complaints);
}

#[test]
fn no_path_of_a_build_machine_is_in_the_tree() {
    let text = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let known =
            ["rs", "toml", "md", "sh", "txt", "yml", "yaml", "service", "lock", "html", "css", "js", "svg", "json"];
        path.extension().is_some_and(|extension| known.iter().any(|known| extension == *known))
            || name == "run"
            || name == "Dockerfile"
    };
    let mut tokens = vec!["/.cargo/registry".to_owned(), "/.rustup/toolchains".to_owned()];
    // A checkout at the root of a container is no path that could be told from others.
    if root().components().count() > 2 {
        tokens.push(format!("{}/", root().display()));
    }
    let mut all = Vec::new();
    files(&root(), &text, &mut all);
    let mut complaints = Vec::new();
    for path in all.iter().filter(|path| relative(path) != "tests/layering.rs") {
        let Ok(content) = std::fs::read_to_string(path) else { continue };
        for token in tokens.iter().filter(|token| content.contains(token.as_str())) {
            complaints.push(format!("{}: {token}", relative(path)));
        }
    }
    assert!(all.len() > 100, "the tree is looked at");
    assert_none("a path that exists on one machine only", complaints);
}

#[test]
fn the_rules_see_what_they_forbid() {
    assert_eq!(used_rooms("use crate::{api::Status, time::{self, Instant}, wire};").len(), 3);
    assert_eq!(used_rooms("crate::platform::clock::now()"), BTreeSet::from(["platform".to_owned()]));
    assert!(has_word("let at = Instant::now();", "Instant::now") && has_word("tokio::spawn(x)", "tokio"));
    assert!(!has_word("#![forbid(unsafe_code)]", "unsafe") && has_word("unsafe { x }", "unsafe"));
    let text = "use crate::api; // crate::cli\n#[cfg(test)]\nmod tests {\nuse crate::daemon;\n}";
    let read = source("src/wire/drop.rs", text);
    assert_eq!((read.room.as_str(), read.code.len()), ("wire", 1));
    assert_eq!(used_rooms(&read.code.join("\n")), BTreeSet::from(["api".to_owned()]));
}
