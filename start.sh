#!/usr/bin/env bash
# Starts, stops and shows Warren on a machine without systemd. (With systemd: packaging/warren.service.)
set -euo pipefail

help() {
    cat <<'EOT'
start.sh: run Warren in the background on a machine without systemd

  bash start.sh start              start the server and wait until it answers
  bash start.sh stop               stop the server; instances go on running and are adopted at the next start
  bash start.sh stop --instances   stop every running instance first, then the server
  bash start.sh restart            stop, then start
  bash start.sh status             the server, its address, its instances (exit status 3: not running)
  bash start.sh -h                 this text

Settings come from the environment or from the file in WARREN_ENV_FILE (default /etc/warren/warren.env, lines
NAME=value), which the server reads too:

  WARREN_BIN        the program (default: warren on PATH, else target/release/warren next to this script)
  PORT              where the server listens (8080)
  DATA_DIR          its data (as root /var/lib/warren, else ~/.local/share/warren)
  WARREN_RUN_DIR    the pid file (as root /run/warren, else $XDG_RUNTIME_DIR/warren)
  WARREN_LOG_FILE   the log file (as root /var/log/warren.log, else DATA_DIR/server.log)
  WARREN_STOP_SECONDS   how long a graceful stop may take before the server is killed (30)

What else the server understands: warren server --help
EOT
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)

# NAME=value lines only: the file is read as data, not run. What the environment already says wins.
read_env_file() {
    local file=${WARREN_ENV_FILE:-/etc/warren/warren.env} line name
    [ -e "$file" ] || return 0
    while IFS= read -r line || [ -n "$line" ]; do
        [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || continue
        name=${line%%=*}
        [ -n "${!name+set}" ] || export "$name=${line#*=}"
    done <"$file"
}

settings() {
    read_env_file
    if [ -z "${WARREN_BIN:-}" ]; then
        WARREN_BIN=$(command -v warren || true)
        [ -n "$WARREN_BIN" ] || WARREN_BIN=$here/target/release/warren
    fi
    export PORT=${PORT:-8080}
    if [ "$(id -u)" -eq 0 ]; then
        export DATA_DIR=${DATA_DIR:-/var/lib/warren}
        run_dir=${WARREN_RUN_DIR:-/run/warren}
        log=${WARREN_LOG_FILE:-/var/log/warren.log}
    else
        export DATA_DIR=${DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/warren}
        run_dir=${WARREN_RUN_DIR:-${XDG_RUNTIME_DIR:-$DATA_DIR}/warren}
        log=${WARREN_LOG_FILE:-$DATA_DIR/server.log}
    fi
    export WARREN_SERVER=${WARREN_SERVER:-http://127.0.0.1:$PORT}
    pid_file=$run_dir/server.pid
    stop_seconds=${WARREN_STOP_SECONDS:-30}
}

# A process is who it was by its start time (field 22 of /proc/PID/stat, counted after the name, which may hold
# anything) and the boot: a pid alone may belong to a stranger by now.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # shellcheck disable=SC2086  # split into fields
    set -- ${stat##*) }
    [ "$1" != Z ] && printf '%s\n' "${20}"
}

# Prints the server's pid, if the one that the pid file names still runs.
running_pid() {
    local pid started boot
    read -r pid started boot 2>/dev/null <"$pid_file" || return 1
    [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] || return 1
    [ "$(start_time "$pid")" = "$started" ] || return 1
    printf '%s\n' "$pid"
}

healthy() { (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; }

# One start or stop at a time.
lock() {
    mkdir -p "$run_dir"
    chmod 700 "$run_dir"
    exec 9>"$run_dir/lock"
    flock --timeout 60 9 || die "another start.sh holds $run_dir/lock"
}

start() {
    local pid deadline
    lock
    if pid=$(running_pid); then
        printf 'warren is running (pid %s)\n' "$pid"
        return
    fi
    [ -x "$WARREN_BIN" ] || die "$WARREN_BIN is not there: build it with 'cargo build --release --locked', or set WARREN_BIN"
    ! healthy || die "port $PORT is taken by something else"
    mkdir -p "$DATA_DIR" "$(dirname "$log")"
    setsid "$WARREN_BIN" server >>"$log" 2>&1 </dev/null 9>&- &
    pid=$!
    printf '%s %s %s\n' "$pid" "$(start_time "$pid")" "$(cat /proc/sys/kernel/random/boot_id)" >"$pid_file.new"
    mv "$pid_file.new" "$pid_file"

    deadline=$((SECONDS + 30))
    until healthy; do
        if ! running_pid >/dev/null; then
            rm -f "$pid_file"
            tail -n 10 "$log" >&2
            die "the server has ended; its log is $log"
        fi
        [ "$SECONDS" -lt "$deadline" ] || die "the server does not answer on port $PORT after 30 s; its log is $log"
        sleep 0.1
    done
    printf 'warren is running (pid %s) on port %s; log: %s\n' "$pid" "$PORT" "$log"
}

stop() {
    local pid deadline name
    lock
    if ! pid=$(running_pid); then
        rm -f "$pid_file"
        printf 'warren is not running\n'
        return
    fi
    if [ "${1:-}" = --instances ]; then
        for name in $(timeout 10 "$WARREN_BIN" ps -o name); do
            timeout 60 "$WARREN_BIN" stop "$name" || printf 'warning: could not stop %s\n' "$name" >&2
        done
    fi
    kill -TERM "$pid"
    deadline=$((SECONDS + stop_seconds))
    while running_pid >/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            printf 'warning: the server did not stop within %s s; killing it (instances are not touched)\n' "$stop_seconds" >&2
            kill -KILL "$pid" 2>/dev/null || true
            deadline=$((SECONDS + 10))
        fi
        sleep 0.1
    done
    rm -f "$pid_file"
    printf 'warren has stopped\n'
}

status() {
    local pid
    if ! pid=$(running_pid); then
        printf 'warren is not running\n'
        return 3
    fi
    printf 'warren is running (pid %s) on port %s; data: %s; log: %s\n' "$pid" "$PORT" "$DATA_DIR" "$log"
    if ! healthy; then
        printf 'but it does not answer on port %s\n' "$PORT"
        return 4
    fi
    timeout 10 "$WARREN_BIN" ps || printf 'warning: its instances could not be listed\n' >&2
}

command=${1:-}
[ $# -eq 0 ] || shift
settings
case $command in
start) start ;;
stop) stop "$@" ;;
restart) stop && start ;;
status) status ;;
-h | --help) help ;;
*)
    help >&2
    exit 2
    ;;
esac
