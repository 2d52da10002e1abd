#!/bin/sh
# A request that has to wait for its disk does not hold up the ones behind it
# on the same connection.  The disk is nbdkit's, slow in its second half.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need nbdkit
slow=$builddir/tests/nbd/slow
[ -x "$slow" ] || skip "tests/nbd/slow is not built"
nbdkit --dump-plugin eval >/dev/null 2>&1 || skip "nbdkit has no eval plugin"
vimg info nbd+unix:///?socket=/nonexistent 2>&1 | grep -q "without libnbd" &&
    skip "built without libnbd"

# The second half waits for a file that the test makes, 20 seconds at most.
cat >"$tmp/wait" <<EOF
#!/bin/sh
n=0
while [ ! -e "$tmp/gate" ] && [ \$n -lt 400 ]; do
    n=\$((n + 1))
    sleep 0.05
done
EOF
chmod +x "$tmp/wait"
late="[ \"\$4\" -lt 33554432 ] || '$tmp/wait'"
nbdkit -U "$tmp/kit.sock" -P "$tmp/kit.pid" eval \
    thread_model='echo parallel' get_size='echo 64M' can_write=true \
    can_flush=true can_zero=true can_fua='echo native' can_extents=true \
    pread="$late
        dd if=/dev/zero bs=\"\$3\" count=1 status=none" \
    pwrite="$late; cat >/dev/null" flush="'$tmp/wait'" zero="$late" \
    extents="$late; echo \"\$4\" \"\$3\" 0" || die "nbdkit"
uri="nbd+unix:///?socket=$tmp/kit.sock"
serve -e 0 -f raw "$uri"
"$slow" "$sock" structured "$tmp/gate"
"$slow" "$sock" simple "$tmp/gate"
"$slow" "$sock" stop "$tmp/gate" "$(cat "$pidfile")"
n=0
while [ -e "$pidfile" ]; do     # it goes when all is closed
    n=$((n + 1))
    [ $n -lt 200 ] || die "vimg-nbd does not end"
    sleep 0.05
done
kill "$(cat "$tmp/kit.pid")"

# What is at hand is sent before what has to be inflated.
vimg create -q -f qcow2 "$tmp/mixed.qcow2" 25M
i=0
while [ $i -lt 200 ]; do
    echo "write -c -P 7 $((i * 128 + 64))k 64k"
    i=$((i + 1))
done | vimg io -f qcow2 "$tmp/mixed.qcow2" >/dev/null
serve -e 0 -f qcow2 "$tmp/mixed.qcow2"
"$slow" "$sock" order
stop_server
