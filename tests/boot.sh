#!/bin/bash
# A real Linux boots with a vimg overlay as its disk and works on it: then
# the overlay checks clean, holds what the guest wrote, and the base is what
# it was.
. ./tests/functions.sh
. "$srcdir/tests/disk.sh"
. "$srcdir/tests/guest.sh"
need qemu-img
VIMG=${VIMG:-vimg}

cd "$tmp"
"$VIMG" convert -f raw -O qcow2 "$disk" base.qcow2
base_sum=$(sha256sum <base.qcow2)
"$VIMG" create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2

guest_run driver=qcow2,discard=unmap,file.driver=file,file.filename=over.qcow2

"$VIMG" check over.qcow2 || die "check: exit $?"
qemu-img check -q over.qcow2 || die "qemu-img check: exit $?"
"$VIMG" convert -O raw over.qcow2 seen.raw
guest_verify seen.raw
qemu-img compare -q -f raw -F qcow2 seen.raw over.qcow2 ||
    die "convert differs from the overlay"
[ "$(sha256sum <base.qcow2)" = "$base_sum" ] || die "the base was changed"
[ "$(sha256sum <"$disk")" = "$disk_sum  -" ] || die "the disk was changed"
