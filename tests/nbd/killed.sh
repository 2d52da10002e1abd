#!/bin/sh
# kill -9 while 16 connections write and flush: what was flushed is there, and
# the image has leaks at worst.  VIMG_KILLS times (2).
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img
killed=$builddir/tests/nbd/killed
[ -x "$killed" ] || skip "tests/nbd/killed is not built"

truncate -s 16M "$tmp/base.raw"
n=0
while [ $n -lt "${VIMG_KILLS:-2}" ]; do
    n=$((n + 1))
    rm -f "$tmp/top.qcow2"
    qemu-img create -q -f qcow2 -b base.raw -F raw "$tmp/top.qcow2"
    serve -e 0 -f qcow2 "$tmp/top.qcow2"
    "$killed" "$sock" "$(cat "$pidfile")" "$tmp/state"
    while kill -0 "$(cat "$pidfile")" 2>/dev/null; do sleep 0.05; done
    vimg check -q -f qcow2 "$tmp/top.qcow2" || [ $? = 3 ] ||
        die "damage after kill -9"
    qemu-img check -q -f qcow2 "$tmp/top.qcow2" || [ $? = 3 ] ||
        die "damage after kill -9, says QEMU"
    serve -r -e 0 -f qcow2 "$tmp/top.qcow2"
    "$killed" "$sock" verify "$tmp/state"
    stop_server
done
