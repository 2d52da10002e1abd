#!/bin/bash
# commit and rebase, killed at some of their writes: the overlay shows what it
# showed, and the command can be given again.  KILLED_POINTS=n: at how many.
. ./tests/functions.sh
need qemu-img qemu-io strace
cd "$tmp"
points=${KILLED_POINTS:-3}
killed=0
calls=pwrite64,pwritev,pwritev2,fallocate,ftruncate,fdatasync,fsync
strace -f -qq -e trace=none true 2>/dev/null || cannot "strace may not trace"

io() { local f=$1 i=$2 c a=(); shift 2; for c; do a+=(-c "$c"); done; qemu-io -f $f "${a[@]}" "$i" >/dev/null; }
sum() { qemu-img convert -U -f ${2:-qcow2} -O raw "$1" sum.raw && sha256sum <sum.raw; }
sound() { # leaks are no errors
    local r=0
    qemu-img check -q -U -f qcow2 "$1" >out 2>&1 || r=$?
    [ $r = 0 ] || [ $r = 3 ] || { cat out >&2; die "$what: $1 is damaged"; }
}
fresh() { # format of the base
    rm -rf now; mkdir now; cd now
    qemu-img create -q -f $1 base 5M
    io $1 base 'write -P 1 0 3M' 'write -P 2 4M 512k'
    qemu-img create -q -f qcow2 -b base -F $1 top 8M
    io qcow2 top 'write -P 3 1M 1M' 'write -z 2M 640k' 'write -P 4 5M 100k' 'write -P 5 7M 512k'
    qemu-img create -q -f qcow2 other 8M
    io qcow2 other 'write -P 6 0 8M' 'write -P 1 64k 512k'
    cd ..
}

for f in raw qcow2; do
    fresh $f
    mv now first
    before=$(sum first/top)
    for how in "commit -q" "commit -q -d" "rebase -b other -F qcow2" "rebase -b other -F qcow2 -c" "rebase -b ''"; do
        cp -r first now
        eval "strace -f -qq -e signal=none -e trace=$calls -o trace vimg $how now/top" || die "$how"
        # strace counts each kind of call of each thread: "call:which" in the
        # order in which the busiest thread makes them.
        sed -n 's/^\([0-9]*\) *\([a-z0-9]*\)(.*/\1 \2/p' trace >made
        busy=$(cut -d' ' -f1 made | sort | uniq -c | sort -n | awk 'END { print $2 }')
        mapfile -t at < <(awk -v t="$busy" '$1 == t { print $2 ":" ++n[$2] }' made)
        n=${#at[@]}
        [ "$n" -gt 5 ] || die "$how: $n writes"
        for ((p = 0; p < points; p++)); do
            here=${at[(n - 1) * p / (points - 1)]}
            what="$how over $f, killed at $here"
            rm -rf now; cp -r first now
            eval "strace -f -qq -e trace=$calls -e inject=${here%:*}:signal=KILL:when=${here#*:} -o trace vimg $how now/top" \
                >out 2>&1 || killed=$((killed + 1))
            sound now/top
            [ $f = raw ] || sound now/base
            [ "$(sum now/top)" = "$before" ] || die "$what: other content"
            eval "vimg $how now/top" >out 2>&1 || { cat out >&2; die "$what: cannot be run again"; }
            sound now/top
            [ "$(sum now/top)" = "$before" ] || die "$what: other content when run again"
            case $how in
            commit*) [ "$(sum now/base $f)" = "$before" ] || die "$what: not committed when run again" ;;
            *other*) rm now/base; sum now/top >/dev/null || die "$what: not rebased when run again" ;;
            *) rm now/base; sum now/top >/dev/null || die "$what: not on its own when run again" ;;
            esac
        done
        rm -rf now
    done
    rm -rf first
done
[ $killed -gt $((points * 7)) ] || die "only $killed of $((points * 10)) were killed"
