#!/bin/sh
# vimg io against qemu-io: words, numbers, exit codes.
. ./tests/functions.sh
. "$srcdir/tests/cli/twin.sh"

for d in q v; do (cd "$tmp/$d"
    qemu-img create -q -f qcow2 a.qcow2 64M
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
    qemu-img create -q -f raw r.raw 64M
    printf abc >pat); done

io -c 'write -P 0x41 0 1M' -c 'read -v 0 64' -c 'read -P 0x42 0 512' \
    -c 'read -P 0x41 0 512' a.qcow2
io -c 'read -P 0x41 -s 0 -l 16 0 512' -c 'read -P 0x42 -s 510 -l 2 0 512' \
    -c 'read -P 0x41 -s 510 -l 20 0 512' a.qcow2
io -c 'readv -v 0 16 16' -c 'writev -P 7 512 512 512' -c 'aio_read -v 512 16' \
    -c aio_flush -c 'aio_write -P 8 2k 2k' -c aio_flush a.qcow2
io -c 'read -C 0 64k' -c 'read -q 0 64k' -c 'write -z 0 64k' \
    -c 'write -z -u 64k 64k' -c 'write -c 2M 64k' -c 'write -f 256k 4k' \
    -c flush a.qcow2
io -c 'alloc 0' -c 'alloc 0 64M' -c 'alloc 128k 64k' -c map -c length -c info \
    a.qcow2
io -c 'alloc 0' -c 'alloc 0 64M' -c map -c length b.qcow2
io -c 'truncate 128M' -c length a.qcow2
io -c 'truncate 32M' -c length a.qcow2
io -c 'read 0' -c read a.qcow2
io -c 'read 0 1' -c 'read 3 5' -c 'read 1G 1k' -c 'read 0 foo' a.qcow2
io -c foo -c 'read -P 256 0 1k' -c 'read -P foo 0 1k' a.qcow2
io -r -c 'write 0 1k' -c 'read 0 1k' a.qcow2
io -c 'open a.qcow2' -c 'read 0 1k' -c close -c 'read 0 1k' -c 'open missing'
io -c 'open -o driver=qcow2,file.filename=b.qcow2' -c length -c 'reopen -r' \
    -c 'write 0 1k' -c 'reopen -w' -c 'write 0 1k'
io missing
io -f raw -c 'write 0 1k' r.raw
printf 'QFI\373' >"$tmp/q/magic"; cp "$tmp/q/magic" "$tmp/v"
io -c 'write -s magic 0 1k' r.raw
io -f raw -c 'write -s magic 0 1k' -c 'write -z 0 1k' r.raw
io -c 'sleep 1' -c q -c length a.qcow2
io -c 'write -P 5 -z 0 1k' -c 'write -u 0 1k' -c 'write -n 0 1k' a.qcow2
io -c 'write -c 100 64k' a.qcow2
io -c 'aio_read -q 0 1k' -c 'aio_read -P 9 0 1k' -c aio_flush a.qcow2
io -c 'write -s pat 0 10' -c 'read -v 0 10' a.qcow2
io -c 'write -qs pat 0 512' -c 'read -v 0 8' a.qcow2
io -c 'write -qspat 512 512' -c 'read -v 512 8' a.qcow2
io -c 'discard -C 0 64k' -c 'discard -q 0 64k' -c 'discard 0 3G' a.qcow2
io -c 'open a.qcow2' a.qcow2
io -s -c 'write -P 9 0 512' -c 'read -P 9 0 512' a.qcow2
io -c 'read -v 0 16' a.qcow2
io -C -c 'read -P 0xcd 1M 64k' -c 'write 2M 1k' -c map b.qcow2
io --image-opts -c length driver=qcow2,file.filename=a.qcow2
io -c 'readv 0 1k foo' -c 'read 0 2G' a.qcow2
io -n -c 'write -P 3 1M 4k' -c 'read -P 3 1M 4k' a.qcow2
io -t writethrough -d unmap -c 'write 0 64k' -c 'discard 0 64k' a.qcow2
io -c 'reopen -r -w' -c 'reopen -c foo' a.qcow2
io -c 'truncate -m full 65M' -c 'truncate -m foo 65M' -c 'truncate foo' a.qcow2
images a.qcow2 b.qcow2 r.raw

# An option that is given again counts, not what was said before.
cd "$tmp/v"
for open in 'open -o discard=unmap h.qcow2' 'open -d unmap h.qcow2'; do
    rm -f h.qcow2; vimg create -q -f qcow2 h.qcow2 1M
    vimg io -c "$open" -c 'write -P 7 0 512k' -c 'reopen -o discard=ignore' \
        -c 'discard 0 512k' >out 2>&1 || wrong "$open: $(cat out)"
    [ "$(stat -c %b h.qcow2)" -ge 1024 ] || wrong "$open, then discard=ignore"
done
vimg io --image-opts -c 'write 0 512' \
    driver=qcow2,read-only=on,file.filename=h.qcow2,read-only=off >out 2>&1 ||
    wrong "read-only=off: $(cat out)"
! vimg io --image-opts -c 'write 0 512' \
    driver=qcow2,read-only=on,file.filename=h.qcow2,file.read-only=off \
    >out 2>&1 || wrong 'file.read-only=off makes read-only=on writable'
vimg io -U -r -c 'reopen -o force-share=off' \
    -c 'reopen -w' -c 'write 0 512' h.qcow2 >out 2>&1 ||
    wrong "force-share=off: $(cat out)"
cd "$tmp"

# From standard input.
printf 'read 0 1k\nlength\nquit\nfoo\n' | qemu-io "$tmp/q/a.qcow2" |
    sed 's/;.*//' >"$tmp/q.txt"
printf 'read 0 1k\nlength\nquit\nfoo\n' | vimg io "$tmp/v/a.qcow2" |
    sed 's/;.*//' >"$tmp/v.txt"
diff -u "$tmp/q.txt" "$tmp/v.txt" || wrong 'standard input'
finish
