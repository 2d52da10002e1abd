#!/bin/bash
# amend -o compat=0.10 on images with snapshots: what the disk and every
# snapshot show stays as it is, and nothing is left that version 2 lacks.
. ./tests/functions.sh
need qemu-img qemu-io
cd "$tmp"

io() { local i=$1 c a=(); shift; for c; do a+=(-c "$c"); done; qemu-io -f qcow2 "${a[@]}" "$i" >/dev/null; }
flat() { # image, snapshot or ''
    qemu-img convert -f qcow2 ${2:+-l "$2"} -O raw "$1" flat.raw
    sha256sum <flat.raw
}
clean() { qemu-img check -f qcow2 "$1" >out 2>&1 || { cat out >&2; die "$2: not clean"; }; }
show() { for s in '' one two three; do flat "$1" $s; done; }

qemu-img create -q -f qcow2 base 8M
io base 'write -P 9 0 8M'
for c in 4096 65536; do
    for how in alone backed; do
        what="clusters of $c, $how"
        rm -f a
        case $how in
        alone) qemu-img create -q -f qcow2 -o cluster_size=$c a 8M ;;
        *) qemu-img create -q -f qcow2 -o cluster_size=$c -b base -F qcow2 a ;;
        esac
        io a 'write -P 1 0 1M' 'write -z 64k 256k' 'write -z -u 512k 128k' 'write -z 6M 64k'
        io a "write -c -P 5 3M $c"
        qemu-img snapshot -c one a
        io a 'write -P 2 64k 64k' 'write -P 3 4M 128k' 'write -z 4M 64k' 'write -z 7M 1M'
        qemu-img snapshot -c two a
        vimg snapshot -c three a        # shares everything with two
        io a 'write -P 4 96k 64k' 'write -z 128k 64k' 'discard 1M 64k'
        before=$(show a)
        cp a a0
        vimg amend -o compat=0.10 a || die "$what: amend"
        [ "$(qemu-img info --output=json a | grep -c '"compat": "0.10"')" = 1 ] || die "$what: version"
        clean a "$what"
        vimg check -q a || die "$what: vimg check"
        [ "$(show a)" = "$before" ] || die "$what: other content"
        # Every snapshot can be gone back to, by both programs, and deleted.
        for s in one three two; do
            want=$(flat a $s)
            cp a b
            qemu-img snapshot -a $s a; clean a "$what, QEMU applies $s"
            [ "$(flat a)" = "$want" ] || die "$what: QEMU applies $s"
            vimg snapshot -a $s b; clean b "$what, applies $s"
            [ "$(flat b)" = "$want" ] || die "$what: applies $s"
        done
        io a 'write -P 8 0 2M'
        vimg snapshot -d two a
        qemu-img snapshot -d one a
        vimg snapshot -d three a
        clean a "$what, snapshots deleted"
        # Nothing of it changes what is not to be changed: up and down again.
        vimg amend -o compat=1.1 a0
        qemu-img amend -f qcow2 -o compat=1.1 b
        clean b "$what, up again"
    done
done

what='another size'
rm -f a; qemu-img create -q -f qcow2 a 8M
qemu-img snapshot -c one a
qemu-img resize -q a 9M
before=$(sha256sum <a)
vimg amend -o compat=0.10 a >out 2>err && die "$what: done"
grep -q 'another size' err || { cat err >&2; die "$what: other words"; }
[ "$before" = "$(sha256sum <a)" ] || die "$what: refused, and changed"
