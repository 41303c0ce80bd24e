#!/bin/sh
# A node of the cluster: an SSH server on port 2222 that lets mpirun in. With arguments, that command instead.
# The host key is made at the first start, in /etc/draco; mount a volume there to keep it.
set -eu

[ $# -eq 0 ] || exec "$@"

key=/etc/draco/ssh_host_ed25519_key
[ -s "$key" ] || ssh-keygen -q -t ed25519 -N '' -C "$(uname -n)" -f "$key"
exec /usr/sbin/sshd -D -e -f /usr/local/share/draco/sshd_config
