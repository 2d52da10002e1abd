#!/bin/sh
# NBD servers by each of their names: bracketed commands, URIs, QEMU's
# spellings; as image, as target, as backing file; wherever an image is named.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"
need qemu-img qemu-io qemu-nbd nbdkit nbdcopy certtool
no_libnbd && skip "built without libnbd"
cd "$tmp"
export TMPDIR="$tmp"
dd if=/dev/urandom of=disk.raw bs=64k count=24 status=none
truncate -s 4M disk.raw
same() { cmp disk.raw "$2" || die "$1: another content"; }

# ---- '[' nbdkit ... ']' in every command.
vimg info -f raw [ nbdkit file disk.raw ] | grep -q "4 MiB (4194304 bytes)" ||
    die "info"
vimg info --output=json -f raw [ nbdkit file disk.raw ] |
    grep -q '"virtual-size": 4194304' || die "info --output"
vimg convert -f raw -O qcow2 [ nbdkit --filter=delay file disk.raw \
    rdelay=1ms ] a.qcow2
qemu-img compare -q -f qcow2 -F raw a.qcow2 disk.raw || die "convert from"
truncate -s 4M out.raw
vimg convert -n -f qcow2 -O raw a.qcow2 [ nbdkit file out.raw ]
same "convert to" out.raw
truncate -s 0 out.raw && truncate -s 4M out.raw
vimg convert -n -f raw -O raw [ nbdkit file disk.raw ] [ nbdkit file out.raw ]
same "both ways" out.raw
vimg compare -q -f raw -F raw [ nbdkit file disk.raw ] out.raw || die compare
! vimg compare -q -f raw -F raw disk.raw [ nbdkit memory 4M ] ||
    die "compare: no difference seen"
vimg map -f raw --output=json [ nbdkit file disk.raw ] >map.1
vimg map -f raw --output=json disk.raw >map.2
grep -o '"start.*zero": [a-z]*' map.1 >map.3
grep -o '"start.*zero": [a-z]*' map.2 | diff - map.3 || die "map"
vimg measure -f raw -O qcow2 [ nbdkit file disk.raw ] >measure.1
vimg measure -f raw -O qcow2 disk.raw | diff - measure.1 || die "measure"
truncate -s 0 out.raw && truncate -s 4M out.raw
vimg dd -f raw -O raw bs=64k count=24 if=[ nbdkit file disk.raw ] \
    of=[ nbdkit file out.raw ]
same "dd" out.raw
vimg io -f raw -c 'write -P 7 5000 70000' -c flush [ nbdkit file out.raw ] \
    >/dev/null
vimg io -f raw -r -c 'read -P 7 5000 70000' out.raw |
    grep -q '^read 70000/70000' || die "io"
vimg bench -f raw -c 200 -d 8 [ nbdkit file disk.raw ] >/dev/null ||
    die "bench"
vimg-nbd -t -e 0 -f raw -r -k "$sock" --fork --pid-file "$pidfile" \
    [ nbdkit file disk.raw ]
nbdcopy "nbd+unix:///?socket=$sock" onward.raw
same "served onward" onward.raw
stop_server
serve -e 0 -r -f raw --export one=[ nbdkit file disk.raw ]
nbdcopy "nbd+unix:///one?socket=$sock" onward.raw
same "--export" onward.raw
stop_server
qemu-img create -q -f qcow2 -u -b none -F raw over.qcow2 4M
vimg convert --image-opts -O raw \
    driver=qcow2,file.filename=over.qcow2,backing.driver=raw,backing.file.filename=[ \
    nbdkit file disk.raw ] out.raw
same "as backing file" out.raw

# Brackets that are no command are names.
cp disk.raw '['
vimg info -f raw [ | grep -q "^image: \[" || die "a file named ["
cp disk.raw ']'
vimg compare -q -f raw -F raw [ ] || die "files named [ and ]"
rm '[' ']'

# A program that cannot be run, or does not serve, is an error.
! vimg info [ no-such-program x ] 2>err || die "no program"
grep -q "no-such-program" err || die "the program is not named"
! vimg info [ nbdkit no-such-plugin ] 2>/dev/null || die "no plugin"
! vimg info [ true ] 2>/dev/null || die "no server"

# The server ends with us, whatever our end is, and leaves nothing behind.
gone() { # PID; fails if it stays
    n=0
    while kill -0 "$1" 2>/dev/null; do
        n=$((n + 1))
        [ $n -lt 200 ] || die "$2: the server goes on"
        sleep 0.05
    done
    n=0
    while [ -n "$(ls -d vimg.* 2>/dev/null)" ]; do
        n=$((n + 1))
        [ $n -lt 200 ] || die "$2: the socket is left"
        sleep 0.05
    done
}
vimg info -f raw [ nbdkit -P kit.pid file disk.raw ] >/dev/null
! kill -0 "$(cat kit.pid)" 2>/dev/null || die "it goes on behind vimg"
[ -z "$(ls -d vimg.* 2>/dev/null)" ] || die "the socket is left"
# Reads say that they are there and wait, so that the moment is known.
for signal in KILL TERM; do
    rm -f kit.pid here go
    mkfifo here
    exec 8<>here
    vimg convert -f raw -O qcow2 [ nbdkit -P kit.pid eval get_size='echo 4M' \
        pread="echo now >$tmp/here
            while [ ! -e $tmp/go ]; do sleep 0.02; done
            head -c \$3 /dev/zero" ] b.qcow2 2>/dev/null &
    vimg_pid=$!
    read -r word <&8
    [ "$word" = now ] || die "fifo"
    kill -$signal $vimg_pid
    : >go
    ! wait $vimg_pid || die "SIG$signal: exit 0"
    gone "$(cat kit.pid)" "SIG$signal"
    [ ! -e b.qcow2 ] || die "SIG$signal: half an output"
done
wait

# ---- QEMU's spellings.
qemu-nbd -r -f raw -t -e 9 -x 'e x' -k "$tmp/q.sock" --fork \
    --pid-file "$tmp/q.pid" disk.raw
while read -r name; do
    rm -f out.raw
    vimg convert -f raw -O raw "$name" out.raw || die "$name"
    same "$name" out.raw
done <<EOT
nbd+unix:///e%20x?socket=$tmp/q.sock
nbd:unix:$tmp/q.sock:exportname=e x
json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":"$tmp/q.sock"},"export":"e x"}}
json:{"driver":"nbd","path":"$tmp/q.sock","export":"e x"}
EOT
while read -r name; do
    rm -f out.raw
    vimg convert --image-opts -O raw "$name" out.raw || die "$name"
    same "$name" out.raw
done <<EOT
driver=nbd,server.type=unix,server.path=$tmp/q.sock,export=e x
driver=raw,file.driver=nbd,file.path=$tmp/q.sock,file.export=e x
driver=nbd,path=$tmp/q.sock,export=e x,reconnect-delay=2,open-timeout=2
driver=qcow2,file.filename=over.qcow2,backing.driver=nbd,backing.path=$tmp/q.sock,backing.export=e x
driver=qcow2,file.filename=over.qcow2,backing.driver=raw,backing.file.driver=nbd,backing.file.server.type=unix,backing.file.server.path=$tmp/q.sock,backing.file.export=e x
driver=raw,file.filename=nbd+unix:///e%20x?socket=$tmp/q.sock
EOT
! vimg info --image-opts "driver=nbd,path=$tmp/q.sock,export=other" \
    2>/dev/null || die "another export"
! vimg info --image-opts driver=raw,file.filename=disk.raw,host=x \
    2>/dev/null || die "host of a file"
! vimg info --image-opts driver=nbd,export=x 2>/dev/null || die "no server"
! vimg io -f raw -c 'write 0 512' \
    "nbd+unix:///e%20x?socket=$tmp/q.sock" >/dev/null 2>&1 ||
    die "written although it is served read-only"
kill "$(cat q.pid)"

# TCP, by name and by IPv6.
port=$((20000 + $$ % 20000))
nbdkit -r -i localhost -p $port -P tcp.pid -e x file disk.raw
for name in "nbd://localhost:$port/x" "nbd:localhost:$port:exportname=x" \
    "json:{\"driver\":\"nbd\",\"host\":\"localhost\",\"port\":\"$port\",\"export\":\"x\"}"; do
    rm -f out.raw
    vimg convert -f raw -O raw "$name" out.raw || die "$name"
    same "$name" out.raw
done
kill "$(cat tcp.pid)"

# ---- backing files.
nbdkit -U "$tmp/kit.sock" -P kit.pid file disk.raw
uri="nbd+unix:///?socket=$tmp/kit.sock"
vimg create -q -f qcow2 -b "$uri" -F raw over.qcow2
qemu-img info over.qcow2 | grep -q "^backing file: $uri\$" || die "recorded"
qemu-img compare -q -f qcow2 -F raw over.qcow2 disk.raw || die "to QEMU"
vimg info over.qcow2 >/dev/null || die "info needs no server"
# Names in images are data: followed when allowed, and only then.
for policy in "" --allow-files=none --allow-files=same-dir \
    "--allow-files=$tmp"; do
    ! vimg convert $policy -f qcow2 -O raw over.qcow2 no.raw 2>/dev/null ||
        die "a backing file over NBD was opened: $policy"
    [ ! -e no.raw ] || die "an output: $policy"
done
for name in "nbd:unix:$tmp/kit.sock" "file:$uri" \
    "json:{\"driver\":\"nbd\",\"path\":\"$tmp/kit.sock\"}"; do
    qemu-img create -q -u -f qcow2 -b "$name" -F raw evil.qcow2 4M
    ! vimg convert -f qcow2 -O raw evil.qcow2 no.raw 2>/dev/null ||
        die "a backing file over NBD was opened: $name"
done
! vimg create -q -u -f qcow2 -b '[ nbdkit memory 1M ]' -F raw evil.qcow2 1M ||
    ! vimg convert --allow-files any -f qcow2 -O raw evil.qcow2 no.raw \
        2>/dev/null || die "a command in an image was run"
rm -f out.raw
vimg convert --allow-files any -f qcow2 -O raw over.qcow2 out.raw
same "--allow-files any" out.raw
# Written through, committed into the server, rebased onto it and away.
vimg io --allow-files any -c 'write -P 9 1000 100000' over.qcow2 >/dev/null
cp disk.raw want.raw
qemu-io -f raw -c 'write -P 9 1000 100000' want.raw >/dev/null
vimg commit -q --allow-files any over.qcow2
cmp want.raw disk.raw || die "commit into a server"
qemu-img create -q -f qcow2 -b disk.raw -F raw r.qcow2
vimg rebase -q -b "$uri" -F raw r.qcow2
qemu-img info r.qcow2 | grep -q "^backing file: nbd+unix" || die "rebase onto"
vimg rebase -q --allow-files any -b disk.raw -F raw r.qcow2
qemu-img compare -q -f qcow2 -F raw r.qcow2 disk.raw || die "rebase"
vimg convert -f raw -O qcow2 -B "$uri" -F raw want.raw c.qcow2
qemu-img compare -q -f qcow2 -F raw c.qcow2 want.raw || die "convert -B"
! vimg convert -n -f raw -O raw "$uri" "$uri" 2>/dev/null ||
    die "a server was copied onto itself"
serve -s -e 0 -f raw "$uri"
qemu-io -f raw -c 'write -P 5 0 1M' -c 'read -P 5 0 1M' \
    "nbd+unix:///?socket=$sock" | grep -q "^read 1048576" || die "-s"
stop_server
same "-s wrote to the server" want.raw
kill "$(cat kit.pid)"

# ---- TLS by --object, as qemu-img takes it.
mkdir psk
echo "alice:a1b2c3d4e5f60718293a4b5c6d7e8f90" >psk/keys.psk
nbdkit --tls=require --tls-psk=psk/keys.psk -U "$tmp/tls.sock" -P tls.pid \
    file disk.raw
object="tls-creds-psk,id=t,dir=$tmp/psk,endpoint=client,username=alice"
opts="driver=nbd,server.type=unix,server.path=$tmp/tls.sock,tls-creds=t"
rm -f out.raw
vimg convert --object "$object" --image-opts -O raw "$opts" out.raw
same "TLS by --object" out.raw
! vimg info --image-opts "$opts" 2>/dev/null || die "no such object"
! vimg info --image-opts "${opts%,tls-creds=t}" 2>/dev/null || die "no TLS"
kill "$(cat tls.pid)"
