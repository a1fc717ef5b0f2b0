#!/usr/bin/env bash
# The gRPC API container.ContainerService as a stranger meets it: a client that is made of nothing but the server's reflection
# calls every method, and carries out the commands that are printed in clients' documentation. On the fake hypervisor,
# then with a real guest.
set -euo pipefail
export SUITE_SECONDS=420
# shellcheck source=tests/suites/suite.bash
. "$(dirname "$0")/suite.bash"
# shellcheck source=scripts/install.sh
. "$ROOT/scripts/install.sh"
# shellcheck source=scripts/test.sh
. "$ROOT/scripts/test.sh"

here=$ROOT/tests/suites/grpc
SECRET=a-secret-of-the-grpc-suite-and-of-nothing-else

[ -x "$WARREN" ] || { skip grpc "there is no warren at $WARREN" && exit 0; }
python=$(ensure_grpc_client) || { skip grpc "grpcio could not be installed" && exit 0; }

# serve_both NAME OPTION…: a server with both APIs; the gRPC one's address is in $ADDRESS.
serve_both() {
    local name=$1
    shift
    CONTAINER_SERVICE_PORT=$(free_port)
    ADDRESS=localhost:$CONTAINER_SERVICE_PORT
    export CONTAINER_SERVICE_PORT WARREN_CONTAINER_SERVICE=on
    serve "$name" "$@"
}

# script NAME FILE ARGUMENT…: runs it; its lines are results of this suite.
script() {
    local name=$1 file=$2 status=0
    shift 2
    timeout 240 "$python" -u "$here/$file" "$@" >"$WORK/$name.out" 2>&1 || status=$?
    cat "$WORK/$name.out"
    [ "$status" -eq 0 ] || FAILURES=$((FAILURES + 1))
    grep -q '^PASS ' "$WORK/$name.out" || fail "$name"
}

server_still_serves() {
    answers "$URL/health"
    if grep -iE 'panick|stack backtrace' "$WORK/$1.log"; then
        return 1
    fi
}

# What the commands that are printed want: an ubuntu:22.04 with python3, which is this machine's.
make_ubuntu() {
    cp -r "$WORK/busybox" "$WORK/ubuntu"
    # shellcheck disable=SC2046
    "$python" "$here/add_layer.py" "$WORK/ubuntu" /usr/bin/python3 $(ldd /usr/bin/python3 | grep -o '/[^ ]*')
}

load_ubuntu() { warren load -q "$WORK/ubuntu" --name docker.io/library/ubuntu:22.04; }

nobody_listens_on() {
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return 1; fi
}

a_port_that_is_named_must_be_had() {
    local said
    said=$(DATA_DIR=$WORK/refused PORT=$(free_port) refused timeout 30 "$WARREN" server --hypervisors fake --network none \
        --container-service on --container-service-port "$CONTAINER_SERVICE_PORT")
    contains "$said" "choose another --container-service-port"
}

# The health service hears of the end before the connections are closed, and the end does not wait for who follows.
it_ends_in_time() {
    local started=$SECONDS
    "$python" "$here/hold.py" "$ADDRESS" >"$WORK/hold.out" 2>&1 &
    local holder=$!
    until_ok 20 grep -q holding "$WORK/hold.out"
    kill -TERM "$SERVER_PID"
    until_ok 30 process_gone "$SERVER_PID"
    wait "$holder"
    cat "$WORK/hold.out"
    [ $((SECONDS - started)) -lt 20 ]
    contains "$(cat "$WORK/hold.out")" UNAVAILABLE
}

check busybox-image "$ROOT/scripts/make-busybox-image" "$WORK/busybox"
if [ -x /usr/bin/python3 ]; then
    check ubuntu-image make_ubuntu
else
    cp -r "$WORK/busybox" "$WORK/ubuntu"
fi

serve_both open --hypervisors fake --network none --registries localhost,127.0.0.1
check load-images warren load -q "$WORK/busybox" --name busybox --id busybox
check load-ubuntu load_ubuntu
script contract contract.py "$ADDRESS" "$URL"
script printed printed.py "$ADDRESS" --fake
script beside-rest beside_rest.py "$ADDRESS" "$URL"
check server-still-serves server_still_serves open
check a-port-that-is-named-must-be-had a_port_that_is_named_must_be_had
check it-ends-in-time it_ends_in_time
# Not within the check: what a subshell starts nobody ends. It has what was held to remove.
spawn open "$WARREN" server --hypervisors fake --network none

JWT_SECRET=$SECRET serve_both secret --hypervisors fake --network none
token=$("$python" "$here/bearer.py" "$SECRET")
check load-images-again env "WARREN_TOKEN=$token" timeout 60 "$WARREN" load -q "$WORK/busybox" --name busybox --id busybox
script tokens contract.py "$ADDRESS" "$URL" --secret "$SECRET"

if have qemu-system-x86_64; then
    # Another server is the registry that images are pulled from.
    WARREN_CONTAINER_SERVICE=off serve registry --network none --hypervisors fake
    registry=localhost:$PORT
    check fill-registry warren load -q "$WORK/busybox" --name "$registry/guest:1"
    printf '[registry."%s"]\nplain_http = true\n' "$registry" >"$WORK/guest.toml"
    serve_both guest --network none --config "$WORK/guest.toml"
    script guest real.py "$ADDRESS" "$registry/guest:1"
    if [ -x /usr/bin/python3 ]; then
        check load-ubuntu-again load_ubuntu
        script printed-real printed.py "$ADDRESS" --real
    else
        skip grpc-printed-real "there is no /usr/bin/python3 to put into a guest"
    fi
    check server-still-serves-with-guests server_still_serves guest
else
    skip grpc-guest "qemu-system-x86_64 is not installed"
fi

off=$(free_port)
CONTAINER_SERVICE_PORT=$off WARREN_CONTAINER_SERVICE=off serve off --hypervisors fake --network none
check it-is-off-when-told nobody_listens_on "$off"

finish
