#!/bin/sh
# Fetches wireguard-go, builds, runs every pair and scenario (about 16 minutes) and prints the tables.
# usage: run.sh [OUT_DIR]      (default: soak-runs-<time> beside the build)
# Needs root for the pairs with wireguard-go, which run in namespaces of their own with a TUN device, and apt-get
# and dpkg to fetch it; nothing is installed. WIREGUARD_GO names a program to use instead.
# KINDS (default "seam plain v06") chooses the product's tunnels, plain boringtun 0.7.1, plain boringtun 0.6.0.
set -eu
bench=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$bench/target}
kinds=${KINDS:-seam plain v06}
out=${1:-$target/soak-runs-$(date +%Y%m%dT%H%M%S)}
mkdir -p "$out" "$target"
out=$(cd "$out" && pwd)
target=$(cd "$target" && pwd)
cd "$bench"

if [ -z "${WIREGUARD_GO:-}" ]; then
    WIREGUARD_GO=$target/wireguard-go/usr/bin/wireguard-go
    if [ ! -x "$WIREGUARD_GO" ]; then
        mkdir -p "$target/wireguard-go"
        fetch=$(mktemp -d)
        chown _apt "$fetch" 2>/dev/null || true # apt downloads as a user of its own
        (cd "$fetch" && apt-get download wireguard-go >&2 && dpkg -x wireguard-go_*.deb "$target/wireguard-go")
        rm -r "$fetch"
    fi
fi
# Copies, so that a build meanwhile changes nothing.
current=$out/boringtun-soak
older=$out/boringtun-soak-v06
cargo build --locked --release --target-dir "$target"
cp "$target/release/boringtun-soak" "$current"
case " $kinds " in
*" v06 "*)
    cargo build --locked --release --manifest-path v06/Cargo.toml --target-dir "$target/v06"
    cp "$target/v06/release/boringtun-soak-v06" "$older"
    ;;
esac

number=0
workers=
# Ends what this run started, and nothing else, when it is interrupted.
trap 'kill $workers 2>/dev/null || true' EXIT
trap 'exit 1' INT TERM

# jobs BINARY MODE PEER "SCENARIO RUNS AT_ONCE DELAY_MS"...: runs jobs after each other.
jobs() {
    soak=$1 mode=$2 peer=$3 bad=0
    shift 3
    child=
    trap 'kill $child; exit 1' TERM
    for job in "$@"; do
        # shellcheck disable=SC2086 # the words of a job are meant to be split
        set -- $job
        nice -n 5 "$soak" "$mode" "$1" "$peer" "$2" "$3" "$4" "$out/$number" "$WIREGUARD_GO" \
            2>>"$out/$number.err" &
        child=$!
        wait "$child" || bad=1
    done
    return "$bad"
}

for kind in $kinds; do
    case $kind in
    seam) soak=$current mode=seam ;;
    plain) soak=$current mode=plain ;;
    v06) soak=$older mode=plain ;;
    *) echo "run.sh: no kind $kind" >&2 && exit 1 ;;
    esac
    for peer in same wg-go; do
        # The long ones are idle most of the time and run beside everything; the short ones run
        # after each other, so that starts are not slowed by a machine with no time for them.
        if [ "$peer" = wg-go ]; then twins="H 4 4 5"; else twins=; fi
        for long in "A 4 4 5" "D 4 4 5" "C 6 6 5"; do
            number=$((number + 1))
            jobs "$soak" "$mode" "$peer" "$long" &
            workers="$workers $!"
        done
        number=$((number + 1))
        jobs "$soak" "$mode" "$peer" "B 50 10 5" "B 50 10 0" "E 10 1 5" "E 3 1 100" "F 20 5 5" "G 20 5 5" ${twins:+"$twins"} &
        workers="$workers $!"
    done
done
failed=0
for worker in $workers; do
    wait "$worker" || failed=$((failed + 1))
done
workers=
cat "$out"/*/results.tsv >"$out/all.tsv"
"$current" table "$out/all.tsv"
if [ "$failed" -ne 0 ]; then
    echo "$failed jobs had runs that are not in this table: see $out/*.err" >&2
    exit 1
fi
