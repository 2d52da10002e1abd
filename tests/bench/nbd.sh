#!/bin/bash
# make bench-nbd [SIZE=256M] [RUNS=3] [SECONDS_EACH=2] [DIR=/dev/shm]
#                [ROWS=raw qcow2 chain]
#
# Requests per second and server CPU per request of vimg-nbd, in turn with
# qemu-nbd and, for raw, nbdkit file, and with the least that can answer at
# all, as the limit; medians of RUNS rounds.  All data is in
# the page cache and is looked at: every 8 bytes hold their own offset.
. ./tests/functions.sh
need qemu-nbd qemu-img nbdkit
load=$builddir/tests/bench/nbdload
size=${SIZE:-256M} runs=${RUNS:-3} each=${SECONDS_EACH:-2}
rows=${ROWS:-raw qcow2 chain}
dir=$(mktemp -d "${DIR:-/dev/shm}/nbd-bench.XXXXXX")
cleanup() {
    for p in "$dir"/*.pid; do
        [ -s "$p" ] && read -r pid <"$p" || continue
        ! tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$dir/" ||
            kill "$pid"
    done
    rm -rf "$dir"
}

start() { # SERVER FORMAT [OPTION]
    img=$dir/$1.$2
    set -- "$1" "$2" "${3:-}"
    case $1 in
    vimg | two) vimg-nbd -f "$2" -t -e 0 -k "$dir/$1.sock" --fork \
        --pid-file "$dir/$1.pid" $3 "$img" ;;
    qemu) qemu-nbd -f "$2" -t -e 8 -k "$dir/$1.sock" --fork \
        --pid-file "$dir/$1.pid" $3 "$img" ;;
    nbdkit) nbdkit -U "$dir/$1.sock" -P "$dir/$1.pid" file "$img" ;;
    limit)
        "$builddir/tests/bench/nbdceiling" "$dir/$1.sock" "$img" &
        echo $! >"$dir/$1.pid"
        while [ ! -S "$dir/$1.sock" ]; do
            kill -0 $! || die "nbdceiling"
        done ;;
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
cp "$dir/vimg.raw" "$dir/limit.raw"
qemu-img convert -f raw -O qcow2 "$dir/vimg.raw" "$dir/vimg.qcow2"
cp "$dir/vimg.qcow2" "$dir/qemu.qcow2"

# Through 2 and through 200 layers: each above the base has one cluster of its
# own, with what the base has there.
chain() { # NAME LAYERS; its top is NAME.qcow2
    below=$dir/vimg.raw fmt=raw
    for i in $(seq "$2"); do
        top=$dir/$1.$i.qcow2
        vimg create -q -f qcow2 -b "$below" -F $fmt "$top"
        dd if="$dir/vimg.raw" of="$dir/piece" bs=64k skip=$((i * 19)) \
            count=1 status=none
        vimg io -f qcow2 -c "write -s $dir/piece $((i * 19 * 64))k 64k" \
            "$top" >/dev/null
        below=$top fmt=qcow2
    done
    mv "$below" "$dir/$1.qcow2"
}

measure() { # ROW OPTIONS...; of $servers, in turn; against vimg, the last
    row=$1
    shift
    for s in $servers; do : >"$dir/$s.n"; : >"$dir/$s.cpu"; done
    for _ in $(seq "$runs"); do
        for s in $servers; do
            "$load" -k "$dir/$s.sock" -t "$each" -V \
                -P "$(cat "$dir/$s.pid")" "$@" >"$dir/out"
            awk '{ print $1 }' "$dir/out" >>"$dir/$s.n"
            awk '{ print $5 }' "$dir/out" >>"$dir/$s.cpu"
        done
    done
    ours=$(median <"$dir/$last.n") cpu=$(median <"$dir/$last.cpu")
    for s in $servers; do
        n=$(median <"$dir/$s.n") c=$(median <"$dir/$s.cpu")
        printf '%-36s %-8s %10s %10s %7s %7s\n' "$row" "$s" "$n" "$c" \
            "$(awk -v a="$ours" -v b="$n" 'BEGIN { printf "%.2f", a / b }')" \
            "$(awk -v a="$cpu" -v b="$c" 'BEGIN { printf "%.2f", b / a }')"
    done
}

# ratio: our requests per second by theirs; cpu: their CPU per request by ours.
printf '%-36s %-8s %10s %10s %7s %7s\n' row server requests/s us/request \
    ratio cpu
for format in $rows; do
    last=vimg
    case $format in
    raw) servers="qemu nbdkit limit vimg" ;;
    qcow2) servers="qemu vimg" ;;
    chain)
        servers="qemu two vimg"
        rm -f "$dir"/*.qcow2
        chain two 2
        chain qemu 200
        # One chain for both: nobody writes.
        ln -f "$dir/qemu.qcow2" "$dir/vimg.qcow2"
        # Once warm: the first time round the tables are read.
        for s in $servers; do
            start "$s" qcow2 -r
            "$load" -k "$dir/$s.sock" -t $((each * 2)) -m randread -d 32 \
                >/dev/null
        done
        measure chain-200-read-4k-depth-32 -m randread -d 32
        for s in $servers; do stop "$s"; done
        continue ;;
    esac
    for s in $servers; do start "$s" $format; done
    while read -r row options; do
        # shellcheck disable=SC2086
        measure "$format $row" $options
    done <<EOT
read-4k-depth-1 -m randread
read-4k-depth-1-4-connections -m randread -n 4
read-4k-depth-32 -m randread -d 32
read-4k-depth-32-4-connections -m randread -d 32 -n 4
write-4k-depth-1 -m randwrite
write-4k-depth-1-4-connections -m randwrite -n 4
write-4k-depth-32 -m randwrite -d 32
write-4k-depth-32-4-connections -m randwrite -d 32 -n 4
read-1M -m read -s 1048576 -d 4
read-1M-4-connections -m read -s 1048576 -d 4 -n 4
write-1M -m write -s 1048576 -d 4
write-1M-4-connections -m write -s 1048576 -d 4 -n 4
EOT
    for s in $servers; do stop "$s"; done
    sleep 1
done
