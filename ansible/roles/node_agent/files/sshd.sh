#!/bin/bash
# sshd.sh CONFIG PID_FILE has an SSH server run with CONFIG as it is now, and says what it had to do for that. It asks no
# service manager: there may be none. Messages start with $0.
config=$1 pid_file=$2

pid=$(cat "$pid_file" 2> /dev/null)
if [ "$(cat "/proc/$pid/comm" 2> /dev/null)" != sshd ]; then
    rm -f "$pid_file"
    mkdir -p /run/sshd
    did=started
    said=$(/usr/sbin/sshd -f "$config" -o PidFile="$pid_file" 2>&1)
elif [ "$config" -nt "$pid_file" ]; then # it writes the file anew with every start; sessions go on
    did=reloaded
    said=$(/usr/sbin/sshd -t -f "$config" 2>&1 && kill -HUP "$pid" 2>&1)
else
    exit 0
fi || { # not sshd's own 255, which Ansible would take for a node that does not answer
    echo "$0: $said"
    exit 1
}

# It listens once it has written the file.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    if [ -s "$pid_file" ] && ! [ "$config" -nt "$pid_file" ]; then
        echo "$did"
        exit 0
    fi
    sleep 0.2
done
echo "$0: sshd does not stay; is its port taken?"
exit 1
