#!/bin/sh
# Options of qcow2 that do not go together, or only just do, in vimg create,
# amend, measure and resize against qemu-img.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 base.qcow2 2M
prepare qemu-io -c 'write -P 1 0 1M' base.qcow2

# ---- create: each is refused by both, or made by both and sound --------------
n=0
made() {
    n=$((n + 1))
    both create -q -f qcow2 -o "$@"
    [ $v = 0 ] || return 0
    json info --output=json "$2"
}
for o in compat=0.10,refcount_bits=8 compat=v2,refcount_bits=16 \
    compat=0.10,compression_type=zstd compat=0.10,compression_type=zlib \
    compat=0.10,extended_l2=on compat=0.10,extended_l2=off \
    compat=0.10,lazy_refcounts=on compat=0.10,lazy_refcounts=off \
    compat=0.10,data_file=d0 compat=1.1,lazy_refcounts=on compat=0.9 \
    compat=0.10,refcount_bits=1,compression_type=zstd,extended_l2=on \
    refcount_bits=0 refcount_bits=3 refcount_bits=128 refcount_bits=x \
    refcount_bits=64 cluster_size=256 cluster_size=4M cluster_size=0 \
    cluster_size=12k extended_l2=on,cluster_size=8k \
    extended_l2=on,cluster_size=16k extended_l2=maybe compression_type=lz4 \
    data_file_raw=on data_file_raw=off data_file=d1,data_file_raw=on \
    data_file=d2,data_file_raw=on,preallocation=metadata \
    data_file=d3,data_file_raw=on,preallocation=off \
    data_file=d4,preallocation=falloc data_file=d5,preallocation=full \
    data_file=d6,extended_l2=on,preallocation=metadata \
    preallocation=some preallocation=metadata,extended_l2=on \
    preallocation=metadata,refcount_bits=1,cluster_size=512 \
    preallocation=falloc,cluster_size=2M preallocation=full,compat=0.10 \
    nocow=on nocow=off encryption=off; do
    made "$o" "n$n.qcow2" 3M
done
for o in data_file=d7,data_file_raw=on data_file=d8 preallocation=metadata \
    preallocation=metadata,extended_l2=on preallocation=full,extended_l2=on \
    preallocation=falloc,data_file=d9 compat=0.10 preallocation=off; do
    both create -q -f qcow2 -o "$o" -b base.qcow2 -F qcow2 b.qcow2
    [ $v = 0 ] || continue
    both check b.qcow2
    case $o in *data_file*) ;; *) images b.qcow2; esac
done
# The largest disks that clusters have tables for, and one more.
for o in 512:137438953472 4k:8796093022208 2M:2305843009213693952; do
    made cluster_size=${o%:*} "l.qcow2" ${o#*:}
    code create -q -f qcow2 -o cluster_size=${o%:*} m.qcow2 $((${o#*:} + 512))
done
code create -q -f qcow2 -o encryption=on x 1M
code create -q -f qcow2 -o size=0 x
both check x

# ---- measure -----------------------------------------------------------------
for o in cluster_size=512 cluster_size=2M refcount_bits=64,cluster_size=512 \
    extended_l2=on preallocation=metadata preallocation=falloc \
    preallocation=full compat=0.10 refcount_bits=1; do
    both measure -O qcow2 -o "$o" --size 3M
    both measure -O qcow2 -o "$o" --size 70G
    both measure -O qcow2 -o "$o" base.qcow2
done
# Ours counts the image alone, not its data file.
code measure -O qcow2 -o data_file=x --size 1G
both measure -O qcow2 -o cluster_size=512 --size 1T
both measure -O qcow2 --size 0

# ---- amend -------------------------------------------------------------------
prepare qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
prepare qemu-io -c 'write -z 64k 64k' -c 'write -P 3 512k 64k' top.qcow2
prepare qemu-img create -q -f qcow2 -o extended_l2=on ext.qcow2 1M
prepare qemu-img create -q -f qcow2 -o compression_type=zstd zstd.qcow2 1M
prepare qemu-img create -q -f qcow2 -o data_file=d.raw dat.qcow2 1M
prepare qemu-img create -q -f qcow2 -o data_file=r.raw,data_file_raw=on \
    raw.qcow2 1M
amended() {
    both amend -q -o "$1" "$2"
    json info --output=json "$2"
}
for o in cluster_size=64k cluster_size=32k cluster_size=x extended_l2=off \
    extended_l2=on extended_l2=x compression_type=zlib compression_type=zstd \
    compat=0.10,refcount_bits=64 compat=0.10,lazy_refcounts=on compat=7 \
    refcount_bits=5 refcount_bits=128 refcount_bits=16 refcount_bits=4 \
    compat=0.10,refcount_bits=16 compat=v2 refcount_bits=16 \
    lazy_refcounts=on refcount_bits=8 compat=v3,lazy_refcounts=on \
    lazy_refcounts=perhaps compat=v3,refcount_bits=1 lazy_refcounts=off \
    data_file=x data_file_raw=on data_file_raw=off data_file_raw=x; do
    amended "$o" top.qcow2
    case $o in *compat*) images top.qcow2; both check top.qcow2; esac
done
for o in preallocation=metadata encryption=on encryption=off nocow=on; do
    code amend -q -o "$o" top.qcow2
done
amended compat=0.10 ext.qcow2
amended extended_l2=on ext.qcow2
amended compression_type=zstd zstd.qcow2
amended compat=0.10 dat.qcow2
amended data_file_raw=on dat.qcow2
prepare cp d.raw d2.raw
amended data_file=d2.raw dat.qcow2
cp "$tmp/v/dat.qcow2" "$tmp/before"
vimg amend -o data_file= "$tmp/v/dat.qcow2" 2>"$tmp/out" && die "no name"
grep -q "needs a name" "$tmp/out" || die "$(cat "$tmp/out")"
cmp "$tmp/before" "$tmp/v/dat.qcow2" || die "a refused amend changed something"
amended data_file_raw=on raw.qcow2
amended data_file_raw=off,data_file=r.raw raw.qcow2
amended data_file_raw=on raw.qcow2
for f in ext zstd dat raw; do both check $f.qcow2; done

# What only version 3 has stays there; qemu-img loses it.
cd "$tmp/v"
vimg create -q -f qcow2 -o compression_type=zstd only.qcow2 1M
vimg create -q -f qcow2 -o compression_type=zstd,refcount_bits=8 only8.qcow2 1M
vimg create -q -f qcow2 only-bits.qcow2 1M
vimg bitmap --add only-bits.qcow2 b0
for f in only:zstd only-bits:bitmaps only8:'not have 16 bits' \
    ext:'extended L2' dat:'external data file'; do
    vimg amend -o compat=0.10 ${f%%:*}.qcow2 2>"$tmp/out" &&
        die "$f became version 2"
    grep -q "cannot become compat 0.10: it.*${f#*:}" "$tmp/out" ||
        die "$f: $(cat "$tmp/out")"
    vimg check -q ${f%%:*}.qcow2
done
cd - >/dev/null
prepare qemu-img create -q -f qcow2 sn.qcow2 1M
prepare qemu-io -c 'write -P 1 0 64k' -c 'write -z 64k 64k' sn.qcow2
prepare qemu-img snapshot -c s1 sn.qcow2
amended compat=0.10 sn.qcow2
both resize -q sn.qcow2 2M
both resize -q --shrink sn.qcow2 512k
prepare qemu-img snapshot -d s1 sn.qcow2
both resize -q sn.qcow2 2M
both check sn.qcow2

# ---- resize ------------------------------------------------------------------
for o in cluster_size=4k extended_l2=on compat=0.10 refcount_bits=1 \
    data_file=z.raw data_file=y.raw,data_file_raw=on; do
    both create -q -f qcow2 -o "$o" g.qcow2 1M
    io -c 'write -P 5 900k 124k' g.qcow2
    for p in off metadata falloc full; do
        both resize -q --preallocation=$p g.qcow2 +1300k
    done
    both resize -q --shrink g.qcow2 700k
    both resize -q g.qcow2 1M
    code check g.qcow2
    json map --output=json g.qcow2
done
# Over a backing file that is longer, and ends within a cluster.
prepare qemu-img create -q -f qcow2 long.qcow2 3000k
prepare qemu-io -c 'write -P 7 0 3000k' long.qcow2
for o in compat=1.1 extended_l2=on; do
    for p in metadata falloc full; do
        both create -q -f qcow2 -o $o -b long.qcow2 -F qcow2 h.qcow2 1000k
        both resize -q --preallocation=$p h.qcow2 5M
        images h.qcow2
        code check h.qcow2
    done
done
both create -q -f qcow2 -o cluster_size=512 k.qcow2 1M
code resize -q k.qcow2 128G
code resize -q k.qcow2 129G
both check k.qcow2
finish
