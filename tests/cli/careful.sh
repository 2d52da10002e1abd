#!/bin/bash
# Where qemu-img loses data without a word, vimg refuses, and says how to
# insist; an interrupted command leaves nothing behind.
. ./tests/functions.sh
need qemu-img qemu-io
cd "$tmp"

refused() {
    vimg "$@" >out 2>err && die "not refused: $*"
    [ -s err ] || die "refused without a word: $*"
}
sum() { sha256sum "$1" | cut -d' ' -f1; }

vimg create -q -f qcow2 base.qcow2 64M
qemu-io -c 'write -P 1 0 8M' base.qcow2 >/dev/null
vimg create -q -b base.qcow2 top.qcow2
vimg create -q -b base.qcow2 beside.qcow2
qemu-io -c 'write -P 2 1M 1M' top.qcow2 >/dev/null
before=$(sum base.qcow2)

# A target that the source is made of.
for target in base.qcow2 top.qcow2 ./base.qcow2 "$tmp/base.qcow2"; do
    refused convert -O qcow2 top.qcow2 $target
    refused convert -U -O qcow2 top.qcow2 $target
    refused convert -n -O qcow2 top.qcow2 $target
    refused dd -O qcow2 if=top.qcow2 of=$target
    refused dd -U -O qcow2 if=top.qcow2 of=$target bs=1M count=1
done
ln base.qcow2 link.qcow2
refused convert -O qcow2 top.qcow2 link.qcow2
refused create -f qcow2 -b base.qcow2 -F qcow2 base.qcow2
refused create -q -b link.qcow2 base.qcow2
[ "$(sum base.qcow2)" = "$before" ] || die 'the base was written to'

# A base that others rest on.
refused commit top.qcow2
grep -q 'beside.qcow2.*--force' err || die 'commit does not say how to insist'
[ "$(sum base.qcow2)" = "$before" ] || die 'the base was committed into'
vimg tree . >tree
grep -q '^base.qcow2 (qcow2, 64 MiB) .*breaks 2 images' tree ||
    { cat tree; die 'tree: base'; }
grep -q '^|-- beside.qcow2' tree || die 'tree: beside'
grep -q '^`-- top.qcow2' tree || die 'tree: top'
vimg tree --output=json . | python3 -c '
import json, sys
base = [m for m in json.load(sys.stdin) if m["filename"] == "base.qcow2"][0]
assert sorted(base["dependants"]) == ["beside.qcow2", "top.qcow2"], base
' || die 'tree: JSON'
rm link.qcow2
vimg commit -q --force top.qcow2 || die 'commit --force'
[ "$(sum base.qcow2)" != "$before" ] || die 'nothing was committed'
rm beside.qcow2

# A base that was changed or is gone.
qemu-io -c 'write -P 9 5M 64k' base.qcow2 >/dev/null
mv base.qcow2 moved.qcow2
vimg tree . | grep -q 'top.qcow2.*\[' || die 'tree: a missing base'
says() { # TEXT COMMAND...
    text=$1
    shift
    ! "$@" >/dev/null 2>err && grep -q "$text" err || die "$*: $(cat err)"
}
says 'top.qcow2: Not a directory' vimg tree top.qcow2
says 'none: No such file' vimg tree none
says 'No such file' vimg tree ''
mkdir -p sub
vimg create -q -f qcow2 sub/one.qcow2 1M
for folder in sub ./sub .//sub ././/sub; do
    [ "$(vimg tree "$folder")" = 'sub/one.qcow2 (qcow2, 1 MiB)' ] ||
        die "tree $folder: $(vimg tree "$folder")"
done
rm -r sub
if setpriv --reuid 65534 --clear-groups test -x "$builddir/.libs/vimg" \
    2>/dev/null; then
    mkdir closed
    chmod 700 closed
    chmod 755 . "$tmp"
    says 'closed: Permission denied' env LD_LIBRARY_PATH="$builddir/.libs" \
        setpriv --reuid 65534 --clear-groups "$builddir/.libs/vimg" tree .
    rmdir closed
fi
vimg info top.qcow2 >/dev/null || die 'info needs no base'
mv moved.qcow2 base.qcow2

# Ctrl-C.
vimg create -q -f raw big.raw 64M
qemu-io -f raw -c 'write -P 7 0 64M' big.raw >/dev/null
echo precious >target
ls >before
vimg convert -f raw -O qcow2 -r 1M big.raw target >out 2>err &
pid=$!
# Until SIGUSR1 is caught (bit 9 of the mask), by vimg and not by a shell.
tries=0
until [[ $(readlink /proc/$pid/exe) = *vimg ]] &&
    grep -q '^SigCgt:.*[2367abef]..$' /proc/$pid/status; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || die 'the signals are not caught'
done
kill -USR1 $pid
until [ -s err ]; do
    tries=$((tries + 1))
    [ $tries -lt 100000 ] || die 'no progress on SIGUSR1'
done
grep -q '/100%)' err || die 'no progress on SIGUSR1'
kill -TERM $pid     # a shell's background job ignores SIGINT
code=0; wait $pid || code=$?
[ $code = 143 ] || die "interrupted: $code"
[ "$(cat target)" = precious ] || die 'the old target is gone'
rm -f out err; ls | diff - before >/dev/null || { ls; cat before; }
[ "$(ls | grep -vxFf before)" = '' ] || die "debris: $(ls)"

# Output that cannot be written.
vimg info base.qcow2 >/dev/full 2>/dev/null && die 'a full disk goes unnoticed'

# The block 0 of a raw image whose format was guessed.
vimg create -q -f raw guess.raw 1M
printf 'QFI\373' >magic
vimg io -c 'write -s magic 0 512' guess.raw >out 2>err && die 'block 0'
grep -q WARNING err || die 'no warning about a guessed format'
vimg io -f raw -c 'write -s magic 0 512' guess.raw >out || die 'block 0, raw'
