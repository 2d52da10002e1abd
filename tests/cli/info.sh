#!/bin/sh
# vimg info and map against qemu-img's, on images that QEMU made.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

prepare qemu-img create -q -f qcow2 a.qcow2 2G
prepare qemu-io -c 'write 0 1M' -c 'write -z 1M 1M' a.qcow2
prepare qemu-img bitmap --add -g 32k a.qcow2 bm0
prepare qemu-img bitmap --add --disable a.qcow2 bm1
prepare qemu-img snapshot -c s1 a.qcow2
prepare qemu-img snapshot -c 'a snapshot with a long name' a.qcow2
prepare qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 3G
prepare qemu-io -c 'write 4M 64k' -c 'write -c 5M 64k' -c 'write -z 6M 64k' \
    b.qcow2
prepare mkdir sub
prepare qemu-img create -q -f qcow2 -b ../a.qcow2 -F qcow2 sub/c.qcow2
prepare qemu-img create -q -f qcow2 -o data_file=x.raw,lazy_refcounts=on \
    d.qcow2 16M
prepare qemu-io -c 'write 1M 1M' d.qcow2
prepare qemu-img create -q -f qcow2 -o extended_l2=on,compat=1.1 e.qcow2 16M
prepare qemu-io -c 'write 2k 2k' -c 'write -z 8k 4k' e.qcow2
prepare qemu-img create -q -f raw a.raw 64M
prepare qemu-io -f raw -c 'write 1M 1M' a.raw
prepare qemu-img create -q -f vdi a.vdi 64M
prepare qemu-io -c 'write 1M 1M' a.vdi
prepare qemu-img create -q -f vmdk a.vmdk 64M
prepare qemu-img convert -O vmdk -o subformat=streamOptimized a.raw s.vmdk

# Data in holes of the file are zeros to QEMU, in an image that has many.
prepare qemu-img create -q -f qcow2 -o preallocation=metadata p.qcow2 8M
prepare qemu-io -c 'write 1M 64k' -c 'write 5000k 1000k' p.qcow2

for f in a.qcow2 b.qcow2 p.qcow2 sub/c.qcow2 d.qcow2 e.qcow2 a.raw a.vdi a.vmdk \
    s.vmdk; do
    case $f in  # of these two we tell more
    *.vdi|*.vmdk) code info $f ;;
    *) both info $f ;;
    esac
    json info --output=json $f
    json info --backing-chain --output=json $f
    both map $f
    json map --output=json $f
done
both info --backing-chain b.qcow2
both info -U -f qcow2 a.qcow2
both info --image-opts driver=qcow2,file.filename=a.qcow2,file.driver=file
both info --image-opts driver=qcow2,file.filename=a.qcow2,foo=bar
both info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}'
both info 'json:{"driver":"qcow2"'
both info -f qcow2 --image-opts driver=qcow2,file.filename=a.qcow2
both info -f qcow2 a.raw
both info missing
both info --output=foo a.qcow2
both info
both info a b
both info file:a.raw
json map --output=json --start-offset=512k --max-length=700k a.qcow2
json map --output=json --start-offset=4G a.qcow2
json map --output=json --max-length=0 a.qcow2
both map --start-offset=512k --max-length=700k a.qcow2
both map -s 512k -l 700k a.qcow2
both map missing
finish
