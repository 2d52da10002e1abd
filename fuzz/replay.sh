#!/bin/bash
# Every fuzz target on its corpus, each file as it is and spoilt FUZZ_SPOILS
# times.
. ./tests/functions.sh

for target in open-qcow2 open-vdi open-vmdk open-qcow ops nbd descriptor structure; do
    echo "== $target"
    timeout 600 "fuzz/$target" --spoil "${FUZZ_SPOILS:-300}" \
        "$srcdir/fuzz/corpus/${target#open-}" || die "$target: exit $?"
done
for folder in qcow2 vdi vmdk qcow; do
    echo "== convert, $folder"
    timeout 600 fuzz/convert --spoil "${FUZZ_CONVERT_SPOILS:-30}" \
        "$srcdir/fuzz/corpus/$folder" || die "convert, $folder: exit $?"
done
