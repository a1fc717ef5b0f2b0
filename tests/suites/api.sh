#!/usr/bin/env bash
# The REST API as strangers meet it: the first generation's example, details of HTTP, tokens, and some thousand
# generated requests held against the served document. On the fake hypervisor: no guests.
set -euo pipefail
export SUITE_SECONDS=420
# shellcheck source=tests/suites/suite.bash
. "$(dirname "$0")/suite.bash"
# shellcheck source=scripts/install.sh
. "$ROOT/scripts/install.sh"
# shellcheck source=scripts/test.sh
. "$ROOT/scripts/test.sh"

here=$ROOT/tests/suites/api
# At least so many generated requests; fewer mean that the tester did not do its work.
CASES=1000
SECRET=a-secret-of-the-api-suite-and-of-nothing-else

[ -x "$WARREN" ] || { skip api "there is no warren at $WARREN" && exit 0; }
schemathesis=$(ensure_schemathesis) || { skip api "schemathesis could not be installed" && exit 0; }
python=$(dirname "$schemathesis")/python

# contract NAME ARGUMENT…: runs the script; its lines are results of this suite.
contract() {
    local name=$1 status=0
    shift
    timeout 120 "$python" "$here/contract.py" "$@" >"$WORK/$name.out" 2>&1 || status=$?
    cat "$WORK/$name.out"
    [ "$status" -eq 0 ] || FAILURES=$((FAILURES + 1))
    grep -q '^PASS ' "$WORK/$name.out" || fail "$name"
}

load_images() {
    warren load "$WORK/busybox" --name busybox-web
    warren load "$WORK/busybox" --name img-nginx
    warren load "$WORK/busybox" --name localhost/spare:1 --id spare
}

# seed: instances with the names that schemathesis.toml knows. As strangers would, over HTTP.
seed() {
    local name
    for name in seed-1 seed-2 seed-3 seed-4; do
        create "{\"id\": \"$name\", \"name\": \"$name\", \"image\": \"busybox-web\", \"network\": {\"enabled\": false}, \"memory_mb\": 128}"
    done
    create '{"id": "seed-5", "name": "Seed Five", "image": "busybox-web", "network": {"enabled": false}, "tags": {"a": "b"}}'
    warren stop seed-4
}

create() { curl -fsS -m 60 -o /dev/null -H 'Content-Type: application/json' -d "$1" "$URL/instances"; }

# api_test NAME OPTION…: endless streams and waits of a minute are left out; they have tests of their own.
api_test() {
    local name=$1
    shift
    (cd "$WORK" && timeout 240 "$schemathesis" --config-file "$here/schemathesis.toml" run "$URL/spec.json" --url "$URL" \
        --checks all --seed 3 --workers 1 --max-examples 5 --request-timeout 40 --generation-database none --no-color \
        --exclude-path /events --exclude-path '/instances/{id}/logs' --exclude-path '/instances/{id}/wait' "$@") >"$WORK/$name.out" 2>&1 || {
        tail -n 200 "$WORK/$name.out"
        return 1
    }
    sed -n '/^Test cases:/{n;p}' "$WORK/$name.out"
}

generated_requests_keep_the_contract() {
    seed
    # First without what takes the seeds away, so that most requests meet something; then everything, in sequences too.
    api_test kept --phases examples,coverage,fuzzing \
        --exclude-operation-id deleteInstance --exclude-operation-id deleteImage
    api_test all --phases fuzzing,stateful
}

enough_requests_were_generated() {
    local generated
    generated=$(sed -n 's/^ *\([0-9]*\) generated.*/\1/p' "$WORK/kept.out" "$WORK/all.out" | awk '{ n += $1 } END { print n + 0 }')
    printf '%s generated\n' "$generated"
    [ "$generated" -ge "$CASES" ]
}

server_still_serves() {
    answers "$URL/health"
    if grep -iE 'panick|stack backtrace' "$WORK/open.log"; then
        return 1
    fi
    create '{"id": "after", "name": "after", "image": "img-nginx", "network": {"enabled": false}}'
    warren rm -f after
}

listening_elsewhere_needs_a_secret() {
    local said
    said=$(DATA_DIR=$WORK/refused PORT=$(free_port) refused timeout 30 "$WARREN" server --hypervisors fake --network none --listen 0.0.0.0)
    contains "$said" JWT_SECRET
}

check busybox-image "$ROOT/scripts/make-busybox-image" "$WORK/busybox"

# Its own server: the example of the first generation wants a guest network.
options=()
if [ "$(id -u)" -eq 0 ] && have nft; then
    network=bridge
elif have passt; then
    network=user
else
    network=none options=(--no-network)
    skip api-example-with-a-network "neither root with nft nor passt is here"
fi
serve example --hypervisors fake --network "$network" --registries localhost,127.0.0.1
check load-images load_images
create '{"id": "seed-1", "name": "seed-1", "image": "busybox-web", "network": {"enabled": false}, "memory_mb": 128}'
create '{"id": "seed-2", "name": "seed-2", "image": "busybox-web", "network": {"enabled": false}, "memory_mb": 128}'
contract contract "$URL" "${options[@]}"

serve open --hypervisors fake --network none --registries localhost,127.0.0.1
check load-images-again load_images
check schemathesis generated_requests_keep_the_contract
check schemathesis-cases enough_requests_were_generated
check server-still-serves server_still_serves

JWT_SECRET=$SECRET serve secret --hypervisors fake --network none
contract tokens "$URL" --secret "$SECRET"
check listening-elsewhere-needs-a-secret listening_elsewhere_needs_a_secret

finish
