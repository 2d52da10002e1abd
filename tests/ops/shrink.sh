#!/bin/bash
# A source that becomes shorter while it is read: whatever was read as zeros
# then is nobody's data.  The file is cut when all is read, before the end.
. ./tests/functions.sh
need qemu-img
imgop="$builddir/tests/ops/imgop"
cd "$tmp"

cut_short() { # file, command of imgop...
    local file=$1 verb=$2
    shift 2
    cp "$file" kept
    if "$imgop" "$verb" -t "$file" "$@" >log 2>&1; then
        die "$verb $*: nobody minds that $file is shorter"
    fi
    grep -q "$file: has become shorter" log || die "$verb $*: $(cat log)"
    mv kept "$file"
    "$imgop" "$verb" "$@" >log 2>&1 || die "$verb $*: $(cat log)"
}

yes 0123456 | head -c 3M >a.raw
qemu-img convert -f raw -O qcow2 a.raw a.qcow2
qemu-img convert -f raw -O vdi a.raw a.vdi
qemu-img convert -f raw -O vmdk a.raw a.vmdk
qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat a.raw f.vmdk
qemu-img create -q -f qcow2 -o data_file=d.raw d.qcow2 3M
qemu-img convert -n -f raw -O qcow2 a.raw d.qcow2
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2
for i in raw:a.raw qcow2:a.qcow2 vdi:a.vdi vmdk:a.vmdk vmdk:f.vmdk:f-flat.vmdk \
    qcow2:d.qcow2:d.raw qcow2:d.qcow2 qcow2:top.qcow2:a.qcow2; do
    IFS=: read -r format name file <<<"$i"
    file=${file:-$name}
    for to in raw qcow2; do
        rm -f out
        cut_short "$file" convert "$format:$name" $to:out
    done
    qemu-img compare -q -f $to -F raw out a.raw || die "$i: reads otherwise"
    cut_short "$file" compare "$format:$name" qcow2:out
    cut_short "$file" compare qcow2:out "$format:$name"
done
rm -f out
"$imgop" convert -t a.raw raw:a.raw raw:out 2>/dev/null && die "a.raw"
[ ! -e out ] || die "an output without all bytes"
exit 0
