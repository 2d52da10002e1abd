#!/bin/bash
# An overlay notes what its base was like; a base that was changed since is
# told of, one that was only copied or touched more softly, and neither is an
# error.
. ./tests/functions.sh
need qemu-img qemu-io python3
cd "$tmp"

# What vimg says about the bases of an image: nothing, "soft" or "changed".
said() {
    vimg map --output=json "$@" 2>&1 >/dev/null |
        sed -n 's/.*was changed since the link.*/changed/p
                s/.*copied or written to since the link.*/soft/p' | sort -u
}
expect() { # state, image...
    local want=$1 got; shift
    got=$(said "$@") || die "map $*"
    [ "$got" = "$want" ] || die "$what: '$got', not '$want'"
}
keys() { python3 -c 'import json, sys; print(sorted(json.load(sys.stdin)))'; }
noted() { head -c 4096 "$1" | LC_ALL=C grep -aq vimg; }
put() { local f=$1 i=$2; shift 2; qemu-io -f "$f" -c "write $*" "$i" >/dev/null; }
fresh() { # format of the base, further options of create
    local f=$1; shift
    rm -f base top side
    qemu-img create -q -f "$f" base 64M
    put "$f" base -P 1 0 8M
    vimg create -q -f qcow2 -b base -F "$f" "$@" top
}
accept() { vimg rebase -u -b base -F "$1" top || die "$what: rebase -u"; }

for f in raw qcow2 vmdk vdi; do
    what="$f, fresh"
    fresh $f
    noted top || die "$what: nothing is noted"
    expect '' top
    qemu-img check -q top || die "$what: check"
    [ "$(qemu-img info top --output=json | grep -c '"full-backing')" = 1 ] || die "$what: info"

    what="$f, touched"; touch -d '2001-02-03' base; expect soft top
    what="$f, copied"; cp base copy; mv copy base; expect soft top
    vimg check top >/dev/null 2>err || die "$what: check $?"
    grep -q 'copied or written to' err || die "$what: check says nothing"
    vimg check -q top 2>err && [ ! -s err ] || die "$what: check -q"
    what="$f, accepted"; accept $f; expect '' top

    what="$f, written to"; put $f base -P 2 32M 1M; expect changed top
    vimg info top >out 2>err || die "$what: info"
    grep -Eq 'top: its backing file base was (changed|copied or written to) since' err || die "$what: info says nothing"
    [ "$(vimg info --output=json top 2>/dev/null | keys)" = "$(qemu-img info --output=json top | keys)" ] || die "$what: JSON"
    vimg convert -O raw top x.raw 2>/dev/null || die "$what: convert"
    qemu-img compare -q top x.raw || die "$what: content"
    vimg tree . 2>/dev/null | grep -q 'top .*changed since' || die "$what: tree"
    what="$f, changed and accepted"; accept $f; expect '' top
done

# What makes a base's file longer and leaves alone what it holds.
fresh qcow2
what=snapshot; vimg snapshot -c one base; expect soft top
what='snapshot by QEMU'; accept qcow2; qemu-img snapshot -c two base; expect soft top
what=bitmap; accept qcow2; vimg bitmap --add base b; expect soft top
what='written to after a snapshot'; put qcow2 base -P 3 1M 64k; expect changed top
what=applied; vimg bitmap --remove base b; accept qcow2; qemu-img snapshot -a one base; expect changed top
what=resized; accept qcow2; vimg resize -q base +1M; expect changed top

# Every level is looked at.
fresh qcow2
vimg create -q -f qcow2 -b top side
what='two levels'; expect '' side
put qcow2 base -P 4 40M 1M; expect changed side
vimg info side >/dev/null 2>err; [ ! -s err ] || die "$what: info looks at its own backing file alone"
vimg info --backing-chain side 2>&1 >/dev/null | grep -q 'top: its backing file base was changed' || die "$what: info"

# QEMU keeps the note, as long as it is about the same link.
fresh qcow2
put qcow2 top -P 5 0 1M
qemu-img amend -f qcow2 -o lazy_refcounts=on top
qemu-img check -q -r all top
what='after QEMU'; noted top || die "$what: gone"; expect '' top
put qcow2 base -P 6 40M 1M; expect changed top
qemu-img create -q -f qcow2 other 64M
qemu-img rebase -b other -F qcow2 top
what='rebased by QEMU'; expect '' top
what='rebased by QEMU to the old name'; qemu-img rebase -u -b base -F qcow2 top; expect changed top
what='rebased by QEMU, no base'; qemu-img rebase -b '' top; expect '' top

# Every way to make the link notes the base.
fresh qcow2
qemu-img create -q -f qcow2 other 64M
what=rebase; vimg rebase -b other -F qcow2 top; expect '' top
put qcow2 other -P 7 0 1M; expect changed top
what='rebase to none'; vimg rebase -b '' top 2>/dev/null; noted top && die "$what: still noted"
what=amend; vimg amend -o backing_file=other,backing_fmt=qcow2 top; noted top || die "$what: not noted"; expect '' top
what='convert -B'; vimg convert -O qcow2 -B other -F qcow2 top made; noted made || die "$what: not noted"
expect '' made
put qcow2 other -P 8 10M 1M; expect changed made
what='create -u'; vimg create -q -u -f qcow2 -b other -F qcow2 made 64M; noted made && die "$what: noted"
touch other; expect '' made
what='rebase -u to nothing'; fresh qcow2; vimg rebase -u -b gone -F qcow2 top; noted top && die "$what: noted"
qemu-img rebase -u -b base -F qcow2 top; expect '' top

# Commit changes the base on purpose; other overlays are told.
for d in '' -d; do
    for f in raw qcow2; do
        what="commit $d into $f"
        fresh $f
        vimg create -q -f qcow2 -b base -F $f side
        put qcow2 top -P 9 0 12M
        vimg commit -q --force $d top
        expect '' top
        expect changed side
    done
done

# Headers without room, and old ones.
what='small clusters'; fresh qcow2 -o cluster_size=512
noted top && die "$what: noted"
expect '' top; qemu-img check -q top
long=$(printf 'd%.0s/' $(seq 490))
mkdir -p "$long"; ln -s "$tmp/base" "$long/base"
for c in 4096 8192; do
    what="a long name, clusters of $c"
    rm -f top; vimg create -q -f qcow2 -o cluster_size=$c -b "$long/base" -F qcow2 top
    expect '' top; qemu-img check -q top; qemu-img amend -f qcow2 -o lazy_refcounts=on top || die "$what: amend"
    expect '' top
done
what='version 2'; fresh qcow2 -o compat=0.10
noted top || die "$what: not noted"
put qcow2 top -P 1 1M 64k; expect '' top
qemu-img amend -f qcow2 -o compat=1.1 top; expect '' top
vimg amend -o compat=0.10 top; expect '' top; noted top || die "$what: lost"
put qcow2 base -P 3 50M 1M; expect changed top

# A note that is damaged or from the future says nothing.
fresh qcow2
at=$(head -c 4096 top | LC_ALL=C grep -abo vimg | cut -d: -f1)
printf '\0\0\0\2' | dd of=top bs=1 seek=$((at + 8)) conv=notrunc status=none
put qcow2 base -P 3 50M 1M
what='another layout'; expect '' top
printf '\0\0\0\10' | dd of=top bs=1 seek=$((at + 4)) conv=notrunc status=none
what='too short'; vimg map --output=json top >/dev/null 2>&1 || true
