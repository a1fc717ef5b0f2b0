# shellcheck shell=bash
# Installs what is missing on Debian 12 and 13 and Ubuntu LTS, and only that: commands are looked for
# first, so that a second run costs nothing. Sourced by the subcommands; needs base.sh.

# apt with a wait for other users of its lock, without questions and without extras.
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -o DPkg::Lock::Timeout=300 -o APT::Install-Recommends=false -o Dpkg::Use-Pty=0 -qq "$@"
}

APT_FRESH=no
apt_update_once() {
    [ "$APT_FRESH" = no ] || return 0
    have apt-get || die "this machine has no apt-get; install by hand what ./dev asks for (Debian and Ubuntu are served)"
    say "apt-get update"
    apt_get update || warn "apt-get update failed; going on with the lists that are here"
    APT_FRESH=yes
}

os_field() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" /etc/os-release | head -n1; }

# The version apt would install; empty when there is none.
apt_candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -vx '(none)' || true
}

# Debian 12's own QEMU (7.2) has no mapped-ram; the backports suite has what Debian 13 ships. The suite's
# address and key are taken from the entries that the machine already has for its main suite.
ensure_bookworm_backports() {
    [ "$(os_field VERSION_CODENAME)" = bookworm ] || return 0
    if grep -rqsE '^[^#]*bookworm-backports' /etc/apt/sources.list /etc/apt/sources.list.d/; then
        return 0
    fi
    local uris signed_by
    uris=$(apt_source_field URIs)
    signed_by=$(apt_source_field Signed-By)
    [ -n "$uris" ] || die "found no source of the bookworm suite to derive backports from; add bookworm-backports to apt and run again"
    say "adding the bookworm-backports suite (for QEMU 10)"
    {
        printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\n' "$uris"
        [ -z "$signed_by" ] || printf 'Signed-By: %s\n' "$signed_by"
    } | as_root tee /etc/apt/sources.list.d/warren-backports.sources >/dev/null
    APT_FRESH=no
}

# URIs or Signed-By of the first source that carries the bookworm suite, in deb822 or one-line form.
apt_source_field() {
    local field=$1 file found
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        found=$(awk -v field="$field:" '
            BEGIN { RS = ""; FS = "\n" }
            /(^|\n)Suites:[^\n]*[ \t]bookworm([ \t\n]|$)/ {
                for (i = 1; i <= NF; i++)
                    if (index($i, field) == 1) { sub(/^[^:]*:[ \t]*/, "", $i); print $i; exit }
            }' "$file")
        [ -z "$found" ] || { printf '%s\n' "$found"; return; }
    done
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | awk -v field="$field" '
        $1 == "deb" {
            line = $0; key = ""
            if (match(line, /\[[^]]*\]/)) {
                options = substr(line, RSTART + 1, RLENGTH - 2)
                line = substr(line, 1, RSTART - 1) substr(line, RSTART + RLENGTH)
                if (match(options, /signed-by=[^ \]]+/)) key = substr(options, RSTART + 10, RLENGTH - 10)
            }
            split(line, part, /[ \t]+/)
            if (part[3] == "bookworm") { print (field == "URIs" ? part[2] : key); exit }
        }'
}

# install_missing COMMAND=PACKAGE…: installs the packages whose command is not here. A leading "?" marks one
# that we can do without (the tests that want it are skipped); "file:/path=package" looks for a file instead.
install_missing() {
    local entry command package optional missing=() wanted=()
    for entry in "$@"; do
        command=${entry%%=*} package=${entry#*=}
        case ${command#\?} in
        file:*) [ -e "${command#*file:}" ] || missing+=("$entry") ;;
        *) PATH=$PATH:/usr/sbin:/sbin have "${command#\?}" || missing+=("$entry") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    for entry in "${missing[@]}"; do
        [ "${entry#*=}" != qemu-system-x86 ] || ensure_bookworm_backports
    done
    apt_update_once
    for entry in "${missing[@]}"; do
        command=${entry%%=*} package=${entry#*=} optional=no
        [ "${command#\?}" = "$command" ] || optional=yes
        if [ -n "$(apt_candidate "$package")" ]; then
            wanted+=("$package")
        elif [ "$optional" = yes ]; then
            warn "there is no package $package here; going on without it"
        else
            die "there is no package $package in this machine's apt sources; install '${command#file:}' by hand"
        fi
    done
    [ ${#wanted[@]} -gt 0 ] || return 0
    say "installing ${wanted[*]}"
    if [ "$(os_field VERSION_CODENAME)" = bookworm ] && [[ " ${wanted[*]} " == *' qemu-system-x86 '* ]]; then
        # A transaction of its own, so that nothing but QEMU and its helpers come from backports.
        apt_get -t bookworm-backports install qemu-system-x86 qemu-utils
    fi
    apt_get install "${wanted[@]}"
}

# Rust of at least the workspace's rust-version. Distribution packages come first (signed, mirrored); rustup is
# used where it is here or packaged.
minimum_rust() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

rust_is_enough() {
    have cargo && have rustc && version_at_least "$(rustc --version 2>/dev/null | awk '{print $2}')" "$1"
}

ensure_rust() {
    local minimum package suffix
    minimum=$(minimum_rust)
    [ -d "$HOME/.cargo/bin" ] && PATH=$HOME/.cargo/bin:$PATH
    rust_is_enough "$minimum" && return 0
    if ! have rustup; then
        apt_update_once
        # Debian 12 keeps a current toolchain for its browsers as *-web; Ubuntu has versioned ones.
        for package in rustc rustc-web $(apt-cache pkgnames rustc-1. | grep -E '^rustc-1\.[0-9]+$' | sort -rV); do
            version_at_least "$(apt_candidate "$package")" "$minimum" || continue
            suffix=${package#rustc}
            say "installing Rust from $package"
            apt_get install "cargo$suffix" "$package" ||
                continue
            case $suffix in
            -1.*) PATH=/usr/lib/rust$suffix/bin:$PATH ;;
            esac
            rust_is_enough "$minimum" && return 0
        done
        if [ -n "$(apt_candidate rustup)" ]; then
            apt_get install rustup
        fi
    fi
    have rustup || die "no Rust $minimum or newer is packaged here; install one with rustup (https://rustup.rs) and run again"
    say "installing the stable Rust toolchain with rustup"
    rustup toolchain install stable --profile minimal --component rustfmt,clippy
    rustup default stable
    rust_is_enough "$minimum" || die "after installing it, rustc is still older than $minimum: $(rustc --version 2>&1 || true)"
}

# Formatting and lints come apart from the compiler in distribution packages.
ensure_rust_lints() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return 0
    if have rustup; then
        rustup component add rustfmt clippy
        return
    fi
    local owner suffix package
    owner=$(dpkg -S "$(readlink -f "$(command -v rustc)")" 2>/dev/null | cut -d: -f1 || true)
    suffix=${owner#rustc}
    for package in "rustfmt$suffix" "rust-clippy$suffix" "clippy$suffix"; do
        [ -z "$(apt_candidate "$package")" ] || apt_get install "$package"
    done
}

# What building and running need.
install_for_up() {
    install_missing \
        gcc=gcc file:/usr/include/stdio.h=libc6-dev pkg-config=pkg-config curl=curl \
        file:/etc/ssl/certs/ca-certificates.crt=ca-certificates \
        qemu-system-x86_64=qemu-system-x86 busybox=busybox-static nft=nftables ip=iproute2 \
        zstd=zstd xz=xz-utils cpio=cpio depmod=kmod mkfs.ext4=e2fsprogs flock=util-linux \
        '?passt=passt' '?qemu-img=qemu-utils'
    busybox_is_static || {
        apt_update_once
        apt_get install busybox-static
    }
    ensure_rust
}

# The dynamic busybox package has the same command, and is of no use in an image of its own.
busybox_is_static() { ! LC_ALL=C ldd "$(command -v busybox)" 2>/dev/null | grep -q '=>'; }

# What the tests need on top. Missing optional peers turn into skips that the summary names.
install_for_test() {
    install_for_up
    install_missing \
        python3=python3 git=git openssl=openssl \
        '?docker-registry=docker-registry' '?skopeo=skopeo' '?umoci=umoci' '?buildah=buildah' \
        '?fsck.erofs=erofs-utils' '?ctr=containerd' '?mkfs.xfs=xfsprogs' '?debootstrap=debootstrap' '?shellcheck=shellcheck' \
        '?sftp=openssh-client' '?rsync=rsync'
    python3 -c 'import ensurepip' 2>/dev/null || install_missing '?file:/nonexistent=python3-venv'
    ensure_rust_lints
    ensure_cargo_tool cargo-nextest
}

tools_dir() { printf '%s/tools\n' "$(cache_dir)"; }

# ensure_cargo_tool NAME: a cargo subcommand, compiled once into the machine-wide cache.
ensure_cargo_tool() {
    local tools
    tools=$(tools_dir)
    PATH=$PATH:$tools/bin
    have "$1" && return 0
    say "building $1 (once, into $tools)"
    mkdir -p "$tools"
    # A target directory of its own: the workspace's holds other features of the same crates. What such a tool does takes
    # seconds however it was compiled; to compile it for speed takes minutes.
    CARGO_TARGET_DIR=$tools/build CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --locked --quiet --root "$tools" "$1"
    rm -rf "$tools/build"
}
