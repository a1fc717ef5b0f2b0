# shellcheck shell=bash
# ./dev up: from a fresh machine to a web page out of a microVM. Whatever phase Ctrl-C meets, the way out is
# the same: delete the instances, stop the server, take down this installation's network.

up_help() {
    cat <<'EOT'
./dev up: the whole thing, running

Installs what is missing (QEMU, Rust, …), builds warren, starts its server, makes a small OCI image
from busybox, runs it with a published port, fetches its page and prints it. Stays until Ctrl-C, then
removes the instances, the server's process and its network.

  PORT=8080               where the server listens, on loopback
  WEB_PORT=8081           the published port of the web page
  DATA_DIR=…              where the server keeps its data (as root /var/lib/warren-dev, else .dev/data);
                          every instance in it is deleted at the end
EOT
}

UP_SERVER=
UP_RUNNING=no

cmd_up() {
    case ${1:-} in
    -h | --help) up_help && return ;;
    '') ;;
    *) die "./dev up takes no '$1' (see ./dev up -h)" ;;
    esac

    export PORT=${PORT:-8080} WEB_PORT=${WEB_PORT:-8081}
    if [ -z "${DATA_DIR:-}" ]; then
        DATA_DIR=$ROOT/.dev/data
        [ "$(id -u)" -ne 0 ] || DATA_DIR=/var/lib/warren-dev
    fi
    export DATA_DIR
    export WARREN_SERVER=http://127.0.0.1:$PORT
    local warren=$ROOT/target/release/warren state=$ROOT/.dev image
    mkdir -p "$state"
    exec 8>"$state/up.lock"
    flock --nonblock 8 || die "another ./dev up is running from this checkout"

    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    trap up_leave EXIT

    install_for_up
    ensure_kernel
    say "building"
    cargo build --release --locked

    ! up_listening "$PORT" || die "port $PORT is taken; stop what listens there, or choose another: PORT=8090 ./dev up"
    ! up_listening "$WEB_PORT" || die "port $WEB_PORT is taken; choose another: WEB_PORT=8091 ./dev up"
    mkdir -p "$DATA_DIR"
    say "starting the server (log: $state/server.log)"
    # A session of its own: Ctrl-C on the terminal is for this script, which stops the server when it is its turn.
    setsid "$warren" server >"$state/server.log" 2>&1 8>&- &
    UP_SERVER=$!
    UP_RUNNING=yes
    up_server_ready || up_fail "the server did not come up"

    image=$state/busybox-web
    say "making an OCI image from busybox"
    "$ROOT/scripts/make-busybox-image" "$image"
    # An instance of an earlier run that was killed before it could clean up.
    "$warren" rm -f hello >/dev/null 2>&1 || true
    "$warren" load "$image" --name busybox-web || up_fail "the image could not be loaded"
    say "warren run -d -p $WEB_PORT:80 --name hello busybox-web"
    "$warren" run -d -p "$WEB_PORT:80" --name hello busybox-web || up_fail "the instance did not start"
    until_ok 60 up_fetch || up_fail "no page came from http://localhost:$WEB_PORT within 60 s"

    say "http://localhost:$WEB_PORT answers:"
    cat "$state/page"
    up_next_steps
    wait "$UP_SERVER" || true
    up_fail "the server has ended by itself"
}

up_listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

up_server_ready() {
    until_ok 30 up_healthy_or_dead && ! process_gone "$UP_SERVER"
}

up_healthy_or_dead() {
    process_gone "$UP_SERVER" || curl -fsS --max-time 2 "$WARREN_SERVER/health" >/dev/null 2>&1
}

up_fetch() {
    curl -fsS --max-time 2 -o "$ROOT/.dev/page" "http://localhost:$WEB_PORT/" 2>/dev/null
}

up_fail() {
    printf '\n--- last lines of %s\n' "$ROOT/.dev/server.log" >&2
    tail -n 20 "$ROOT/.dev/server.log" >&2 || true
    die "$1"
}

up_next_steps() {
    cat <<EOT

Next things to try, in another terminal:

  export PATH=$ROOT/target/release:\$PATH WARREN_SERVER=$WARREN_SERVER
  warren ps                                 what runs
  warren logs -f hello                      its output
  warren exec -it hello sh                  a shell in it
  warren run --rm busybox-web sh -c 'exit 7'; echo \$?
  curl localhost:$WEB_PORT                      the page again
  curl $WARREN_SERVER/instances      the REST API; its description is /spec.yaml
  warren doctor                             what this machine can do, and why
EOT
    [ -n "$(find "$(kernels_dir)" -maxdepth 1 -name 'tuned-*' -print -quit)" ] ||
        printf '  ./dev kernel                              a guest kernel that starts in a third of the time\n'
    printf '\nCtrl-C stops and removes everything.\n'
}

up_leave() {
    local status=$? warren=$ROOT/target/release/warren name
    trap '' INT TERM HUP
    trap - EXIT
    [ "$UP_RUNNING" = yes ] || exit "$status"
    set +e
    say "cleaning up"
    if ! process_gone "$UP_SERVER"; then
        for name in $(timeout 10 "$warren" ps -a -o name 2>/dev/null); do
            timeout 60 "$warren" rm -f "$name" >/dev/null || warn "could not delete $name"
        done
        kill -TERM "$UP_SERVER" 2>/dev/null
        if ! until_ok 30 process_gone "$UP_SERVER"; then
            warn "the server did not stop within 30 s; killing it"
            kill -KILL "$UP_SERVER" 2>/dev/null
        fi
    fi
    timeout 60 "$warren" system clean || warn "'warren system clean' failed: something may be left; run it again with DATA_DIR=$DATA_DIR"
    exit "$status"
}
