# shellcheck shell=bash
# What the suites stand on: results by name, servers, and an end that leaves nothing behind. Sourced by every
# tests/suites/*.sh, never run; it is not executable and not called *.sh, so that nobody takes it for a suite.

# The suite as a whole is bounded too; the TERM of timeout ends in the EXIT trap.
if [ -z "${WARREN_SUITE_BOUNDED:-}" ]; then
    WARREN_SUITE_BOUNDED=yes exec timeout --foreground -k 120 "${SUITE_SECONDS:?}" "$0" "$@"
fi
unset WARREN_SUITE_BOUNDED

# shellcheck source=scripts/base.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/base.sh"

# Short: sockets live below it.
WORK=$(mktemp -d /tmp/wrs-XXXXXX)
PIDS=()
DATA_DIRS=()
FAILURES=0
unset JWT_SECRET WARREN_TOKEN WARREN_CONTEXT CONTAINER_SERVICE_PORT SERVICE_NAME

WARREN=${WARREN_BIN:-$ROOT/target/release/warren}
[ -x "$WARREN" ] || WARREN=$ROOT/target/debug/warren

pass() { printf 'PASS %s\n' "$1"; }
skip() { printf 'SKIP %s: %s\n' "$1" "$2"; }
fail() {
    printf 'FAIL %s\n' "$1"
    FAILURES=$((FAILURES + 1))
}

# check NAME COMMAND…: passes when the command succeeds; what it said is shown when it does not. The command
# runs in a subshell in which every failing step counts.
check() {
    local name=$1 status=0 log=$WORK/check.log started=$SECONDS
    shift
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        pass "$name"
    else
        fail "$name"
        printf 'status %s after %s s:\n' "$status" $((SECONDS - started))
        tail -n 60 "$log" | sed 's/^/    /'
    fi
}

# expect WANTED GOT: for checks; says what it saw.
expect() {
    [ "$1" = "$2" ] || {
        printf 'wanted:\n%s\ngot:\n%s\n' "$1" "$2"
        return 1
    }
}

# contains TEXT PART
contains() {
    case $1 in
    *"$2"*) ;;
    *)
        printf 'there is no "%s" in:\n%s\n' "$2" "$1"
        return 1
        ;;
    esac
}

# refused COMMAND…: must fail; prints what it said. The command must be bounded.
refused() {
    local said
    if said=$("$@" 2>&1); then
        printf 'succeeded, and should not have: %s\n%s\n' "$*" "$said"
        return 1
    fi
    printf '%s\n' "$said"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# warren …: the command line, against the server of the last `serve`, for $COMMAND_SECONDS at most (120 without).
warren() { timeout "${COMMAND_SECONDS:-120}" "$WARREN" "$@"; }

# spawn NAME COMMAND…: a process of ours, with its output in $WORK/NAME.log; its pid is in $SPAWNED.
spawn() {
    local name=$1
    shift
    "$@" >>"$WORK/$name.log" 2>&1 </dev/null &
    SPAWNED=$!
    PIDS+=("$SPAWNED")
}

answers() { curl -fsS -m 2 -o /dev/null "$1" 2>/dev/null; }

# end_process PID: TERM, then KILL.
end_process() {
    process_gone "$1" && return 0
    kill -TERM "$1" 2>/dev/null || true
    until_ok 20 process_gone "$1" || kill -KILL "$1" 2>/dev/null || true
}

# serve NAME [OPTION…]: starts a server on a data directory, port, bridge and subnet of its own and waits for it. Later calls of
# `warren` mean this one.
serve() {
    local name=$1
    shift
    PORT=$(free_port)
    DATA_DIR=$WORK/$name
    BRIDGE_NAME=wrns$PORT
    SUBNET_CIDR=10.$((64 + (PORT >> 8 & 63))).$((PORT % 250 + 1)).0/24
    SUBNET_GATEWAY=${SUBNET_CIDR%0/24}1
    URL=http://127.0.0.1:$PORT
    WARREN_SERVER=$URL
    # Only the suite that is about it wants it, and the usual port is there once.
    export WARREN_CONTAINER_SERVICE=${WARREN_CONTAINER_SERVICE:-off}
    export PORT DATA_DIR BRIDGE_NAME SUBNET_CIDR SUBNET_GATEWAY WARREN_SERVER
    DATA_DIRS+=("$DATA_DIR $PORT $BRIDGE_NAME")
    spawn "$name" "$WARREN" server "$@"
    SERVER_PID=$SPAWNED
    server_is_up "$name"
}

# server_is_up NAME: waits for the server that was spawned last under this name; what it said when it does not come.
server_is_up() {
    until_ok 60 answers_or_gone || true
    answers "$URL/health" || {
        sed 's/^/    /' "$WORK/$1.log"
        return 1
    }
}

answers_or_gone() { answers "$URL/health" || process_gone "$SERVER_PID"; }

# running_here: pids of whatever runs on a file below $WORK, VMMs and network stacks above all.
running_here() {
    local file
    for file in /proc/[0-9]*/cmdline; do
        if { tr "\0" "\n" <"$file"; } 2>/dev/null | grep -qF "$WORK/"; then
            file=${file#/proc/}
            printf '%s\n' "${file%/cmdline}"
        fi
    done
}

# stop_servers: instances go first, then servers, then what servers keep between their runs.
stop_servers() {
    local entry data port bridge name pid
    for entry in "${DATA_DIRS[@]}"; do
        read -r data port bridge <<<"$entry"
        export DATA_DIR=$data PORT=$port BRIDGE_NAME=$bridge WARREN_SERVER=http://127.0.0.1:$port
        answers "$WARREN_SERVER/health" || continue
        # Names are free text: one a line.
        while read -r name; do
            timeout 60 "$WARREN" rm -f "$name" </dev/null >/dev/null 2>&1 || true
        done < <(timeout 20 "$WARREN" ps -a -o name 2>/dev/null || true)
    done
    for pid in "${PIDS[@]}"; do
        end_process "$pid"
    done
    PIDS=()
    for entry in "${DATA_DIRS[@]}"; do
        read -r data port bridge <<<"$entry"
        DATA_DIR=$data BRIDGE_NAME=$bridge timeout 30 "$WARREN" system clean >"$WORK/clean.log" 2>&1 || true
    done
}

# nothing_left: no process, device, firewall table or instance of our servers.
nothing_left() {
    local entry data bridge installation left=''
    left=$(running_here)
    for entry in "${DATA_DIRS[@]}"; do
        read -r data _ bridge <<<"$entry"
        installation=$(cat "$data/installation" 2>/dev/null) || continue
        [ ! -e "/sys/class/net/$bridge" ] || left+=" bridge $bridge"
        left+=$(find /sys/class/net -name "wt$installation*" -printf ' device %f')
        left+=$(find "$data/instances" -mindepth 1 -maxdepth 1 -printf ' instance %f' 2>/dev/null || true)
        if [ "$(id -u)" -eq 0 ] && have nft && nft list tables 2>/dev/null | grep -q "warren_$installation"; then
            left+=" table warren_$installation"
        fi
    done
    expect '' "$left"
}

clean_up() {
    local status=$? pid
    trap '' INT TERM
    set +e
    stop_servers
    for pid in $(running_here); do
        kill -KILL "$pid" 2>/dev/null
    done
    rm -rf "$WORK"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# finish: the last line of a suite.
finish() {
    stop_servers
    check nothing-left nothing_left
    [ "$FAILURES" -eq 0 ]
}
