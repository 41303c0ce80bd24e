#!/bin/bash
# The first process of an instance: does at boot what Amazon Linux and its cloud-init do, and tells the console.
set -u
[ $$ = 1 ] || exit 1 # it writes to /etc: of an instance, never of this machine
node=/run/fake-aws/node
console=$node/console.log
started=$(date +%s%N)

say() { # as the kernel and cloud-init write: seconds since the boot first
    local now=$((($(date +%s%N) - started) / 1000))
    printf '[%5d.%06d] %s\n' $((now / 1000000)) $((now % 1000000)) "$*" >> "$console"
}

set_up_users() {
    { # before anybody else with the same number
        echo 'root:x:0:0:root:/root:/bin/bash'
        echo 'ec2-user:x:1000:1000:EC2 Default User:/home/ec2-user:/bin/bash'
        grep -v -e '^root:' -e '^ec2-user:' /etc/passwd
    } > /run/passwd
    cat /run/passwd > /etc/passwd
    { echo 'root:x:0:' && echo 'ec2-user:x:1000:' && grep -v '^root:' /etc/group; } > /run/group
    cat /run/group > /etc/group
    echo 'ec2-user:*:20000:0:99999:7:::' >> /etc/shadow
    install -m 0440 /dev/null /etc/sudoers.d/90-cloud-init-users
    echo 'ec2-user ALL=(ALL) NOPASSWD:ALL' >> /etc/sudoers.d/90-cloud-init-users
    install -d -m 0700 -o 1000 -g 1000 /home/ec2-user /home/ec2-user/.ssh
    install -m 0600 -o 1000 -g 1000 "$node/authorized_keys" /home/ec2-user/.ssh/authorized_keys
}

set_up_names() {
    hostname "$FAKE_NAME"
    echo "$FAKE_NAME" > /etc/hostname
    {
        echo '127.0.0.1 localhost'
        echo "$FAKE_ADDRESS $FAKE_NAME.ec2.internal $FAKE_NAME"
        echo "$FAKE_REGISTRY_ADDRESS $FAKE_REGISTRY"
    } > /etc/hosts
    printf '%s\n' "FAKE_ENDPOINT=$FAKE_ENDPOINT" "FAKE_TOOLS=$FAKE_TOOLS" "FAKE_MINUTE_S=$FAKE_MINUTE_S" \
        "FAKE_CGROUP=$FAKE_CGROUP" > /etc/fake-aws.env
}

set_up_packages() { # there as far as apt knows: what stands in for them is
    for package in amazon-efs-utils chrony docker.io; do
        grep -qx "Package: $package" /var/lib/dpkg/status || printf '%s\n' "Package: $package" \
            'Status: install ok installed' 'Maintainer: none' 'Architecture: all' 'Version: 1:99' \
            'Description: stand-in' '' >> /var/lib/dpkg/status
    done
}

start_sshd() {
    mkdir -p /run/sshd
    for kind in ed25519 ecdsa; do
        ssh-keygen -q -t $kind -N '' -C "root@$FAKE_NAME.ec2.internal" -f /etc/ssh/ssh_host_${kind}_key
    done
    cat > /etc/ssh/sshd_config << 'END'
HostKey /etc/ssh/ssh_host_ed25519_key
HostKey /etc/ssh/ssh_host_ecdsa_key
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
UsePAM no
Subsystem sftp internal-sftp
MaxStartups 100
PidFile none
END
    /usr/sbin/sshd -D -e < /dev/null >> /var/log/secure 2>&1 &
    say 'Started sshd.service - OpenSSH server daemon.'
}

run_user_data() {
    local script=/var/lib/cloud/instance/scripts/part-001
    mkdir -p "${script%/*}"
    install -m 0600 "$node/user-data" /var/lib/cloud/instance/user-data.txt
    [ "$(head -c 2 "$node/user-data")" = '#!' ] || return 0
    install -m 0700 "$node/user-data" $script
    (cd / && exec env -i PATH="$PATH" LANG=C.UTF-8 HOME=/root $script) < /dev/null > /var/log/cloud-init-output.log 2>&1
    local code=$?
    cat /var/log/cloud-init-output.log >> "$console"
    [ $code -eq 0 ] || say "cloud-init: Failed to run module scripts-user (part-001: exit code $code)"
    echo $code > "$node/user-data.rc"
}

show_host_keys() {
    {
        echo '#############################################################'
        echo '-----BEGIN SSH HOST KEY FINGERPRINTS-----'
        for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -l -f "$key"; done
        echo '-----END SSH HOST KEY FINGERPRINTS-----'
        echo '#############################################################'
    } | sed "s/^/<14>$(date '+%b %e %H:%M:%S') cloud-init: /" >> "$console"
    {
        echo '-----BEGIN SSH HOST KEY KEYS-----'
        cat /etc/ssh/ssh_host_*_key.pub
        echo '-----END SSH HOST KEY KEYS-----'
    } >> "$console"
}

say 'Linux version 6.1.0-fake.amzn2023.x86_64'
mkdir -p /run/fake-units /run/systemd/system
set_up_users
set_up_names
set_up_packages
start_sshd
run_user_data
show_host_keys
say "Cloud-init v. 22.2.2 finished. Up $((($(date +%s%N) - started) / 1000000000)) seconds"
: > "$node/booted"

# Bash waits for whatever processes its instance leaves behind, and ends with the fake.
while read -r _; do :; done
