# Sourced by the NBD tests: starting and stopping vimg-nbd.
sock=$tmp/sock
pidfile=$tmp/pid
# A number in a file may be somebody else's by now: ours have to do with our
# folder, whose name nobody else has.
is_ours() { # PID
    { tr '\0' '\n' <"/proc/$1/cmdline"; readlink "/proc/$1"/fd/*; } \
        2>/dev/null | grep -qF "$tmp/"
}
kill_pids() {
    for p in "$tmp"/*pid; do
        [ -s "$p" ] && read -r pid <"$p" || continue
        ! is_ours "$pid" || kill -9 "$pid" 2>/dev/null || :
    done
}
cleanup() { kill_pids; }

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
