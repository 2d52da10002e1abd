#!/bin/bash
# qcow2 to a pipe: in one pass where the maps are enough.  With ulimit -f 0
# no file can be written, so that whatever comes out went straight through.
. ./tests/functions.sh
need qemu-img qemu-io python3
cd "$tmp"

# straight ARGS...: vimg ARGS - into the file out, without any other file.
straight() {
    (ulimit -f 0; exec "$builddir/vimg" "$@") 2>err | cat >out
    [ "${PIPESTATUS[0]}" = 0 ] || die "$*: $(cat err)"
}
# good WHAT SOURCE-OPTIONS SOURCE: out is clean and has the disk of SOURCE.
good() {
    qemu-img check -q -f qcow2 out >check || die "$1: $(cat check)"
    vimg check -q -f qcow2 out || die "$1: vimg check"
    qemu-img compare -q -f "$2" -F qcow2 "$3" out || die "$1: other content"
}
allocated() { qemu-img map --output=json "$1" |
    python3 -c 'import json, sys
print(sum(e["length"] for e in json.load(sys.stdin)
          if e["depth"] == 0 and e["data"]))'; }

# A disk of an odd size with data, zeros, holes, a cluster here and there.
truncate -s 41943552 a.raw
for s in 0 77 1999 20000 20003 40000 81918; do
    head -c 3000 /dev/urandom | dd of=a.raw bs=512 seek=$s conv=notrunc status=none
done
truncate -s 41943552 a.raw
head -c 3M /dev/urandom | dd of=a.raw bs=64K seek=300 conv=notrunc status=none
dd if=/dev/zero of=a.raw bs=1M seek=30 count=2 conv=notrunc status=none

# Every cluster size, refcount width and version.
n=0
for c in 512 1k 2k 4k 8k 16k 32k 64k 128k 256k 512k 1M 2M; do
    for b in 1 2 4 8 16 32 64; do
        n=$((n + 1))
        [ $((n % 3)) = 0 ] || [ -n "${STREAM_ALL:-}" ] || continue
        straight convert -O qcow2 -o cluster_size=$c,refcount_bits=$b a.raw -
        good "$c, $b bits" raw a.raw
    done
    straight convert -O qcow2 -o cluster_size=$c,compat=0.10,extended_l2=off a.raw -
    good "$c, 0.10" raw a.raw
done
for c in 16k 64k 2M; do
    straight convert -O qcow2 -o cluster_size=$c,extended_l2=on,lazy_refcounts=on a.raw -
    good "$c, subclusters" raw a.raw
done
# The file ends with its last cluster, and has nothing that create's has not.
straight convert -O qcow2 a.raw -
[ $(($(stat -c %s out) % 65536)) = 0 ] || die 'half a cluster at the end'
vimg convert -O qcow2 a.raw file
[ "$(qemu-img info --output=json out | grep -v 'filename\|actual-size')" = \
  "$(qemu-img info --output=json file | grep -v 'filename\|actual-size')" ] ||
    die 'info differs from that of a file'

# Nothing at all, one sector, one cluster, more than one L2 table.
for s in 0 512 64k 512M 1T; do
    truncate -s $s e.raw
    straight convert -f raw -O qcow2 e.raw -
    good "empty, $s" raw e.raw
    [ $s = 1T ] || vimg create -q -f qcow2 file $s
    [ $s = 1T ] || [ $(stat -c %s out) = $(stat -c %s file) ] || die "empty, $s: too long"
done

# Zeros by the map stay out; zeros that are data are written.
qemu-img create -q -f qcow2 z.qcow2 10M
qemu-io -c 'write -z 0 4M' -c 'write -P 0 4M 1M' -c 'write -P 5 9M 64k' z.qcow2 >/dev/null
straight convert -O qcow2 z.qcow2 -
good zeros qcow2 z.qcow2
[ "$(allocated out)" = $((1048576 + 65536)) ] || die "zeros: $(allocated out) bytes of data"
# -S asks to look at the data, which a file between is needed for; -S 0 for
# everything.
vimg convert -S 4k -O qcow2 z.qcow2 - | cat >out
good 'zeros, -S' qcow2 z.qcow2
[ "$(allocated out)" = 65536 ] || die "zeros, -S: $(allocated out) bytes of data"
straight convert -S 0 -O qcow2 z.qcow2 -
good 'zeros, -S 0' qcow2 z.qcow2
[ "$(allocated out)" = 10485760 ] || die "-S 0: $(allocated out) bytes of data"

# Several sources, snapshots, compressed clusters, other formats, dd.
straight convert -O qcow2 a.raw z.qcow2 a.raw -
cat a.raw >joined.raw
qemu-img convert -O raw z.qcow2 z.raw; cat z.raw a.raw >>joined.raw
good joined raw joined.raw
qemu-img convert -c -O qcow2 a.raw s.qcow2
qemu-img snapshot -c old s.qcow2
qemu-io -c 'write -P 9 0 5M' s.qcow2 >/dev/null
straight convert -l old -O qcow2 s.qcow2 -
good snapshot raw a.raw
qemu-img convert -O vmdk a.raw a.vmdk
straight convert -O qcow2 a.vmdk -
good vmdk raw a.raw
straight convert -m 1 -W -O qcow2 a.vmdk -; cp out one
straight convert -m 8 -O qcow2 a.vmdk -
cmp one out || die 'the stream depends on the number of threads'
straight dd -O qcow2 if=s.qcow2 of=-
good dd qcow2 s.qcow2
straight dd -f raw -O qcow2 if=a.raw of=- bs=1000 count=30001 skip=77
dd if=a.raw of=part bs=1000 count=30001 skip=77 status=none
truncate -s 30001152 part
good 'part by dd' raw part
straight dd -f raw -O raw if=a.raw of=- bs=1000 count=301 skip=20077
dd if=a.raw of=part bs=1000 count=301 skip=20077 status=none
cmp out part || die 'part by dd, raw'
straight convert -O qcow2 -o size=50M a.raw -
good 'larger than the source' raw a.raw
[ "$(qemu-img info --output=json out | python3 -c 'import json, sys
print(json.load(sys.stdin)["virtual-size"])')" = 52428800 ] || die size
straight convert -O raw -o size=50M a.raw -
cp a.raw larger; truncate -s 50M larger
cmp out larger || die 'larger than the source, raw'
# Smaller is refused, whoever says so.
for f in raw qcow2 vdi vmdk; do
    o=; [ $f != vmdk ] || o='-o subformat=streamOptimized'
    "$builddir/tests/ops/imgop" convert $o -o size=1M raw:a.raw $f:- >out 2>err &&
        die "smaller than the source, $f"
    [ ! -s out ] && grep -q 'smaller than the source' err || die "smaller: $f: $(cat err)"
done

# Over a backing file that the source rests on; the same and other versions.
qemu-img create -q -f qcow2 -b "$tmp/a.raw" -F raw mid.qcow2 45M
qemu-io -c 'write -P 3 1M 200k' -c 'write -z 20M 300k' -c 'write -P 8 44M 1M' mid.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
qemu-io -c 'write -P 4 7M 9k' -c 'write -z 30M 1M' -c 'discard 1M 100k' top.qcow2 >/dev/null
for o in compat=1.1 compat=0.10 cluster_size=4k extended_l2=on cluster_size=2M; do
    straight convert -O qcow2 -o $o -B "$tmp/a.raw" -F raw top.qcow2 -
    good "backing file, $o" qcow2 top.qcow2
    [ $(stat -c %s out) -lt 26000000 ] || die "backing file, $o: not an overlay"
    straight convert -O qcow2 -o $o -B "$tmp/mid.qcow2" -F qcow2 top.qcow2 -
    good "nearer backing file, $o" qcow2 top.qcow2
done
[ "$(qemu-img info out | grep -c 'backing file: ')" = 1 ] || die 'no backing file'
# One that it does not rest on: what differs is found by reading.
cp a.raw copy.raw
vimg convert -O qcow2 -B "$tmp/copy.raw" -F raw top.qcow2 - | cat >out
good 'copied backing file' qcow2 top.qcow2
[ $(stat -c %s out) -lt 5000000 ] || die 'copied backing file: not an overlay'
vimg convert -O qcow2 -B a.raw -F raw top.qcow2 - >out 2>err && die 'relative backing file'
grep -q 'absolute path' err || die "relative backing file: $(cat err)"

# What needs a file between gets one; without room for it, an error.
for o in '-c' '--bitmaps' '-o preallocation=metadata'; do
    vimg convert $o -O qcow2 s.qcow2 - | cat >out
    good "$o" qcow2 s.qcow2
    (ulimit -f 0; vimg convert $o -O qcow2 s.qcow2 -) >/dev/null 2>err && die "$o without a file"
done
cat a.raw | vimg convert -O qcow2 - - | cat >out
good 'from a pipe' raw a.raw

# A reader that goes away, a full disk: one line and 1.
for cmd in 'convert -O qcow2 a.raw -' 'dd -f raw -O qcow2 if=a.raw of=-' \
    'dd -f raw if=a.raw of=-' 'convert -O raw a.raw -' 'convert -c -O qcow2 a.raw -'; do
    r=0
    { vimg $cmd 2>err && echo 0 >code || echo $? >code; } | head -c 1000 >/dev/null
    [ "$(cat code)" = 1 ] && grep -q 'Broken pipe' err || die "$cmd: $(cat code) $(cat err)"
    [ $(wc -l <err) = 1 ] || die "$cmd: $(cat err)"
    vimg $cmd >/dev/full 2>err || r=$?
    [ $r = 1 ] && grep -q 'No space left' err || die "$cmd, full: $r $(cat err)"
done

# A source that is written to meanwhile.  The pipe holds the writer up behind
# the tables; what appears in a hole then is noticed, what only looks like
# data is not an error.
live() {
    python3 - "$builddir/vimg" "$@" <<'EOF'
import os, subprocess, sys
vimg, byte, out = sys.argv[1], int(sys.argv[2]), open("out", "wb")
with open("live.raw", "wb") as f:
    f.write(b"x" * (8 << 20))
    f.truncate(1 << 30)
p = subprocess.Popen([vimg, "convert", "-f", "raw", "-O", "qcow2", "live.raw",
                      "-"], stdout=subprocess.PIPE, stderr=open("err", "w"))
out.write(p.stdout.read(1 << 20))
with open("live.raw", "r+b") as f:
    f.seek(900 << 20)
    f.write(bytes([byte]) * 70000)
out.write(p.stdout.read())
sys.exit(p.wait())
EOF
}
r=0; live 7 || r=$?
[ $r = 1 ] && grep -q 'was written to while it was read' err || die "live source: $r $(cat err)"
live 0 || die "zeros into a live source: $(cat err)"
good 'zeros into a live source' raw live.raw

# What goes wrong when the pipe has the tables already is no reason to begin
# anew: 95 is EOPNOTSUPP.
head -c 8M /dev/urandom >random.raw
shim="$builddir/tests/.libs/shim.so"
if [ -e "$shim" ] && ! grep -q enable-asan "$builddir/config.log"; then
    came=0
    for n in 3 5 8; do
        r=0
        SHIM_FAULT=1:95:$n SHIM_REPORT="$tmp/report" LD_PRELOAD=$shim \
            "$builddir/tests/ops/imgop" convert -j 1 raw:random.raw qcow2:- >out 2>err || r=$?
        case $(cat report) in 0) continue ;; esac
        came=$((came + 1))
        [ $r = 1 ] && [ $(stat -c %s out) -lt 9000000 ] ||
            die "read $n fails: $r, $(stat -c %s out) bytes: $(cat err)"
    done
    [ $came -ge 2 ] || die 'no fault came'
fi

# A mebibyte here and there on 1 TiB, in little memory.
truncate -s 1T big.raw
for g in 0 1 300 777 1023; do
    head -c 1M /dev/urandom | dd of=big.raw bs=1M seek=$((g * 1024 + 5)) conv=notrunc status=none
done
python3 - "$builddir/vimg" <<'EOF' || die 'the memory it takes'
import resource, subprocess, sys
sanitized = "enable-asan" in open(sys.argv[1][:-4] + "config.log").read()
p = subprocess.Popen([sys.argv[1], "convert", "-f", "raw", "-O", "qcow2",
                      "big.raw", "-"], stdout=open("out", "wb"))
p.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(used, "KiB")
sys.exit(p.returncode or (not sanitized and used > 64 << 10))
EOF
good '1 TiB' raw big.raw

# Whoever wants no more is heard while the maps are walked, and when what was
# made in a file is sent.
"$builddir/tests/ops/imgop" convert -x 0 raw:big.raw qcow2:- >out 2>err && die 'stop at once'
[ ! -s out ] && grep -q 'Stopped on request' err || die "stop at once: $(cat err)"
for f in 'qcow2 -S 4096' vdi; do
    r=0
    "$builddir/tests/ops/imgop" convert -x 8388608 ${f#"${f%% *}"} raw:random.raw ${f%% *}:- >out 2>err || r=$?
    [ $r = 3 ] && [ ! -s out ] || die "stop, $f: $r $(cat err)"
done
