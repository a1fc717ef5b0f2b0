# shellcheck shell=bash
# ./dev soak: one long test at full size, a slice at a time. A script tests/soak/NAME.sh keeps what it has done in
# $SOAK_STATE, works for at most $SOAK_SECONDS, and ends with 0 (all done), 75 (more to do) or anything else (it failed).
# The last line that it prints is its result in words.

SOAK_SLICE=1500

soak_names() {
    [ -d "$ROOT/tests/soak" ] || return 0
    find "$ROOT/tests/soak" -maxdepth 1 -name '*.sh' -perm -u+x -printf '%f\n' | sed 's/\.sh$//' | sort
}

soak_help() {
    cat <<'EOT'
./dev soak NAME: one long test at full size

Runs for at most 25 minutes, then says whether there is more to do; run it again to go on where it stopped.
What was done is appended, with the commit, to docs/soak.md.

  ./dev soak NAME --all       slice after slice until it is done
  ./dev soak NAME --restart   forget earlier slices
EOT
    printf 'Names: %s\n' "$(soak_names | paste -sd' ' | sed 's/^$/none yet: there is no tests\/soak/')"
}

cmd_soak() {
    case ${1:-} in
    -h | --help) soak_help && return ;;
    '') soak_help >&2 && die "name a test" ;;
    esac
    local name=$1 mode=${2:-} status
    soak_names | grep -qxF -- "$name" || die "there is no soak test '$name'; there are: $(soak_names | paste -sd' ' | sed 's/^$/none yet/')"
    export SOAK_STATE=$ROOT/.dev/soak/$name SOAK_SECONDS=$((SOAK_SLICE - 60))
    export WARREN_BIN=$ROOT/target/release/warren
    case $mode in
    --restart) rm -rf "$SOAK_STATE" ;;
    --all | '') ;;
    *) die "./dev soak takes no '$mode' (see ./dev soak -h)" ;;
    esac
    mkdir -p "$SOAK_STATE"
    trap 'exit 130' INT TERM
    install_for_test
    ensure_kernel
    cargo build --release --locked
    while :; do
        status=0
        soak_slice "$name" || status=$?
        if [ "$status" -ne 75 ] || [ "$mode" != --all ]; then
            break
        fi
    done
    case $status in
    0) say "soak $name is done" ;;
    75) say "soak $name has more to do: ./dev soak $name" ;;
    *) die "soak $name failed (status $status); its output is $SOAK_STATE/log" ;;
    esac
}

soak_slice() {
    local name=$1 started=$SECONDS status=0 result commit
    # The script stops by itself at SOAK_SECONDS; the timeout is for one that hangs.
    set +e
    timeout --kill-after=30 "$SOAK_SLICE" "$ROOT/tests/soak/$name.sh" 2>&1 | tee "$SOAK_STATE/log"
    status=${PIPESTATUS[0]}
    set -e
    case $status in
    0) result='all done' ;;
    75) result='slice, more to do' ;;
    124 | 137) result='hung' ;;
    *) result="failed ($status)" ;;
    esac
    commit=$(git -C "$ROOT" rev-parse --short=12 HEAD)
    [ -z "$(git -C "$ROOT" status --porcelain --untracked-files=no)" ] || commit="$commit with changes"
    [ -e "$ROOT/docs/soak.md" ] || {
        mkdir -p "$ROOT/docs"
        printf '# Soak runs\n\nAppended by ./dev soak.\n\n| when (UTC) | test | commit | result | seconds | in its words |\n|---|---|---|---|---|---|\n'
    } >"$ROOT/docs/soak.md"
    printf '| %s | %s | %s | %s | %d | %s |\n' "$(date -u '+%Y-%m-%d %H:%M')" "$name" "$commit" "$result" \
        $((SECONDS - started)) "$(tail -n1 "$SOAK_STATE/log" | tr '|' '/' | cut -c1-200)" >>"$ROOT/docs/soak.md"
    return "$status"
}
