#!/bin/sh
# The protocol as published, extended headers above all, with clients of our
# own: one that shares the server's numbers and one that shares nothing.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
extended=$builddir/tests/nbd/extended
[ -x "$extended" ] || skip "tests/nbd/extended is not built"

image() {
    rm -f "$tmp/disk.qcow2"
    vimg create -q -f qcow2 "$tmp/disk.qcow2" 16G
    vimg io -f qcow2 -c 'write -P 0x5a 5G 1M' "$tmp/disk.qcow2" >/dev/null
    serve -A -e 0 -f qcow2 --discard=unmap --cache=unsafe "$tmp/disk.qcow2"
}
image
"$extended" "$sock"
stop_server
vimg check -q "$tmp/disk.qcow2" || die "check: exit $?"
command -v python3 >/dev/null || skip "no python3"
image
python3 "$srcdir/tests/nbd/proto.py" "$sock" || die "not as published"
stop_server
vimg check -q "$tmp/disk.qcow2" || die "check: exit $?"
