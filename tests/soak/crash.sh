#!/usr/bin/env bash
# The server killed at every place of every operation, each time an operation comes by it, with real machines, in
# bridge mode and in user mode (reliability: completed or undone within ten seconds, record and host agree).
# SOAK_STATE remembers what is done.
set -euo pipefail
cd "$(dirname "$0")/../.."
state=${SOAK_STATE:?run by ./dev soak crash}/done
log=$SOAK_STATE/cargo.log
touch "$state"
# Built before the clock of the test starts; with crash points, which a release build does not have.
cargo test --quiet -p warren --test e2e --no-run
WARREN_CRASH_MACHINES=real WARREN_CRASH_EACH_TIME=1 WARREN_CRASH_STATE=$state \
    WARREN_CRASH_SECONDS=$((SOAK_SECONDS - SECONDS - 120)) \
    cargo test --quiet -p warren --test e2e -- --nocapture killed_at_every_place 2>&1 | tee "$log"
kills=$(grep -c ' died$' "$state" || true) places=$(awk '$4 == "died" { print $2 }' "$state" | sort -u | wc -l)
if grep -q 'there is more to do' "$log"; then
    echo "killed $kills times at $places places so far: each time completed or undone, and nothing left"
    exit 75
fi
echo "killed $kills times at all $places places: each time completed or undone, and nothing left"
