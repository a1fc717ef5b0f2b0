#!/usr/bin/env bash
# `warren cp` of a tree of 50,000 files with hard links, links, extended attributes and sparse files into a guest and out again, and
# clients and a server that are killed in the middle of a copy of 2 GiB.
set -euo pipefail
cd "$(dirname "$0")/../.."
log=${SOAK_STATE:?run by ./dev soak copy}/suite.log
SUITE_SECONDS=${SOAK_SECONDS:-1200} COMMAND_SECONDS=600 COPY_FILES=50000 COPY_MIB=2048 tests/suites/copy.sh | tee "$log"
if grep -q '^FAIL\|^SKIP' "$log"; then exit 1; fi
printf '%s checks with a tree of 50,000 files and one of 2 GiB\n' "$(grep -c '^PASS' "$log")"
