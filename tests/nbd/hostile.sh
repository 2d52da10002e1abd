#!/bin/sh
# Clients that no server should meet; CVE-2024-7409 by name.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
hostile=$builddir/tests/nbd/hostile
[ -x "$hostile" ] || skip "tests/nbd/hostile is not built"

truncate -s 16M "$tmp/disk.raw"
serve -e 0 -f raw --handshake-limit=2 "$tmp/disk.raw"
"$hostile" "$sock"
# All of that, deaf clients and 64 MiB requests among it, in bounded memory.
peak=$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$(cat "$pidfile")/status")
echo "peak: $peak KiB"
[ "$peak" -lt 300000 ] || die "clients cost $peak KiB"

# Silent clients are sent away when their time is up, and no sooner.
start=$(date +%s)
"$hostile" "$sock" silent >/dev/null
took=$(($(date +%s) - start))
[ $took -ge 1 ] || die "the handshake limit is not kept"
stop_server

# CVE-2024-7409: the server ends while handshakes are under way.
serve -e 0 -f raw --handshake-limit=0 "$tmp/disk.raw"
mkfifo "$tmp/ready"
"$hostile" "$sock" silent >"$tmp/ready" &
head -n 1 <"$tmp/ready" >/dev/null
stop_server
wait $! || die "the silent client"

# As many clients as -e says, one by default.
for n in 1 3; do
    serve $([ $n = 1 ] || echo -e $n) -f raw "$tmp/disk.raw"
    "$hostile" "$sock" more $n || die "-e $n"
    stop_server
done
