#!/bin/sh
# vimg resize against qemu-img resize.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-img create -q -f qcow2 a.qcow2 1G
prepare qemu-img create -q -f qcow2 base.qcow2 1G
prepare qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 b.qcow2
both resize a.raw +10M
both resize -f raw a.raw +10M
both resize -f raw a.raw -10M
both resize -f raw a.raw -- -10M
both resize -f raw --shrink a.raw -10M
both resize -f raw -q a.raw 90M
both resize -f raw --preallocation=full a.raw 91M
both resize a.qcow2 2G
both resize --preallocation=metadata a.qcow2 2100M
both resize --preallocation=falloc a.qcow2 2101M
both resize --shrink a.qcow2 1G
both resize a.qcow2 512M
both resize --shrink --preallocation=full a.qcow2 512M
both resize --image-opts driver=qcow2,file.filename=b.qcow2 +1G
for args in '' 'a.qcow2' 'a.qcow2 foo' 'a.qcow2 +' 'a.qcow2 0' \
    'missing 1G' '--shrink a.qcow2 -100G' '--shrink a.qcow2 1G foo' \
    '--preallocation=foo a.qcow2 3G'; do
    both resize $args
done
for f in a.raw a.qcow2 b.qcow2; do
    json info --output=json $f
done
both check a.qcow2

# What is cut off does not come back when QEMU makes the disk longer.
prepare qemu-img create -q -f qcow2 t.qcow2 1M
prepare qemu-io -c 'write -c -P 6 0 64k' -c 'write -P 5 64k 960k' t.qcow2
for size in 400000 1000; do
    vimg resize -q --shrink "$tmp/v/t.qcow2" $size
    qemu-img resize -q "$tmp/v/t.qcow2" 512k
    qemu-io -r -c "read -P 0 $size $((524288 - size))" "$tmp/v/t.qcow2" \
        >"$tmp/said" || wrong "what was cut off at $size is back"
done
# Nor does anything else lie behind the end, though its place is a used one.
vimg create -q -f qcow2 "$tmp/v/u.qcow2" 100352
vimg io -d unmap -c 'write -P 7 0 64k' -c 'discard 0 64k' \
    "$tmp/v/u.qcow2" >"$tmp/said"
vimg io -c 'write -P 9 64k 34816' "$tmp/v/u.qcow2" >"$tmp/said"
qemu-img resize -q "$tmp/v/u.qcow2" 200192
qemu-io -r -c 'read -P 0 100352 99840' "$tmp/v/u.qcow2" >"$tmp/said" ||
    wrong 'there were old bytes behind the end'

# Nor what lies below, when the tables for it are made at once.
qemu-img create -q -f qcow2 "$tmp/v/low.qcow2" 4M
qemu-io -c 'write -P 5 0 4M' "$tmp/v/low.qcow2" >"$tmp/said"
qemu-img create -q -f qcow2 -o extended_l2=on -b low.qcow2 -F qcow2 \
    "$tmp/v/over.qcow2" 1M
vimg resize -q --preallocation=metadata "$tmp/v/over.qcow2" 3M
qemu-io -r -c 'read -P 5 0 1M' -c 'read -P 0 1M 2M' "$tmp/v/over.qcow2" \
    >"$tmp/said" || wrong 'the base shows in what the disk gained'
qemu-img check -q "$tmp/v/over.qcow2" || wrong 'check: grown overlay'

# Nor is anything lost when shrinking is refused.
prepare qemu-img create -q -f qcow2 -o compat=0.10 o.qcow2 1M
prepare qemu-io -c 'write -P 5 0 1M' o.qcow2
prepare qemu-img snapshot -c s1 o.qcow2
both resize --shrink o.qcow2 400000
images o.qcow2
finish
