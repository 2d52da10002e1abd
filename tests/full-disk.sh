#!/bin/bash
# File systems that fill up, a limit on the length of files, a source that gets
# shorter: an error with its cause, and no target, or the old one.
export PATH="$PWD:$PATH"
d=$(mktemp -d "${TMPDIR:-/tmp}/vimg-full.XXXXXX")
trap 'umount "$d/tmpfs" "$d/ext4" 2>/dev/null; rm -rf "$d"' EXIT
die() { echo "$*" >&2; exit 1; }

head -c 6000000 /dev/urandom > "$d/source"
echo keep > "$d/old"

# The program is not killed by SIGXFSZ, and says why it stopped.
refused() {                     # folder, what to look for, command ...
    local folder=$1 why=$2 code
    shift 2
    echo "old content" > "$folder/target"
    "$@" 2> "$d/words"
    code=$?
    [ $code -eq 1 ] || die "$*: exit status $code, not 1"
    grep -qi "$why" "$d/words" || die "$*: says $(cat "$d/words")"
    [ "$(cat "$folder/target")" = "old content" ] || die "$*: target changed"
    [ -z "$(find "$folder" -name '.*.part')" ] || die "$*: left a file"
    count=$((count + 1))
}

count=0
(ulimit -f 512; trap - XFSZ
 refused "$d" "too large" vimg convert -f raw -O qcow2 "$d/source" "$d/target"
 refused "$d" "too large" vimg convert -f raw -O raw "$d/source" "$d/target"
 refused "$d" "too large" vimg create -q -f raw "$d/target" 10M) || exit 1
count=3

fill() {                        # folder on a small file system
    refused "$1" "no space" \
        vimg convert -f raw -O qcow2 "$d/source" "$1/target"
    refused "$1" "no space" vimg convert -f raw -O raw "$d/source" "$1/target"
    refused "$1" "no space" vimg convert -f raw -O vdi "$d/source" "$1/target"
    # Thin images that hit the end: what was flushed stays.
    vimg create -q -f qcow2 "$1/thin" 64M || die "create"
    vimg io -c 'write -P 7 0 256k' -c flush "$1/thin" > /dev/null || die "io"
    vimg io -c 'write -P 8 1M 8M' -c flush "$1/thin" > "$d/words" 2>&1
    grep -qi "no space" "$d/words" || die "io says $(cat "$d/words")"
    vimg check -q "$1/thin"
    case $? in 0|3) ;; *) die "thin image after a full disk" ;; esac
    vimg io -r -c 'read -P 7 0 256k' "$1/thin" > "$d/words" 2>&1
    grep -q "verification failed" "$d/words" && die "flushed data are gone"
    rm -f "$1/thin" "$1/target"
    count=$((count + 1))
}

mkdir "$d/tmpfs" "$d/ext4"
if mount -t tmpfs -o size=2m tmpfs "$d/tmpfs" 2>/dev/null; then
    fill "$d/tmpfs"
fi
truncate -s 4M "$d/disk"
if mke2fs -q -F -t ext4 -O ^has_journal "$d/disk" 2>/dev/null &&
   mount -o loop "$d/disk" "$d/ext4" 2>/dev/null; then
    fill "$d/ext4"
fi

# A source that is cut off while it is read, or whose name goes.
head -c 3000000 /dev/urandom > "$d/gone"
cp "$d/gone" "$d/copy"
vimg convert -r 4M -f raw -O raw "$d/gone" "$d/target2" 2>/dev/null & pid=$!
rm "$d/gone"
wait $pid || [ ! -e "$d/target2" ] || die "a target without a source"
[ ! -e "$d/target2" ] || cmp -s "$d/target2" "$d/copy" ||
    die "the source's name went, and the copy is wrong"

# Zeros in place of what was cut off would be a wrong copy.
cp "$d/copy" "$d/short"
vimg convert -r 1M -f raw -O raw "$d/short" "$d/target3" 2> "$d/words" &
pid=$!
until [ -n "$(ls -l /proc/$pid/fd 2>/dev/null | grep short)" ] ||
    [ ! -d /proc/$pid ]; do :; done
truncate -s 4096 "$d/short"
if wait $pid; then
    cmp -s "$d/target3" "$d/copy" ||
        [ "$(stat -c %s "$d/target3")" -eq 4096 ] ||
        die "a shorter source is copied as zeros"
else
    grep -q "shorter" "$d/words" || die "says $(cat "$d/words")"
    [ ! -e "$d/target3" ] || die "half a copy"
    count=$((count + 1))
fi
echo "$count runs against full disks and limits"
