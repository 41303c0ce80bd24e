#!/bin/bash
# Turns the namespaces it is started in into one instance's machine: a root file system of its own, which is this
# machine's with everything written kept apart in memory, and becomes its first process, boot.sh. Settings are FAKE_*.
set -eu

# Everything below happens in a mount namespace that goes with the instance.
mount --make-rprivate /
base=$FAKE_FOLDER/machine
mount -t tmpfs -o mode=0755,size=2g tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
root=$base/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"

mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$root/dev/"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,gid=5,mode=0620,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0,stdin 1,stdout 2,stderr; do
    ln -s "/proc/self/fd/${number%,*}" "$root/dev/${number#*,}"
done

# What this machine keeps here is none of the instance's business.
for folder in home mnt run srv tmp etc/ssh var/log; do
    mkdir -p "$root/$folder"
    mount -t tmpfs -o mode=0755 tmpfs "$root/$folder"
done
chmod 1777 "$root/tmp"
mount -t tmpfs -o mode=0711 tmpfs "$root/root" # not 0700: python may live there, and aws is for everybody
case $FAKE_PYTHON in /root/*)
    mkdir -p "$root$FAKE_PYTHON"
    mount --bind "$FAKE_PYTHON" "$root$FAKE_PYTHON"
    mount -o remount,bind,ro "$root$FAKE_PYTHON"
    ;;
esac

# Big or shared things are on this machine's disk.
mkdir -p "$root/var/lib/docker" "$root/var/tmp" "$root/run/fake-aws/storage" "$root/run/fake-aws/node"
mount --bind "$FAKE_FOLDER/docker" "$root/var/lib/docker"
mount --bind "$FAKE_FOLDER/tmp" "$root/var/tmp"
chmod 1777 "$root/var/tmp"
mount --bind "$FAKE_STORAGE" "$root/run/fake-aws/storage"
mount --bind "$FAKE_FOLDER" "$root/run/fake-aws/node"
chmod 0700 "$root/run/fake-aws"
if [ -e "$FAKE_CA" ]; then
    mkdir -p "$root/etc/docker/certs.d/$FAKE_REGISTRY"
    cp "$FAKE_CA" "$root/etc/docker/certs.d/$FAKE_REGISTRY/ca.crt"
fi

install -m 0755 "$FAKE_SCRIPTS/boot.sh" "$root/run/fake-aws/systemd" # the name by which Ansible knows systemd
install -m 0755 "$FAKE_SCRIPTS/systemctl" "$root/usr/bin/"
install -m 0755 "$FAKE_SCRIPTS/shutdown" "$FAKE_SCRIPTS/mount.efs" "$root/usr/sbin/"
install -m 0755 "$FAKE_SCRIPTS/aws" "$root/usr/local/bin/"

# A machine image with a driver: GPUs are files, and the engine takes them by CDI whatever its version is.
number=0
for gpu in $FAKE_GPU_LIST; do
    mkdir -p "$root/run/gpus"
    echo "NVIDIA ${gpu%:*}, 512, ${gpu#*:}, 30" > "$root/run/gpus/nvidia$number"
    number=$((number + 1))
done
if [ -n "$FAKE_GPU_LIST" ]; then
    install -m 0755 "$FAKE_SCRIPTS/nvidia-smi" "$FAKE_SCRIPTS/nvidia-ctk" "$root/usr/bin/"
    install -m 0755 "$FAKE_SCRIPTS/docker-cdi" "$root/usr/local/sbin/docker"
fi

mkdir "$root/run/fake-aws/old"
cd "$root"
pivot_root . run/fake-aws/old
cd /
umount -l /run/fake-aws/old
rmdir /run/fake-aws/old
exec /run/fake-aws/systemd
