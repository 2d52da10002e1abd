#!/bin/sh
# vimg convert and dd against qemu-img's.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 32M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 5M 100k' \
    -c 'write -P 3 32704k 64k' a.qcow2
prepare qemu-img snapshot -c s1 a.qcow2
prepare qemu-io -c 'write -P 4 64k 64k' a.qcow2
prepare qemu-img bitmap --add a.qcow2 b0
prepare qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
prepare qemu-io -c 'write -P 5 2M 64k' b.qcow2
prepare qemu-img convert -O raw a.qcow2 a.raw
prepare qemu-img convert -O vdi a.qcow2 a.vdi
prepare qemu-img create -q -f raw small.raw 1M

for to in raw qcow2 vdi vmdk; do
    both convert -O $to b.qcow2 o.$to; images o.$to
done
both convert a.qcow2 o; images o
both convert -c -O qcow2 a.qcow2 o; images o
both convert -c -O qcow2 -o compression_type=zstd a.qcow2 o; images o
both convert -f raw -O qcow2 -o cluster_size=4k,compat=0.10 a.raw o; images o
json info --output=json o
both convert -S 0 -O raw a.qcow2 o; images o
both convert -S 64k -m 4 -W -O raw a.qcow2 o; images o
both convert -C -O raw a.raw o; images o
both convert -r 1G -t none -T none -O qcow2 a.qcow2 o; images o
both convert -l s1 -O qcow2 a.qcow2 o; images o
both convert -l snapshot.id=1 -O qcow2 a.qcow2 o; images o
both convert -l snapshot.name=s1 -O qcow2 a.qcow2 o; images o
both convert -B a.qcow2 -F qcow2 -O qcow2 b.qcow2 o; images o
json info --output=json o
both convert --bitmaps -O qcow2 a.qcow2 o; images o
json info --output=json o
both convert a.raw b.qcow2 -O qcow2 o; images o
prepare qemu-img create -q -f qcow2 n.qcow2 40M
both convert -n -O qcow2 a.qcow2 n.qcow2; images n.qcow2
prepare qemu-img create -q -f qcow2 n.qcow2 40M
both convert -n --target-is-zero -O qcow2 a.qcow2 n.qcow2; images n.qcow2
both convert -n --target-image-opts a.qcow2 driver=qcow2,file.filename=n.qcow2
images n.qcow2
both convert --salvage -q -U -O qcow2 a.qcow2 o
both convert --image-opts driver=qcow2,file.filename=a.qcow2 o; images o
# Mistakes.
for args in '' 'a.qcow2' '-O foo a.qcow2 z' '-f foo a.qcow2 z' \
    '-c a.qcow2 z' '-O qcow2 missing z' '-n -O qcow2 a.qcow2 missing' \
    '--target-is-zero a.qcow2 z' '-C -S 1k a.qcow2 z' \
    '-C -c -O qcow2 a.qcow2 z' '-m 0 a.qcow2 z' '-m 17 a.qcow2 z' \
    '-S 100 a.qcow2 z' '-S foo a.qcow2 z' '-r foo a.qcow2 z' \
    '-l missing a.qcow2 z' '-l snapshot.foo=1 a.qcow2 z' \
    '-l s1 a.qcow2 a.qcow2 z' '-B a.qcow2 -O qcow2 b.qcow2 z' \
    '-F qcow2 -O qcow2 b.qcow2 z' '-B missing -F qcow2 -O qcow2 b.qcow2 z' \
    '-B a.qcow2 -F qcow2 -O qcow2 b.qcow2 b.qcow2 z' \
    '-n -o cluster_size=4k -O qcow2 a.qcow2 n.qcow2' \
    '-n -O raw a.qcow2 small.raw' '--bitmaps a.qcow2 z' \
    '--skip-broken-bitmaps -O qcow2 a.qcow2 z' '-o foo=bar a.qcow2 z' \
    '-t foo a.qcow2 z' '-T foo a.qcow2 z' '-O qcow2 a.qcow2 a.qcow2' \
    '--target-image-opts a.qcow2 driver=qcow2,file.filename=z' \
    '-O qcow2 b.qcow2 a.qcow2'; do
    both convert $args
done
[ -e "$tmp/v/z" ] && wrong 'a refused target was made'

both dd if=a.qcow2 of=o; images o
both dd -O qcow2 if=a.qcow2 of=o bs=1M count=2; images o
both dd if=a.qcow2 of=o bs=1000 count=300; images o
both dd if=a.qcow2 of=o bs=1000 skip=7; images o
both dd if=a.qcow2 of=o bs=1M skip=100; images o
both dd -f raw -O vmdk if=a.raw of=o.vmdk bs=1M count=3; images o.vmdk
for args in 'if=a.qcow2' 'of=z' 'foo=x if=a.qcow2 of=z' \
    'if=a.qcow2 of=z bs=foo' 'if=a.qcow2 of=z bs=0' 'if=a.qcow2 of=z bs=3G' \
    'if=a.qcow2 of=z count=x' '-O foo if=a.qcow2 of=z' 'if=missing of=z' \
    'if=a.qcow2 of=z xyz'; do
    both dd $args
done

cd "$tmp/v"
# With skip qemu-img 7.2 copies fewer blocks than count says; dd(1) does not.
vimg dd if=a.qcow2 of=o bs=1000 count=300 skip=7
dd if=a.raw of=plain bs=1000 count=300 skip=7 status=none
truncate -s 300032 plain
cmp o plain || wrong 'dd with skip and count'

# Streams.
vimg convert -O raw a.qcow2 - | cmp - a.raw || wrong 'convert to a pipe'
cat a.raw | vimg convert -O qcow2 - p.qcow2
vimg compare -q p.qcow2 a.raw || wrong 'convert from a pipe'
vimg dd if=a.qcow2 of=- bs=1M count=2 | cmp -n 2097152 - a.raw \
    || wrong 'dd to a pipe'
vimg convert -O qcow2 a.qcow2 - >p2.qcow2
vimg compare -q p2.qcow2 a.raw || wrong 'qcow2 to a pipe'
# Scratch files: in $TMPDIR, or in /var/tmp.
mkdir scratch
for dir in "$PWD/scratch" ''; do
    TMPDIR=$dir vimg convert -O vdi a.qcow2 - >o.vdi &&
        vimg compare -q o.vdi a.raw || wrong "VDI to a pipe, TMPDIR=$dir"
    TMPDIR=$dir vimg convert -O qcow2 - p.qcow2 <a.raw &&
        vimg compare -q p.qcow2 a.raw || wrong "from a pipe, TMPDIR=$dir"
    TMPDIR=$dir vimg io -s -c 'write 0 512' a.qcow2 >/dev/null ||
        wrong "io -s, TMPDIR=$dir"
done
rmdir scratch || wrong 'scratch files stay'
! TMPDIR=$PWD/scratch vimg convert -O vdi a.qcow2 - >o.vdi 2>err ||
    wrong 'the scratch folder is another one'
vimg convert -p -O qcow2 a.qcow2 o | tr '\r' '\n' >progress
grep -q '(100.00/100%)' progress || wrong 'progress'
finish
