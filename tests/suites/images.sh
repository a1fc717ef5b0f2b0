#!/usr/bin/env bash
# Images from real tools through a real registry into real guests: umoci and debootstrap make them, skopeo pushes
# them to Debian's docker-registry, Warren pulls and runs them.
# shellcheck disable=SC2016 # What guests expand must come to them whole.
set -euo pipefail
export SUITE_SECONDS=900
# shellcheck source=tests/suites/suite.bash
. "$(dirname "$0")/suite.bash"
# shellcheck source=scripts/install.sh
. "$ROOT/scripts/install.sh"
# shellcheck source=tests/suites/debian.bash
. "$ROOT/tests/suites/debian.bash"

PATH=$PATH:/usr/sbin:/sbin
[ -x "$WARREN" ] || { skip images "there is no warren at $WARREN" && exit 0; }
[ "$(id -u)" -eq 0 ] || { skip images "guests with published ports and umoci's unpacking are run as root here" && exit 0; }
for tool in qemu-system-x86_64 nft busybox docker-registry skopeo umoci; do
    have "$tool" || { skip images "$tool is not installed" && exit 0; }
done

# --- the registry ----------------------------------------------------------------------------------------------

start_registry() {
    REGISTRY_PORT=$(free_port)
    REGISTRY=localhost:$REGISTRY_PORT
    cat >"$WORK/registry.yml" <<EOT
version: 0.1
log: { level: info, formatter: json, accesslog: { disabled: false } }
storage: { filesystem: { rootdirectory: $WORK/registry } }
http: { addr: "127.0.0.1:$REGISTRY_PORT" }
EOT
    spawn registry docker-registry serve "$WORK/registry.yml"
    until_ok 20 answers "http://127.0.0.1:$REGISTRY_PORT/v2/"
}

# layers_of TAG: what its manifest lists.
layers_of() {
    skopeo inspect --raw --tls-verify=false "docker://$REGISTRY/$1" |
        python3 -c 'import json, sys; print(*(layer["digest"] for layer in json.load(sys.stdin)["layers"]), sep="\n")'
}

# times_fetched DIGEST: how often the registry has handed a blob out, by its own log.
times_fetched() { grep -cE "\"GET /v2/[^ ]*/blobs/$1 .* 20[06] " "$WORK/registry.log" || true; }

push() { timeout 120 skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$1" "docker://$REGISTRY/$2"; }

# --- images ----------------------------------------------------------------------------------------------------

# layer LAYOUT:TAG COMMAND DIRECTORY…: unpacks, lets COMMAND change the root file system, packs the difference as a layer.
layer() {
    local image=$1 bundle
    shift
    bundle=$(mktemp -d "$WORK/bundle-XXXXXX")
    umoci unpack --image "$image" "$bundle/b"
    "$@" "$bundle/b/rootfs"
    umoci repack --image "$image" "$bundle/b"
    rm -rf "$bundle"
}

# A user of its own, an entrypoint that is no shell's, variables, a directory the user owns.
make_worker_image() {
    umoci init --layout "$WORK/worker"
    umoci new --image "$WORK/worker:1"
    layer "$WORK/worker:1" worker_base
    layer "$WORK/worker:1" worker_program 'worker one'
    umoci config --image "$WORK/worker:1" --clear=config.entrypoint --clear=config.cmd \
        --config.entrypoint /opt/worker/entry --config.entrypoint from-entrypoint --config.cmd from-cmd \
        --config.user worker --config.workingdir /srv/work \
        --config.env PATH=/bin --config.env 'GREETING=hello, "world" $HOME' --config.env EMPTY=
    # The next version differs in its last layer alone.
    umoci tag --image "$WORK/worker:1" 2
    layer "$WORK/worker:2" worker_program 'worker two'
}

worker_base() {
    local root=$1 applet
    mkdir -p "$root"/{bin,etc,dev,proc,sys,tmp,srv/work}
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in sh id pwd env printenv cat echo ls grep sleep readlink; do
        ln -s busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/:/bin/sh\nworker:x:1234:2345:worker:/srv/work:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\ncrew:x:2345:\nextra:x:777:worker\n' >"$root/etc/group"
    chown 1234:2345 "$root/srv/work"
    chmod 1777 "$root/tmp"
    # Something of size, so that fetching it again would be seen.
    head -c 3000000 /dev/urandom >"$root/srv/ballast"
}

worker_program() {
    local words=$1 root=$2
    mkdir -p "$root/opt/worker"
    cat >"$root/opt/worker/entry" <<EOT
#!/bin/sh
echo "$words"
echo "arguments \$*"
echo "user \$(id -u):\$(id -g) \$(id -G)"
echo "directory \$(pwd)"
echo "greeting \$GREETING"
echo "empty [\${EMPTY-unset}]"
echo mine >file && echo "wrote \$(cat file)"
exit 42
EOT
    chmod 755 "$root/opt/worker/entry"
}

make_nginx_image() {
    local tarball
    tarball=$(nginx_tarball)
    umoci init --layout "$WORK/nginx"
    umoci new --image "$WORK/nginx:1"
    # As one layer, without unpacking it first.
    umoci raw add-layer --image "$WORK/nginx:1" "$tarball"
    mkdir -p "$WORK/site/var/www/html"
    printf '<h1>nginx in a microVM</h1>\n' >"$WORK/site/var/www/html/index.html"
    # A whiteout, as a layer that removes a file of the one below has it.
    : >"$WORK/site/var/www/html/.wh.index.nginx-debian.html"
    tar --owner=0 --group=0 -C "$WORK/site" -cf "$WORK/site.tar" .
    umoci raw add-layer --image "$WORK/nginx:1" "$WORK/site.tar"
    umoci config --image "$WORK/nginx:1" --config.cmd nginx --config.cmd -g --config.cmd 'daemon off;' \
        --config.stopsignal SIGQUIT --config.exposedports 80/tcp \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

# --- checks ----------------------------------------------------------------------------------------------------

worker_output() {
    printf '%s\n' "$1" "arguments from-entrypoint $2" 'user 1234:2345 2345 777' 'directory /srv/work' \
        'greeting hello, "world" $HOME' 'empty []' 'wrote mine'
}

worker_runs_as_its_image_says() {
    local said status=0
    said=$(warren run --rm -q --plain-http --memory 128M --network none "$REGISTRY/worker:1") || status=$?
    expect "$(worker_output 'worker one' from-cmd)" "$said"
    expect 42 "$status"
}

own_words_replace_cmd_and_keep_entrypoint() {
    local said status=0
    said=$(warren run --rm -q --memory 128M --network none "$REGISTRY/worker:1" a 'b c') || status=$?
    expect "$(worker_output 'worker one' 'a b c')" "$said"
    expect 42 "$status"
}

options_win_over_the_image() {
    local said
    said=$(warren run --rm -q --memory 128M --network none --user 33:44 --workdir /tmp --env GREETING=other --entrypoint /bin/sh \
        "$REGISTRY/worker:1" -c 'id -u; id -g; pwd; echo "$GREETING"')
    expect "$(printf '33\n44\n/tmp\nother')" "$said"
}

changed_layer_alone_is_fetched() {
    local said first second layer
    first=$(layers_of worker:1) second=$(layers_of worker:2)
    printf '%s\n\n%s\n' "$first" "$second"
    expect "$(head -n2 <<<"$first")" "$(head -n2 <<<"$second")"
    expect 3 "$(wc -l <<<"$second")"
    for layer in $first; do
        expect "1 of $layer" "$(times_fetched "$layer") of $layer"
    done
    warren pull -q --plain-http "$REGISTRY/worker:2"
    for layer in $second; do
        expect "1 of $layer" "$(times_fetched "$layer") of $layer"
    done
    said=$(warren run --rm -q --memory 128M --network none "$REGISTRY/worker:2" x) || true
    expect "$(worker_output 'worker two' x)" "$said"
}

pull_again_fetches_no_layer() {
    local layer
    warren pull -q --plain-http "$REGISTRY/worker:1"
    for layer in $(layers_of worker:1); do
        expect "1 of $layer" "$(times_fetched "$layer") of $layer"
    done
}

missing_tag_is_said() {
    local said
    said=$(refused warren pull --plain-http "$REGISTRY/worker:none")
    contains "$said" "$REGISTRY/worker:none is not in the registry"
    said=$(refused warren pull --plain-http "$REGISTRY/nobody/nothing:1")
    contains "$said" "$REGISTRY/nobody/nothing:1 is not in the registry"
    said=$(refused warren run --rm --pull never "$REGISTRY/worker:none")
    contains "$said" "warren pull"
}

nobody_at_the_registry_is_said() {
    local said port
    port=$(free_port)
    said=$(refused warren pull --plain-http "localhost:$port/worker:1")
    contains "$said" "localhost:$port"
}

nginx_is_pulled_and_serves() {
    local port
    port=$(free_port)
    warren pull -q --plain-http "$REGISTRY/nginx:1"
    warren run -d -q --name web --memory 256M -p "$port:80" "$REGISTRY/nginx:1"
    until_ok 60 answers "http://127.0.0.1:$port/" || {
        warren logs web
        return 1
    }
    expect '<h1>nginx in a microVM</h1>' "$(curl -fsS -m 10 "http://127.0.0.1:$port/")"
}

nginx_answers_exec() {
    local said
    said=$(warren exec web nginx -v 2>&1)
    contains "$said" nginx/
    expect "$(printf 'index.html')" "$(warren exec web ls /var/www/html)"
    # Owners and modes have come through: nginx's workers are not root, apt's directory is its user's.
    contains "$(warren exec web sh -c 'cat /proc/[0-9]*/status | grep -A8 "^Name:.nginx" | grep "^Uid:" | sort -u')" 33
    expect "$(tar --numeric-owner -tvf "$(nginx_tarball)" ./usr/bin/chage | awk '{print $1, $2}')" \
        "$(warren exec web sh -c 'ls -ln /usr/bin/chage' | awk '{print $1, $3 "/" $4}')"
}

nginx_stops_by_its_signal() {
    local started=$SECONDS
    warren stop web
    [ $((SECONDS - started)) -lt 10 ] || { printf 'took %s s: SIGQUIT was not what it got\n' $((SECONDS - started)) && return 1; }
    contains "$(warren inspect web)" '"exit_code": 0'
    warren rm web
}

pushed_image_comes_back_the_same() {
    local said
    said=$(warren push --plain-http "$REGISTRY/worker:1" --as "$REGISTRY/team/pushed:1")
    expect "$REGISTRY/team/pushed:1" "$said"
    expect "$(skopeo inspect --tls-verify=false -f '{{.Digest}}' "docker://$REGISTRY/worker:1")" \
        "$(skopeo inspect --tls-verify=false -f '{{.Digest}}' "docker://$REGISTRY/team/pushed:1")"
    # Again, as JSON: there is nothing left to send.
    said=$(warren push -q -o json --plain-http "$REGISTRY/worker:1" --as "$REGISTRY/team/pushed:2")
    expect "[\"pushed\", 0, $(layers_of worker:1 | wc -l)]" "$(python3 -c 'import json, sys; push = json.load(sys.stdin); print(json.dumps([push["status"], push["bytes"], push["layers"]]))' <<<"$said")"
    said=$(refused warren push --plain-http nobody-has-this:1 --as "$REGISTRY/team/none:1")
    contains "$said" "nobody-has-this"
}

# tree_sum DIRECTORY: of all that is in it but what every ext4 has.
tree_sum() {
    tar -C "$1" --exclude=./lost+found --sort=name --numeric-owner --xattrs '--xattrs-include=*' --format=posix \
        --pax-option=delete=atime,delete=ctime -cf - . | sha256sum
}

image_goes_out_as_it_came() {
    local digest
    digest=$(skopeo inspect --tls-verify=false -f '{{.Digest}}' "docker://$REGISTRY/worker:1")
    warren save -q "$REGISTRY/worker:1" --file "$WORK/saved.oci"
    warren save -q "$REGISTRY/worker:1" --format docker-archive >"$WORK/saved.docker"
    warren save -q "$REGISTRY/worker:1" --format oci-dir --file "$WORK/saved"
    expect "$digest" "$(skopeo inspect -f '{{.Digest}}' "oci-archive:$WORK/saved.oci:1")"
    expect "$digest" "$(skopeo inspect -f '{{.Digest}}' "oci:$WORK/saved:1")"
    skopeo --insecure-policy copy -q "docker-archive:$WORK/saved.docker" "dir:$WORK/saved.dir"
    warren load -q "$WORK/saved.docker" --name localhost/again:1
    expect "$digest" "$(warren images -o json |
        python3 -c 'import json, sys; print(*(i["digest"] for i in json.load(sys.stdin) if i["name"] == "localhost/again:1"))')"
    warren rmi localhost/again:1
}

image_as_a_disk_is_what_umoci_unpacks() {
    local shown
    warren image export -q "$REGISTRY/worker:1" "$WORK/disk.ext4"
    e2fsck -fn "$WORK/disk.ext4"
    umoci raw unpack --image "$WORK/worker:1" "$WORK/unpacked"
    mkdir -p "$WORK/mounted"
    mount -o loop,ro "$WORK/disk.ext4" "$WORK/mounted"
    shown=$(tree_sum "$WORK/mounted")
    umount "$WORK/mounted"
    expect "$(tree_sum "$WORK/unpacked")" "$shown"
}

image_as_a_disk_for_qemu() {
    warren image export -q "$REGISTRY/worker:1" "$WORK/disk.raw" --size 1G
    expect $((1 << 30)) "$(stat -c %s "$WORK/disk.raw")"
    [ "$(du -m "$WORK/disk.raw" | cut -f1)" -lt 64 ] || { du -m "$WORK/disk.raw" && return 1; }
    warren image export -q "$REGISTRY/worker:1" "$WORK/disk.qcow2" --size 1G
    qemu-img check -f qcow2 "$WORK/disk.qcow2"
    qemu-img compare -f raw -F qcow2 "$WORK/disk.raw" "$WORK/disk.qcow2"
}

archives_load_and_run() {
    local said status kind
    skopeo --insecure-policy copy -q "oci:$WORK/worker:1" "docker-archive:$WORK/worker.docker.tar:localhost/worker:docker"
    skopeo --insecure-policy copy -q "oci:$WORK/worker:1" "oci-archive:$WORK/worker.oci.tar:1"
    gzip -1 -k "$WORK/worker.docker.tar"
    # A docker archive brings its name, an OCI archive is given one.
    warren load -q "$WORK/worker.docker.tar"
    warren load -q "$WORK/worker.oci.tar" --name localhost/worker:oci
    warren load -q - --name localhost/worker:piped <"$WORK/worker.docker.tar.gz"
    for kind in docker oci piped; do
        status=0
        said=$(warren run --rm -q --pull never --memory 128M --network none "localhost/worker:$kind" "$kind") || status=$?
        expect "$(worker_output 'worker one' "$kind")" "$said"
        expect 42 "$status"
    done
}

archive_that_is_none_is_refused() {
    local said
    head -c 100000 /dev/urandom >"$WORK/noise"
    said=$(refused warren load "$WORK/noise" --name localhost/noise:1)
    contains "$said" "neither"
}

start_registry || { fail registry && finish; }
check make-worker-image make_worker_image
check push-worker push "$WORK/worker:1" worker:1
check push-worker-again push "$WORK/worker:2" worker:2

serve bridge --network bridge
check worker-runs-as-its-image-says worker_runs_as_its_image_says
check own-words-replace-cmd-and-keep-entrypoint own_words_replace_cmd_and_keep_entrypoint
check options-win-over-the-image options_win_over_the_image
check changed-layer-alone-is-fetched changed_layer_alone_is_fetched
check pull-again-fetches-no-layer pull_again_fetches_no_layer
check missing-tag-is-said missing_tag_is_said
check nobody-at-the-registry-is-said nobody_at_the_registry_is_said
check pushed-image-comes-back-the-same pushed_image_comes_back_the_same
check image-goes-out-as-it-came image_goes_out_as_it_came
check image-as-a-disk-is-what-umoci-unpacks image_as_a_disk_is_what_umoci_unpacks
if have qemu-img; then
    check image-as-a-disk-for-qemu image_as_a_disk_for_qemu
else
    skip image-as-a-disk-for-qemu "qemu-img is not installed"
fi
check archives-load-and-run archives_load_and_run
check archive-that-is-none-is-refused archive_that_is_none_is_refused

if have debootstrap; then
    check make-nginx-image make_nginx_image
    check push-nginx push "$WORK/nginx:1" nginx:1
    check nginx-is-pulled-and-serves nginx_is_pulled_and_serves
    check nginx-answers-exec nginx_answers_exec
    check nginx-stops-by-its-signal nginx_stops_by_its_signal
else
    skip nginx-from-debootstrap "debootstrap is not installed"
fi

finish
