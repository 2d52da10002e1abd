#!/bin/sh
# What vimg asks of a server, by the server's log: holes are not read, zeros
# not sent, requests and connections are several where that is allowed.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img nbdkit
no_libnbd && skip "built without libnbd"
cd "$tmp"
export TMPDIR="$tmp"
kit() { # PLUGIN AND OPTIONS
    rm -f kit.sock kit.log
    nbdkit -U "$tmp/kit.sock" -P kit.pid --filter=log "$@" logfile=kit.log
}
unkit() {
    kill "$(cat kit.pid)"
    while kill -0 "$(cat kit.pid)" 2>/dev/null; do sleep 0.02; done
    rm -f kit.pid
}
uri="nbd+unix:///?socket=$tmp/kit.sock"
# Of all requests of that kind, the sum of their lengths.
sum() { # KIND
    s=0
    for c in $(sed -n "s/.* $1 .*count=\(0x[0-9a-f]*\).*/\1/p" kit.log); do
        s=$((s + c))
    done
    echo $s
}
count() { grep -c " $1 " kit.log || :; }
# The most requests that were under way at once on one connection.
deepest() { # KIND
    awk -v kind="$1" '
        { for (i = 1; i <= NF; i++) if ($i ~ /^connection=/) c = $i }
        $0 ~ (" " kind " ") { if (++n[c] > most) most = n[c] }
        $0 ~ ("\\.\\.\\." kind " ") { n[c]-- }
        END { print most + 0 }' kit.log
}

# 64 MiB with 8 MiB of data in three places.
truncate -s 64M disk.raw
for at in 3 20 50; do
    dd if=/dev/urandom of=disk.raw bs=64k count=43 seek=$((at * 16)) \
        conv=notrunc status=none
done
data=$((3 * 43 * 65536))

kit --filter=delay file disk.raw rdelay=5ms
vimg convert -f raw -O qcow2 "$uri" a.qcow2
unkit
qemu-img compare -q -f raw -F qcow2 disk.raw a.qcow2 || die "read"
[ "$(sum Read)" -le $((data + 3 * 65536)) ] || die "holes were read: $(sum Read)"
[ "$(count Extents)" -ge 1 ] && [ "$(count Extents)" -le 4 ] ||
    die "block status was asked $(count Extents) times"
[ "$(count Connect)" -ge 2 ] || die "$(count Connect) connections"
[ "$(count Write)" = 0 ] || die "the source was written to"

# One connection: several requests on it.
kit --filter=delay --filter=multi-conn file disk.raw rdelay=5ms \
    multi-conn-mode=disable
vimg convert -f raw -O raw -m 8 "$uri" a.raw
unkit
cmp disk.raw a.raw || die "one connection"
[ "$(count Connect)" = 1 ] || die "$(count Connect) connections without leave"
[ "$(deepest Read)" -ge 2 ] || die "one request at a time"

# Written: data as it is, zeros as zeros, a flush at the end.
truncate -s 64M to.raw
dd if=/dev/urandom of=to.raw bs=1M count=64 conv=notrunc status=none
kit file to.raw
vimg convert -n -f raw -O raw disk.raw "$uri"
unkit
cmp disk.raw to.raw || die "written"
[ "$(sum Write)" -le $((data + 3 * 65536)) ] ||
    die "zeros were sent: $(sum Write)"
[ "$(sum Zero)" -ge $((67108864 - data - 3 * 65536)) ] ||
    die "zeros are missing: $(sum Zero)"
[ "$(count Flush)" -ge 1 ] || die "no flush"
last=$(grep -nE ' (Write|Zero|Flush) ' kit.log | tail -n 1)
case $last in *" Flush "*) ;; *) die "the last word is not a flush: $last" ;; esac

# Discards: as zeros where that is quick, else as TRIM.
kit memory 8M
vimg io -f raw -d unmap -c 'discard 3M 1M' -c flush "$uri" >/dev/null
unkit
[ "$(sum Zero)" = 1048576 ] && [ "$(sum Trim)" = 0 ] || die "discard"
kit --filter=nozero file to.raw
vimg io -f raw -d unmap -c 'discard 4M 1M' -c flush "$uri" >/dev/null
unkit
[ "$(sum Trim)" = 1048576 ] && [ "$(sum Write)" = 0 ] || die "no TRIM"

# With reconnect-delay every write is durable at once.
kit file to.raw
vimg io -f raw -c 'write -P 1 0 64k' -c 'write -z 1M 64k' \
    "$uri&reconnect-delay=5" >/dev/null
unkit
grep -E ' (Write|Zero) ' kit.log >writes
[ -s writes ] && ! grep -v 'fua=1' writes || die "a write without FUA"

# The kernel's and QEMU's addresses within one machine's vsock.
if [ -w /dev/vsock ] && nbdkit --vsock -P kit.pid -p 20809 file disk.raw \
    2>/dev/null; then
    rm -f a.raw
    if vimg info -f raw nbd+vsock://1:20809/ >/dev/null 2>&1; then
        vimg convert -f raw -O raw nbd+vsock://1:20809/ a.raw
        cmp disk.raw a.raw || die "vsock"
    else
        echo "no loopback of vsock here, that part is left out"
    fi
    kill "$(cat kit.pid)"
    rm kit.pid
fi
