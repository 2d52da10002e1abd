#!/bin/bash
# A real Linux works on a disk that vimg-nbd serves: every read, write, zero,
# discard and flush of the guest goes through libimg.  The overlay lies on a
# chain, has small clusters and subclusters in turn, and must check clean.
. ./tests/functions.sh
. "$srcdir/tests/disk.sh"
. "$srcdir/tests/guest.sh"
need qemu-img
VIMG=${VIMG:-vimg} NBD=${NBD:-vimg-nbd}
pid=
cleanup() { [ -z "$pid" ] || kill "$pid" 2>/dev/null || :; }

cd "$tmp"
"$VIMG" convert -f raw -O qcow2 "$disk" base.qcow2
"$VIMG" create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2
base_sum=$(sha256sum <base.qcow2)

for o in cluster_size=4k extended_l2=on; do
    rm -f over.qcow2 seen.raw
    "$VIMG" create -q -f qcow2 -o "$o" -b middle.qcow2 -F qcow2 over.qcow2
    "$NBD" --fork --pid-file="$tmp/pid" -k "$tmp/sock" -f qcow2 \
        --discard=unmap --detect-zeroes=unmap over.qcow2
    pid=$(cat pid)
    guest_run driver=nbd,server.type=unix,server.path="$tmp/sock",discard=unmap
    # It ends by itself when the guest, its only client, has gone.
    tail --pid="$pid" -f /dev/null
    pid=
    "$VIMG" check over.qcow2 || die "$o: check: exit $?"
    qemu-img check -q over.qcow2 || die "$o: qemu-img check: exit $?"
    "$VIMG" convert -O raw over.qcow2 seen.raw
    guest_verify seen.raw
    qemu-img compare -q -f raw -F qcow2 seen.raw over.qcow2 ||
        die "$o: convert differs from the overlay"
done
[ "$(sha256sum <base.qcow2)" = "$base_sum" ] || die "the base was changed"
