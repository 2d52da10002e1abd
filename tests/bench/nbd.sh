#!/bin/bash
# make bench-nbd [SIZE=256M] [RUNS=3] [SECONDS_EACH=2] [DIR=/dev/shm]
#
# Requests per second and server CPU per request of vimg-nbd, in turn with
# qemu-nbd and, for raw, nbdkit file; medians of RUNS rounds.  All data is in
# the page cache and is looked at: every 8 bytes hold their own offset.
. ./tests/functions.sh
need qemu-nbd qemu-img nbdkit
load=$builddir/tests/bench/nbdload
size=${SIZE:-256M} runs=${RUNS:-3} each=${SECONDS_EACH:-2}
dir=$(mktemp -d "${DIR:-/dev/shm}/nbd-bench.XXXXXX")
cleanup() {
    for p in "$dir"/*.pid; do
        [ ! -s "$p" ] || kill "$(cat "$p")" 2>/dev/null
    done
    rm -rf "$dir"
}

start() { # SERVER FORMAT
    img=$dir/$1.$2
    case $1 in
    vimg) vimg-nbd -f "$2" -t -e 0 -k "$dir/$1.sock" --fork \
        --pid-file "$dir/$1.pid" "$img" ;;
    qemu) qemu-nbd -f "$2" -t -e 8 -k "$dir/$1.sock" --fork \
        --pid-file "$dir/$1.pid" "$img" ;;
    nbdkit) nbdkit -U "$dir/$1.sock" -P "$dir/$1.pid" file "$img" ;;
    esac
}
stop() { kill "$(cat "$dir/$1.pid")"; rm -f "$dir/$1.sock" "$dir/$1.pid"; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

truncate -s "$size" "$dir/vimg.raw"
start vimg raw
"$load" -k "$dir/vimg.sock" -W -s 1048576 -d 4 >/dev/null
stop vimg
cp "$dir/vimg.raw" "$dir/qemu.raw"
cp "$dir/vimg.raw" "$dir/nbdkit.raw"
qemu-img convert -f raw -O qcow2 "$dir/vimg.raw" "$dir/vimg.qcow2"
cp "$dir/vimg.qcow2" "$dir/qemu.qcow2"

printf '%-34s %-7s %12s %10s %8s\n' row server requests/s us/request ratio
for format in raw qcow2; do
    servers="qemu vimg"
    [ $format = qcow2 ] || servers="qemu nbdkit vimg"
    for s in $servers; do start "$s" $format; done
    while read -r row options; do
        for s in $servers; do : >"$dir/$s.n"; : >"$dir/$s.cpu"; done
        for _ in $(seq "$runs"); do
            for s in $servers; do
                # shellcheck disable=SC2086
                "$load" -k "$dir/$s.sock" -t "$each" -V \
                    -P "$(cat "$dir/$s.pid")" $options >"$dir/out"
                awk '{ print $1 }' "$dir/out" >>"$dir/$s.n"
                awk '{ print $5 }' "$dir/out" >>"$dir/$s.cpu"
            done
        done
        ours=$(median <"$dir/vimg.n")
        for s in $servers; do
            n=$(median <"$dir/$s.n")
            printf '%-34s %-7s %12s %10s %8s\n' "$format $row" "$s" "$n" \
                "$(median <"$dir/$s.cpu")" \
                "$(awk -v a="$ours" -v b="$n" 'BEGIN { printf "%.2f", a/b }')"
        done
    done <<EOT
read-4k-depth-1 -m randread
read-4k-depth-32 -m randread -d 32
read-4k-depth-32-4-connections -m randread -d 32 -n 4
write-4k-depth-32 -m randwrite -d 32
read-1M -m read -s 1048576 -d 4
read-1M-4-connections -m read -s 1048576 -d 4 -n 4
write-1M -m write -s 1048576 -d 4
EOT
    for s in $servers; do stop "$s"; done
    sleep 1
done
