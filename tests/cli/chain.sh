#!/bin/sh
# vimg commit and rebase against qemu-img's.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -z 1M 1M' a.qcow2
prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-img create -q -f qcow2 c.qcow2 64M
prepare qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 5M 1M' c.qcow2

chain() {
    prepare qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 m.qcow2
    prepare qemu-io -c 'write -P 5 2M 64k' m.qcow2
    prepare qemu-img create -q -f qcow2 -b m.qcow2 -F qcow2 t.qcow2 80M
    prepare qemu-io -c 'write -P 6 3M 64k' -c 'write -z 0 64k' t.qcow2
}
chain
both commit t.qcow2; images m.qcow2 t.qcow2
both commit -q -d t.qcow2; images m.qcow2 t.qcow2
chain
both commit -b a.qcow2 -r 1G t.qcow2; images a.qcow2 t.qcow2
both commit -b missing t.qcow2
both commit a.qcow2
both commit -r foo t.qcow2
both commit -t foo t.qcow2
both commit

chain
both rebase -b a.qcow2 -F qcow2 t.qcow2; images t.qcow2
json info --output=json t.qcow2
both rebase -b m.qcow2 -F qcow2 t.qcow2; images t.qcow2
both rebase -b c.qcow2 -F qcow2 -t none -T none t.qcow2; images t.qcow2
both rebase -b '' t.qcow2; images t.qcow2
json info --output=json t.qcow2
both rebase -u -b gone.qcow2 -F qcow2 t.qcow2
json info --output=json t.qcow2
both rebase -b a.qcow2 -F qcow2 t.qcow2
both rebase -u -b gone.qcow2 -F foo t.qcow2
both rebase -u -b m.qcow2 -F qcow2 t.qcow2
both rebase -b missing -F qcow2 t.qcow2
both rebase t.qcow2
both rebase -b a.qcow2 -F qcow2 t.qcow2 extra
code check t.qcow2

# An image that rested on nothing keeps its zeros above what is full of data;
# version 2, where qemu-img 7.2 loses them, alone.
prepare qemu-io -f raw -c 'write -P 7 0 64M' a.raw
for o in cluster_size=512 extended_l2=on compat=0.10,cluster_size=4k; do
    prepare qemu-img create -q -f qcow2 -o $o s.qcow2 1M
    prepare qemu-io -c 'write -P 5 300k 100k' s.qcow2
    case $o in
    compat*) (cd "$tmp/v"; vimg rebase -b a.raw -F raw s.qcow2) ;;
    *) both rebase -b a.raw -F raw s.qcow2; images s.qcow2 ;;
    esac
    qemu-io -r -c 'read -P 0 0 300k' -c 'read -P 5 300k 100k' \
        -c 'read -P 0 400k 624k' "$tmp/v/s.qcow2" >"$tmp/said" ||
        wrong "rebase of an image without a base: $o"
    qemu-img check -q "$tmp/v/s.qcow2" || wrong "check: $o"
done

# Maps: zeros at the end of a short layer and what lies behind it; absent
# subclusters of a deep chain, of which a window has many.
prepare qemu-img create -q -f qcow2 short.qcow2 1M
prepare qemu-io -c 'write -z 960k 64k' short.qcow2
prepare qemu-img create -q -f qcow2 -F qcow2 -b short.qcow2 long.qcow2 2M
json map --output=json long.qcow2
prepare qemu-img create -q -f qcow2 -o extended_l2=on l0.qcow2 32M
set --
for i in $(seq 0 2 510); do
    set -- "$@" -c "write -P 7 $((i * 2048)) 2k" \
        -c "write -P 7 $((i * 2048 + (16 << 20))) 2k"
done
prepare qemu-io "$@" l0.qcow2
for i in 1 2 3 4; do
    prepare qemu-img create -q -f qcow2 -F qcow2 -b l$((i - 1)).qcow2 \
        l$i.qcow2
done
prepare qemu-img create -q -f qcow2 -o extended_l2=on -F qcow2 \
    -b l3.qcow2 l5.qcow2
prepare qemu-io -c 'write -P 1 6k 2k' -c 'write -P 1 17M 2k' l5.qcow2
json map --output=json l4.qcow2
json map --output=json l5.qcow2
finish
