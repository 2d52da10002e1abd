#!/bin/sh
# vimg-nbd with other people's clients: nbdinfo, nbdcopy, qemu-img, qemu-io.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need nbdinfo nbdcopy qemu-img qemu-io qemu-nbd

random_file() { # FILE KiB
    dd if=/dev/urandom of="$1" bs=1024 count="$2" status=none
}

same() { # what A B
    cmp "$2" "$3" || die "$1: $2 and $3 differ"
}

# A base with holes, zeros and data, an overlay with some of each.
random_file "$tmp/data" 3000
truncate -s 64M "$tmp/base.raw"
dd if="$tmp/data" of="$tmp/base.raw" bs=4096 seek=300 conv=notrunc status=none
dd if="$tmp/data" of="$tmp/base.raw" bs=65536 seek=500 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 "$tmp/base.raw" "$tmp/base.qcow2"
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$tmp/top.qcow2"
qemu-io -f qcow2 -c 'write -P 7 1M 3M' -c 'write -z 40M 1M' \
    "$tmp/top.qcow2" >/dev/null
qemu-img bitmap --add "$tmp/top.qcow2" bm
qemu-io -f qcow2 -c 'write -P 9 10M 300k' "$tmp/top.qcow2" >/dev/null
qemu-img convert -f qcow2 -O raw "$tmp/top.qcow2" "$tmp/top.raw"

bm='-B bm'
contexts='base:allocation qemu:allocation-depth qemu:dirty-bitmap:bm'

# What nbdinfo, qemu-img and we ourselves say of it is what they say of
# qemu-nbd.
describe() { # SOCKET PREFIX
    uri="nbd+unix:///?socket=$1"
    nbdinfo --list "$uri" | sed 's/socket=.*//' >"$2.list"
    vimg-nbd -L -k "$1" >"$2.L"
    for c in $contexts; do
        nbdinfo --map="$c" "$uri" >"$2.map-$c"
    done
    qemu-img map --output=json "$uri" >"$2.map"
    nbdinfo --size "$uri" >"$2.size"
}
serve -r -A $bm -D 'a test' -e 0 -f qcow2 "$tmp/top.qcow2"
describe "$sock" "$tmp/ours"
nbdcopy "nbd+unix:///?socket=$sock" "$tmp/copy.raw"
same nbdcopy "$tmp/top.raw" "$tmp/copy.raw"
qemu-img compare -f raw -F raw "nbd+unix:///?socket=$sock" "$tmp/top.raw" \
    >/dev/null || die "qemu-img compare"
stop_server
qemu-nbd -r -A $bm -D 'a test' -e 9 -t -f qcow2 -k "$tmp/q.sock" --fork \
    --pid-file "$tmp/q.pid" "$tmp/top.qcow2"
describe "$tmp/q.sock" "$tmp/theirs"
qemu-nbd -L -k "$tmp/q.sock" >"$tmp/theirs.L"
stop_qemu_nbd() {
    kill "$(cat "$tmp/q.pid")"
    while kill -0 "$(cat "$tmp/q.pid")" 2>/dev/null; do sleep 0.05; done
}
stop_qemu_nbd
for f in "$tmp"/theirs.*; do
    mine="$tmp/ours.${f#*theirs.}"
    diff "$f" "$mine" || die "not as with qemu-nbd: ${f#*theirs.}"
done

# Into it, and out of it.
qemu-img create -q -f qcow2 "$tmp/new.qcow2" 64M
serve -e 0 -f qcow2 --discard=unmap "$tmp/new.qcow2"
nbdcopy "$tmp/top.raw" "nbd+unix:///?socket=$sock"
nbdcopy "nbd+unix:///?socket=$sock" "$tmp/copy2.raw"
same "nbdcopy there and back" "$tmp/top.raw" "$tmp/copy2.raw"
uri="nbd+unix:///?socket=$sock"
qemu-io -f raw -c 'write -P 3 5k 7k' -c 'write -f -P 4 30M 5M' \
    -c 'write -z 33M 1M' -c 'discard 34M 512k' -c flush \
    -c 'read -P 3 5k 7k' -c 'read -P 4 30M 3M' -c 'read -P 0 33M 1M' \
    "$uri" >"$tmp/io.log" || die "qemu-io"
! grep -q "Pattern verification failed" "$tmp/io.log" || die "qemu-io"
nbdcopy "$uri" "$tmp/copy3.raw"
stop_server
qemu-img check -q -f qcow2 "$tmp/new.qcow2" || die "qemu-img check"
qemu-img compare -f qcow2 -F raw "$tmp/new.qcow2" "$tmp/copy3.raw" \
    >/dev/null || die "what was written is not in the image"

# What was flushed survives a server that is killed.
serve -e 0 -f qcow2 "$tmp/new.qcow2"
qemu-io -f raw -c 'write -P 0x55 20M 1M' -c flush "$uri" >/dev/null
stop_server KILL
qemu-io -f qcow2 -c 'read -P 0x55 20M 1M' "$tmp/new.qcow2" |
    grep -q "^read 1048576" || die "flushed data is lost"
qemu-img check -q -f qcow2 "$tmp/new.qcow2" || [ $? = 3 ] ||
    die "damage after kill -9"

# fio's client, which verifies what it wrote.
if fio --enghelp=nbd >/dev/null 2>&1; then
    qemu-img create -q -f qcow2 "$tmp/fio.qcow2" 32M
    serve -e 0 -f qcow2 --cache=unsafe "$tmp/fio.qcow2"
    (cd "$tmp" && fio --name=v --ioengine=nbd \
        --uri="nbd+unix:///?socket=$sock" --rw=randwrite --bs=4k-64k \
        --bs_unaligned=1 --blockalign=512 --size=16M --io_size=16M \
        --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1) \
        >"$tmp/fio.log" 2>&1 || { cat "$tmp/fio.log"; die "fio"; }
    stop_server
    qemu-img check -q "$tmp/fio.qcow2" || die "check after fio"
fi

# -s: writes go to a scratch file; -o; -x; read-only refusals.
before=$(md5sum <"$tmp/top.qcow2")
serve -s -x name -o 1M -f qcow2 "$tmp/top.qcow2"
uri="nbd+unix:///name?socket=$sock"
[ "$(nbdinfo --size "$uri")" = $((63 * 1048576)) ] || die "-o: size"
qemu-io -f raw -c 'read -P 7 0 3M' -c 'write -P 1 0 64k' -c 'read -P 1 0 64k' \
    "$uri" | grep -q "^wrote 65536" || die "-s: write"
! nbdinfo --size "nbd+unix:///?socket=$sock" 2>/dev/null || die "-x"
stop_server
[ "$before" = "$(md5sum <"$tmp/top.qcow2")" ] || die "-s changed the image"

# An offset without a unit is in bytes.
for o in 512 0x200 512b 1048576 1M 1024k; do
    case $o in 512* | 0x*) bytes=512 ;; *) bytes=1048576 ;; esac
    serve -r -o $o -f raw "$tmp/top.raw"
    uri="nbd+unix:///?socket=$sock"
    [ "$(nbdinfo --size "$uri")" = $((67108864 - bytes)) ] || die "-o $o: size"
    nbdcopy "$uri" "$tmp/part.raw"
    cmp -i 0:$bytes -n 16777216 "$tmp/part.raw" "$tmp/top.raw" ||
        die "-o $o: other bytes"
    stop_server
done

# A raw disk whose format was guessed cannot become a qcow2.
truncate -s 1M "$tmp/guess.raw"
serve "$tmp/guess.raw" 2>/dev/null
! qemu-io -f raw -c "write -s $tmp/top.qcow2 0 512" \
    "nbd+unix:///?socket=$sock" >/dev/null 2>&1 || die "signature written"
qemu-io -f raw -c "write -P 5 0 512" "nbd+unix:///?socket=$sock" |
    grep -q "^wrote 512" || die "harmless write refused"
stop_server

# Several exports, snapshots, partitions.
qemu-img snapshot -c s1 "$tmp/new.qcow2"
qemu-io -f qcow2 -c 'write -P 0x66 20M 1M' "$tmp/new.qcow2" >/dev/null
truncate -s 8M "$tmp/disk.raw"
printf 'start=2048, size=4096\nstart=8192\n' |
    sfdisk -q "$tmp/disk.raw" 2>/dev/null || true
printf hello | dd of="$tmp/disk.raw" bs=512 seek=8192 conv=notrunc status=none
serve -e 0 --export "old=$tmp/new.qcow2@s1" --export "now=$tmp/new.qcow2" \
    --export "p2=$tmp/disk.raw#2"
[ "$(vimg-nbd -L -k "$sock" | grep -c ' export: ')" = 3 ] || die "--export"
qemu-io -r -f raw -c 'read -P 0x55 20M 1M' "nbd+unix:///old?socket=$sock" |
    grep -q "^read 1048576" || die "snapshot"
qemu-io -r -f raw -c 'read -P 0x66 20M 1M' "nbd+unix:///now?socket=$sock" |
    grep -q "^read 1048576" || die "the present beside the snapshot"
nbdcopy "nbd+unix:///p2?socket=$sock" - | head -c 5 | grep -q hello ||
    die "partition"
stop_server

# nbd-client, and a script of libnbd's shell, on several requests at once.
serve -e 0 -f raw -x foo -D 'a text' "$tmp/disk.raw"
if command -v nbd-client >/dev/null; then
    timeout 20 nbd-client -l -u "$sock" | grep -qx "foo: a text" ||
        die "nbd-client -l"
fi
cat >"$tmp/script.py" <<'END'
h.add_meta_context("base:allocation")
h.set_strict_mode(0)
h.connect_uri(uri)
assert h.get_size() == 8388608 and h.can_multi_conn() and h.can_fast_zero()
bufs = [nbd.Buffer.from_bytearray(bytearray([i]) * 5000) for i in range(20)]
for i, b in enumerate(bufs):
    h.aio_pwrite(b, 1048576 + i * 5000)
while h.aio_in_flight():
    h.poll(-1)
h.flush()
for i in range(20):
    assert h.pread(5000, 1048576 + i * 5000) == bytearray([i]) * 5000
seen = []
h.block_status(8388608, 0, lambda c, o, e, err: seen.append((c, sum(e[::2]))))
assert seen == [("base:allocation", 8388608)], seen
try:
    h.pread(2, 8388607)
    assert False
except nbd.Error as e:
    assert e.errno == "EINVAL", e.errno
h.shutdown()
END
if /usr/bin/python3 -c 'import nbd' 2>/dev/null; then
    /usr/bin/python3 -m nbd -c "uri = 'nbd+unix:///foo?socket=$sock'
exec(open('$tmp/script.py').read())" || die "nbdsh"
fi
stop_server

# Sockets passed by whoever starts the server.
[ "$(nbdinfo --size -- [ vimg-nbd -f raw "$tmp/disk.raw" ])" = 8388608 ] ||
    die "socket activation"

# Without -t the server ends with its last client.
vimg-nbd -f raw -k "$sock" --fork --pid-file "$pidfile" "$tmp/disk.raw"
pid=$(cat "$pidfile")
nbdinfo --size "nbd+unix:///?socket=$sock" >/dev/null
n=0
while kill -0 "$pid" 2>/dev/null; do
    n=$((n + 1))
    [ $n -lt 100 ] || die "it goes on after the last client"
    sleep 0.1
done
[ ! -e "$sock" ] || die "the socket is left"
