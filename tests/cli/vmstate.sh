#!/bin/sh
# vimg io: the state of a virtual machine against qemu-io's.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

for d in q v; do (cd "$tmp/$d"
    qemu-img create -q -f qcow2 a.qcow2 64M
    qemu-img create -q -f raw r.raw 64M); done

# The words.
for args in 'write -b 100 512' 'write -b 512 100' 'read -b 100 512' \
    'read -b 512 100' 'write -b -z 0 512' 'write -b -f 0 512' \
    'write -c -f 0 64k' 'write -b -u 0 512' 'write -b -n -f 0 512' \
    'write -b -z -P 1 -f 0 512' 'read -b -C 0 512' 'read -b -v 0 512' \
    'read -b -P 8 -s 512 -l 512 0 2k' 'read -b 10T 512' 'read -b 7E 512' \
    'write -b 7E 512' 'writev -b 0 512' 'readv -b 0 512'; do
    io -c "$args" a.qcow2
done
io -r -c 'write -b 0 512' -c 'read -b 0 512' a.qcow2
io -f raw -c 'write -b 0 512' -c 'read -b 0 512' r.raw

tr '\0' '\1' </dev/zero | head -c 1000k >"$tmp/ones"
truncate -s 1G "$tmp/ones"

# Each reads what the other wrote, the disk stays what it was, with snapshots
# and without.
head -c 777 /dev/urandom >"$tmp/q/file"; cp "$tmp/q/file" "$tmp/v"
for o in cluster_size=64k cluster_size=512 cluster_size=2M compat=0.10 \
    refcount_bits=1 cluster_size=16k,extended_l2=on data_file=df lazy_refcounts=on; do
    for d in q v; do (cd "$tmp/$d"
        qemu-img create -q -f qcow2 -o "$o" vm.qcow2 1000k
        qemu-img create -q -f qcow2 -F qcow2 -b vm.qcow2 over.qcow2
        qemu-img bitmap --add vm.qcow2 b 2>/dev/null || :); done
    io -c 'write -P 1 0 1000k' -c 'write -b -P 7 0 96k' \
        -c 'write -b -P 8 33k 3k' -c 'write -b -c -P 9 512k 64k' \
        -c 'write -b -s file 3M 1M' -c 'read -b -P 0 200k 1k' \
        -c 'read -b -P 8 33k 3k' vm.qcow2
    io -c 'write -b -P 3 5k 1k' -c 'read -b -P 0 0 5k' over.qcow2
    for d in q v; do
        cd "$tmp/$d"
        for p in qemu-io 'vimg io'; do
            $p -r -f qcow2 -c 'read -P 1 0 1000k' -c 'read -b -P 7 0 33k' \
                -c 'read -b -P 8 33k 3k' -c 'read -b -P 7 36k 60k' \
                -c 'read -b -P 9 512k 64k' -c 'read -b -P 0 1M 2M' \
                -c 'read -b -v 3M 8k' vm.qcow2 >../out ||
                wrong "$o: what $d wrote: $p: $(cat ../out)"
            grep '^0' ../out >"../out-${p%% *}"
            $p -r -f qcow2 -c 'read -P 1 0 1000k' -c 'read -b -P 3 5k 1k' \
                -c 'read -b -P 0 0 5k' over.qcow2 >../out ||
                wrong "$o: what $d wrote over it: $p: $(cat ../out)"
        done
        cmp ../out-vimg ../out-qemu-io || wrong "$o: $d: other bytes"
        qemu-img check -q vm.qcow2 >&2 || wrong "$o: $d: check"
        case $o in data_file*) continue ;; refcount_bits=1) continue ;; esac
        rm over.qcow2
        vimg snapshot -c one vm.qcow2
        qemu-img snapshot -c two vm.qcow2
        vimg io -c 'write -b -P 5 0 1M' vm.qcow2 >../out || wrong "$o: $d: $(cat ../out)"
        qemu-img check -q vm.qcow2 >&2 || wrong "$o: $d: check with snapshots"
        for s in one two; do
            vimg snapshot -a $s vm.qcow2
            qemu-io -c 'read -b -P 7 0 33k' -c 'read -P 1 0 1000k' vm.qcow2 >../out ||
                wrong "$o: $d: the state in the snapshot: $(cat ../out)"
        done
        vimg snapshot -d one vm.qcow2; qemu-img snapshot -d two vm.qcow2
        # A larger disk does not show it.
        vimg resize -q vm.qcow2 1G
        vimg compare -q -F raw vm.qcow2 "$tmp/ones" ||
            wrong "$o: $d: the disk grew into the state"
        qemu-img check -q vm.qcow2 >&2 || wrong "$o: $d: check at the end"
    done
done

# Nothing is written to an image that was found to be corrupt a moment ago,
# tables neither.
cd "$tmp/v"
for command in 'write -b 0 512' 'truncate 5T'; do
    qemu-img create -q -f qcow2 bad.qcow2 512M
    qemu-io -c 'write 0 64k' bad.qcow2 >/dev/null
    python3 - <<'EOF'
import struct
f = open("bad.qcow2", "r+b")
f.seek(40)
f.seek(struct.unpack(">Q", f.read(8))[0])
f.seek(struct.unpack(">Q", f.read(8))[0] & (1 << 56) - 1)
f.write(struct.pack(">Q", 1 << 63 | 0x50200))
EOF
    head -c 72 bad.qcow2 >before
    vimg io -c 'read 0 512' -c "$command" bad.qcow2 >../out 2>&1 && wrong "$command of a corrupt image"
    grep -q 'not written any more' ../out || wrong "$command of a corrupt image: $(cat ../out)"
    head -c 72 bad.qcow2 | cmp - before || wrong "$command changed the header of a corrupt image"
done
finish
