#!/bin/bash
# What would change an image that others rest on is refused, by the library,
# for every command; --force insists.
. ./tests/functions.sh
need qemu-img qemu-io strace
cd "$tmp"

put() { local f=$1 i=$2; shift 2; qemu-io -f "$f" -c "write $*" "$i" >/dev/null; }
sum() { cat "$@" | sha256sum; }
refused() { # culprit, command...
    local who=$1 before after; shift
    before=$(sum base mid top)
    vimg "$@" >out 2>err && die "not refused: $*"
    grep -q "$who rests on .* too, .*(--force)" err || { cat err >&2; die "other words: $*"; }
    after=$(sum base mid top)
    [ "$before" = "$after" ] || die "refused, and done: $*"
}
allowed() { vimg "$@" >out 2>err || { cat err >&2; die "refused: $*"; }; }
fresh() { # format of base
    rm -rf base mid top side* more
    mkdir more
    qemu-img create -q -f $1 base 8M
    qemu-img create -q -f qcow2 -b base -F $1 mid
    qemu-img create -q -f qcow2 -b mid -F qcow2 top
    put qcow2 mid -P 3 1M 64k
    put qcow2 top -P 4 2M 64k
}

mkfifo pipe; mkdir folder; ln -s /nowhere dangling; ln -s base by-link
head -c 10000 /dev/urandom >noise; printf 'QFI\373\0\0\0\3' >stump; : >empty
for f in raw qcow2; do
    # commit, one level and two; overlays of several formats and spellings
    fresh $f
    qemu-img create -q -f qcow2 -b "$tmp/by-link" -F $f side
    refused side commit mid
    refused side commit -d mid
    refused side commit -b base top
    allowed commit --force mid
    fresh $f
    qemu-img create -q -f qcow2 -o cluster_size=2M -b base -F $f folder/../side
    qemu-img create -q -f qcow2 -b ../base -F $f more/elsewhere
    refused side commit mid
    rm side
    allowed commit -d mid
    # overlays beside the overlay count, too
    mv mid more/mid; qemu-img rebase -u -b ../base -F $f more/mid; cp base mid
    refused more/elsewhere commit more/mid
    allowed commit --force more/mid
    fresh $f
    qemu-img create -q -f qcow2 -b mid -F qcow2 side
    refused side commit -b base top
    allowed commit -d mid       # what mid shows stays as it is
    refused side commit top
    rm side
    ln top side                 # the same image by another name
    allowed commit -b base top
done
# The folder of the file, not of its name only; and QEMU's descriptions.
fresh raw
mkdir -p names; ln -sf ../base names/base
qemu-img create -q -f qcow2 -b base -F raw names/over
put qcow2 names/over -P 5 1M 64k
refused mid commit names/over
rm names/over
refused mid resize -f raw --shrink names/base 1M

rm -r names mid top
qemu-img create -q -f qcow2 -b 'json:{"driver":"raw","file":{"driver":"file","filename":"base"}}' \
    -F raw side 8M
: >mid; : >top
refused side resize -f raw --shrink base 1M
fresh raw
qemu-img create -q -f vmdk -o backing_file=base,backing_fmt=raw side 2>/dev/null ||
    qemu-img create -q -f qcow -b base -F raw side
refused side commit mid
rm side
qemu-img create -q -f qcow -b base -F raw side
refused side commit mid

# Only so much is read of the neighbours, and of nobody's neighbours' tables.
fresh qcow2
for i in 1 2 3; do qemu-img create -q -f qcow2 -b mid -F qcow2 side$i; done
strace -f -qq -e trace=openat,pread64 -o trace vimg commit -q -d mid >/dev/null 2>&1 || die 'commit'
[ "$(grep -c '"side[123]"' trace)" = 3 ] || die "neighbours are opened more than once"

# shrink
fresh qcow2
refused mid resize --shrink base 4M
refused top resize --shrink mid 4M
allowed resize base 9M
allowed resize --shrink top 4M
allowed resize --force --shrink mid 4M

# rebase -u and amend
fresh qcow2
cp base other
refused top rebase -u -b other -F qcow2 mid
refused top rebase -u -b '' mid
refused top amend -o backing_file=other mid
allowed rebase -u -b "$tmp/base" -F qcow2 mid
allowed rebase -u -b by-link -F qcow2 mid
allowed rebase -b other -F qcow2 mid
allowed rebase --force -u -b base -F qcow2 mid
mv base moved
allowed rebase -u -b moved -F qcow2 mid
allowed amend --force -o backing_file=other,backing_fmt=qcow2 mid

# going back to a snapshot
fresh qcow2
allowed snapshot -c one base
put qcow2 base -P 9 0 64k
refused mid snapshot -a one base
allowed snapshot -c two base
allowed snapshot -d two base
allowed snapshot --force -a one base

# An image is not written over itself.
for how in "create -u -f qcow2 -b base -F qcow2 base 8M" "create -u -f qcow2 -b by-link -F qcow2 ./base 8M" \
    "create -f qcow2 -b mid -F qcow2 base"; do
    before=$(sum base mid top)
    vimg $how >out 2>err && die "not refused: $how"
    [ "$before" = "$(sum base mid top)" ] || die "$how"
done
vimg convert -O raw top - >>base 2>err && die 'into its own base'
grep -q 'is read from' err || { cat err >&2; die 'into its own base: other words'; }
[ "$before" = "$(sum base mid top)" ] || die 'convert to its own base'
