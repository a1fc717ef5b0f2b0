# shellcheck shell=bash
# ./dev test: every check that fits into half an hour. All steps run, whatever fails; the last line has the counts.

test_help() {
    cat <<'EOT'
./dev test: everything that can be checked in half an hour

Installs what tests need, then runs, whatever fails on the way: formatting, lints, the release build, all
tests (cargo nextest, doc tests, the suites in tests/suites/), a short run of each fuzz target, the
dependency rules (cargo deny), shellcheck and the limit on file length. Ends with a table, every skip with its reason, and
counts. The exit status is 0 only if nothing failed.

  ./dev test             all steps
  ./dev test STEP…       only these: fmt clippy build test doc suites fuzz deny scripts length

A suite is an executable tests/suites/*.sh. It may print lines "PASS name", "FAIL name" and "SKIP name: reason", which are
counted one by one; without PASS or FAIL it counts as one. Rust tests that cannot run on this machine
append "name: reason" to the file that WARREN_SKIP_FILE names. Output is kept in .dev/test/.
EOT
}

TEST_STEPS=(fmt clippy build test doc suites fuzz deny scripts length)

cmd_test() {
    case ${1:-} in -h | --help) test_help && return ;; esac
    local step chosen=("$@") name
    for name in "$@"; do
        [[ " ${TEST_STEPS[*]} " == *" $name "* ]] || die "there is no step '$name' (there are: ${TEST_STEPS[*]})"
    done
    [ $# -gt 0 ] || chosen=("${TEST_STEPS[@]}")

    TEST_OUT=$ROOT/.dev/test
    rm -rf "$TEST_OUT"
    mkdir -p "$TEST_OUT"
    export WARREN_SKIP_FILE=$TEST_OUT/skips WARREN_BIN=$ROOT/target/release/warren
    : >"$WARREN_SKIP_FILE"
    : >"$TEST_OUT/results"
    # Tests start servers and guests of their own; what the caller has set up for another one must not leak in.
    unset WARREN_SERVER DATA_DIR PORT CONTAINER_SERVICE_PORT SERVICE_NAME JWT_SECRET

    [[ " ${chosen[*]} " != *' clippy '*' test '* ]] || LINT_WHILE_COMPILING=yes
    # What is compiled once and thrown away needs no note of how to compile it faster the next time.
    [ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0

    trap 'exit 130' INT TERM
    install_for_test
    ensure_kernel
    for step in "${chosen[@]}"; do
        test_step "$step"
    done
    test_summary
}

# test_step NAME: runs step_NAME with its output to the terminal and to a log, and records one line
# "name<TAB>result<TAB>seconds<TAB>passed<TAB>failed". A step may write its own counts to $TEST_OUT/NAME.counts.
test_step() {
    local name=$1 started=$SECONDS result=ok passed failed
    say "$name"
    # In a subshell without errexit being switched off by a condition: the status comes through PIPESTATUS.
    set +e
    (
        set -e
        "step_$name"
    ) 2>&1 | tee "$TEST_OUT/$name.log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || result=FAILED
    set -e
    grep -hE '^SKIP [^:]+: ' "$TEST_OUT/$name.log" | sed 's/^SKIP //' >>"$WARREN_SKIP_FILE" || true
    if [ -e "$TEST_OUT/$name.counts" ]; then
        read -r passed failed <"$TEST_OUT/$name.counts"
        # A step that failed without a failed test (it did not compile, it was killed) is a failure all the same.
        [ "$result" = ok ] || [ "$failed" -gt 0 ] || failed=1
    elif [ "$result" = ok ]; then
        passed=1 failed=0
    else
        passed=0 failed=1
    fi
    [ "$failed" -eq 0 ] || result=FAILED
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$result" $((SECONDS - started)) "$passed" "$failed" >>"$TEST_OUT/results"
}

# The fuzz targets are a workspace of their own.
step_fmt() {
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
}

# Where tests are wanted as well, lints cost little: clippy's driver is the compiler with lints, so that everything is compiled
# once and not twice. The artifacts of a run that found nothing are what the tests are made of (with_lints).
step_clippy() {
    if [ -n "${LINT_WHILE_COMPILING:-}" ] && have clippy-driver; then
        with_lints cargo nextest run --no-run --workspace --locked
        touch "$TEST_OUT/linted"
    else
        cargo clippy --workspace --all-targets --locked -- -D warnings
    fi
}

with_lints() { RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__ "$@"; }

# as_linted COMMAND…: with the artifacts of step_clippy where it made some.
as_linted() {
    if [ -e "$TEST_OUT/linted" ]; then
        with_lints "$@"
    else
        "$@"
    fi
}

step_build() { cargo build --release --locked; }

step_test() {
    local status=0 junit=$ROOT/target/nextest/default/junit.xml
    rm -f "$junit"
    # The two with machines wait as often as they work: others run beside them.
    as_linted cargo nextest run --workspace --locked --test-threads $(($(nproc) + 2)) || status=$?
    [ -e "$junit" ] || return 1
    "$ROOT/scripts/count-tests" "$junit" "$WARREN_SKIP_FILE" >"$TEST_OUT/test.counts"
    return "$status"
}

step_doc() {
    local status=0
    as_linted cargo test --doc --workspace --locked >"$TEST_OUT/doc.out" 2>&1 || status=$?
    cat "$TEST_OUT/doc.out"
    awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' \
        "$TEST_OUT/doc.out" >"$TEST_OUT/doc.counts"
    return "$status"
}

# Two at a time: each waits for servers and guests of its own about as long as it works.
step_suites() {
    local suite name status passed=0 failed=0 all=0
    # shellcheck disable=SC2016 # For the inner shell.
    find tests/suites -maxdepth 1 -name '*.sh' -perm -u+x | sort | xargs -P 2 -I '{}' bash -c \
        'out=$1/suite-$(basename "$2" .sh); "$2" >"$out.log" 2>&1; echo $? >"$out.status"' - "$TEST_OUT" '{}'
    for suite in tests/suites/*.sh; do
        [ -x "$suite" ] || continue
        name=$(basename "$suite" .sh)
        status=$(cat "$TEST_OUT/suite-$name.status" || echo 1)
        say "suite $name"
        cat "$TEST_OUT/suite-$name.log"
        local ok bad skipped
        ok=$(grep -c '^PASS ' "$TEST_OUT/suite-$name.log" || true)
        bad=$(grep -c '^FAIL ' "$TEST_OUT/suite-$name.log" || true)
        skipped=$(grep -cE '^SKIP [^:]+: ' "$TEST_OUT/suite-$name.log" || true)
        if [ "$status" -ne 0 ]; then
            [ "$bad" -gt 0 ] || { bad=1 && printf 'suite %s ended with status %s\n' "$name" "$status"; }
            all=1
        elif [ "$ok" -eq 0 ] && [ "$bad" -eq 0 ] && [ "$skipped" -eq 0 ]; then
            ok=1
        fi
        passed=$((passed + ok)) failed=$((failed + bad))
    done
    printf '%s %s\n' "$passed" "$failed" >"$TEST_OUT/suites.counts"
    return "$all"
}

step_fuzz() {
    local results=$TEST_OUT/fuzz.results target targets
    # shellcheck source=scripts/fuzz.sh
    . "$ROOT/scripts/fuzz.sh"
    fuzz_build
    mapfile -t targets < <(fuzz_targets)
    fuzz_side_by_side 20 "$results" "${targets[@]}"
    sed -n 's/^FAILED //p' "$results" | while read -r target; do
        printf 'fuzz target %s failed:\n' "$target"
        tail -n 40 "$results.$target"
    done
    sort "$results"
    awk '{ n[$1]++ } END { print n["ok"] + 0, n["FAILED"] + 0 }' "$results" >"$TEST_OUT/fuzz.counts"
    [ "$(grep -c '^ok ' "$results")" -eq "${#targets[@]}" ]
}

step_deny() {
    # The tool is built here and not at the start: minutes, once per machine, in which tests could have failed.
    ensure_cargo_tool cargo-deny
    cargo deny --locked check bans licenses sources
    # Vulnerability reports come from a git repository that not every machine can reach.
    if timeout 120 cargo deny --locked fetch db >"$TEST_OUT/deny-fetch.log" 2>&1; then
        cargo deny --locked check --disable-fetch advisories
    else
        printf 'SKIP deny-advisories: the advisory database could not be fetched (%s)\n' \
            "$(grep -m1 -iE 'error|failed' "$TEST_OUT/deny-fetch.log" | tr -d '\n' | cut -c1-120 || true)"
    fi
}

step_scripts() {
    if ! have shellcheck; then
        printf 'SKIP shellcheck: it is not installed\n'
        return
    fi
    local files
    mapfile -t files < <(git ls-files -co --exclude-standard -- dev start.sh .ci scripts tests '*.sh' | sort -u |
        while read -r file; do
            case $(head -n2 "$file" 2>/dev/null | tr '\n' ' ') in
            '#!'*sh\ * | *'shellcheck shell='*) printf '%s\n' "$file" ;;
            esac
        done)
    shellcheck -x "${files[@]}"
}

step_length() {
    local long
    long=$(git ls-files -co --exclude-standard -- '*.rs' '*.ts' '*.tsx' '*.js' '*.css' '*.html' '*.proto' '*.sh' '*.py' scripts dev |
        grep -vE '(^|/)(vendor|vendored|third_party)/' | while read -r file; do
        [ ! -f "$file" ] || printf '%s %s\n' "$(wc -l <"$file")" "$file"
    done | awk '$1 > 1000')
    [ -z "$long" ] || {
        printf 'longer than 1,000 lines:\n%s\n' "$long"
        return 1
    }
}

test_summary() {
    local passed failed skipped
    sort -u -o "$WARREN_SKIP_FILE" "$WARREN_SKIP_FILE"
    skipped=$(grep -c . "$WARREN_SKIP_FILE" || true)
    passed=$(awk -F'\t' '{ n += $4 } END { print n + 0 }' "$TEST_OUT/results")
    failed=$(awk -F'\t' '{ n += $5 } END { print n + 0 }' "$TEST_OUT/results")

    printf '\n%-10s %-8s %8s %8s %8s\n' step result seconds passed failed
    awk -F'\t' '{ printf "%-10s %-8s %8d %8d %8d\n", $1, $2, $3, $4, $5 }' "$TEST_OUT/results"
    if [ "$skipped" -gt 0 ]; then
        printf '\nskipped:\n'
        sed 's/^/  /' "$WARREN_SKIP_FILE"
    fi
    printf '\nlogs: %s\n%d passed, %d failed, %d skipped\n' "$TEST_OUT" "$passed" "$failed" "$skipped"
    [ "$failed" -eq 0 ]
}

# ensure_schemathesis: prints the path of the API tester, kept in a virtual environment in the cache. For suites:
# they source base.sh and this file.
ensure_schemathesis() {
    local venv
    venv=$(tools_dir)/schemathesis
    if [ ! -x "$venv/bin/schemathesis" ]; then
        rm -rf "$venv"
        mkdir -p "$(tools_dir)"
        { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.32.5; } >&2 || {
            rm -rf "$venv"
            return 1
        }
    fi
    printf '%s\n' "$venv/bin/schemathesis"
}

# ensure_grpc_client: prints the path of a Python that has a gRPC client with reflection, kept in the cache. For suites.
ensure_grpc_client() {
    local venv
    venv=$(tools_dir)/grpc-client
    if ! "$venv/bin/python" -c 'import grpc_reflection' 2>/dev/null; then
        rm -rf "$venv"
        mkdir -p "$(tools_dir)"
        { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check \
            grpcio==1.85.1 grpcio-reflection==1.85.1; } >&2 || {
            rm -rf "$venv"
            return 1
        }
    fi
    printf '%s\n' "$venv/bin/python"
}
