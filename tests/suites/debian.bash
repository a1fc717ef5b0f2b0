# shellcheck shell=bash
# A Debian root file system for suites. Sourced; needs install.sh and suite.bash.

# apt_mirror CODENAME: where this machine's apt gets the main part of its release.
apt_mirror() {
    local found
    found=$(apt-get indextargets --format "\$(REPO_URI) \$(RELEASE) \$(COMPONENT) \$(CREATED_BY)" 2>/dev/null |
        awk -v codename="$1" '$2 == codename && $3 == "main" && $4 == "Packages" { print $1; exit }')
    [ -n "$found" ] || [ "$1" != bookworm ] || found=$(apt_source_field URIs)
    printf '%s\n' "$found"
}

# A root file system with nginx, kept in the machine-wide cache: minutes the first time, a copy later.
nginx_tarball() {
    local codename mirror cached package=nginx components=main
    codename=$(os_field VERSION_CODENAME)
    cached=$(cache_dir)/images/debootstrap-nginx-$codename-$(dpkg --print-architecture).tar
    if [ ! -e "$cached" ]; then
        mirror=$(apt_mirror "$codename")
        [ -n "$mirror" ] || die "found no apt source of $codename to bootstrap from"
        mkdir -p "$(dirname "$cached")"
        [ -z "$(apt_candidate nginx-light)" ] || package=nginx-light
        [ "$(os_field ID)" != ubuntu ] || components=main,universe
        timeout 600 debootstrap --variant=minbase --components="$components" --include="$package" "$codename" "$WORK/nginx-root" "$mirror" >&2
        rm -rf "$WORK"/nginx-root/var/cache/apt/archives/*.deb "$WORK"/nginx-root/var/lib/apt/lists/*
        tar --numeric-owner -C "$WORK/nginx-root" -cf "$cached.$$" .
        rm -rf "$WORK/nginx-root"
        mv "$cached.$$" "$cached"
    fi
    printf '%s\n' "$cached"
}
