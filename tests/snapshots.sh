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

# Every cluster size, and with it a refcount width, over a backing file, with
# a bitmap (at which QEMU would refuse to apply) and compressed clusters, many
# of which share one of the file: narrow refcounts cannot count those.
widths='4 8 16 32 64'
for c in 512 1k 2k 4k 8k 16k 32k 64k 128k 256k 512k 1M 2M; do
    # shellcheck disable=SC2086
    set -- $widths; w=$1; shift; widths="$* $w"
    opts=cluster_size=$c,refcount_bits=$w
    rm -f a.qcow2
    vimg create -q -f qcow2 -b base.qcow2 -F qcow2 -o "$opts" a.qcow2
    vimg bitmap --add a.qcow2 b
    z=-c; [ "$w" -ge 16 ] || z=
    qemu-io -c "write -P 1 1M 300k" -c "write $z -P 6 6M 2M" a.qcow2 >io.log
    first=$(sum a.qcow2)
    vimg snapshot -c s1 a.qcow2
    qemu-img snapshot -c s2 a.qcow2
    qemu-io -c "write -P 3 1M 2M" -c "write -z 6M 1M" a.qcow2 >io.log
    second=$(sum a.qcow2)
    vimg snapshot -c s3 a.qcow2
    clean taken
    vimg snapshot -a s2 a.qcow2
    same "$(sum a.qcow2)" "$first" "apply QEMU's"
    clean "apply QEMU's"
    vimg bitmap --remove a.qcow2 b
    qemu-img snapshot -a s3 a.qcow2
    same "$(sum a.qcow2)" "$second" "QEMU applies ours"
    for i in s1 s2 s3; do vimg snapshot -d $i a.qcow2; done
    same "$(sum a.qcow2)" "$second" "all deleted"
    clean "all deleted"
done

# A full image of 1 TiB is checked in bounded memory.
need python3
vimg create -q -f qcow2 -o preallocation=metadata big.qcow2 1T
python3 - "$builddir" <<'EOF' || die "checking 1 TiB"
import resource, subprocess, sys
r = subprocess.call([sys.argv[1] + "/vimg", "check", "-q", "big.qcow2"])
used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sanitized = "enable-asan" in open(sys.argv[1] + "/config.log").read()
print(used, "KiB")
sys.exit(r or (not sanitized and used > 300 << 10))
EOF
