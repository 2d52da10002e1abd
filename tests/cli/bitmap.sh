#!/bin/sh
# vimg bitmap against qemu-img bitmap.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -z 1M 1M' a.qcow2
prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-img create -q -f qcow2 c.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 5M 1M' c.qcow2

both bitmap --add a.qcow2 b0
both bitmap --add a.qcow2 b0
both bitmap --add -g 16k --disable a.qcow2 b1
both bitmap --merge b0 a.qcow2 b1
both bitmap --add c.qcow2 b5
both bitmap --merge b5 -b c.qcow2 -F qcow2 a.qcow2 b1
both bitmap --enable --clear a.qcow2 b1
json info --output=json a.qcow2
both bitmap --remove a.qcow2 b0
json info --output=json a.qcow2
for args in '--add a.qcow2' 'a.qcow2 b0' '--merge b9 a.qcow2 b1' \
    '--remove a.qcow2 b9' '--clear a.qcow2 b9' '--enable a.qcow2 b9' \
    '--add -f raw a.raw b9' '--add -g 3 a.qcow2 b9' \
    '--add -g 256 a.qcow2 b9' '-g 64k --clear a.qcow2 b1' \
    '-b a.qcow2 --clear a.qcow2 b1' '-F qcow2 --merge x a.qcow2 b1' \
    '--add --image-opts -f qcow2 a.qcow2 b1'; do
    both bitmap $args
done
prepare qemu-img create -q -f qcow2 -u -b gone.qcow2 -F qcow2 top.qcow2 1M
both bitmap --add top.qcow2 b0

# An image with more bits than can be read back could not be opened again.
prepare qemu-img create -q -f qcow2 huge.qcow2 60T
both bitmap --add -g 512 huge.qcow2 b0
both bitmap --add -g 64k huge.qcow2 b1
vimg resize -q "$tmp/v/huge.qcow2" 400T 2>"$tmp/out" &&
    die "a bitmap grew beyond its limit"
grep -q "b1.*too many" "$tmp/out" || die "$(cat "$tmp/out")"
json info --output=json huge.qcow2

# One whose bits lie behind the end of the file: described all the same.
tail -c +362 "$srcdir/fuzz/corpus/ops/bitmap-cluster-behind-the-end" \
    >"$tmp/behind.qcow2"
prepare cp ../behind.qcow2 .
json info --output=json behind.qcow2
code check behind.qcow2

finish
