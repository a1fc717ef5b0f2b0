#!/usr/bin/env bash
# Fifty guests count, the server is killed, and a newer one is started, to which the record is of an older schema
# (reliability: no number is missing, the API is up within a second, all guests are heard again within two).
# WARREN_OLDER=FILE names the program of an older release to upgrade from and to go back to; without it the record is
# turned back to what one would have left.
set -euo pipefail
cd "$(dirname "$0")/../.."
log=${SOAK_STATE:?run by ./dev soak upgrade}/cargo.log
WARREN_UPGRADE_GUESTS=${WARREN_UPGRADE_GUESTS:-50} WARREN_UPGRADE_EXACT=1 \
    cargo test --quiet -p warren --test e2e -- --nocapture killed_and_upgraded 2>&1 | tee "$log"
grep ' guests: ' "$log" | paste -sd' '
