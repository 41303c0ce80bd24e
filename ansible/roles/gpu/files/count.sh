#!/bin/bash
# count.sh prints a line, the driver's version, for each GPU that works, and why there is none, or which do not work.
# The driver may hang where a GPU has failed: it is waited for LIMIT_S seconds (20).

command -v nvidia-smi > /dev/null || {
    echo "it has no nvidia-smi: install NVIDIA's driver"
    exit 0
}
said=$(timeout --kill-after 5 "${LIMIT_S:-20}" nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1)
case $? in
0) echo "$said" ;;
124 | 137) echo "nvidia-smi hangs: restart the machine" ;;
*) echo "nvidia-smi fails: $(echo "$said" | grep . | tail -n 1)" ;;
esac
