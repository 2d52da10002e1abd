#!/bin/sh
# Extended headers, with a client of our own.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
extended=$builddir/tests/nbd/extended
[ -x "$extended" ] || skip "tests/nbd/extended is not built"

vimg create -q -f qcow2 "$tmp/disk.qcow2" 16G
vimg io -f qcow2 -c 'write -P 0x5a 5G 1M' "$tmp/disk.qcow2" >/dev/null
serve -A -f qcow2 --discard=unmap "$tmp/disk.qcow2"
"$extended" "$sock"
stop_server
vimg check -q "$tmp/disk.qcow2" || die "check: exit $?"
