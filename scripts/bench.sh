# shellcheck shell=bash
# ./dev bench: Warren against the bare tools, side by side in one run. The measuring is crates/warren/examples/bench.

bench_help() {
    cat <<'EOT'
./dev bench: measure Warren against the bare tools, as ratios

Both arms run in turn in one process, with the same kernel, disk and readiness signal, and an A/A control that shows
how far the machine's noise goes. Prints a table.

  ./dev bench --check      fail where a ratio is above its limit
  ./dev bench ARGUMENTS    are passed on (./dev bench -- --help lists them)
EOT
}

cmd_bench() {
    case ${1:-} in
    -h | --help) bench_help && return ;;
    --) shift ;;
    esac
    if [ ! -e crates/warren/examples/bench.rs ] && [ ! -e crates/warren/examples/bench/main.rs ]; then
        die "there is nothing to measure with yet: crates/warren/examples/bench does not exist in this checkout"
    fi
    install_for_test
    # What guest access is measured against.
    install_missing ssh=openssh-client
    ensure_kernel
    cargo build --release --locked
    WARREN_BIN=$ROOT/target/release/warren exec cargo run --release --locked -p warren --example bench -- "$@"
}
