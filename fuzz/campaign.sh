#!/bin/bash
# Every fuzz target for MINUTES minutes: make check-fuzz MINUTES=n.  Built with
# --enable-fuzzer libFuzzer does it and keeps what it finds below fuzz-corpus;
# else the corpus is spoilt for so long.
. ./tests/functions.sh
minutes=${MINUTES:-1}

one() {
    target=$1
    shift
    if "fuzz/$target" -help=1 2>&1 | grep -q max_total_time; then
        mkdir -p "fuzz-corpus/$target"
        "fuzz/$target" -max_total_time=$((minutes * 60)) -timeout=30 \
            -malloc_limit_mb=256 -rss_limit_mb=2048 -verbosity=0 \
            -print_final_stats=1 -artifact_prefix="fuzz-corpus/$target-" \
            "fuzz-corpus/$target" "$@" >"$tmp/log" 2>&1 || {
            tail -40 "$tmp/log"
            die "$target"
        }
        count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$tmp/log")
    else
        "fuzz/$target" --seconds $((minutes * 60)) "$@" >"$tmp/log" 2>&1 || {
            tail -40 "$tmp/log"
            die "$target"
        }
        count=$(sed -n 's/ inputs$//p' "$tmp/log")
    fi
    echo "$target: $count inputs in $minutes minutes, no finding"
}

corpus=$srcdir/fuzz/corpus
for target in open-qcow2 open-vdi open-vmdk open-qcow ops nbd descriptor structure; do
    one "$target" "$corpus/${target#open-}"
done
one convert "$corpus/qcow2" "$corpus/vdi" "$corpus/vmdk" "$corpus/qcow"
