#!/bin/sh
# What happens in a container before its command: docker/README.md.
set -eu

refuse() {
    echo "blocklens: $1" >&2
    exit 64
}

for folder in /data /cache; do
    if [ ! -w "$folder" ]; then
        refuse "$folder is not writable for user $(id -u). Start the container as the owner of \
what is mounted there (--user \"\$(id -u):\$(id -g)\"), or mount a new volume."
    fi
done
mkdir -p "$HOME"

if [ -z "$(ls -A /data)" ]; then
    git clone --quiet /usr/share/blocklens.git /data
elif [ ! -f /data/dvc.yaml ]; then
    refuse "/data has files, but no dvc.yaml: mount a checkout of Blocklens there, or an empty \
volume, which gets the one that is built into this image."
fi

# A volume keeps the code of the image that filled it.
if [ "$(git -C /data config --get remote.origin.url)" = /usr/share/blocklens.git ]; then
    built_in=$(git -C /usr/share/blocklens.git rev-parse HEAD)
    if ! git -C /data merge-base --is-ancestor "$built_in" HEAD 2>/dev/null; then
        echo "blocklens: the checkout in /data is of another image: its code runs, not that of this \
one. docker/README.md, \"A newer image\", says how to take it." >&2
    fi
fi

# DVC names the owners of its locks by process id, which means nothing in another container: a lock
# left by a dead one may look held for ever, one of a live one may look stale. So a checkout belongs
# to one container at a time, and what the last one left is removed. The lock ends with the command.
mkdir -p /data/.blocklens
exec 9>>/data/.blocklens/container.lock
if ! flock --nonblock 9; then
    refuse "another container uses the checkout in /data. Run your command in that one (docker \
exec), or give this one a checkout of its own."
fi
rm -f /data/.dvc/tmp/rwlock /cache/worker*/.dvc/tmp/rwlock

exec "$@"
