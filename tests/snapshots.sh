#!/bin/bash
# Snapshots: taken by vimg and applied by QEMU, and the reverse; every image
# is clean for qemu-img check after each step.
. ./tests/functions.sh
need qemu-img qemu-io vimg
cd "$tmp"

sum() { qemu-img convert -O raw "$@" sum.raw && sha1sum <sum.raw; }
same() { [ "$1" = "$2" ] || die "$3: $opts: another content"; }
clean() { qemu-img check -q a.qcow2 || die "$1: $opts: not clean"; }

for opts in cluster_size=512,refcount_bits=64 cluster_size=64k,extended_l2=on \
    compat=0.10; do
    rm -f ./*.qcow2
    qemu-img create -q -f qcow2 base.qcow2 8M
    qemu-io -c "write -P 9 0 8M" base.qcow2 >io.log
    vimg create -q -f qcow2 -b base.qcow2 -F qcow2 -o "$opts" a.qcow2
    qemu-io -c "write -P 1 1M 1M" -c "write -P 2 3M 300k" \
        -c "write -c -P 6 6M 2M" a.qcow2 >io.log
    first=$(sum a.qcow2)
    vimg snapshot -c s1 a.qcow2
    clean create
    same "$(sum a.qcow2)" "$first" create
    qemu-io -c "write -P 3 1M 2M" -c "discard 6M 1M" \
        -c "write -P 7 100 100" a.qcow2 >io.log
    second=$(sum a.qcow2)
    [ "$first" != "$second" ] || die "the test writes nothing"
    clean "QEMU writes"
    qemu-img snapshot -c s2 a.qcow2
    vimg check -q a.qcow2 || die "QEMU's snapshot is not clean for us"

    vimg snapshot -a s1 a.qcow2
    clean "apply s1"
    same "$(sum a.qcow2)" "$first" "apply s1"
    qemu-img snapshot -a s2 a.qcow2
    same "$(sum a.qcow2)" "$second" "QEMU applies s2"

    vimg snapshot -c s3 a.qcow2
    vimg snapshot -d s1 a.qcow2
    clean "delete s1"
    vimg convert -l snapshot.name=s2 -O raw a.qcow2 view.raw
    same "$(sha1sum <view.raw)" "$second" "convert -l"
    same "$(sum -l snapshot.name=s3 a.qcow2)" "$second" "QEMU reads s3"
    vimg snapshot -d s2 a.qcow2
    vimg snapshot -d s3 a.qcow2
    clean "delete all"
    same "$(sum a.qcow2)" "$second" "delete all"
    vimg snapshot -d s3 a.qcow2 2>err.txt && die "deleted twice"
    grep -q s3 err.txt || die "the error does not name the snapshot"
done

# A refcount of one bit has no room for a second reference: refused, and the
# image stays as it was.
vimg create -q -f qcow2 -o refcount_bits=1 a.qcow2 1M
qemu-io -c "write -P 1 0 1M" a.qcow2 >io.log
vimg snapshot -c s1 a.qcow2 2>err.txt && die "one bit counted to two"
opts=refcount_bits=1
clean refused
qemu-io -c "read -P 1 0 1M" a.qcow2 | grep -q failed && die "content is lost"
exit 0
