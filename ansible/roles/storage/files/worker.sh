#!/bin/sh
# worker.sh KIND DATA RUNS prints what is wrong with a worker's folders, a line each that starts with $0. RUNS is where
# the head has its own.
kind=$1 data=$2 runs=$3

if [ ! -d "$data" ]; then
    echo "$0: $data is missing"
elif [ "$kind" = mount ] && ! mountpoint -q "$data"; then
    echo "$0: nothing is mounted on $data"
elif [ ! -r "$data" ] || [ ! -x "$data" ]; then
    echo "$0: $data cannot be read by uid $(id -u)"
fi

# Folders of the node's own are its own business; shared ones are not.
[ "$kind" != local ] || exit 0
if [ -w "$data" ]; then
    echo "$0: $data can be written: mount it read-only on workers"
fi
# The trainer image has an empty folder there, on its own root file system, that is nobody's storage.
if [ -e "$runs" ]; then
    if mountpoint -q "$runs" || [ "$(stat -c %m "$runs")" != / ] || [ -n "$(ls -A "$runs" 2> /dev/null)" ]; then
        echo "$0: $runs can be seen: only the head may have it"
    fi
fi
