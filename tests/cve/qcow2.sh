#!/bin/bash
# Published holes of disk image parsers that qcow2 images used, and those of
# services that let images name files: each by its number.  An image may be
# refused or read; nothing crashes, hangs, takes 256 MiB or opens another file.
. ./tests/functions.sh
need qemu-img qemu-io python3 strace timeout
cd "$tmp"
echo 'the secret' >secret
LIMIT=$((256 * 1024))
# A sanitizer's shadow memory is no use of memory.
vimg_binary="$builddir/.libs/vimg"
[ -x "$vimg_binary" ] || vimg_binary="$builddir/vimg"
if nm -D "$vimg_binary" 2>/dev/null | grep -q '__[at]san_init'; then
    LIMIT=unlimited
fi
# Thousands of runs: without libtool's shell script each time.
if [ -x "$builddir/.libs/vimg" ]; then
    LD_LIBRARY_PATH="$builddir/.libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export LD_LIBRARY_PATH
    PATH="$builddir/.libs:$PATH"
fi

# Ends by itself, in time and memory, with a message if it fails.
survives() {
    code=0
    (ulimit -v $LIMIT; exec timeout 20 vimg "$@") >out 2>err || code=$?
    [ $code -lt 100 ] || die "$cve: vimg $*: exit $code: $(cat err)"
    [ $code = 0 ] || [ -s err ] || [ -s out ] ||
        die "$cve: vimg $*: fails without a word"
}
refused() {
    survives "$@"
    [ $code != 0 ] || die "$cve: vimg $*: not refused"
}
# Everything that reads and mends.
all() {
    for c in 'info --backing-chain' map 'check -r all' 'convert -O raw' \
        'inspect --untrusted'; do
        cp "$1" work
        case $c in
        convert*) survives $c -f qcow2 work to ;;
        snapshot*|measure*|inspect*) survives $c work ;;
        *) survives $c -f qcow2 work ;;
        esac
    done
    for c in 'snapshot -a s' 'snapshot -d s' 'snapshot -c t' resize; do
        cp "$1" work
        case $c in
        resize) survives resize -f qcow2 work 4M ;;
        *) survives $c -f qcow2 work ;;
        esac
    done
    cp "$1" work
    survives convert -l s -f qcow2 -O raw work to
    survives io -f qcow2 -c 'write 0 64k' -c 'read 0 64k' work
    rm -f to
}
# field IMAGE OFFSET BITS VALUE: big-endian, in place.
field() {
    python3 - "$@" <<'P'
import struct, sys
name, off, bits, value = sys.argv[1], *(int(x, 0) for x in sys.argv[2:])
with open(name, "r+b") as f:
    f.seek(off)
    f.write(struct.pack({16: ">H", 32: ">I", 64: ">Q"}[bits], value))
P
}
be64() { python3 -c "import struct,sys; f=open('$1','rb'); f.seek($2); print(struct.unpack('>Q', f.read(8))[0])"; }
# Files below this folder that the command opens, but for the image.
opens_only() {
    local image=$1
    shift
    strace -f -qq -e trace=open,openat,openat2,connect -o trace "$@" >out 2>err || :
    ! grep -v ENOENT trace | grep -v O_PATH | grep "\"$tmp/" |
        grep -v -e "\"$tmp/$image\"" -e "\"$tmp/to" -e "\"$tmp\"" -e O_TMPFILE ||
        die "$cve: $*: opens another file"
}

qemu-img create -q -f qcow2 -o compat=0.10 good.qcow2 2M
qemu-io -c 'write -P 5 0 1M' good.qcow2 >/dev/null
qemu-img snapshot -c s good.qcow2
snapshots=$(be64 good.qcow2 64)
l1=$(be64 good.qcow2 40)
table=$(be64 good.qcow2 48)

# Division by zero in parallels and bochs: not read, and not taken for raw.
cve=CVE-2014-0142
qemu-img create -q -f parallels p.hdd 1M
python3 - <<'P'
with open("p.hdd", "r+b") as f:
    f.seek(28)
    f.write(b"\0\0\0\0")
P
refused info p.hdd
refused convert -O raw p.hdd to

# Overflows: L1 table of a snapshot, growing the L1 table, cluster numbers of
# get_refcount.
cve=CVE-2014-0143
for v in 0xffffffff 0x7fffffff 0x20000000 0x10000001 0x400001; do
    cp good.qcow2 x.qcow2
    field x.qcow2 $((snapshots + 8)) 32 $v
    all x.qcow2
    cp good.qcow2 x.qcow2
    field x.qcow2 36 32 $v
    all x.qcow2
done
for v in 0x7fffffffffffffff 0xfffffffffffffe00 0x8000000000000000; do
    cp good.qcow2 x.qcow2
    field x.qcow2 "$l1" 64 $v
    all x.qcow2
    cp good.qcow2 x.qcow2
    field x.qcow2 24 64 $v
    all x.qcow2
done

# Missing checks of the header: cluster size, tables, refcounts, backing name.
cve=CVE-2014-0144
for f in '20 32 0' '20 32 8' '20 32 31' '20 32 64' '20 32 0xffffffff' \
    '40 64 0xffffffffffffffff' '40 64 1' '48 64 0xfffffffffffffe00' \
    '48 64 0x200' '56 32 0xffffffff' '56 32 0x7fffffff' '56 32 0' \
    '8 64 0xffffffffffffff00' '16 32 0xffffffff' '16 32 1024' \
    '100 32 0xffffffff' '100 32 8' '96 32 64'; do
    cp good.qcow2 x.qcow2
    field x.qcow2 8 64 0x100
    field x.qcow2 16 32 6
    field x.qcow2 $f
    all x.qcow2
done

# A large L1 table of a snapshot, copied into a small buffer.
cve=CVE-2014-0145
cp good.qcow2 x.qcow2
field x.qcow2 $((snapshots + 8)) 32 0x00100000
all x.qcow2
refused convert -l s -f qcow2 -O raw x.qcow2 to

# A failed open frees snapshots that were never read.
cve=CVE-2014-0146
cp good.qcow2 x.qcow2
field x.qcow2 60 32 0x00010000
field x.qcow2 64 64 0x7ffffffffffffe00
refused info -f qcow2 x.qcow2
all x.qcow2
for f in '60 32 0xffffffff' '64 64 1' "64 64 $((1 << 40))"; do
    cp good.qcow2 x.qcow2
    field x.qcow2 $f
    all x.qcow2
done

# Signed sizes, and refcounts wrongly changed by snapshots of a damaged image.
cve=CVE-2014-0147
for v in 0x8000000000000001 0xffffffffffffffff 0x0; do
    cp good.qcow2 x.qcow2
    field x.qcow2 "$table" 64 $v
    all x.qcow2
done
cp good.qcow2 x.qcow2
survives snapshot -d s x.qcow2
survives snapshot -c u x.qcow2
survives check x.qcow2
[ $code = 0 ] || die "$cve: snapshots spoil the refcounts"

# VHDX: a loop.  Not read, and not taken for raw.
cve=CVE-2014-0148
qemu-img create -q -f vhdx v.vhdx 16M
refused info v.vhdx
refused convert -O raw v.vhdx to

# A header sized to eat memory and time: info has to be cheap.
cve=CVE-2015-5162
qemu-img create -q -f qcow2 -o cluster_size=2M x.qcow2 1E
survives info x.qcow2
survives inspect --untrusted --max-size=1T x.qcow2
[ $code = 2 ] || die "$cve: inspect lets 1 EiB pass"
qemu-img create -q -f qcow2 x.qcow2 64T
for f in '60 32 65536' "24 64 $((1 << 62))" '56 32 4096'; do
    field x.qcow2 $f
    survives info x.qcow2
done

# Services that convert what was uploaded: a backing file of their own.
cve=CVE-2015-5163
qemu-img create -q -f qcow2 -b "$tmp/secret" -F raw up.qcow2 64k
refused convert --allow-files=none -O raw up.qcow2 to
refused inspect --untrusted up.qcow2
[ ! -e to ] || die "$cve: a file was made"
opens_only up.qcow2 vimg info "$tmp/up.qcow2"
opens_only up.qcow2 vimg inspect --untrusted "$tmp/up.qcow2"
opens_only up.qcow2 vimg convert --allow-files=none -O raw "$tmp/up.qcow2" "$tmp/to"

# A guest writes a qcow2 header to its raw disk, which the service then opens
# by guessing (also CVE-2013-1922).
cve=CVE-2015-1851,CVE-2015-7548
cp up.qcow2 disk.raw
survives convert -f raw -O raw disk.raw to
cmp -n "$(stat -c %s disk.raw)" disk.raw to || die "$cve: raw is not raw"
rm -f to
refused convert --allow-files=none -O raw disk.raw to
refused inspect --untrusted --expect=raw disk.raw
vimg create -q -f raw guest.raw 1M
vimg-nbd --fork --pid-file pid -t -k "$tmp/s" guest.raw 2>/dev/null
python3 - "$tmp/s" up.qcow2 <<'P' || die "$cve: vimg-nbd lets a guest write a qcow2 header"
import subprocess, sys
p = subprocess.run(["qemu-io", "-f", "raw", "-c", "write -s %s 0 512" % sys.argv[2],
                    "nbd+unix:///?socket=" + sys.argv[1]],
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
sys.exit(b"wrote" in p.stdout)
P
kill "$(cat pid)"
while [ -e pid ]; do sleep 0.02; done

# An external data file of the service's.
cve=CVE-2024-32498
cp secret data
truncate -s 64k data
qemu-img create -q -f qcow2 -o data_file="$tmp/data",data_file_raw=on df.qcow2 64k
refused convert --allow-files=none -O raw df.qcow2 to
refused inspect --untrusted df.qcow2
opens_only df.qcow2 vimg inspect --untrusted "$tmp/df.qcow2"
opens_only df.qcow2 vimg convert --allow-files=none -O raw "$tmp/df.qcow2" "$tmp/to"
[ ! -e to ] || die "$cve: a file was made"

# info follows the data file's name, which may be JSON that takes memory and
# time, or opens what it likes.
cve=CVE-2024-4467
python3 - <<'P'
name = b'json:{"driver":"raw","file":{"driver":"file","filename":"secret"}}'
body = bytearray(open("df.qcow2", "rb").read())
at = body.index(b"DATA") + 4
old = int.from_bytes(body[at:at + 4], "big")
rest = body[at + 4 + (old + 7) // 8 * 8:0x10000]
ext = len(name).to_bytes(4, "big") + name + b"\0" * (-len(name) % 8)
body[at:0x10000] = (ext + rest)[:0x10000 - at].ljust(0x10000 - at, b"\0")
open("j.qcow2", "wb").write(body)
P
survives info j.qcow2
[ $code = 0 ] || die "$cve: info does not describe it: $(cat err)"
grep -q json: out || die "$cve: info does not tell the name"
opens_only j.qcow2 vimg info "$tmp/j.qcow2"
opens_only j.qcow2 vimg info --backing-chain --output=json "$tmp/j.qcow2"
refused convert -O raw j.qcow2 to
refused map j.qcow2
refused inspect --untrusted j.qcow2

# The same, uploaded as raw; a format that is not the one that was declared.
cve=CVE-2024-40767
for f in up df j; do
    refused inspect --untrusted --expect=raw $f.qcow2
    grep -q 'rejected: expected_format' out || die "$cve: $f: not the format"
done

# A guest makes its raw disk look like qcow2, and the service resizes it
# without saying its format: what the header names would be resized.
cve=CVE-2026-24708
cp df.qcow2 flat.raw
before=$(stat -c %s data)
refused resize --allow-files=none flat.raw 1M
survives resize -f raw flat.raw 1M
[ $code = 0 ] && [ "$(stat -c %s flat.raw)" = 1048576 ] ||
    die "$cve: resize -f raw: $(cat err)"
[ "$(stat -c %s data)" = "$before" ] || die "$cve: another file was resized"
refused inspect --untrusted --expect=raw df.qcow2
exit 0
