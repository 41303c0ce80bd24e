#!/bin/bash
# cdi.sh FILE... has the Docker Engine pass GPUs to containers by CDI, and says what it had to do for that. They are
# described in the first FILE, unless the last FILE that is there, which counts before the others, describes them for the
# present driver: from 1.18 on the NVIDIA Container Toolkit does so by itself, elsewhere. `all` must be in it, and the
# device nvidia-uvm, without which there is no CUDA: its module is loaded first, as only nodes that are there are
# described. Engines take CDI from 25 on if told to, and from 28.2 on by default. Messages start with $0.

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
    last=
    for file in "$@"; do [ ! -s "$file" ] || last=$file; done
    [ -n "$last" ] && grep -qF "$driver" "$last" && grep -qE 'name: *"?all"?' "$last" && grep -qF nvidia-uvm "$last"
}

describe() {
    mkdir -p "$(dirname "$1")"
    said=$(nvidia-ctk cdi generate --output="$1" 2>&1) || fail "nvidia-ctk cdi generate: $(echo "$said" | tail -n 1)"
}

did=
if ! is_described "$@"; then
    nvidia-modprobe -c 0 -u 2> /dev/null || modprobe nvidia-uvm 2> /dev/null || true
    describe "$1"
    for file in "${@:2}"; do [ ! -e "$file" ] || describe "$file"; done
    is_described "$@" || fail "nvidia-ctk cdi generate: wrote no description of driver $driver with nvidia-uvm to $1"
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
