# Sourced by the NBD tests: starting and stopping vimg-nbd.
sock=$tmp/sock
pidfile=$tmp/pid
cleanup() {
    for p in "$tmp"/*pid; do
        [ ! -s "$p" ] || kill -9 "$(cat "$p")" 2>/dev/null || :
    done
}

serve() { # OPTIONS FILE; returns once it listens
    vimg-nbd -t -k "$sock" --fork --pid-file "$pidfile" "$@" ||
        die "vimg-nbd $* did not start"
}

stop_server() { # [SIGNAL]; returns once it is gone
    pid=$(cat "$pidfile")
    kill "-${1:-TERM}" "$pid"
    n=0
    while kill -0 "$pid" 2>/dev/null; do
        n=$((n + 1))
        [ $n -lt 200 ] || die "vimg-nbd does not end"
        sleep 0.05
    done
}

no_libnbd() {
    vimg info nbd+unix:///?socket=/nonexistent 2>&1 |
        grep -q "without libnbd"
}
