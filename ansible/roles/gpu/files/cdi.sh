#!/bin/bash
# cdi.sh FILE... has the Docker Engine pass GPUs to containers by CDI, and says what it had to do for that. They are
# described in the first FILE, unless one of the FILEs describes them for the present driver: from 1.18 on the NVIDIA
# Container Toolkit does so by itself, elsewhere. `all` must be in it. Engines take CDI from 25 on if told to, and from 28.2 on by default.
# Messages start with $0.

fail() {
    echo "$0: $1"
    exit 1
}

takes_cdi() {
    case $(docker info --format '{{json .CDISpecDirs}}' 2> /dev/null) in '[]' | null | '') return 1 ;; esac
}

command -v nvidia-ctk > /dev/null || fail "has GPUs, and no nvidia-ctk: install the NVIDIA Container Toolkit there"
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | grep -m 1 -x '[0-9.]*')

is_described() {
    for file in "$@"; do
        grep -qsF "$driver" "$file" && grep -qsE 'name: *"?all"?' "$file" && return
    done
    return 1
}

did=
if ! is_described "$@"; then
    mkdir -p "$(dirname "$1")"
    said=$(nvidia-ctk cdi generate --output="$1" 2>&1) || fail "nvidia-ctk cdi generate: $(echo "$said" | tail -n 1)"
    is_described "$@" || fail "nvidia-ctk cdi generate: wrote no description of driver $driver to $1"
    did=described
fi
if ! takes_cdi; then
    said=$(nvidia-ctk runtime configure --runtime=docker --cdi.enabled 2>&1) ||
        fail "nvidia-ctk runtime configure: $(echo "$said" | tail -n 1)"
    said=$(systemctl restart docker 2>&1) || fail "systemctl restart docker: $(echo "$said" | tail -n 1)"
    takes_cdi || fail "Docker Engine $(docker version --format '{{.Server.Version}}') takes no CDI devices: 25 or newer"
    did="$did enabled"
fi
echo "$did"
