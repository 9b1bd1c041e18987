#!/bin/sh
# Runs every pair and scenario in the background (about 16 minutes) and prints the table.
# usage: run.sh OUT_DIR WIREGUARD_GO SOAK_BINARY...
# Needs root for the wireguard-go pairs: they run in namespaces of their own, with a TUN device.
# MODES (default "run run-ruled") chooses plain boringtun, boringtun with the seam's rules, or both.
set -eu
out=$1
wireguard_go=$2
shift 2
mkdir -p "$out"
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
        nice -n 5 "$soak" "$mode" "$1" "$peer" "$2" "$3" "$4" "$out/$number" "$wireguard_go" \
            2>>"$out/$number.err" &
        child=$!
        wait "$child" || bad=1
    done
    return "$bad"
}

for soak in "$@"; do
    for mode in ${MODES:-run run-ruled}; do
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
            jobs "$soak" "$mode" "$peer" "B 50 10 5" "B 50 10 0" "E 10 1 5" "F 20 5 5" "G 20 5 5" ${twins:+"$twins"} &
            workers="$workers $!"
        done
    done
done
failed=0
for worker in $workers; do
    wait "$worker" || failed=$((failed + 1))
done
workers=
cat "$out"/*/results.tsv >"$out/all.tsv"
"$soak" table "$out/all.tsv"
if [ "$failed" -ne 0 ]; then
    echo "$failed jobs had runs that are not in this table: see $out/*.err" >&2
    exit 1
fi
