#!/usr/bin/env bash
# Random stacks of layers against a plain model of them: 20 seeds of 500 stacks, each image read back whole.
# SOAK_STATE remembers the next seed.
set -euo pipefail
cd "$(dirname "$0")/../.."
seeds=20 cases=500
state=${SOAK_STATE:?run by ./dev soak images}/next
next=1
[ ! -e "$state" ] || next=$(cat "$state")
# SECONDS counts since the start of this script.
while [ "$next" -le "$seeds" ]; do
    if [ "$SECONDS" -gt $((SOAK_SECONDS - 300)) ]; then
        echo "$(((next - 1) * cases)) of $((seeds * cases)) stacks of layers: all as the model says"
        exit 75
    fi
    WARREN_SEED=$next WARREN_CASES=$cases cargo test --quiet --locked -p warren-image --test layers
    next=$((next + 1))
    echo "$next" >"$state"
done
echo "all $((seeds * cases)) stacks of layers: all as the model says"
