#!/bin/sh
# Makes a stand-in for the Debian image that images/Dockerfile starts from, for machines that cannot reach a container
# registry: a minimal Debian from the machine's own apt sources, with the machine's own CA certificates.
#
#     sudo images/make_base.sh [TAG]      (default: draco-base:local; then BASE=draco-base:local make image)
#
# Needs mmdebstrap, a running Docker Engine and root.
set -eu

tag=${1:-draco-base:local}
release=${RELEASE:-bookworm}

fail() {
    echo "make_base: $1" >&2
    exit 3
}

[ "$(id -u)" = 0 ] || fail "user $(id -un) may not make a root file system: run it with sudo"
command -v mmdebstrap > /dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap"
docker version > /dev/null 2>&1 || fail "no Docker Engine answers: start it (systemctl start docker)"

# The machine's sources for this release, as it has them: one-line format and deb822.
set --
for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.list /etc/apt/sources.list.d/debian.sources; do
    if [ -f "$list" ] && grep -q "^[^#]*$release" "$list"; then set -- "$@" "$list"; fi
done
[ $# -gt 0 ] || fail "no apt source for Debian $release in /etc/apt: name one there"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As Debian's slim images: no manual pages, no translations, no documents but the copyrights, and an apt that leaves no
# packages and caches behind. The hooks run outside, with the new root file system as $1.
# shellcheck disable=SC2016
mmdebstrap --variant=minbase --include=ca-certificates,usr-is-merged \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --aptopt='Dir::Cache::pkgcache ""' --aptopt='Dir::Cache::srcpkgcache ""' \
    --customize-hook='echo "APT::Keep-Downloaded-Packages \"false\";" > "$1/etc/apt/apt.conf.d/keep-nothing"' \
    --customize-hook='! [ -d /usr/local/share/ca-certificates ] ||
        cp -r /usr/local/share/ca-certificates "$1/usr/local/share/"' \
    --customize-hook='chroot "$1" update-ca-certificates' \
    "$release" "$work/root.tar" "$@" > "$work/log" 2>&1 || {
    tail -n 15 "$work/log" >&2
    fail "mmdebstrap failed, see above: check that the machine's own apt-get update works"
}

docker import --change 'CMD ["bash"]' --change "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    "$work/root.tar" "$tag" > /dev/null
docker image inspect --format "make_base: $tag, {{.Size}} bytes" "$tag"
