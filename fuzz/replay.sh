#!/bin/bash
# Every fuzz target on its corpus, each file as it is and spoilt FUZZ_SPOILS
# times.
. ./tests/functions.sh

for target in open-qcow2 open-vdi open-vmdk open-qcow ops nbd; do
    echo "== $target"
    timeout 600 "fuzz/$target" --spoil "${FUZZ_SPOILS:-300}" \
        "$srcdir/fuzz/corpus/${target#open-}" || die "$target: exit $?"
done
