#!/bin/sh
# vimg as a client of vimg-nbd, qemu-nbd and nbdkit.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img qemu-io qemu-nbd nbdkit nbdinfo nbdcopy
vimg info nbd+unix:///?socket=/nonexistent 2>&1 | grep -q "without libnbd" &&
    skip "built without libnbd"

truncate -s 64M "$tmp/disk.raw"
dd if=/dev/urandom of="$tmp/disk.raw" bs=64k count=100 seek=77 conv=notrunc \
    status=none
printf end | dd of="$tmp/disk.raw" bs=1 seek=67108861 conv=notrunc status=none
cp --sparse=always "$tmp/disk.raw" "$tmp/served.raw"
uri="nbd+unix:///?socket=$sock"

same() { # what FORMAT FILE
    qemu-img compare -q -f raw -F "$2" "$tmp/disk.raw" "$3" ||
        die "$1: $3 has other content"
}

kit() { # NBDKIT OPTIONS; returns once it listens
    rm -f "$tmp/kit.sock" "$tmp/kit.pid"
    nbdkit -U "$tmp/kit.sock" -P "$tmp/kit.pid" "$@" || die "nbdkit $*"
}
unkit() { kill "$(cat "$tmp/kit.pid")"; }
kituri="nbd+unix:///?socket=$tmp/kit.sock"

# From our own server, with holes; map; compare; both directions; -m.
serve -e 0 -f raw "$tmp/served.raw"
vimg info "$uri" | grep -q '64 MiB (67108864 bytes)' || die "info"
vimg convert -f raw -O qcow2 "$uri" "$tmp/a.qcow2"
same "from vimg-nbd" qcow2 "$tmp/a.qcow2"
[ "$(stat -c %s "$tmp/a.qcow2")" -lt 10000000 ] || die "holes were copied"
vimg map -f raw --output=json "$uri" >"$tmp/map1"
qemu-img map -f raw --output=json "$uri" >"$tmp/map2"
[ "$(grep -c '"data": true' "$tmp/map1")" = \
  "$(grep -c '"data": true' "$tmp/map2")" ] || die "map"
stop_server
qemu-io -f raw -c 'write -P 9 0 64M' "$tmp/served.raw" >/dev/null
serve -e 0 -f raw "$tmp/served.raw"
vimg convert -f raw -O raw "$tmp/disk.raw" "$uri"
stop_server
same "to vimg-nbd" raw "$tmp/served.raw"

# qemu-nbd, one client only; an older form of the name.
qemu-io -f raw -c 'write -P 9 0 64M' "$tmp/served.raw" >/dev/null
qemu-nbd -f raw -t -x e -k "$tmp/q.sock" --fork --pid-file "$tmp/q.pid" \
    "$tmp/served.raw"
vimg convert -n -f qcow2 -O raw "$tmp/a.qcow2" \
    "nbd:unix:$tmp/q.sock:exportname=e"
vimg compare -f raw -F raw "nbd+unix:///e?socket=$tmp/q.sock" \
    "$tmp/disk.raw" >/dev/null || die "compare"
kill "$(cat "$tmp/q.pid")"
while kill -0 "$(cat "$tmp/q.pid")" 2>/dev/null; do sleep 0.05; done
same "to qemu-nbd" raw "$tmp/served.raw"

# A qcow2 inside the server's disk, as on a block device.
kit memory 80M
vimg convert -f raw -O qcow2 "$tmp/disk.raw" "$kituri"
same "qcow2 over NBD" qcow2 "$kituri"
vimg compare -f raw -F qcow2 "$tmp/disk.raw" "$kituri" >/dev/null ||
    die "qcow2 over NBD, read by vimg"
unkit

# A server with blocks of 4 KiB; a slow one; one without any command but
# READ and WRITE.
kit --filter=blocksize-policy memory 80M blocksize-minimum=4k \
    blocksize-maximum=1M blocksize-error-policy=error
vimg convert -f raw -O qcow2 "$tmp/disk.raw" "$kituri"
vimg convert -f qcow2 -O raw "$kituri" "$tmp/b.raw"
unkit
same "blocks of 4 KiB" raw "$tmp/b.raw"
kit --filter=delay file "$tmp/disk.raw" rdelay=5ms
vimg convert -f raw -O qcow2 "$kituri" "$tmp/c.qcow2"
unkit
same "slow server" qcow2 "$tmp/c.qcow2"
# Served onward, with many short reads under way on it.
kit --filter=delay file "$tmp/disk.raw" rdelay=1ms
serve -r -e 0 -f raw "$kituri"
nbdcopy --connections=1 --request-size=16384 "$uri" "$tmp/onward.raw"
stop_server
unkit
same "served onward" raw "$tmp/onward.raw"
kit --filter=nozero --filter=noextents --filter=noparallel memory 64M
vimg convert -f raw -O raw "$tmp/disk.raw" "$kituri"
vimg convert -f raw -O raw "$kituri" "$tmp/d.raw"
unkit
same "bare server" raw "$tmp/d.raw"

# CVE-2022-0485 (nbdcopy): an error of the server must fail the copy, both
# ways, and leave no output.
kit --filter=error file "$tmp/disk.raw" error-pread=EIO error-pread-rate=1
! vimg convert -f raw -O qcow2 "$kituri" "$tmp/e.qcow2" 2>"$tmp/err" ||
    die "CVE-2022-0485: read errors were swallowed"
grep -q "Input/output error" "$tmp/err" || die "the error is not told"
[ ! -e "$tmp/e.qcow2" ] || die "half an output"
unkit
kit --filter=error memory 64M error-pwrite=ENOSPC error-pwrite-rate=1
! vimg convert -n -f raw -O raw "$tmp/disk.raw" "$kituri" 2>/dev/null ||
    die "CVE-2022-0485: write errors were swallowed"
unkit

# The library is not there, or is another one.
mkdir "$tmp/lib"
echo "no library" >"$tmp/lib/libnbd.so.0"
! LD_LIBRARY_PATH="$tmp/lib" vimg info "$uri" 2>"$tmp/err" || die "no library"
grep -q "cannot be loaded: the library is missing" "$tmp/err" ||
    die "no library: $(cat "$tmp/err")"
other=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null |
    sed -n 's,.* => \(/.*/libz\.so\.1\)$,\1,p' | head -n 1)
if [ -n "$other" ]; then
    cp "$other" "$tmp/lib/libnbd.so.0"
    ! LD_LIBRARY_PATH="$tmp/lib" vimg info "$uri" 2>"$tmp/err" ||
        die "another library"
    grep -q "cannot be loaded: nbd_[a-z_]* is missing" "$tmp/err" ||
        die "another library: $(cat "$tmp/err")"
fi

# The server goes away in the middle: when its log has told of a read.
mkfifo "$tmp/reads"
exec 8<>"$tmp/reads"
kit --filter=log --filter=delay file "$tmp/disk.raw" rdelay=60 \
    logfile="$tmp/reads"
vimg convert -f raw -O qcow2 "$kituri" "$tmp/f.qcow2" 2>/dev/null &
pid=$!
while read -r line <&8; do
    case $line in *" Read "*) break ;; esac
done
kill -9 "$(cat "$tmp/kit.pid")"
! wait $pid || die "the server went away and nobody noticed"
[ ! -e "$tmp/f.qcow2" ] || die "half an output"

