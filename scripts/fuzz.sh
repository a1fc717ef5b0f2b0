# shellcheck shell=bash
# ./dev fuzz: one fuzz target for a while. Nightly's sanitizer flags are unlocked on the stable toolchain, so that
# no second toolchain is needed.

fuzz_targets() {
    [ -d "$ROOT/fuzz/fuzz_targets" ] || return 0
    find "$ROOT/fuzz/fuzz_targets" -maxdepth 1 -name '*.rs' -printf '%f\n' | sed 's/\.rs$//' | sort
}

fuzz_help() {
    cat <<'EOT'
./dev fuzz TARGET [SECONDS]: fuzz one decoder (20 seconds, or as long as you say)

It starts from fuzz/seeds/TARGET, which are in the repository, and what earlier runs have found in fuzz/corpus/TARGET,
which is not; an input that crashes is kept in fuzz/artifacts/TARGET.
EOT
    printf 'Targets: %s\n' "$(fuzz_targets | paste -sd' ' | sed 's/^$/none yet: there is no fuzz\/fuzz_targets/')"
}

cmd_fuzz() {
    case ${1:-} in
    -h | --help) fuzz_help && return ;;
    '') fuzz_help >&2 && die "name a target" ;;
    esac
    local target=$1 seconds=${2:-20}
    fuzz_targets | grep -qxF -- "$target" || die "there is no fuzz target '$target'; there are: $(fuzz_targets | paste -sd' ')"
    fuzz_tools
    local corpus=$ROOT/fuzz/corpus/$target seeds=$ROOT/fuzz/seeds/$target
    mkdir -p "$corpus" "$seeds"
    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir "$ROOT/fuzz" --sanitizer "$(fuzz_sanitizer)" "$target" "$corpus" "$seeds" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10
}

fuzz_tools() {
    install_missing c++=g++
    ensure_rust
    ensure_cargo_tool cargo-fuzz
}

# All targets at once, so that none waits for another one's build later.
fuzz_build() {
    fuzz_tools
    RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir "$ROOT/fuzz" --sanitizer "$(fuzz_sanitizer)"
}

# fuzz_side_by_side SECONDS RESULTS TARGET…: each for so long, $FUZZ_JOBS at a time (two). Writes lines "ok TARGET" and
# "FAILED TARGET" to the file RESULTS, and what each said to RESULTS.TARGET.
fuzz_side_by_side() {
    local seconds=$1 results=$2
    shift 2
    : >"$results"
    # shellcheck disable=SC2016 # For the inner shell.
    printf '%s\n' "$@" | xargs -P "${FUZZ_JOBS:-2}" -I '{}' bash -c \
        'if "$1/dev" fuzz "$2" "$3" >"$4.$2" 2>&1; then echo "ok $2"; else echo "FAILED $2"; fi >>"$4"' \
        - "$ROOT" '{}' "$seconds" "$results"
}

# Distributions package Rust without the sanitizers' runtimes; panics and hangs are found without one as well.
fuzz_sanitizer() {
    if [ -n "$(find "$(rustc --print sysroot)/lib/rustlib" -name 'librustc-*_rt.asan.a' -print -quit)" ]; then
        printf 'address\n'
    else
        printf 'none\n'
    fi
}
