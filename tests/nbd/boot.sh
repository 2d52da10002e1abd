#!/bin/bash
# A real Linux boots from a disk that vimg-nbd serves: an overlay.  Then the
# overlay checks clean and holds what the guest wrote.
. ./tests/functions.sh
. "$srcdir/tests/disk.sh"
. "$srcdir/tests/guest.sh"
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img

cd "$tmp"
vimg convert -f raw -O qcow2 "$disk" base.qcow2
base_sum=$(sha256sum <base.qcow2)
vimg create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2

serve -f qcow2 --discard=unmap over.qcow2
guest_run "driver=raw,discard=unmap,file.driver=nbd,file.server.type=unix,file.server.path=$sock"
stop_server

vimg check over.qcow2 || die "check: exit $?"
qemu-img check -q over.qcow2 || die "qemu-img check: exit $?"
vimg convert -O raw over.qcow2 seen.raw
guest_verify seen.raw
[ "$(sha256sum <base.qcow2)" = "$base_sum" ] || die "the base was changed"
