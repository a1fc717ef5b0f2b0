# shellcheck shell=bash
# Guest kernels in the machine-wide cache, one directory each, complete or absent:
#
#   kernels/tuned-<source version>-<sha256 of the configuration, 12 digits>/   ./dev kernel
#   kernels/distro-<kernel release>/                                         scripts/fetch-kernel
#       vmlinux         uncompressed ELF with the PVH note
#       meta.json       {"version","config_sha256","source","built_at"}
#       modules/*.ko    distro only, with modules/order: relative names in load order, one a line
#
# The server prefers tuned over distro. Sourced; needs base.sh and install.sh.

KERNEL_FRAGMENT=$ROOT/kernel/warren.config

kernels_dir() { printf '%s/kernels\n' "$(cache_dir)"; }

require_x86_64() {
    [ "$(uname -m)" = x86_64 ] || die "guest kernels are prepared for x86_64; this machine is $(uname -m)"
}

# kernel_lock: one kernel is made at a time; held on descriptor 9 until the process ends.
kernel_lock() {
    mkdir -p "$(kernels_dir)"
    exec 9>"$(kernels_dir)/.lock"
    flock --nonblock 9 && return 0
    say "waiting for another kernel that is being made"
    flock --timeout 3600 9 || die "another process has held $(kernels_dir)/.lock for an hour"
}

# kernel_workspace: a scratch directory next to the result (rename needs one file system). What a killed
# run left there goes first; the lock says that nobody uses it.
kernel_workspace() {
    rm -rf "$(kernels_dir)"/.work-*
    mktemp -d "$(kernels_dir)/.work-XXXXXX"
}

# kernel_publish DIRECTORY NAME: durable, then visible under its name in one step.
kernel_publish() {
    sync -f "$1"
    mv -T "$1" "$(kernels_dir)/$2"
}

# kernel_meta VERSION CONFIG_SHA256 SOURCE
kernel_meta() {
    printf '{"version": %s, "config_sha256": %s, "source": %s, "built_at": %s}\n' \
        "$(json_string "$1")" "$(json_string "$2")" "$(json_string "$3")" \
        "$(json_string "$(date -u +%Y-%m-%dT%H:%M:%SZ)")"
}

# download_deb PACKAGE INTO: prints the file's path. Needs no root.
download_deb() {
    (cd "$2" && apt-get -qq -o APT::Sandbox::User=root download "$1" >&2) || return 1
    find "$2" -maxdepth 1 -name "$1_*.deb" -print -quit
}

# newest_package PATTERN: the newest package apt can really deliver whose name matches.
newest_package() {
    local prefix=${1%%[*} package
    for package in $(apt-cache pkgnames "${prefix#^}" | grep -E "$1" | sort -rV); do
        if [ -n "$(apt_candidate "$package")" ]; then
            printf '%s\n' "$package"
            return 0
        fi
    done
    return 1
}

# Any kernel is good enough to start with; the distribution's is there in seconds.
ensure_kernel() {
    local meta
    for meta in "$(kernels_dir)"/tuned-*/meta.json "$(kernels_dir)"/distro-*/meta.json; do
        [ ! -e "$meta" ] || return 0
    done
    "$ROOT/scripts/fetch-kernel"
}

kernel_help() {
    cat <<EOT
./dev kernel: build the tuned guest kernel

Builds a small kernel for microVMs from the distribution's kernel source package (the newest
linux-source-*) with the configuration in kernel/warren.config, everything built in. It starts
guests in about a third of the time of the distribution's kernel, and the server uses it as soon as
it is there. The result is kept in $(kernels_dir)
by source version and configuration: unchanged, this command does nothing.

  ./dev kernel            build it, unless it is there
  ./dev kernel --distro   only fetch and unpack the distribution's kernel package
  ./dev kernel --list     what is in the cache
EOT
}

cmd_kernel() {
    case ${1:-} in
    -h | --help) kernel_help ;;
    --distro) exec "$ROOT/scripts/fetch-kernel" ;;
    --list) kernel_list ;;
    '') build_tuned_kernel ;;
    *) die "./dev kernel takes no '$1' (see ./dev kernel -h)" ;;
    esac
}

kernel_list() {
    local meta
    for meta in "$(kernels_dir)"/*/meta.json; do
        [ -e "$meta" ] || continue
        printf '%s\n  %s\n' "$(dirname "$meta")" "$(cat "$meta")"
    done
}

build_tuned_kernel() {
    local package version digest name work source release
    require_x86_64
    install_missing gcc=gcc make=make flex=flex bison=bison bc=bc perl=perl xz=xz-utils bzip2=bzip2 \
        file:/usr/include/stdio.h=libc6-dev file:/usr/include/libelf.h=libelf-dev flock=util-linux
    package=$(newest_package '^linux-source-[0-9.]+$') || {
        apt_update_once
        package=$(newest_package '^linux-source-[0-9.]+$') || die "no linux-source-* package in this machine's apt sources"
    }
    version=$(apt_candidate "$package")
    digest=$(sha256sum "$KERNEL_FRAGMENT" | cut -d' ' -f1)
    name=tuned-$version-${digest:0:12}
    kernel_lock
    if [ -e "$(kernels_dir)/$name/meta.json" ]; then
        say "the tuned kernel is there: $(kernels_dir)/$name"
        return 0
    fi

    work=$(kernel_workspace)
    # shellcheck disable=SC2064  # the directory of now is meant
    trap "rm -rf '$work'" EXIT
    say "fetching $package $version"
    source=$(download_deb "$package" "$work") || {
        apt_update_once
        source=$(download_deb "$package" "$work") || die "apt could not download $package"
    }
    kernel_unpack_source "$source" "$work/src"
    rm -f "$source"

    say "configuring"
    kernel_configure "$work/src" "$work/config.log"
    release=$(make -s -C "$work/src" kernelversion)
    say "compiling Linux $release (minutes; the log is $work/make.log until it is done)"
    local started=$SECONDS
    # No make jobserver or flags of a calling make: the kernel's build would take them for its own.
    if ! env -u MAKEFLAGS -u MAKELEVEL nice make -s -C "$work/src" -j"$(nproc)" \
        KBUILD_BUILD_USER=warren KBUILD_BUILD_HOST=warren vmlinux >"$work/make.log" 2>&1; then
        tail -n 20 "$work/make.log" >&2
        die "the kernel did not compile"
    fi

    mkdir "$work/out"
    # Symbols go; sections and notes stay, PVH's entry point among them.
    strip --strip-all -o "$work/out/vmlinux" "$work/src/vmlinux"
    readelf -n "$work/out/vmlinux" 2>/dev/null | grep -q Xen || die "the kernel has lost its PVH note"
    cp "$work/src/.config" "$work/out/config"
    kernel_meta "$release" "$digest" "$package $version" >"$work/out/meta.json"
    kernel_publish "$work/out" "$name"
    say "built in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s: $(kernels_dir)/$name"
}

# kernel_unpack_source DEB INTO: the package holds one tarball of the tree, under /usr/src.
kernel_unpack_source() {
    local tarball
    tarball=$(dpkg-deb --fsys-tarfile "$1" | tar -t | grep -E '/linux-source-[^/]*\.tar\.(xz|bz2|gz|zst)$' | head -n1)
    [ -n "$tarball" ] || die "$(basename "$1") holds no source tarball"
    mkdir "$2"
    case $tarball in
    *.xz) set -- "$1" "$2" -J ;;
    *.bz2) set -- "$1" "$2" -j ;;
    *.gz) set -- "$1" "$2" -z ;;
    *.zst) set -- "$1" "$2" --zstd ;;
    esac
    dpkg-deb --fsys-tarfile "$1" | tar -xO "$tarball" | tar -x "$3" --strip-components=1 -C "$2"
}

# kernel_configure TREE LOG: tinyconfig, then our fragment, then defaults for the rest. Options that this
# version does not know are named; those that a guest cannot live without fail the build.
kernel_configure() {
    local line symbol lost=() fatal=()
    {
        make -s -C "$1" tinyconfig
        cat "$KERNEL_FRAGMENT" >>"$1/.config"
        make -s -C "$1" olddefconfig
    } >"$2" 2>&1 || {
        tail -n 20 "$2" >&2
        die "the kernel's configuration failed"
    }
    while read -r line; do
        case $line in
        CONFIG_*=n) symbol=${line%=n} && ! grep -q "^$symbol=" "$1/.config" || lost+=("$line") ;;
        CONFIG_*) grep -qxF -- "$line" "$1/.config" || lost+=("$line") ;;
        '# CONFIG_'*' is not set')
            symbol=${line#\# }
            ! grep -q "^${symbol% is not set}=" "$1/.config" || lost+=("$line")
            ;;
        esac
    done <"$KERNEL_FRAGMENT"
    [ ${#lost[@]} -eq 0 ] || warn "this kernel version has no such options: ${lost[*]}"
    for line in "${lost[@]}"; do
        case $line in
        CONFIG_64BIT=y | CONFIG_PVH=y | CONFIG_VIRTIO_*=y | CONFIG_EXT4_FS*=y | CONFIG_EROFS_FS=y | CONFIG_EROFS_FS_XATTR=y | \
            CONFIG_OVERLAY_FS=y | CONFIG_BLK_DEV_INITRD=y | CONFIG_SERIAL_8250_CONSOLE=y | CONFIG_DEVTMPFS=y | CONFIG_SECCOMP_FILTER=y)
            fatal+=("$line")
            ;;
        esac
    done
    [ ${#fatal[@]} -eq 0 ] || die "a guest cannot do without: ${fatal[*]}"
}
