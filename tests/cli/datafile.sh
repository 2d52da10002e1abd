#!/bin/bash
# An external data file that has become too short: its bytes are lost, and
# nobody gets zeros instead.  What QEMU leaves short it wrote so, and reads.
. ./tests/functions.sh
need qemu-img qemu-io python3 cmp
cd "$tmp"
fails() { if "$@" >log 2>&1; then die "should fail: $*"; fi; }
says() { grep -q -- "$1" log || { cat log >&2; die "does not say: $1"; }; }

python3 -c '
import random
random.seed(5)
open("a.raw", "wb").write(random.randbytes(8 << 20))'

# maker options: an image with data everywhere.
for how in "vimg" "qemu-img extended_l2=on" "vimg cluster_size=2M"; do
    read -r tool opt <<<"$how"
    rm -f q.q d.raw
    $tool create -q -f qcow2 -o "data_file=d.raw${opt:+,$opt}" q.q 8M
    $tool convert -n -f raw -O qcow2 a.raw q.q
    vimg convert -O raw q.q out || die "$how: cannot be read"
    cmp a.raw out || die "$how: reads otherwise"
    vimg check -q q.q || die "$how: check"
    rm out
    for len in 5M $(((8 << 20) - 512)); do
        cp d.raw kept
        truncate -s $len d.raw
        fails vimg convert -O raw q.q out
        says 'beyond the end of the data file d.raw'
        [ ! -e out ] || die "$how: an output without all bytes"
        fails vimg compare -F raw q.q a.raw
        says 'beyond the end of the data file'
        fails vimg io -c 'write 1M 64k' q.q
        fails vimg io -c 'write 8388096 512' q.q
        says 'beyond the end of the data file'
        [ "$(stat -c %s d.raw)" = "$(numfmt --from=iec $len)" ] ||
            die "$how: the data file was changed"
        fails vimg check q.q
        says 'beyond the end of the data file'
        fails vimg check -r all q.q
        # Nothing was given up: with its file the image is whole again.
        mv kept d.raw
        vimg check -q q.q || die "$how: $len: repair changed it"
        vimg compare -q -F raw q.q a.raw || die "$how: $len: not as before"
    done
    # What lies before the end is read.
    truncate -s 5M d.raw
    vimg io -r -c 'read 0 4M' q.q >log 2>&1 || { cat log >&2; die "$how: 4M"; }
    says 'is shorter than the disk'
done

# The disk byte by byte.
for tool in vimg qemu-img; do
    rm -f q.q d.raw
    $tool create -q -f qcow2 -o data_file=d.raw,data_file_raw=on q.q 8M
    $tool convert -n -f raw -O qcow2 a.raw q.q
    vimg convert -O raw q.q out
    cmp a.raw out
    rm out
    truncate -s 8388096 d.raw
    fails vimg convert -O raw q.q out
    says 'd.raw, which is the disk byte by byte, ends before'
    fails vimg io -c 'write 0 512' q.q
    [ ! -e out ] || die "an output without all bytes"
    vimg info q.q >/dev/null || die "info"
done

# Short from the beginning: only what was written has to be there.
size=8388096
for opt in cluster_size=64k extended_l2=on; do
    rm -f q.q d.raw w.raw
    qemu-img create -q -f qcow2 -o data_file=d.raw,$opt q.q $size
    truncate -s 0 d.raw
    truncate -s $size w.raw
    for off in 1024000 4194304 8387584; do
        for io in qemu-io "vimg io"; do
            $io -f qcow2 -c "write -P 7 $off 512" q.q >log 2>&1 ||
                { cat log >&2; die "$opt: $io at $off"; }
            off=$((off - 1024))
        done
        for at in 0 1024; do
            head -c 512 /dev/zero | tr '\0' '\7' |
                dd of=w.raw bs=512 seek=$(((off + 2048 - at) / 512)) conv=notrunc status=none
        done
        for c in vimg qemu-img; do
            $c compare -q -F raw -f qcow2 q.q w.raw 2>/dev/null ||
                die "$opt: $off: $c reads otherwise"
        done
    done
    vimg check -q q.q 2>/dev/null || die "$opt: check"
done

# Sizes that are no whole clusters, preallocation, resizing.
for tool in vimg qemu-img; do
    for p in off metadata; do
        rm -f q.q d.raw
        $tool create -q -f qcow2 -o data_file=d.raw,preallocation=$p q.q 8389120
        $tool resize -q q.q 9438720
        vimg io -c 'write -P 1 9438208 512' -c 'read 0 9438720' q.q >log 2>&1 ||
            { cat log >&2; die "$tool, $p"; }
        $tool resize -q --shrink q.q 1049088
        vimg io -c 'read 0 1049088' q.q >log 2>&1 || { cat log >&2; die "$tool, $p"; }
        qemu-img check -q q.q || die "$tool, $p: check"
    done
done
exit 0
