#!/bin/sh
# head.sh KIND DATA RUNS prints what is wrong with the head's folders, a line each that starts with $0.
kind=$1 data=$2 runs=$3

for folder in "$data" "$runs"; do
    if [ ! -d "$folder" ]; then
        echo "$0: $folder is missing"
    elif [ "$kind" = mount ] && ! mountpoint -q "$folder"; then
        echo "$0: nothing is mounted on $folder"
    elif [ ! -r "$folder" ] || [ ! -x "$folder" ]; then
        echo "$0: $folder cannot be read by uid $(id -u)"
    fi
done
if [ -d "$runs" ] && [ ! -w "$runs" ]; then
    echo "$0: $runs cannot be written by uid $(id -u)"
fi
