#!/bin/bash
# What the maps prove equal is not read: of a 64 MiB disk, below 4 MiB.
. ./tests/functions.sh
need qemu-img qemu-io strace
cd "$tmp"
strace -f -qq -e trace=none true 2>/dev/null || cannot "strace may not trace"

reads_little() { # command: all that the vimg command takes from files
    strace -f -qq -e signal=none -e trace=read,readv,pread64,preadv,preadv2,copy_file_range,sendfile,splice \
        -o trace vimg "$@" >out 2>&1 || { cat out; die "$*"; }
    n=$(awk -F' = ' '/^[0-9]+ +(<\.\.\. )?[a-z]/ && $NF > 0 { n += $NF }
        END { printf "%d", n }' trace)
    [ "$n" -gt 0 ] && [ "$n" -lt $((4 << 20)) ] || die "$*: $n bytes read"
}

qemu-img create -q -f qcow2 base 64M
qemu-io -f qcow2 -c 'write -P 5 0 64M' base >/dev/null
qemu-img create -q -f qcow2 -b base -F qcow2 mid
for i in a b; do
    qemu-img create -q -f qcow2 -b base -F qcow2 $i
    qemu-io -f qcow2 -c 'write -P 6 1M 64k' $i >/dev/null
done
reads_little compare a b
reads_little rebase -b mid -F qcow2 a
reads_little convert -O qcow2 -B base -F qcow2 b c
reads_little commit a
qemu-img compare -q mid b || die "commit"
qemu-img compare -q c b || die "convert"
truncate -s 1G thin.raw
printf x | dd of=thin.raw bs=1 seek=500M conv=notrunc status=none
reads_little convert -f raw -O qcow2 thin.raw thin
reads_little compare -f raw -F qcow2 thin.raw thin
# It can tell: this one has to read everything.
(reads_little convert -O raw b full.raw) >/dev/null 2>&1 && die "all was read, and not seen"
exit 0
