//! Every fuzz target over its committed corpus, and over mutations of it, the same in every run.
//!
//! `MESHD_WRITE_CORPUS=1 cargo test --test fuzz_corpus` writes the seeds anew after a format has changed;
//! `MESHD_FUZZ_ROUNDS=100 cargo test --test fuzz_corpus` tries a hundred times as many mutations, without a fuzzer.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

use targets::{ALL, Target};

/// Files per target at most, so that a review can still look at them.
const MOST_FILES: usize = 20;
/// Bytes of the whole corpus at most.
const MOST_BYTES: u64 = 500_000;
/// Mutations per target: what stays below a minute for all of them together, unoptimised, on one core.
const MUTATIONS: usize = 3_000;
/// Mutations of a target that makes keys, handshakes or a whole engine for each input.
const HEAVY_MUTATIONS: usize = 500;
/// Those targets.
const HEAVY: [&str; 6] = ["datagram", "introduction", "join_request", "join_reply", "snapshot", "engine"];
/// Longest input: what the longest parser reads in one piece.
const MOST_INPUT: usize = 8_192;

fn corpus(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

/// The files of a target's corpus, by name.
fn files(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let directory = corpus(target);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries
        .map(|entry| {
            let path = entry.expect("a directory entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a readable file"))
        })
        .collect()
}

#[test]
fn the_corpus_holds_every_seed_and_stays_small() {
    if std::env::var_os("MESHD_WRITE_CORPUS").is_some() {
        for target in ALL {
            std::fs::create_dir_all(corpus(target)).expect("the corpus can be written");
            for (name, bytes) in (target.seeds)() {
                std::fs::write(corpus(target).join(name), bytes).expect("the corpus can be written");
            }
        }
    }
    let mut bytes = 0;
    for target in ALL {
        let files = files(target);
        assert!((1..=MOST_FILES).contains(&files.len()), "{}: {} files", target.name, files.len());
        bytes += files.values().map(|file| file.len() as u64).sum::<u64>();
        for (name, seed) in (target.seeds)() {
            assert!(files.get(name) == Some(&seed), "{}/{name} is not what it was made of", target.name);
        }
    }
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
}

#[test]
fn every_target_has_its_program() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the fuzzer's manifest");
    for target in ALL {
        let program = root.join("fuzz_targets").join(target.name).with_extension("rs");
        let source = std::fs::read_to_string(&program).expect("the target's program");
        assert!(source.contains(&format!("targets::run(\"{}\", data)", target.name)), "{}", program.display());
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{}.rs\"", target.name)), "{}", target.name);
    }
}

/// Changes an input as transport, a bad disk or a liar would.
fn mutate(seeds: &[&Vec<u8>], rng: &mut ChaCha12Rng) -> Vec<u8> {
    let mut pick = |below: usize| rng.next_u64() as usize % below.max(1);
    let mut input = seeds[pick(seeds.len())].clone();
    for _ in 0..=pick(3) {
        let at = pick(input.len());
        match pick(8) {
            0 if !input.is_empty() => input[at] ^= 1 << pick(8),
            1 if !input.is_empty() => input[at] = pick(256) as u8,
            2 if !input.is_empty() => input[at] = [0x00, 0xff, 0x7f, 0x80, 0x9f, 0xbf, b'"', b'\n'][pick(8)],
            3 => input.truncate(at),
            4 => {
                let end = (at + 1 + pick(8)).min(input.len());
                input.drain(at.min(end)..end);
            }
            5 => {
                let more: Vec<u8> = (0..pick(9)).map(|_| pick(256) as u8).collect();
                input.splice(at..at, more);
            }
            6 => {
                let other = seeds[pick(seeds.len())];
                let from = pick(other.len());
                let to = (from + pick(64)).min(other.len());
                let end = (at + pick(64)).min(input.len());
                input.splice(at.min(end)..end, other[from..to].iter().copied());
            }
            _ => {
                let end = (at + 1 + pick(32)).min(input.len());
                let again = input[at.min(end)..end].to_vec();
                input.splice(at..at, again);
            }
        }
    }
    input.truncate(MOST_INPUT);
    input
}

/// Runs a target and says which input broke it.
fn run(target: &Target, name: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("target {} broke on {name}: {hex}", target.name);
    }
}

/// How many times the usual number of mutations is tried.
fn rounds() -> usize {
    std::env::var("MESHD_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn replay(name: &str) {
    let target = ALL.iter().find(|target| target.name == name).expect("the test names a target");
    let files = files(target);
    for (file, input) in &files {
        run(target, file, input);
    }
    let seeds: Vec<&Vec<u8>> = files.values().collect();
    let mut rng = ChaCha12Rng::seed_from_u64(0x6d65_7368);
    let count = if HEAVY.contains(&name) { HEAVY_MUTATIONS } else { MUTATIONS };
    for _ in 0..count.saturating_mul(rounds()) {
        run(target, "a mutation", &mutate(&seeds, &mut rng));
    }
}

macro_rules! replays {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { replay(stringify!($name)); })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            let all: Vec<&str> = ALL.iter().map(|target| target.name).collect();
            assert_eq!(all, replayed);
        }
    };
}

replays![
    datagram,
    inner_packet,
    split,
    coalesce,
    introduction,
    join_request,
    join_reply,
    overlay,
    probe,
    certificate,
    delegation,
    record,
    revocation,
    request,
    token,
    text,
    armor,
    identity_file,
    authority_file,
    ledger,
    invite_book,
    state_file,
    config,
    api_request,
    dns_question,
    handed_names,
    control_message,
    snapshot,
    engine,
];
