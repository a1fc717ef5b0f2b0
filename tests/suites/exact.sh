#!/usr/bin/env bash
# Ten images of real tools: the disk that a guest boots from is, name for name, the tree that umoci unpacks. One program
# (exact/manifest.rs) tells what there is, on the host over umoci's tree and in the guest over its disk.
set -euo pipefail
export SUITE_SECONDS=600
# shellcheck source=tests/suites/suite.bash
. "$(dirname "$0")/suite.bash"
# shellcheck source=scripts/install.sh
. "$ROOT/scripts/install.sh"
# shellcheck source=tests/suites/debian.bash
. "$ROOT/tests/suites/debian.bash"

PATH=$PATH:/usr/sbin:/sbin
[ -x "$WARREN" ] || { skip exact "there is no warren at $WARREN" && exit 0; }
[ "$(id -u)" -eq 0 ] || { skip exact "umoci and buildah make devices and owners as root only" && exit 0; }
for tool in qemu-system-x86_64 busybox rustc umoci skopeo fsck.erofs; do
    have "$tool" || { skip exact "$tool is not installed" && exit 0; }
done

# --- tools -----------------------------------------------------------------------------------------------------

MANIFEST=$WORK/manifest

make_manifest() {
    rustc --edition=2024 -O -C target-feature=+crt-static -C strip=symbols -o "$MANIFEST" \
        "$ROOT/tests/suites/exact/manifest.rs"
}

# attribute FILE NAME HEX: sets an extended attribute.
attribute() {
    python3 -c 'import os, sys
os.setxattr(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]), follow_symlinks=False)' "$@"
}

# cap_net_bind_service, effective, as setcap writes it.
CAPABILITY=0100000200040000000000000000000000000000
# user::rwx, user:1234:rw-, group::r-x, mask::rwx, other::r-x.
ACL=0200000001000700ffffffff02000600d204000004000500ffffffff10000700ffffffff20000500ffffffff

# The program, busybox, and what every image has.
base_tree() {
    local root=$1 applet
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,etc,srv}
    cp "$MANIFEST" "$root/.manifest"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in sh rm mkdir touch cat ln; do
        ln -s busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/:/bin/sh\nworker:x:70000:70001:worker:/srv:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    chmod 1777 "$root/tmp"
}

# new_image NAME: an empty one, in $WORK/NAME with the tag 1.
new_image() {
    umoci init --layout "$WORK/$1"
    umoci new --image "$WORK/$1:1"
}

# tar_layer NAME DIRECTORY [OPTION…]: packs a directory as the next layer, whiteouts and all.
tar_layer() {
    local name=$1 directory=$2
    shift 2
    tar --format=posix --xattrs '--xattrs-include=*' --pax-option=delete=atime,delete=ctime --numeric-owner --sort=name "$@" \
        -C "$directory" -cf "$WORK/layer.tar" .
    umoci raw add-layer --image "$WORK/$name:1" "$WORK/layer.tar"
    rm -rf "$WORK/layer.tar" "$directory"
}

# base_image NAME: one with the base in its first layer.
base_image() {
    new_image "$1"
    base_tree "$WORK/tree"
    tar_layer "$1" "$WORK/tree"
}

# repack NAME COMMAND: unpacks, lets COMMAND change the root file system, packs the difference as a layer.
repack() {
    local image=$WORK/$1:1 bundle=$WORK/bundle
    umoci unpack --image "$image" "$bundle"
    "$2" "$bundle/rootfs"
    umoci repack --image "$image" "$bundle"
    rm -rf "$bundle"
}

storage_driver=overlay
in_buildah() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver "$storage_driver" "$@"; }

# --- images ----------------------------------------------------------------------------------------------------

make_debian() {
    local tarball
    tarball=$(nginx_tarball)
    new_image debian
    umoci raw add-layer --image "$WORK/debian:1" "$tarball"
    mkdir "$WORK/tree"
    cp "$MANIFEST" "$WORK/tree/.manifest"
    tar_layer debian "$WORK/tree"
}

# Five layers more: removed, replaced, made anew, linked, owned by others.
make_debian_of_many_layers() {
    local tree=$WORK/tree number
    cp -r "$WORK/debian" "$WORK/debian-many"
    mkdir -p "$tree/usr/share" && : >"$tree/usr/share/.wh.doc" && : >"$tree/usr/share/.wh.man"
    tar_layer debian-many "$tree"
    mkdir -p "$tree/etc/apt" && : >"$tree/etc/apt/.wh..wh..opq" && echo mine >"$tree/etc/apt/sources.list"
    tar_layer debian-many "$tree"
    mkdir -p "$tree/usr/share/doc/again" "$tree/opt/tool"
    cp /bin/true "$tree/opt/tool/true"
    attribute "$tree/opt/tool/true" security.capability "$CAPABILITY"
    attribute "$tree/opt/tool" user.origin 00ff0a
    tar_layer debian-many "$tree"
    # Whatever tar knows of /etc/passwd here, in the image it is another name of the image's own.
    python3 - "$WORK/links.tar" <<'PY'
import sys, tarfile
with tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT) as archive:
    for directory in ("./", "./srv/"):
        entry = tarfile.TarInfo(directory)
        entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1600000000.25
        archive.addfile(entry)
    for name, target in (("./srv/bash", "./bin/bash"), ("./srv/passwd", "/etc/passwd"), ("./srv/again", "srv/bash")):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.LNKTYPE, target
        archive.addfile(entry)
PY
    umoci raw add-layer --image "$WORK/debian-many:1" "$WORK/links.tar"
    mkdir -p "$tree/var/www"
    for number in 1 2 3; do
        echo "$number" >"$tree/var/www/$number"
    done
    chown -R 33:33 "$tree/var/www" && chmod 2750 "$tree/var/www"
    touch -d '2001-02-03 04:05:06.789012345 UTC' "$tree/var/www/2"
    tar_layer debian-many "$tree"
}

# buildah's own way of packing, from a container that was changed by hand.
make_buildah() {
    local container mount tree=$WORK/tree
    storage_driver=vfs
    base_tree "$tree"
    container=$(in_buildah from scratch)
    in_buildah add -q "$container" "$tree" /
    in_buildah commit -q "$container" first
    container=$(in_buildah from --pull-never first)
    mount=$(in_buildah mount "$container")
    rm "$mount/bin/touch"
    rm "$mount/bin/cat" && mkdir "$mount/bin/cat" && echo x >"$mount/bin/cat/now-a-directory"
    rm -r "$mount/srv" && echo x >"$mount/srv"
    ln "$mount/bin/busybox" "$mount/etc/busybox"
    in_buildah umount "$container" >/dev/null
    in_buildah commit -q "$container" second
    in_buildah push -q second "oci:$WORK/buildah:1"
    in_buildah rmi -a -f >/dev/null
    rm -rf "$tree" "$WORK/storage"
}

# A build of several steps; overlayfs makes a directory that comes again an opaque one.
make_buildah_build() {
    local tree=$WORK/tree
    storage_driver=overlay
    base_tree "$tree/context"
    cat >"$tree/Containerfile" <<'EOT'
FROM scratch
COPY context /
RUN mkdir -p /srv/d/e && echo one >/srv/d/e/file && echo two >/srv/d/other && ln /srv/d/other /srv/linked
RUN rm -r /srv/d && mkdir /srv/d && echo three >/srv/d/new
RUN rm /srv/linked && rm -r /tmp && ln -s /srv /tmp
EOT
    in_buildah build -q --layers --isolation chroot -t built -f "$tree/Containerfile" "$tree"
    in_buildah push -q built "oci:$WORK/buildah-build:1"
    in_buildah rmi -a -f >/dev/null
    rm -rf "$tree" "$WORK/storage"
}

change_much() {
    local root=$1
    rm "$root/bin/touch" "$root/etc/group"
    rm -r "$root/srv" && mkdir -p "$root/srv/new/deep" && echo x >"$root/srv/new/deep/file"
    rm "$root/etc/passwd" && ln -s ../elsewhere "$root/etc/passwd"
    chmod 700 "$root/bin"
    chown 1:2 "$root/tmp"
    ln "$root/bin/busybox" "$root/bin/second-name"
}

make_umoci() {
    base_image umoci
    repack umoci change_much
}

make_attributes() {
    local tree=$WORK/tree
    base_image attributes
    mkdir -p "$tree/a/with-defaults"
    for name in capable plain many; do
        echo "$name" >"$tree/a/$name"
    done
    ln -s plain "$tree/a/link"
    attribute "$tree/a/capable" security.capability "$CAPABILITY"
    attribute "$tree/a/plain" system.posix_acl_access "$ACL"
    attribute "$tree/a/with-defaults" system.posix_acl_default "$ACL"
    attribute "$tree/a/with-defaults" system.posix_acl_access "$ACL"
    attribute "$tree/a/link" trusted.of-a-link 0001
    for name in 1 2 3 4 5 6 7 8 9; do
        attribute "$tree/a/many" "user.number-$name" "$(printf '%02x' $name)00ff"
    done
    attribute "$tree/a/many" user.long "$(printf 'ab%.0s' {1..1000})"
    tar_layer attributes "$tree"
}

make_links() {
    local tree=$WORK/tree
    base_image links
    mkdir -p "$tree/one" "$tree/two"
    head -c 100000 /dev/urandom >"$tree/one/file"
    for name in a b c; do
        ln "$tree/one/file" "$tree/two/$name"
    done
    ln -s nowhere "$tree/one/link" && ln "$tree/one/link" "$tree/two/link"
    mknod "$tree/one/null" c 1 3 && ln "$tree/one/null" "$tree/two/null"
    tar_layer links "$tree"
    # The names go one after the other; the file stays as long as one is left.
    mkdir -p "$tree/one" "$tree/two"
    : >"$tree/one/.wh.file" && : >"$tree/two/.wh.a" && echo replaced >"$tree/two/b"
    tar_layer links "$tree"
}

make_owners() {
    local tree=$WORK/tree
    base_image owners
    mkdir -p "$tree/srv/mine" "$tree/srv/shared"
    for name in a b c; do
        echo "$name" >"$tree/srv/mine/$name"
    done
    chown -R 70000:70001 "$tree/srv/mine"
    chown 4294967294:4294967294 "$tree/srv/mine/b"
    chmod 4755 "$tree/srv/mine/a" && chmod 2711 "$tree/srv/mine/b" && chmod 0 "$tree/srv/mine/c"
    chmod 3777 "$tree/srv/shared"
    tar_layer owners "$tree"
    umoci config --image "$WORK/owners:1" --config.user worker --config.workingdir /srv/mine
}

make_times() {
    local tree=$WORK/tree name number=0
    base_image times
    mkdir -p "$tree/t/directory"
    for name in '1969-12-31 23:59:59.999999999' '1901-12-14 00:00:00.5' '1970-01-01 00:00:00' '2038-01-19 03:14:08.000000001' \
        '2106-02-07 06:28:16.25' '2024-02-29 12:00:00.123456789'; do
        number=$((number + 1))
        echo "$name" >"$tree/t/$number"
        ln -s "$number" "$tree/t/link-$number"
        touch -h -d "$name UTC" "$tree/t/$number" "$tree/t/link-$number"
    done
    touch -d '1999-12-31 23:59:59.000000009 UTC' "$tree/t/directory" "$tree/t"
    tar_layer times "$tree"
}

# Devices, holes, names that are long or no text; a layer of GNU's format; all of it as zstd.
make_oddities() {
    local tree=$WORK/tree
    base_image oddities
    mkdir -p "$tree/o"
    mknod "$tree/o/disk" b 259 300 && mknod "$tree/o/terminal" c 4 64 && mkfifo "$tree/o/pipe"
    truncate -s 64M "$tree/o/hole"
    truncate -s 5M "$tree/o/sparse" && printf middle | dd of="$tree/o/sparse" bs=1 seek=3000001 conv=notrunc status=none
    echo x >"$tree/o/$(printf 'n%.0s' {1..255})"
    echo x >"$tree/o/"$'not\xfftext' && echo x >"$tree/o/"$'new\nline'
    mkdir -p "$tree/o/$(printf 'deeper/%.0s' {1..40})"
    ln -s "$(printf 'target/%.0s' {1..500})" "$tree/o/long-link"
    # umoci knows the sparse files of PAX only.
    tar_layer oddities "$tree" --sparse
    # Long names and large numbers in GNU's own way.
    mkdir -p "$tree/gnu/$(printf 'deeper/%.0s' {1..30})"
    echo x >"$tree/gnu/file" && chown 4000000000:3000000 "$tree/gnu/file" && touch -d '1960-01-01 UTC' "$tree/gnu/file"
    ln -s "$(printf 'target/%.0s' {1..50})" "$tree/gnu/link"
    tar --format=gnu --numeric-owner --mtime='1970-01-02 UTC' --clamp-mtime -C "$tree" -cf "$WORK/gnu.tar" .
    umoci raw add-layer --image "$WORK/oddities:1" "$WORK/gnu.tar"
    rm -rf "$tree" "$WORK/gnu.tar"
    # As many registries have them by now. umoci cannot read these: it unpacks the image before.
    skopeo --insecure-policy copy -q --dest-compress-format zstd --dest-compress "oci:$WORK/oddities:1" "oci:$WORK/oddities-zstd:1"
}

# --- checks ----------------------------------------------------------------------------------------------------

# disk_of NAME: the file that guests boot from.
disk_of() {
    local digest
    digest=$(curl -fsS -m 10 "$URL/images/${1//\//%2F}" | python3 -c 'import json, sys; print(json.load(sys.stdin)["digest"])')
    printf '%s/images/disks/%s.erofs\n' "$DATA_DIR" "${digest/:/-}"
}

# guest_sees NAME [LAYOUT]: boots the image (of another layout of the same) and compares its disk with umoci's tree.
guest_sees() {
    local name=$1 layout=${2:-$1} image=localhost/$1:1 unpacking
    (umoci raw unpack --image "$WORK/$name:1" "$WORK/$name.tree" && "$MANIFEST" "$WORK/$name.tree" >"$WORK/$name.expected") &
    unpacking=$!
    # The check is a subshell: what it has started ends with it.
    # shellcheck disable=SC2064 # Now, not then.
    trap "kill $unpacking 2>/dev/null || true; wait || true; rm -rf '$WORK/$name.tree'" EXIT
    warren load -q "$WORK/$layout" --name "$image"
    fsck.erofs "$(disk_of "$image")" >"$WORK/$name.fsck"
    warren run --rm -q --pull never --memory 256M --network none --user 0:0 --entrypoint /.manifest "$image" \
        /dev/vda /.lower >"$WORK/$name.seen" </dev/null
    wait "$unpacking"
    [ "$(wc -l <"$WORK/$name.expected")" -gt 10 ] || { echo "umoci unpacked nothing" && return 1; }
    diff "$WORK/$name.expected" "$WORK/$name.seen" | cut -c1-400 | head -n 40
    cmp -s "$WORK/$name.expected" "$WORK/$name.seen"
}

check make-manifest make_manifest
serve exact --network none
for image in buildah buildah-build; do
    if have buildah; then
        check "make-$image" "make_${image//-/_}"
        check "$image-is-exact" guest_sees "$image"
    else
        skip "$image-is-exact" "buildah is not installed"
    fi
done
for image in umoci attributes links owners times; do
    check "make-$image" "make_$image"
    check "$image-is-exact" guest_sees "$image"
done
check make-oddities make_oddities
check oddities-is-exact guest_sees oddities oddities-zstd
if have debootstrap; then
    check make-debian make_debian
    check debian-is-exact guest_sees debian
    check make-debian-many make_debian_of_many_layers
    check debian-many-is-exact guest_sees debian-many
else
    skip debian-is-exact "debootstrap is not installed"
fi

finish
