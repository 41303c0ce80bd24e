#!/bin/bash
# Writes what AWS says of this node's end into a file that the head reads (draco/launch/notices.py). Runs as root for
# ever. A notice is never taken back: what replaces the node has a disk of its own.
set -u -o pipefail

METADATA=${METADATA:-http://169.254.169.254}
NOTICE=${NOTICE:-/run/draco/notice.json}
EVERY_S=${EVERY_S:-5}
TIME='([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)'
token=''

renew_token() {
    token=$(curl -sf -m 2 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 21600" "$METADATA/latest/api/token") ||
        token=''
}

# Puts what the metadata service says at a path into `answer`: nothing where there is nothing, or nobody answers.
ask() {
    local said
    answer=''
    [[ -n $token ]] || renew_token
    [[ -n $token ]] || return
    said=$(curl -s -m 2 -w '\n%{http_code}' -H "X-aws-ec2-metadata-token: $token" "$METADATA/latest/meta-data/$1")
    case ${said##*$'\n'} in
        200) answer=${said%$'\n'*} ;;
        401 | 403) token='' ;; # expired: a new one with the next look
    esac
}

tell() {
    local text="{\"kind\": \"$1\", \"at\": \"$2\"}"
    [[ ! -e $NOTICE || $(cat "$NOTICE") != "$text" ]] || return
    echo "$text" > "$NOTICE.new" && mv "$NOTICE.new" "$NOTICE" && echo "draco-notice: $text"
}

look() {
    ask spot/instance-action
    if [[ $answer =~ \"time\"\ *:\ *\"$TIME\" ]]; then # terminate, stop or hibernate: it goes
        tell interruption "${BASH_REMATCH[1]}"
    elif [[ ! -e $NOTICE ]]; then # which a rebalance recommendation neither outranks nor repeats
        ask events/recommendations/rebalance
        if [[ $answer =~ \"noticeTime\"\ *:\ *\"$TIME\" ]]; then
            tell rebalance "${BASH_REMATCH[1]}"
        fi
    fi
}

umask 022 # the head's user reads it
mkdir -p "${NOTICE%/*}"
while true; do
    look
    sleep "$EVERY_S"
done
