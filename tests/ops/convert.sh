#!/bin/bash
# convert: content against qemu-img, the same bytes for every number of
# threads, nothing left behind by cancel or a full disk.
. ./tests/functions.sh
need qemu-img qemu-io
imgop="$builddir/tests/ops/imgop"
cd "$tmp"

same() { qemu-img compare -q -f "$1" -F "$3" "$2" "$4" || die "$2 and $4 differ"; }
clean() { case $1 in qcow2) qemu-img check -q -f qcow2 "$2" || die "$2 is not clean" ;; esac; }
sum() { sha256sum "$1" | cut -d' ' -f1; }

# A disk with data, text that packs well, zeros, holes, an odd end.
truncate -s 40M a.raw
dd if=/dev/urandom of=a.raw bs=64K seek=3 count=40 conv=notrunc status=none
yes 'all work and no play' | dd of=a.raw bs=4K seek=2000 count=900 conv=notrunc iflag=fullblock status=none
dd if=/dev/zero of=a.raw bs=1M seek=20 count=3 conv=notrunc status=none
printf x | dd of=a.raw bs=1 seek=41943039 conv=notrunc status=none
for i in $(seq 1 37 3000); do printf "$i" | dd of=a.raw bs=1 seek=$((i * 7919 + 12000000)) conv=notrunc status=none; done

qemu-img convert -f raw -O qcow2 a.raw q.qcow2
qemu-img convert -c -f raw -O qcow2 a.raw c.qcow2

formats=$(cat <<FMT
raw
qcow2
FMT
)
for src in raw:a.raw qcow2:q.qcow2 qcow2:c.qcow2; do
    for fmt in $formats; do
        for j in 1 2 5; do
            "$imgop" convert -j $j $src $fmt:out.$j
            same raw a.raw $fmt out.$j
            clean $fmt out.$j
        done
        [ $(sum out.1) = $(sum out.2) ] && [ $(sum out.1) = $(sum out.5) ] ||
            die "$src to $fmt: the bytes depend on the number of threads"
        rm out.*
    done
    for j in 1 2 5; do
        "$imgop" convert -c -j $j $src qcow2:out.$j
        same raw a.raw qcow2 out.$j
        clean qcow2 out.$j
    done
    [ $(sum out.1) = $(sum out.2) ] && [ $(sum out.1) = $(sum out.5) ] ||
        die "$src -c: the bytes depend on the number of threads"
    rm out.*
done

# Options of the target.
for o in cluster_size=512 cluster_size=2M compat=0.10 refcount_bits=1 \
         extended_l2=on,cluster_size=128k compression_type=zstd \
         preallocation=metadata preallocation=falloc preallocation=full; do
    args=; for one in ${o//,/ }; do args="$args -o $one"; done
    "$imgop" convert $args raw:a.raw qcow2:out
    same raw a.raw qcow2 out
    clean qcow2 out
    case $o in prealloc*|refcount*|ext*) continue ;; esac
    "$imgop" convert -c $args raw:a.raw qcow2:out
    same raw a.raw qcow2 out
    clean qcow2 out
done

# -S: nothing is left out with 0; the content is the same with all.
for s in 0 512 65536 1048576; do
    "$imgop" convert -S $s qcow2:q.qcow2 raw:out
    same raw a.raw raw out
    [ $s != 0 ] || [ $(stat -c %b out) -ge 81920 ] || die "-S 0 left holes"
done
[ $(stat -c %b a.raw) -gt 0 ]
"$imgop" convert qcow2:q.qcow2 raw:out
[ $(stat -c %b out) -le $(stat -c %b a.raw) ] || die "holes were lost"

# A stream; several sources; odd sizes.
"$imgop" convert qcow2:c.qcow2 raw:- | cmp - a.raw
"$imgop" convert qcow2:c.qcow2 qcow2:- | cat > out
same raw a.raw qcow2 out
head -c 1000448 a.raw > odd.raw
cat a.raw odd.raw a.raw > joined.raw
"$imgop" convert raw:a.raw raw:odd.raw qcow2:q.qcow2 qcow2:out
same raw joined.raw qcow2 out
clean qcow2 out
"$imgop" convert raw:a.raw raw:odd.raw qcow2:q.qcow2 raw:out
cmp out joined.raw

# Past the page cache, where the file system can.
cp a.raw odd.raw; truncate -s +1536 odd.raw; printf y | dd of=odd.raw bs=1 seek=41944000 conv=notrunc status=none
for f in raw qcow2; do
    for z in '' -c; do
        [ $f$z = raw-c ] && continue
        "$imgop" convert -d $z raw:odd.raw $f:out 2>err || { grep -q O_DIRECT err && break; die "direct: $(cat err)"; }
        same raw odd.raw $f out
        clean $f out
    done
done

# With a backing file only what differs is stored.
qemu-img create -q -f qcow2 -b a.raw -F raw over.qcow2
qemu-io -c 'write -P 7 5M 300k' -c 'write -z 3M 1M' -c 'write -P 9 39900k 60k' over.qcow2 >/dev/null
"$imgop" convert -B a.raw -F raw qcow2:over.qcow2 qcow2:out
same qcow2 over.qcow2 qcow2 out
clean qcow2 out
[ $(stat -c %s out) -lt 2000000 ] || die "-B copied the backing file"
qemu-img convert -f qcow2 -O raw over.qcow2 flat.raw
"$imgop" convert -B a.raw -F raw raw:flat.raw qcow2:out
same raw flat.raw qcow2 out
[ $(stat -c %s out) -lt 2000000 ] || die "-B stored what is equal"
"$imgop" convert qcow2:over.qcow2 raw:out
cmp out flat.raw

# Into an existing disk that is not zeros.
for f in raw qcow2; do
    qemu-img create -q -f $f old 50M
    qemu-io -f $f -c 'write -P 85 0 50M' old >/dev/null
    "$imgop" copy qcow2:over.qcow2 $f:old
    clean $f old
    qemu-img convert -f $f -O raw old old.raw
    head -c 41943040 old.raw | cmp - flat.raw || die "copy into $f"
    tail -c 10485760 old.raw | tr -d 'U' | cmp - /dev/null || die "copy touched the tail"
    [ $f = raw ] && continue
    qemu-img create -q -f $f old 40M
    qemu-io -f $f -c 'write -P 85 0 40M' old >/dev/null
    "$imgop" copy -c qcow2:over.qcow2 $f:old
    clean $f old
    same raw flat.raw $f old
done
qemu-img create -q -f qcow2 small 10M
! "$imgop" copy raw:a.raw qcow2:small 2>err || die "copied into a smaller disk"
rm -f old old.raw small

# Salvage: what cannot be read becomes zeros, the rest is there.
seq 1 200000 | head -c 1048576 >text.raw
qemu-img convert -c -f raw -O qcow2 text.raw broken
yes | tr 'y\n' '\377\377' | dd of=broken bs=1 seek=$((0x50000)) count=16 conv=notrunc iflag=fullblock status=none
! "$imgop" convert qcow2:broken raw:out 2>err || die "damage was not seen"
"$imgop" convert -L qcow2:broken raw:out 2>err
grep -q 'zeros are written instead' err || die "salvage was silent"
cmp -i 65536 out text.raw || die "salvage lost more"
! cmp -s out text.raw || die "nothing was damaged"
rm -f broken err

# Canceled: the target is as it was, and nothing else is there.
echo precious > target
before=$(ls -A | sort)
for fmt in raw qcow2; do
    for x in 0 1 9000000; do
        ! "$imgop" convert -r 20000000 -x $x raw:a.raw $fmt:target 2>err || die "not canceled"
        [ "$(cat target)" = precious ] || die "cancel changed the target"
    done
done
rm err
before=$(echo "$before" | grep -v '^err$')
[ "$before" = "$(ls -A | sort)" ] || die "cancel left something"
! "$imgop" convert raw:a.raw raw:a.raw 2>/dev/null || die "converted onto itself"

# Blocks are shared where the file system can.
if [ "$(id -u)" = 0 ] && command -v mkfs.xfs filefrag >/dev/null && truncate -s 330M xfs.img &&
   mkfs.xfs -q xfs.img && mkdir shared && mount -o loop xfs.img shared 2>/dev/null; then
    cleanup() { umount "$tmp/shared" 2>/dev/null || :; }
    dd if=/dev/urandom of=shared/a bs=1M count=20 status=none
    truncate -s 40M shared/a
    dd if=a.raw of=shared/a bs=64K seek=500 skip=10 count=9 conv=notrunc status=none
    for f in raw qcow2; do
        "$imgop" convert raw:shared/a $f:shared/b
        same raw shared/a $f shared/b
        clean $f shared/b
        filefrag -v shared/b | grep -q shared || die "$f: nothing is shared"
        "$imgop" convert $f:shared/b raw:shared/c
        cmp shared/a shared/c
        filefrag -v shared/c | grep -q shared || die "$f to raw: nothing is shared"
        "$imgop" convert -j 1 raw:shared/a $f:shared/c
        [ $(sum shared/b) = $(sum shared/c) ] || die "sharing: the bytes depend on the number of threads"
    done
    umount shared
    cleanup() { :; }
fi
rm -rf xfs.img shared

# A full disk.
if [ "$(id -u)" = 0 ] && mkdir full && mount -t tmpfs -o size=2M none full 2>/dev/null; then
    cleanup() { umount "$tmp/full" 2>/dev/null || :; }
    echo precious > full/target
    for fmt in raw qcow2; do
        ! "$imgop" convert raw:a.raw $fmt:full/target 2>err || die "no ENOSPC?"
        grep -q 'No space left' err || die "says: $(cat err)"
        [ "$(cat full/target)" = precious ] || die "a full disk cost the target"
        [ "$(ls -A full)" = target ] || die "debris on a full disk"
    done
fi
echo "convert: all good"
