#!/bin/sh
# Servers that fail: the n-th request of any kind, for n = 1, 2, ...; ones
# that are killed and come back, with and without reconnect-delay.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img qemu-io nbdkit
no_libnbd && skip "built without libnbd"
reader=
# -9: a shell that was just forked may still have our traps, and lose others.
undrain() {
    kill -9 "$reader" 2>/dev/null || :
    wait "$reader" || :
    reader=
}
cleanup() {
    [ -z "$reader" ] || undrain
    kill_pids
    # Nothing that we started outlives us.
    for p in /proc/[0-9]*; do
        [ "${p#/proc/}" = $$ ] || ! is_ours "${p#/proc/}" ||
            { echo "left: $(tr '\0' ' ' <"$p/cmdline")" >&2; r=1; }
    done
}
cd "$tmp"
export TMPDIR="$tmp"

# A server whose request number `fail` fails; it counts in `seen`.
cat >step <<EOT
n=\$((\$(cat $tmp/seen) + 1))
echo \$n >$tmp/seen
[ \$n -ne \$(cat $tmp/fail) ] || { echo "EIO the bad request" >&2; exit 1; }
EOT
step=". $tmp/step"
failing() { # COMMAND with "[ SERVER ]"; FILE is what is served
    n=1
    while :; do
        rm -f out.qcow2
        cp start "$FILE"
        echo 0 >seen
        echo $n >fail
        set +e
        "$@" [ nbdkit --filter=noparallel eval \
            get_size="stat -c %s $tmp/$FILE" can_write='exit 0' \
            can_flush='exit 0' can_zero='exit 0' can_fua='echo none' \
            pread="$step; dd if=$tmp/$FILE iflag=skip_bytes,count_bytes \
                skip=\$4 count=\$3 bs=64k status=none" \
            pwrite="$step; dd of=$tmp/$FILE oflag=seek_bytes conv=notrunc \
                seek=\$4 bs=64k iflag=fullblock status=none" \
            zero="$step; head -c \$3 /dev/zero | dd of=$tmp/$FILE bs=64k \
                oflag=seek_bytes seek=\$4 iflag=fullblock conv=notrunc \
                status=none" flush="$step" ] $TARGET >log 2>&1
        code=$?
        set -e
        [ "$(cat seen)" -ge $n ] || break
        [ $code != 0 ] || { cat log; die "$1 $2: the error of request $n of \
$(cat seen) was swallowed"; }
        [ ! -e out.qcow2 ] || die "$1 $2: half an output"
        n=$((n + 1))
        [ $n -lt 100 ] || die "$1 $2: no end"
    done
    [ $code = 0 ] || { cat log; die "$1 $2: fails without an error"; }
    [ $n -gt 2 ] || die "$1 $2: sent but $n requests"
}

dd if=/dev/urandom of=disk.raw bs=64k count=5 status=none
truncate -s 4M disk.raw
dd if=/dev/urandom of=disk.raw bs=64k count=1 seek=50 conv=notrunc status=none
FILE=served.raw TARGET=
cp disk.raw start
TARGET=out.qcow2 failing vimg convert -f raw -O qcow2
qemu-img compare -q -f raw -F qcow2 disk.raw out.qcow2 || die "read"
TARGET=disk.raw failing vimg compare -f raw -F raw
truncate -s 0 start && truncate -s 4M start
failing vimg convert -n -f raw -O raw disk.raw
cmp disk.raw served.raw || die "written"
truncate -s 6M start
failing vimg convert -f raw -O qcow2 disk.raw
qemu-img compare -q -f raw -F qcow2 disk.raw served.raw || die "qcow2"
qemu-img check -q -f qcow2 served.raw || die "check"
cp served.raw start
TARGET=out.qcow2 failing vimg convert -f qcow2 -O qcow2
failing vimg io -f qcow2 -c 'write -P 3 1M 64k' -c flush -c 'write -z 0 64k' \
    -c flush
qemu-img check -q -f qcow2 served.raw || die "check after writes"
failing vimg check -f qcow2

# ---- killed, and back.
dd if=/dev/urandom of=disk.raw bs=1M count=24 status=none
mkfifo told
exec 8<>told
up() { # FILE [OPTIONS]
    rm -f kit.sock kit.pid
    nbdkit -U "$tmp/kit.sock" -P kit.pid --filter=log file "$@" logfile=told
}
# One that is killed before it has answered much.
slow() { up "$@" --filter=delay rdelay=20 wdelay=20; }
await() { # WORD NUMBER: so many lines of the server's log have it
    k=0
    while [ $k -lt "$2" ] && read -r line <&8; do
        case $line in *" $1 "*) k=$((k + 1)) ;; esac
    done
}
down() {
    kill -9 "$(cat kit.pid)"
    while kill -0 "$(cat kit.pid)" 2>/dev/null; do sleep 0.02; done
    rm kit.pid
}
drain() { while read -r line <&8; do :; done; }
uri="nbd+unix:///?socket=$tmp/kit.sock"

# Reading.
slow disk.raw
vimg convert -f raw -O raw "$uri&reconnect-delay=60" copy.raw &
job=$!
await Read 4
down
up disk.raw
drain & reader=$!
wait $job || die "reading: not reconnected"
undrain
cmp disk.raw copy.raw || die "reading: other bytes"
down
# Without the option it fails; nothing is left of the output.
rm copy.raw
slow disk.raw
vimg convert -f raw -O raw "$uri" copy.raw 2>/dev/null &
job=$!
await Read 4
down
up disk.raw
drain & reader=$!
! wait $job || die "reconnected without being told to"
[ ! -e copy.raw ] || die "half an output"
undrain
down
# Writing.
truncate -s 24M to.raw
slow to.raw
vimg convert -n -f raw -O raw disk.raw "$uri&reconnect-delay=60" &
job=$!
await Write 4
down
up to.raw
drain & reader=$!
wait $job || die "writing: not reconnected"
undrain
down
cmp disk.raw to.raw || die "writing: other bytes"
# Writes are not taken for safe where the server cannot say so: what it had
# not written out may be gone, so the flush fails.
truncate -s 0 to.raw && truncate -s 24M to.raw
slow to.raw --filter=fua
vimg convert -n -f raw -O raw disk.raw "$uri&reconnect-delay=60" 2>err &
job=$!
await Write 8
down
up to.raw --filter=fua
drain & reader=$!
! wait $job || die "what the server may have lost was taken for written"
grep -q "not flushed" err || die "that is not told: $(cat err)"
undrain
down
# Another disk behind the same name is not taken for the old one.
slow disk.raw
vimg convert -f raw -O raw "$uri&reconnect-delay=1" copy.raw 2>/dev/null &
job=$!
await Read 4
down
truncate -s 30M other.raw
up other.raw
drain & reader=$!
! wait $job || die "went on with another disk"
undrain
down
# A server that is late.
rm -f kit.sock
vimg info -f raw "$uri&open-timeout=60" >info &
job=$!
up disk.raw
drain & reader=$!
wait $job || die "open-timeout"
grep -q "24 MiB" info || die "open-timeout: info"
undrain
down
! vimg info -f raw "$uri&open-timeout=1" 2>/dev/null || die "nobody is there"
! vimg info -f raw "$uri&reconnect-delay=x" 2>err || die "no number"
grep -q "number of seconds" err || die "no number: message"
