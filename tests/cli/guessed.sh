#!/bin/bash
# A raw image whose format was guessed: nothing is written into it that would
# make it look like another format, by whatever command.
. ./tests/functions.sh
need qemu-img qemu-io python3
cd "$tmp"

kept() { # what was tried
    [ "$(qemu-img info --output=json g.raw | sed -n 's/.*"format": "\(.*\)".*/\1/p' | tail -n 1)" = raw ] ||
        die "$1: looks like something else"
    [ "$(vimg info --output=json g.raw | sed -n 's/.*"format": "\(.*\)".*/\1/p' | tail -n 1)" = raw ] ||
        die "$1: vimg takes it for something else"
}
refused() { # commands of io...
    local a=() c
    for c; do a+=(-c "$c"); done
    vimg io "${a[@]}" g.raw >out 2>err && { cat out; die "not refused: $*"; }
    grep -q 'write failed: Operation not permitted\|zero.*Operation not permitted' out || { cat out err >&2; die "other words: $*"; }
    kept "$*"
}
done_() {
    local a=() c
    for c; do a+=(-c "$c"); done
    vimg io "${a[@]}" g.raw >out 2>err || { cat out err >&2; die "refused: $*"; }
}
fresh() { rm -f g.raw; truncate -s 1M g.raw; }

fresh
printf 'QFI\373\0\0\0\3' >qcow2; printf 'QFI' >qcow2-begin; printf '\373\0\0\0\3' >qcow2-end
printf 'KDMV\1\0\0\0' >vmdk; printf '\177\020\332\276' >vdi
printf '# Disk DescriptorFile\nversion=1\n' >text
printf 'conectix' >vpc; printf 'LUKS\272\276\0\1' >luks; printf 'QEDx' >qed
printf 'vhdxfile' >vhdx
for m in qcow2 vpc luks vhdx text; do
    refused "write -s $m 0 512"
    refused "aio_write -P 0 64k 64k" "writev -P 1 64k 512" "write -s $m 0 4096" 2>/dev/null
    # The guard is for the beginning alone.
    done_ "write -s $m 512 512" "write -s $m 1k 64k" 2>/dev/null || true
    fresh
done
refused "write -s qcow2-begin 0 3" "write -s qcow2-end 3 5"
fresh
refused "write -s qcow2-end 3 5" "write -s qcow2-begin 0 3"
fresh
done_ "write -P 0 0 64k" "write -P 3 0 64k" "write -z 0 64k" "discard 0 1M" 'write -P 0x51 0 1'
fresh
# The end is the guest's: written or not, its disk opens.
for at in 0 1; do
    vimg io -c "write -s vpc $((1048064 + at)) $((512 - at))" g.raw >out 2>err || die "the last sector"
    kept "the last sector"
    vimg io -c 'read 0 1M' g.raw >out 2>err || die 'a disk that ends as a VHD does'
    grep -q 'ends as a VHD' err || die 'no word about the end'
    fresh
done
# Zeros can complete a signature, too.
done_ 'write -s qed 0 4'
vimg io -c 'write -z 3 1' g.raw >out 2>err && die "QED by zeros"
kept 'QED by zeros'
fresh
# VDI: its signature is at 64; the guess looks at more.
python3 - <<'P'
import struct
h = bytearray(512)
h[0:39] = b"<<< Oracle VM VirtualBox Disk Image >>>"
struct.pack_into("<II", h, 64, 0xbeda107f, 0x00010001)
open("vdi512", "wb").write(h)
P
refused "write -s vdi512 0 512"

# With the format given, everything may be written.
vimg io -f raw -c 'write -s qcow2 0 512' g.raw >/dev/null || die "-f raw"
fresh
vimg io --image-opts -c 'write -s qcow2 0 512' driver=raw,file.filename=g.raw >/dev/null || die 'driver=raw'
fresh
vimg io --image-opts -c 'write -s qcow2 0 512' file.filename=g.raw >out 2>&1 && die 'an option list that names no format'
kept 'an option list'

# commit into a base whose format is not recorded
qemu-img create -q -f qcow2 -b g.raw -F raw top.qcow2
python3 - <<'P'
d = open("top.qcow2", "r+b").read(4096)
at = d.index(b"\xe2\x79\x2a\xca")
f = open("top.qcow2", "r+b"); f.seek(at); f.write(b"\x12\x34\x56\x78"); f.close()
P
qemu-io -f qcow2 -c 'write -s qcow2 0 512' -c 'write -P 7 64k 1M' -c 'write -P 8 4k 8k' top.qcow2 >/dev/null 2>&1 ||
    qemu-io -f qcow2 -c 'write -s qcow2 0 512' -c 'write -P 8 4k 8k' top.qcow2 >/dev/null
cp g.raw before.raw
vimg commit -q top.qcow2 >out 2>err && die 'commit'
grep -q 'guessed to be raw' err || { cat err >&2; die 'commit: other words'; }
kept commit
cmp -n 512 g.raw before.raw || die 'commit wrote block 0'
vimg rebase -u -b g.raw -F raw top.qcow2
vimg commit -q top.qcow2 || die 'commit with the format recorded'
cmp -n 8 g.raw qcow2 || die 'commit with the format recorded: block 0'
fresh

# The server.
for c in 'write -s qcow2 0 512' 'write -s qcow2 0 512k' 'write -s text 0 1k'; do
    vimg-nbd -k "$tmp/sock" --pid-file="$tmp/pid" --fork g.raw 2>/dev/null
    qemu-io -f raw -c "$c" "nbd+unix:///?socket=$tmp/sock" >out 2>&1 || true
    while [ -e pid ]; do        # it goes with its client, and the lock
        sleep 0.02
    done
    grep -q 'Operation not permitted' out || { cat out >&2; die "NBD: $c"; }
    kept "NBD: $c"
    rm -f sock
done
vimg-nbd -t --pid-file="$tmp/pid" -k "$tmp/sock" --fork g.raw 2>/dev/null
qemu-io -f raw -c 'write -P 7 0 512' -c 'write -s qcow2 512 512' -c 'write -s qcow2 64k 512' \
    "nbd+unix:///?socket=$tmp/sock" >out 2>&1
[ "$(grep -c ^wrote out)" = 3 ] || { cat out >&2; die 'NBD: harmless writes'; }
kill "$(cat pid)"
