#!/usr/bin/env bash
# Every fuzz target for an hour, a slice each. SOAK_STATE has a file for each target with the seconds that it has had; what
# they find goes on from the corpus of the slice before. FUZZ_JOBS is how many run at a time (2), FUZZ_TARGETS is which
# ("tar image_merge"; all).
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/base.sh
. scripts/base.sh
# shellcheck source=scripts/install.sh
. scripts/install.sh
# shellcheck source=scripts/fuzz.sh
. scripts/fuzz.sh
hour=3600 results=${SOAK_STATE:?run by ./dev soak fuzz}/results
targets() {
    if [ -n "${FUZZ_TARGETS:-}" ]; then
        tr ' ' '\n' <<<"$FUZZ_TARGETS"
    else
        fuzz_targets
    fi
}
# How many inputs a target was given in the slice that has ended, as libFuzzer says.
inputs_of() { sed -n 's/^Done \([0-9]*\) runs in .*/\1/p' "$results.$1" | tail -n 1; }
seconds_of() { cat "$SOAK_STATE/seconds.$1" 2>/dev/null || echo 0; }

fuzz_build
# Building counts into the slice.
slice=$((SOAK_SECONDS - SECONDS - 30))
[ "$slice" -ge 60 ] || { echo "there was no time left after building" && exit 75; }
# Those that have had least.
mapfile -t chosen < <(targets | while read -r target; do
    printf '%s %s\n' "$(seconds_of "$target")" "$target"
done | sort -n | awk -v hour="$hour" '$1 < hour { print $2 }' | head -n "${FUZZ_JOBS:-2}")
said=
if [ ${#chosen[@]} -gt 0 ]; then
    fuzz_side_by_side "$slice" "$results" "${chosen[@]}"
    for target in "${chosen[@]}"; do
        tail -n 3 "$results.$target"
        grep -qx "ok $target" "$results" || {
            tail -n 40 "$results.$target"
            echo "$target has crashed: see fuzz/artifacts/$target"
            exit 1
        }
        echo $(($(seconds_of "$target") + slice)) >"$SOAK_STATE/seconds.$target"
        said="${said:+$said, }$target $(inputs_of "$target")"
    done
fi
done=0 all=0
for target in $(targets); do
    all=$((all + 1))
    [ "$(seconds_of "$target")" -lt "$hour" ] || done=$((done + 1))
done
echo "$done of $all fuzz targets have had an hour each without a crash; now for $slice s, with so many inputs: ${said:-none}"
[ "$done" -eq "$all" ] || exit 75
