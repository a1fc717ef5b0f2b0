#!/usr/bin/env bash
# The server killed at a random place of an operation, and then again and again while it recovers, 100 seeds on the
# fake hypervisor (reliability: it converges).
set -euo pipefail
cd "$(dirname "$0")/../.."
log=${SOAK_STATE:?run by ./dev soak recovery}/cargo.log
WARREN_SEEDS=100 cargo test --quiet -p warren --test e2e -- --nocapture killed_again 2>&1 | tee "$log"
grep ' seeds, ' "$log"
