#!/bin/bash
# vimg mount: every kind of partition, the kernel's loop mount on top, errors
# in the middle, servers that die.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img qemu-io sfdisk mke2fs e2fsck nbdkit fusermount3 findmnt losetup
[ -w /dev/fuse ] || cannot "no /dev/fuse"
vimg mount 2>&1 | grep -q "without FUSE" && skip "built without FUSE"
no_libnbd && skip "built without libnbd"
m="$tmp/my mount"
cleanup() {
    umount -l "$tmp/ext4" 2>/dev/null || :
    umount -l "$m" 2>/dev/null || :
    kill_pids
}
cd "$tmp"
export TMPDIR="$tmp"
mkdir "$m" ext4 files

# ---- partitions: GPT, and MBR with logical ones.
parts() { # RAW LIST
    vimg mount -f raw "$1" "$m" || die "$1: mount"
    [ "$(ls "$m" | tr '\n' ' ')" = "$2" ] || die "$1: $(ls "$m")"
    sfdisk -d "$1" | sed -n 's/^.*raw\([0-9]*\) : start= *\([0-9]*\), size= *\([0-9]*\), type=\([^,]*\).*/\1 \2 \3 \4/p' >table
    [ -s table ] || [ "$2" = "disk " ] || die "$1: sfdisk"
    while read -r n start size type; do
        [ "$type" != 5 ] || continue
        dd if="$1" bs=512 skip="$start" count="$size" status=none |
            cmp - "$m/p$n" || die "$1: p$n"
    done <table
    cmp "$1" "$m/disk" || die "$1: disk"
    for name in p0 p01 p+1 'p 1' p99 p disk1; do
        [ ! -e "$m/$name" ] || die "$1: there is a $name"
    done
    vimg umount "$m"
}
dd if=/dev/urandom of=gpt.raw bs=1M count=8 status=none
printf 'label: gpt\nstart=2048, size=2048\nstart=4096, size=1000\nstart=6000, size=3000\n' |
    sfdisk -q gpt.raw
parts gpt.raw "disk p1 p2 p3 "
dd if=/dev/urandom of=mbr.raw bs=1M count=8 status=none
printf 'label: dos\nstart=2048, size=2048, type=83\nstart=4096, size=10000, type=5\nstart=5000, size=1000, type=83\nstart=7000, size=2000, type=82\nstart=9500, size=500, type=83\n' |
    sfdisk -q mbr.raw
parts mbr.raw "disk p1 p5 p6 p7 "
dd if=/dev/urandom of=none.raw bs=1M count=1 status=none
dd if=/dev/zero of=none.raw bs=1 seek=510 count=2 conv=notrunc status=none
parts none.raw "disk "

# ---- a loop mount of the partition, by the kernel.
seq 1 60000 >files/numbers
mkdir files/sub
dd if=/dev/urandom of=files/sub/data bs=64k count=20 status=none
truncate -s 40M base.raw
echo 'start=2048, type=83' | sfdisk -q base.raw
mke2fs -q -F -t ext4 -d files -E offset=1048576 base.raw 36M >/dev/null 2>&1 ||
    die "mke2fs"
vimg convert -f raw -O qcow2 base.raw base.qcow2
vimg create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
vimg mount -w -f qcow2 top.qcow2 "$m"
if [ "$(id -u)" = 0 ] && mount -o loop "$m/p1" ext4 2>err; then
    diff -r --exclude=lost+found files ext4 || die "other files"
    cp -r ext4/sub ext4/copy
    rm ext4/sub/data
    dd if=/dev/urandom of=new bs=64k count=50 status=none
    cp new ext4/new
    fstrim ext4 || die "fstrim"
    ! vimg umount "$m" 2>/dev/null || die "unmounted while it is in use"
    umount ext4
    n=0
    until vimg umount "$m" 2>err; do
        # The kernel lets go of the loop device's file when it likes.
        n=$((n + 1))
        [ $n -lt 100 ] || die "umount: $(cat err)"
        sleep 0.05
    done
    vimg check -q top.qcow2 || die "vimg check"
    qemu-img check -q top.qcow2 || die "qemu-img check"
    qemu-img convert -f qcow2 -O raw top.qcow2 now.raw
    dd if=now.raw of=part bs=1M skip=1 status=none
    e2fsck -fn part >/dev/null 2>&1 || die "e2fsck"
    vimg mount --fs 1 -f qcow2 top.qcow2 ext4
    cmp new ext4/new && cmp files/sub/data ext4/copy/data ||
        die "what was written"
    [ ! -e ext4/sub/data ] || die "what was removed"
    hidden=$(losetup -n -O BACK-FILE "$(findmnt -n -o SOURCE ext4)")
    [ -e "$hidden" ] || die "the loop device's file: $hidden"
    vimg umount ext4
    [ ! -e "$(dirname "$hidden")" ] || die "$hidden: its folder is left"
else
    echo "no loop mounts here: $(cat err), that part is left out"
    vimg umount "$m"
fi

# ---- a server in brackets, errors of it, its death.
truncate -s 8M disk.raw
dd if=/dev/urandom of=disk.raw bs=1M count=4 conv=notrunc status=none
said=$(timeout 60 vimg mount -w -f raw [ nbdkit -P kit.pid --filter=error \
    file disk.raw error=EIO error-rate=100% error-file="$tmp/broken" ] "$m" \
    2>&1) || die "mount of a server: $said"
cmp disk.raw "$m/disk" || die "a server's bytes"
: >broken
! dd if="$m/disk" of=/dev/null bs=64k count=1 iflag=direct status=none \
    2>err || die "a read error was swallowed"
! dd if=/dev/urandom of="$m/disk" bs=64k count=1 conv=notrunc,fsync \
    status=none 2>err || die "a write error was swallowed"
rm broken
dd if=none.raw of="$m/disk" bs=64k count=4 seek=16 conv=notrunc,fsync \
    status=none || die "no write after the error"
vimg umount "$m" || die "umount after errors"
! kill -0 "$(cat kit.pid)" 2>/dev/null || die "nbdkit goes on"
rm kit.pid
dd if=disk.raw bs=64k skip=16 count=4 status=none |
    cmp -n 262144 - none.raw || die "what was written to the server"
# The NBD server dies: umount cannot flush, and says so.
nbdkit -U "$tmp/kit.sock" -P kit.pid file disk.raw
vimg mount -w -f raw "nbd+unix:///?socket=$tmp/kit.sock" "$m"
dd if=none.raw of="$m/disk" bs=64k count=4 conv=notrunc status=none
kill -9 "$(cat kit.pid)"; rm kit.pid
! vimg umount "$m" 2>err || die "umount without the NBD server: exit 0"
grep -q "writing back" err || die "umount does not say so: $(cat err)"
[ -z "$(ls "$m")" ] || die "still mounted"

# Our own server dies: what was synced is there, and umount cleans up.
vimg create -q -f qcow2 top2.qcow2 16M
vimg mount -w -f qcow2 top2.qcow2 "$m"
dd if=none.raw of="$m/disk" bs=64k count=16 conv=notrunc,fsync status=none
kill -9 "$(cat "$m/.vimg")"
! cat "$m/disk" >/dev/null 2>&1 || die "read without a server"
! vimg umount "$m" 2>err || die "umount of a dead mount: exit 0"
[ -d "$m" ] && [ -z "$(ls "$m")" ] || die "the dead mount stays"
vimg check -q top2.qcow2 || [ $? = 3 ] || die "damaged by kill -9"
qemu-img convert -f qcow2 -O raw top2.qcow2 seen.raw
cmp -n 1048576 none.raw seen.raw || die "synced data is lost"
