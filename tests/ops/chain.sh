#!/bin/bash
# commit, rebase, resize, compare, measure: what the guest sees stays as it
# is, and qemu-img agrees.
. ./tests/functions.sh
need qemu-img qemu-io
imgop="$builddir/tests/ops/imgop"
cd "$tmp"

clean() { for i; do qemu-img check -q -f qcow2 "$i" || die "$i is not clean"; done; }
flat() { qemu-img convert -f "${3:-qcow2}" -O raw "$1" "$2"; }
io() { local i=$1 c a=(); shift; for c; do a+=(-c "$c"); done; qemu-io -f qcow2 "${a[@]}" "$i" >/dev/null; }

# base (raw or qcow2) <- mid <- top; sizes differ on purpose.
make_chain() {  # format-of-base base-size mid-size top-size
    rm -f base mid top
    qemu-img create -q -f $1 base $2
    qemu-io -f $1 -c 'write -P 1 0 1M' -c 'write -P 2 2M 512k' -c "write -P 3 $(($2 - 65536)) 64k" base >/dev/null
    qemu-img create -q -f qcow2 -b base -F $1 mid $3
    io mid 'write -P 4 512k 64k' 'write -P 5 3M 100k' 'write -z 2M 128k'
    qemu-img create -q -f qcow2 -b mid -F qcow2 top $4
    [ $4 -lt 4000000 ] || io top 'write -P 7 3100k 10k'
    io top 'write -P 6 64k 64k' 'write -z 640k 64k' "write -P 8 $(($4 - 512)) 512"
}

for base in raw qcow2; do
  for sizes in '8388608 8388608 8388608' '8388608 4194304 12582912' '4194304 8388608 6291456'; do
    # commit one layer, and two
    for depth in 1 2; do
        make_chain $base $sizes
        flat top before
        "$imgop" commit qcow2:top $depth
        clean top mid
        [ $base = raw ] || clean base
        flat top after
        cmp before after || die "commit $depth of $base $sizes changed the guest's view"
        if [ $depth = 1 ]; then
            flat mid after
            cmp -n $(stat -c %s before) before after || die "commit: the backing file has not got it"
            [ $(qemu-img map --output=json -f qcow2 top | grep -c '"depth": 0, .*"data": true') = 0 ] || die "the overlay was not emptied"
        else
            flat base after $base
            cmp -n $(stat -c %s before) before after || die "commit 2: the base has not got it"
        fi
    done
    make_chain $base $sizes
    flat top before
    "$imgop" commit -k qcow2:top 1
    "$imgop" commit -r 500000 -x 100000 qcow2:top 1 2>/dev/null && die "not canceled"
    flat top after; cmp before after
    "$imgop" commit qcow2:top 1
    flat top after; cmp before after

    # rebase: to the base, to a file with other content, to nothing
    for to in base other short none; do
        for c in '' -c; do
            make_chain $base $sizes
            qemu-img create -q -f qcow2 other 16M
            io other 'write -P 9 0 16M' 'write -P 1 0 512k'
            qemu-img create -q -f qcow2 short 1M
            io short 'write -P 10 100k 700k'
            flat top before
            case $to in
            base) "$imgop" rebase $c -B base -F $base qcow2:top ;;
            none) "$imgop" rebase $c qcow2:top ;;
            *) "$imgop" rebase $c -B $to -F qcow2 qcow2:top ;;
            esac
            clean top
            [ $to = none ] || rm mid
            flat top after
            cmp before after || die "rebase to $to ($base $sizes) changed the guest's view"
            has=$(qemu-img info -U --output=json top | sed -n 's/.*"backing-filename": "\(.*\)",*/\1/p')
            case $to in none) [ -z "$has" ] ;; *) [ "$has" = $to ] ;; esac || die "rebase to $to recorded '$has'"
        done
    done
  done
done

# a rebase that is stopped, then run again
make_chain qcow2 8388608 8388608 8388608
qemu-img create -q -f qcow2 other 8M; io other 'write -P 9 0 8M'
flat top before
! "$imgop" rebase -r 8000000 -x 2000000 -B other -F qcow2 qcow2:top 2>/dev/null || die "not canceled"
flat top after; cmp before after
"$imgop" rebase -B other -F qcow2 qcow2:top
flat top after; cmp before after

# -u changes the name alone
"$imgop" rebase -u -B mid -F qcow2 qcow2:top
qemu-img info --output=json top | grep -q '"backing-filename": "mid"'
! "$imgop" rebase -B top -F qcow2 qcow2:top 2>/dev/null || die "rests on itself"
"$imgop" rebase -u -B gone -F qcow2 qcow2:top
"$imgop" rebase -u -B mid -F qcow2 qcow2:top

# resize: what is new is zeros, also over a longer backing file
make_chain qcow2 8388608 8388608 3000320
flat top before
"$imgop" resize qcow2:top 8388608
clean top
truncate -s 8388608 before
flat top after; cmp before after || die "growing showed the backing file"
! "$imgop" resize qcow2:top 1000448 2>/dev/null || die "shrunk without being asked to"
"$imgop" resize -s qcow2:top 1000448
clean top
truncate -s 1000448 before
flat top after; cmp before after || die "shrinking"
"$imgop" resize qcow2:top 2097152
truncate -s 2097152 before
flat top after; cmp before after || die "shrunk and grown"
flat base r.raw; cp r.raw r2.raw
"$imgop" resize raw:r.raw 9000448; truncate -s 9000448 r2.raw; cmp r.raw r2.raw
"$imgop" resize -s raw:r.raw 1024; truncate -s 1024 r2.raw; cmp r.raw r2.raw

# compare
make_chain qcow2 8388608 8388608 8388608
flat top f.raw
"$imgop" compare qcow2:top raw:f.raw
cp f.raw g.raw
truncate -s 9M g.raw
"$imgop" compare raw:g.raw qcow2:top
[ "$("$imgop" compare -s raw:g.raw qcow2:top)" = '2 8388608' ] || die "strict: size"
printf x | dd of=g.raw bs=1 seek=9000000 conv=notrunc status=none
printf x | dd of=g.raw bs=1 seek=5000000 conv=notrunc status=none
for j in 1 2 4; do
    [ "$("$imgop" compare -j $j qcow2:top raw:g.raw)" = '1 5000000' ] || die "compare -j $j"
done

# measure
qemu-img convert -f raw -O qcow2 f.raw m.qcow2
qemu-img bitmap --add m.qcow2 one
qemu-img bitmap --add -g 512 m.qcow2 another
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 5M
for f in raw qcow2; do
    for i in raw:f.raw qcow2:top qcow2:m.qcow2 qcow2:v2.qcow2; do
        "$imgop" measure $i $f > ours
        qemu-img measure -f ${i%%:*} -O $f ${i#*:} > theirs
        cmp ours theirs || die "measure $i for $f: $(cat ours) / $(cat theirs)"
    done
done
# convert --bitmaps
qemu-img bitmap --disable m.qcow2 another
qemu-io -c 'write -P 1 1M 70k' m.qcow2 >/dev/null
"$imgop" convert -b qcow2:m.qcow2 qcow2:m2.qcow2
qemu-img convert --bitmaps -O qcow2 m.qcow2 m3.qcow2
clean m2.qcow2
[ "$(qemu-img info m2.qcow2 | sed -n '/bitmaps/,/refcount/p')" = "$(qemu-img info m3.qcow2 | sed -n '/bitmaps/,/refcount/p')" ] || die "bitmaps"
[ "$(qemu-img measure -O qcow2 m2.qcow2)" = "$(qemu-img measure -O qcow2 m3.qcow2)" ]
! "$imgop" convert -b qcow2:m.qcow2 raw:m4 2>/dev/null || die "bitmaps in a raw image"
[ ! -e m4 ]
echo "chain: all good"
