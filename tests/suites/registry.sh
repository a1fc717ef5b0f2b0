#!/usr/bin/env bash
# Warren's own registry as its clients meet it: skopeo and buildah push to it and pull from it, what they push runs
# without a pull, and every requirement of the distribution specification is asked for over HTTP.
set -euo pipefail
export SUITE_SECONDS=420
# shellcheck source=tests/suites/suite.bash
. "$(dirname "$0")/suite.bash"

here=$ROOT/tests/suites/registry
SECRET=a-secret-of-the-registry-suite-and-of-nothing-else
[ -x "$WARREN" ] || { skip registry "there is no warren at $WARREN" && exit 0; }

# workflows NAME ARGUMENT…: runs the script; its lines are results of this suite.
workflows() {
    local name=$1 status=0
    shift
    timeout 120 python3 "$here/workflows.py" "$@" >"$WORK/$name.out" 2>&1 || status=$?
    cat "$WORK/$name.out"
    [ "$status" -eq 0 ] || FAILURES=$((FAILURES + 1))
    grep -q '^PASS ' "$WORK/$name.out" || fail "$name"
}

copy() { timeout 120 skopeo --insecure-policy copy -q "$@"; }

digest_of() {
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1] + "/index.json"))["manifests"][0]["digest"])' "$1"
}

# token [CLAIMS]: a bearer token of the secret.
token() {
    python3 - "$SECRET" "${1:-{\}}" <<'EOT'
import base64, hashlib, hmac, sys
b64 = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
head = b64(b'{"alg":"HS256","typ":"JWT"}') + "." + b64(sys.argv[2].encode())
print(head + "." + b64(hmac.new(sys.argv[1].encode(), head.encode(), hashlib.sha256).digest()))
EOT
}

skopeo_copies_there_and_back() {
    copy --dest-tls-verify=false "oci:$WORK/busybox" "docker://$REGISTRY/team/busybox:1"
    copy --src-tls-verify=false "docker://$REGISTRY/team/busybox:1" "oci:$WORK/back:1"
    expect "$(digest_of "$WORK/busybox")" "$(digest_of "$WORK/back")"
    contains "$(skopeo list-tags --tls-verify=false "docker://$REGISTRY/team/busybox")" '"1"'
    # As docker's kind of image too, compressed anew.
    copy --dest-tls-verify=false --format v2s2 "oci:$WORK/busybox" "docker://$REGISTRY/team/busybox:docker"
    contains "$(skopeo inspect --raw --tls-verify=false "docker://$REGISTRY/team/busybox:docker")" docker.distribution.manifest.v2
    copy --src-tls-verify=false --dest-tls-verify=false "docker://$REGISTRY/team/busybox:1" "docker://$REGISTRY/elsewhere:1"
}

pushed_images_run_without_a_pull() {
    expect pushed "$(warren run --rm -q --pull never --memory 128M --network none "$REGISTRY/team/busybox:1" echo pushed)"
    expect docker "$(warren run --rm -q --pull never --memory 128M --network none "$REGISTRY/team/busybox:docker" echo docker)"
}

tags_and_images_go_together() {
    warren images -o name | grep -x "$REGISTRY/elsewhere:1"
    skopeo delete --tls-verify=false "docker://$REGISTRY/elsewhere:1"
    contains "$(refused skopeo inspect --tls-verify=false "docker://$REGISTRY/elsewhere:1")" unknown
    if warren images -o name | grep -x "$REGISTRY/elsewhere:1"; then return 1; fi
    copy --dest-tls-verify=false "oci:$WORK/busybox" "docker://$REGISTRY/elsewhere:2"
    warren rmi "$REGISTRY/elsewhere:2"
    contains "$(refused skopeo inspect --tls-verify=false "docker://$REGISTRY/elsewhere:2")" unknown
}

images_in_use_stay() {
    local said
    copy --dest-tls-verify=false --format v2s2 --dest-compress-level 9 "oci:$WORK/busybox" "docker://$REGISTRY/used:1"
    # No other name has the same digest.
    warren rmi "$REGISTRY/team/busybox:docker"
    warren run -d -q --name user --memory 128M --network none "$REGISTRY/used:1" sleep 600
    said=$(curl -sS -m 10 -X DELETE -w '%{http_code}' "$URL/v2/used/manifests/1")
    contains "$said" '"DENIED"'
    contains "$said" 409
    warren rm -f user
    curl -fsS -m 10 -X DELETE "$URL/v2/used/manifests/1"
    copy --dest-tls-verify=false --format v2s2 "oci:$WORK/busybox" "docker://$REGISTRY/team/busybox:docker"
}

loaded_images_are_served() {
    warren load -q "$WORK/busybox" --name docker.io/library/served:1
    copy --src-tls-verify=false "docker://$REGISTRY/docker.io/library/served:1" "oci:$WORK/served:1"
    expect "$(digest_of "$WORK/busybox")" "$(digest_of "$WORK/served")"
    warren load -q "$WORK/busybox" --name "$REGISTRY/own:1"
    copy --src-tls-verify=false "docker://$REGISTRY/own:1" "oci:$WORK/own:1"
    expect "$(digest_of "$WORK/busybox")" "$(digest_of "$WORK/own")"
}

buildah() {
    timeout 120 "$(type -P buildah)" --root "$WORK/buildah/root" --runroot "$WORK/buildah/run" --storage-driver vfs "$@"
}

buildah_builds_on_it_and_pushes() {
    local container
    container=$(buildah from -q --tls-verify=false "$REGISTRY/team/busybox:docker")
    printf 'added by buildah\n' >"$WORK/added"
    buildah copy -q "$container" "$WORK/added" /added
    buildah config --cmd '["cat", "/added"]' "$container"
    buildah commit -q "$container" built
    buildah rm "$container"
    buildah push -q --tls-verify=false built "docker://$REGISTRY/built:1"
    expect 'added by buildah' "$(warren run --rm -q --pull never --memory 128M --network none "$REGISTRY/built:1")"
    buildah rmi built
    buildah pull -q --tls-verify=false "$REGISTRY/built:1"
}

several_platforms_stay_together() {
    local pushed
    buildah manifest create several
    buildah manifest add several "oci:$WORK/busybox"
    buildah manifest add --arch s390x several "oci:$WORK/foreign"
    buildah manifest push -q --tls-verify=false --all several "docker://$REGISTRY/several:1"
    copy --multi-arch all --src-tls-verify=false "docker://$REGISTRY/several:1" "oci:$WORK/several:1"
    pushed=$(digest_of "$WORK/several")
    copy --multi-arch all --dest-tls-verify=false "oci:$WORK/several:1" "docker://$REGISTRY/several:2"
    expect "$pushed" "sha256:$(curl -fsS -m 10 "$URL/v2/several/manifests/2" | sha256sum | cut -d' ' -f1)"
    expect here "$(warren run --rm -q --pull never --memory 128M --network none "$REGISTRY/several:2" echo here)"
}

# The same layer, said to be for a machine that this is not.
make_foreign_image() {
    cp -r "$WORK/busybox" "$WORK/foreign"
    python3 - "$WORK/foreign" <<'EOT'
import hashlib, json, pathlib, sys
root = pathlib.Path(sys.argv[1])
blobs = root / "blobs/sha256"
def put(document):
    data = json.dumps(document).encode()
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
index = json.loads((root / "index.json").read_text())
entry = index["manifests"][0]
manifest = json.loads((blobs / entry["digest"][7:]).read_text())
config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
config["architecture"] = "s390x"
manifest["config"].update(put(config))
entry.update(put(manifest))
entry["platform"] = {"os": "linux", "architecture": "s390x"}
(root / "index.json").write_text(json.dumps(index))
EOT
}

shown() {
    curl -fsS -m 10 "$URL/v2/_catalog"
    curl -fsS -m 10 "$URL/v2/several/manifests/1"
}

everything_survived_the_restart() {
    until_ok 60 answers "$URL/health"
    expect "$1" "$(shown)"
}

a_layer_that_escapes_is_refused() {
    local said
    cp -r "$WORK/busybox" "$WORK/hostile"
    python3 "$here/hostile.py" "$WORK/hostile"
    said=$(refused skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$WORK/hostile" "docker://$REGISTRY/hostile:1")
    contains "$said" "manifest invalid"
    contains "$(curl -sS -m 10 "$URL/v2/hostile/tags/list")" NAME_UNKNOWN
    if warren images -o name | grep hostile; then return 1; fi
}

a_token_is_a_password() {
    local said
    said=$(refused skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$WORK/busybox" "docker://$REGISTRY/app:1")
    contains "$said" authentication
    copy --dest-tls-verify=false --dest-creds "me:$(token)" "oci:$WORK/busybox" "docker://$REGISTRY/app:1"
    skopeo inspect --tls-verify=false --creds "me:$(token '{"permissions": ["image:read"]}')" "docker://$REGISTRY/app:1" >"$WORK/inspected"
    refused skopeo --insecure-policy copy -q --dest-tls-verify=false --dest-creds "me:$(token '{"permissions": ["image:read"]}')" \
        "oci:$WORK/busybox" "docker://$REGISTRY/app:2"
}

check busybox-image "$ROOT/scripts/make-busybox-image" "$WORK/busybox"
serve open --network none
REGISTRY=localhost:$PORT
workflows workflows "$URL"

if have skopeo; then
    check skopeo-copies-there-and-back skopeo_copies_there_and_back
    check a-layer-that-escapes-is-refused a_layer_that_escapes_is_refused
    check tags-and-images-go-together tags_and_images_go_together
    check loaded-images-are-served loaded_images_are_served
    if have qemu-system-x86_64; then
        check pushed-images-run-without-a-pull pushed_images_run_without_a_pull
        check images-in-use-stay images_in_use_stay
        if [ "$(id -u)" -eq 0 ] && have buildah; then
            check make-foreign-image make_foreign_image
            check buildah-builds-on-it-and-pushes buildah_builds_on_it_and_pushes
            check several-platforms-stay-together several_platforms_stay_together
            # Not within the check: what a subshell starts nobody ends.
            before=$(shown) || fail shown-before-the-restart
            end_process "$SERVER_PID"
            spawn open "$WARREN" server --network none
            check everything-survived-the-restart everything_survived_the_restart "$before"
        else
            skip registry-buildah "buildah is not installed, or this is not root"
        fi
    else
        skip registry-pushed-images-run "qemu-system-x86_64 is not installed"
    fi
else
    skip registry-skopeo "skopeo is not installed"
fi

JWT_SECRET=$SECRET serve secret --hypervisors fake --network none
REGISTRY=localhost:$PORT
workflows workflows-with-a-password "$URL" --password "$(token)"
[ -z "$(type -P skopeo)" ] || check a-token-is-a-password a_token_is_a_password

finish
