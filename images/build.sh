#!/bin/sh
# Builds the trainer image as draco:latest and draco:<version>-<commit>. `make image` calls it.
#
#     [BASE=image] [WHEELS_DIR=folder] [TORCH=cpu|cuda] [EXTRAS=tensorboard] [TAG=name:tag] [SOURCE=url] images/build.sh
#
# BASE        what to start from (default: the Debian of the Dockerfile; images/make_base.sh makes a stand-in)
# WHEELS_DIR  wheels to prefer to the package index (default: the folder that pip's find-links setting names, if any)
# TAG         instead of draco:latest
# SOURCE      where the sources are published, for the image's label
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "image: $1" >&2
    exit 3
}

# A docker command that has BuildKit: inside it from 18.09 to 20.10, as the plugin buildx since.
has_buildkit() {
    "$1" buildx version > /dev/null 2>&1 && return
    case $("$1" --version) in *" 18.09."* | *" 19."* | *" 20."*) return 0 ;; *) return 1 ;; esac
}

command -v docker > /dev/null || fail "there is no docker command: install Docker (Debian and Ubuntu: docker.io)"
engine=
for candidate in docker /usr/bin/docker /usr/local/bin/docker; do
    if command -v "$candidate" > /dev/null && has_buildkit "$candidate"; then
        engine=$candidate
        break
    fi
done
[ -n "$engine" ] || fail "$(command -v docker) cannot build with BuildKit: install its plugin buildx (docker-buildx)"
"$engine" version > /dev/null 2>&1 ||
    fail "no Docker Engine answers at ${DOCKER_HOST:-/var/run/docker.sock}: start it (systemctl start docker)"

base=${BASE:-$(sed -n 's/^ARG BASE=//p' images/Dockerfile)}
"$engine" image inspect "$base" > /dev/null 2>&1 || "$engine" pull "$base" ||
    fail "cannot pull $base: without a registry, sudo images/make_base.sh and then BASE=draco-base:local make image"
case $base in *@*) digest=${base#*@} ;; *) digest=$("$engine" image inspect --format '{{.Id}}' "$base") ;; esac

list_wheels() {
    find "$folder" -maxdepth 1 -name '*.whl' -printf "$1"
}

wheels=scratch
folder=${WHEELS_DIR-${PIP_FIND_LINKS-$(python3 -m pip config get global.find-links 2> /dev/null || true)}}
if [ -d "$folder" ] && [ -n "$(list_wheels %f)" ]; then
    # Named after what is in it, so that it is made once and an unchanged folder leaves BuildKit's cache as it is.
    wheels=draco-wheels:$(list_wheels '%f %s %T@\n' | sort | sha256sum | cut -c1-12)
    "$engine" image inspect "$wheels" > /dev/null 2>&1 ||
        list_wheels '%f\0' | tar -C "$folder" --null -T - -c | "$engine" import - "$wheels" > /dev/null
elif [ -n "${WHEELS_DIR-}" ]; then
    fail "WHEELS_DIR=$WHEELS_DIR: no folder with wheels: name one, or leave it out"
fi

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)
commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
if [ -n "$(git status --porcelain 2> /dev/null)" ]; then
    revision=$revision-changed
    commit=$commit-changed
fi
[ "${TORCH:-cpu}" != cuda ] || commit=$commit-cuda
tag=${TAG:-draco:latest}

DOCKER_BUILDKIT=1 "$engine" build --file images/Dockerfile --tag "$tag" --tag "draco:$version-$commit" \
    --build-arg "BASE=$base" --build-arg "BASE_DIGEST=$digest" --build-arg "WHEELS=$wheels" \
    --build-arg "TORCH=${TORCH:-cpu}" --build-arg "EXTRAS=${EXTRAS:-}" --build-arg "SOURCE=${SOURCE:-}" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --build-arg "CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ)" .
"$engine" image inspect --format "image: $tag and draco:$version-$commit, {{.Size}} bytes" "$tag"
