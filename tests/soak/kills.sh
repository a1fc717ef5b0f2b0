#!/usr/bin/env bash
# The server killed at random moments of creates and deletes on the fake hypervisor, 100 seeds of 40 kills each
# (reliability: nothing promised is lost, nothing is left). One seed a step; SOAK_STATE remembers the next one.
set -euo pipefail
cd "$(dirname "$0")/../.."
seeds=100 kills=40
state=${SOAK_STATE:?run by ./dev soak kills}/next
next=1
[ ! -e "$state" ] || next=$(cat "$state")
# SECONDS counts since the start of this script.
while [ "$next" -le "$seeds" ]; do
    if [ "$SECONDS" -gt $((SOAK_SECONDS - 120)) ]; then
        echo "$((next - 1)) of $seeds seeds, $kills kills each: nothing lost, nothing left"
        exit 75
    fi
    WARREN_SEED=$next WARREN_KILLS=$kills cargo test --quiet -p warren --test e2e dying
    next=$((next + 1))
    echo "$next" >"$state"
done
echo "all $seeds seeds, $kills kills each: nothing lost, nothing left"
