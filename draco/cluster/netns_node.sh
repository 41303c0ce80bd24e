#!/bin/sh
# Turns the namespaces it is started in into one node: its own /etc, /root/.ssh, /run, /dev/shm and /srv, and an sshd.
# Started by netns.py inside fresh network, mount, host name and process namespaces:
#   netns_node.sh NAME FOLDER STORAGE ROLE     FOLDER is the cluster's own, STORAGE holds data/ and runs/
set -eu
name=$1 folder=$2 storage=$3 role=$4

mount --make-rprivate /
hostname "$name"
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/etc/upper /run/etc/work /run/sshd /run/draco
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir -p /root/.ssh
mount -t tmpfs -o mode=0700 tmpfs /root/.ssh
cp "$folder/operator_key.pub" /root/.ssh/authorized_keys
[ ! -e /root/.bashrc ] || mount --bind /dev/null /root/.bashrc # bash reads it at every command over ssh
# MPI names its folders after process ids, which nodes have in common, as they have /tmp.
mkdir -p /root/.prte /run/tmp
mount -t tmpfs -o mode=0700 tmpfs /root/.prte
echo 'prte_tmpdir_base = /run/tmp' > /root/.prte/mca-params.conf
printf '127.0.0.1 localhost\n' > /etc/hosts
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
cp /etc/ssh/ssh_host_ed25519_key.pub "$folder/$name.hostkey.pub"

# The storage: the head reads and writes all of it, workers only read the data and do not see the runs.
mount -t tmpfs -o mode=0755 tmpfs /srv
mkdir -p /srv/draco/data
mount --bind "$storage/data" /srv/draco/data
if [ "$role" = head ]; then
    mkdir -p /srv/draco/runs
    mount --bind "$storage/runs" /srv/draco/runs
else
    mount -o remount,ro,bind /srv/draco/data
    mount -o remount,ro /srv
fi
# Nodes share the machine's disk: hide what the operator and the head keep there, and give up the right to uncover it.
mount -t tmpfs -o ro tmpfs "$storage"
mount -t tmpfs -o ro tmpfs "$folder"

dropped=-sys_admin,-sys_module,-sys_rawio,-mknod,-sys_ptrace,-sys_boot,-sys_time,-syslog
exec setpriv --bounding-set "$dropped" --inh-caps "$dropped" -- \
    /usr/sbin/sshd -D -e -o UsePAM=no -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no
