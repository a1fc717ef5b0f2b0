# shellcheck shell=bash
# What every part of ./dev stands on: words for people, the cache, deadlines. Sourced, never run;
# it must not change anything on the machine but its own directories.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: as we are, or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo -- "$@"
    else
        die "'$*' needs root and there is no sudo here; run it as root once"
    fi
}

# The machine-wide cache: kernels and tools, shared by every checkout and every data directory.
# The server looks for kernels in the same place.
cache_dir() {
    if [ -n "${WARREN_CACHE_DIR:-}" ]; then
        printf '%s\n' "$WARREN_CACHE_DIR"
    elif [ "$(id -u)" -eq 0 ]; then
        printf '/var/cache/warren\n'
    else
        printf '%s/warren\n' "${XDG_CACHE_HOME:-$HOME/.cache}"
    fi
}

# until_ok SECONDS COMMAND…: repeats a command until it succeeds or the deadline has passed.
until_ok() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# process_gone PID: true once the process has ended (a zombie counts: nobody else reaps our children).
process_gone() {
    local state
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 0
    [ -z "$state" ] || [ "$state" = Z ]
}

# json_string TEXT: a JSON string literal; enough for versions, names and dates.
json_string() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}
