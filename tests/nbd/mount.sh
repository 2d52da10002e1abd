#!/bin/sh
# vimg mount and umount: a disk and its partitions as files, and the file
# system inside one through a loop device.
. ./tests/functions.sh
need qemu-img sfdisk mke2fs e2fsck debugfs fusermount3 python3
[ -w /dev/fuse ] || skip "no /dev/fuse"
vimg mount 2>&1 | grep -q "without FUSE" && skip "built without FUSE"
m=$tmp/mnt
cleanup() { umount -l "$m" 2>/dev/null || :; }
mkdir "$m" "$tmp/files"
seq 1 50000 >"$tmp/files/numbers"
truncate -s 40M "$tmp/base.raw"
printf 'start=2048, size=65536, type=83\nstart=67584, type=83\n' |
    sfdisk -q "$tmp/base.raw"
mke2fs -q -F -t ext4 -d "$tmp/files" -E offset=1048576 "$tmp/base.raw" 32M \
    >/dev/null 2>&1 || die "mke2fs"
qemu-img convert -f raw -O qcow2 "$tmp/base.raw" "$tmp/base.qcow2"
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$tmp/top.qcow2"
cd "$tmp"

vimg mount -f qcow2 top.qcow2 mnt 2>"$tmp/err" || {
    grep -qi "fuse\|mount" "$tmp/err" && [ "$(id -u)" != 0 ] &&
        skip "$(cat "$tmp/err")"
    die "mount: $(cat "$tmp/err")"
}
[ "$(ls "$m" | tr '\n' ' ')" = "disk p1 p2 " ] || die "files: $(ls "$m")"
cmp "$m/disk" base.raw || die "the disk's content"
dd if=base.raw bs=1M skip=1 count=32 status=none | cmp - "$m/p1" ||
    die "the first partition's content"
! printf x 2>/dev/null >"$m/p2" || die "read-only was written"
vimg umount mnt
[ -z "$(ls "$m")" ] || die "still mounted"

before=$(md5sum <base.qcow2)
vimg mount -w -f qcow2 top.qcow2 mnt
debugfs -w -R "write $tmp/files/numbers again" "$m/p1" >/dev/null 2>&1
dd if=/dev/urandom of=random bs=64k count=30 status=none
dd if=random of="$m/p2" bs=64k seek=3 conv=notrunc status=none
! vimg info top.qcow2 >/dev/null 2>&1 || die "not locked while mounted"
vimg umount mnt
vimg info top.qcow2 >/dev/null || die "still locked after umount"
vimg check -q top.qcow2 && qemu-img check -q top.qcow2 || die "check"
qemu-img convert -f qcow2 -O raw top.qcow2 now.raw
dd if=now.raw of=part bs=1M skip=1 count=32 status=none
e2fsck -fn part >/dev/null 2>&1 || die "e2fsck"
debugfs -R "dump again $tmp/again" part 2>/dev/null
cmp again files/numbers || die "the file that was written"
dd if=now.raw bs=512 skip=$((67584 + 3 * 128)) count=$((30 * 128)) \
    status=none | cmp - random || die "the second partition"
[ "$before" = "$(md5sum <base.qcow2)" ] || die "the base was changed"

# A partition's file is a part of the disk's: what is written by one name is
# read by the other, and writing beside it by the other name keeps it.
vimg mount -w -f qcow2 top.qcow2 mnt
python3 - "$m/disk" "$m/p2" <<'EOF' || die "two names of the same bytes"
import mmap, os, sys
start = 67584 * 512
disk, part = (os.open(n, os.O_RDWR) for n in sys.argv[1:])
for a, a_off, b, b_off in ((disk, start, part, 0),
                           (part, 8192, disk, start + 8192)):
    os.pread(a, 4096, a_off)
    os.pwrite(b, b'NEWP', b_off)
    assert os.pread(a, 4, a_off) == b'NEWP', 'old bytes'
    os.pwrite(a, b'beside', a_off + 100)
    assert os.pread(b, 4, b_off) == b'NEWP', 'lost'
    assert os.pread(b, 6, b_off + 100) == b'beside', 'lost beside it'
# Shared memory would be a copy: refused, or as good as the file.
try:
    seen = mmap.mmap(disk, 4096, offset=start)
except OSError:
    sys.exit()
seen[0]
os.pwrite(part, b'LATE', 0)
seen[200] = 0x5a
seen.flush()
assert os.pread(part, 4, 0) == b'LATE', 'mapped memory wrote old bytes back'
EOF
vimg umount mnt
qemu-img convert -f qcow2 -O raw top.qcow2 now.raw
for at in 0 8192; do
    tail -c +$((67584 * 512 + at + 101)) now.raw | head -c 6 |
        grep -q beside || die "lost by unmounting: at $at"
done

# The file system itself.
[ "$(id -u)" = 0 ] && [ -e /dev/loop-control ] || exit 0
vimg mount -w --fs 1 -f qcow2 top.qcow2 mnt 2>"$tmp/err" ||
    { cat "$tmp/err"; echo "no loop mounts here, that part is left out"
      exit 0; }
cmp "$m/numbers" files/numbers || die "--fs: read"
cp random "$m/random"
vimg umount mnt
qemu-img check -q top.qcow2 || die "check after --fs"
qemu-img convert -f qcow2 -O raw top.qcow2 now.raw
dd if=now.raw of=part bs=1M skip=1 count=32 status=none
e2fsck -fn part >/dev/null 2>&1 || die "e2fsck after --fs"
debugfs -R "dump random $tmp/random2" part 2>/dev/null
cmp random random2 || die "--fs: write"
