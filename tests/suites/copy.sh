#!/usr/bin/env bash
# `warren cp` as people use it: a tree in and out again is the same tree, and whoever is killed in the middle of a copy leaves
# no half file under its name. With a real guest where there is QEMU, else on the fake hypervisor.
#
#   COPY_FILES   files of the tree; 2000 without
#   COPY_MIB     MiB of the file that is copied while somebody is killed; 96 without
set -euo pipefail
export SUITE_SECONDS=${SUITE_SECONDS:-300}
# shellcheck source=tests/suites/suite.bash
. "$(dirname "$0")/suite.bash"

[ -x "$WARREN" ] || { skip copy "there is no warren at $WARREN" && exit 0; }

COPY_FILES=${COPY_FILES:-2000}
COPY_MIB=${COPY_MIB:-96}
cd "$WORK"

make_tree() {
    python3 - "$1" "$COPY_FILES" <<'PYTHON'
import os, sys
top, count = sys.argv[1], int(sys.argv[2])
os.mkdir(top)
for n in range(count):
    directory = f"{top}/d{n // 100}"
    os.makedirs(directory, exist_ok=True)
    path = f"{directory}/f{n}"
    with open(path, "w") as file:
        file.write(f"{n}\n" * (n % 50))
    if n % 10 == 0:
        os.link(path, f"{top}/d0/hard{n}")
    if n % 11 == 0:
        os.symlink(f"../d0/f{n}", f"{directory}/link{n}")
    if n % 13 == 0:
        os.setxattr(path, "user.copy", b"a\n\0" + str(n).encode())
    if n % 17 == 0:
        os.chmod(path, 0o4751)
    if n % 200 == 0:
        with open(f"{directory}/sparse{n}", "wb") as file:
            file.truncate(1 << 30)
            file.seek(9 << 20)
            file.write(b"here")
    os.utime(path, ns=(1, 1_000_000_000 * n + n))
os.mkfifo(f"{top}/pipe")
PYTHON
}

# told DIRECTORY: all that a tree is, a line for each name: kind, mode, owner, size, time, content, links, attributes, and which
# names are one file. Devices and pipes do not come out of an instance.
told() {
    python3 - "$1" <<'PYTHON'
import hashlib, os, stat, sys
top = sys.argv[1]
first = {}

def content(path, size):
    """Of what is no hole: where one ends is a matter of the file system, zeros are zeros."""
    said = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) & ~4095
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                block = os.pread(file.fileno(), 4096, at)
                if not block:
                    break
                if block.strip(b"\0"):
                    said.update(b"%d:" % at + block.ljust(4096, b"\0"))
                at += 4096
    return said.hexdigest()

for directory, names, files in os.walk(top):
    names.sort()
    for name in sorted(names + files):
        path = os.path.join(directory, name)
        shown = os.path.relpath(path, top)
        seen = os.lstat(path)
        if stat.S_ISFIFO(seen.st_mode):
            continue
        told = [shown, oct(seen.st_mode), seen.st_uid, seen.st_gid, seen.st_mtime_ns]
        if stat.S_ISLNK(seen.st_mode):
            told.append(os.readlink(path))
        elif stat.S_ISREG(seen.st_mode):
            one = first.setdefault(seen.st_ino, shown)
            told += [seen.st_size, content(path, seen.st_size), seen.st_nlink, one]
            told += [(key, os.getxattr(path, key)) for key in sorted(os.listxattr(path))]
        print(told)
PYTHON
}

a_tree_comes_back_as_it_was() {
    make_tree tree
    warren cp -a -q tree box:/tree
    warren cp -a -q box:/tree back
    told tree >tree.told
    told back >back.told
    diff tree.told back.told | head -n 20
    cmp tree.told back.told
    # Holes stay holes.
    [ "$(du -sk back | cut -f 1)" -lt "$(($(du -sk tree | cut -f 1) + 1024))" ]
}

an_archive_goes_through_pipes() {
    tar -C tree -c d1 | warren cp -q - box:/tree
    warren cp box:/tree/d1 - | tar -x -C "$WORK"
    diff -r --no-dereference tree/d1 d1
}

# Tenths of a second that a copy of 96 MiB has before somebody is killed; it takes longer.
sleep_into_it() { sleep "$(python3 -c 'import sys; print(int(sys.argv[1]) * int(sys.argv[2]) / 960)' "$1" "$COPY_MIB")"; }

nothing_of_it_inside() {
    [ "$(curl -fsS "$URL/instances/box/stat?path=$1" | tr -d ' ')" = '{"exists":false}' ]
}

# killed_after TENTHS: whether the copy that was started last was still under way then. On a fast machine one may be over.
killed_after() {
    sleep_into_it "$1"
    kill -KILL $! 2>/dev/null || true
    ! wait $!
}

a_killed_client_leaves_no_half_file() {
    local at killed=0
    for at in 1 2 5 9; do
        "$WARREN" cp -q big box:/in &
        if killed_after "$at"; then
            nothing_of_it_inside /in
            killed=$((killed + 1))
        fi
        warren exec box rm -f /in
        "$WARREN" cp -q box:/big out &
        if killed_after "$at"; then
            [ ! -e out ]
            killed=$((killed + 1))
        fi
        rm -f out
    done
    [ "$killed" -ge 4 ]
    warren cp -q big box:/in
    warren cp -q box:/in out
    cmp big out
}

a_killed_server_leaves_no_half_file() {
    local in out
    rm -f out
    "$WARREN" cp -q big box:/other &
    in=$!
    "$WARREN" cp -q box:/big out &
    out=$!
    sleep_into_it 3
    kill -KILL "$SERVER_PID"
    if wait "$in" || wait "$out"; then return 1; fi
    [ ! -e out ]
    # What the command took away again, it took away whole.
    [ -z "$(find . -maxdepth 1 -name '.warren-part-*' -newer big.copied)" ]
}

the_next_copy_works() {
    nothing_of_it_inside /other
    warren cp -q big box:/other
    warren cp -q box:/other out
    cmp big out
}

options=(--network none)
have qemu-system-x86_64 || {
    skip copy-guest "qemu-system-x86_64 is not installed"
    options+=(--hypervisors fake)
}
check busybox-image "$ROOT/scripts/make-busybox-image" "$WORK/busybox"
serve copy "${options[@]}"
check load-image warren load -q "$WORK/busybox" --name busybox
check run-instance warren run -d -q --network none --memory 256M --disk "$((4096 + 4 * COPY_MIB))M" --name box busybox sleep 10000
check a-tree-comes-back-as-it-was a_tree_comes_back_as_it_was
check an-archive-goes-through-pipes an_archive_goes_through_pipes
head -c "${COPY_MIB}M" /dev/urandom >big
check a-large-file-goes-in warren cp -q big box:/big
check a-killed-client-leaves-no-half-file a_killed_client_leaves_no_half_file
rm -f .warren-part-*
touch big.copied
check a-killed-server-leaves-no-half-file a_killed_server_leaves_no_half_file
if have qemu-system-x86_64; then
    # Not within the check: what a subshell starts nobody ends.
    # As whoever supervises it would: one that is still dying holds the record.
    until_ok 20 process_gone "$SERVER_PID"
    spawn copy "$WARREN" server "${options[@]}"
    SERVER_PID=$SPAWNED
    check the-server-is-back server_is_up copy
    check the-next-copy-works the_next_copy_works
fi

finish
