#!/usr/bin/env bash
# 10,000 instances made and removed on the fake hypervisor (reliability: memory and descriptors flat, disk as before,
# record and host agree). One piece: a server that is started anew would hold nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
log=${SOAK_STATE:?run by ./dev soak cycles}/cargo.log
WARREN_CYCLES=10000 cargo test --quiet -p warren --test e2e -- --nocapture cycles_of 2>&1 | tee "$log"
grep ' cycles: ' "$log"
