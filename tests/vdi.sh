#!/bin/bash
# VDI and qcow version 1 both ways: what we write QEMU reads and checks, what
# QEMU writes we read and write in place, and QEMU reads it again.
. ./tests/functions.sh
need vimg qemu-img qemu-io python3 cmp
cd "$tmp"
quiet() { "$@" >log 2>&1 || { cat log >&2; die "$*"; }; }
fails() { if "$@" >log 2>&1; then die "should fail: $*"; fi; }
says() { grep -q "$1" log || { cat log >&2; die "does not say: $1"; }; }
same() { quiet qemu-img compare -f "$1" -F raw "$2" "$3"; }
clean() {
	quiet vimg check -f "$1" "$2"
	[ "$1" = qcow ] || quiet qemu-img check -f "$1" "$2"
}

python3 - <<'P'
import random
random.seed(11)
n = 37 * 1024 * 1024 + 21 * 512
f = open('src.raw', 'wb')
f.truncate(n)
for i in range(40):
    f.seek(random.randrange(0, n - 200000))
    f.write(random.randbytes(random.randrange(1, 100000)))
for i in range(20):
    f.seek(random.randrange(0, n - 200000))
    f.write(b'abc' * random.randrange(1, 30000))
f.seek(n - 100)
f.write(b'x' * 100)
P
writes="-c 'write -q -P 7 100000 300000' -c 'write -q -z 200000 70000'
	-c 'write -q -P 9 38800000 50' -c 'write -q -P 3 20000000 1000'"
cp src.raw io.raw
eval quiet qemu-io -f raw $writes io.raw

for f in vdi vdi,static=on qcow; do
	o=${f#*,} f=${f%,*}
	[ "$o" = "$f" ] && o= || o="-o $o"
	rm -f x y
	quiet vimg convert -f raw -O $f $o src.raw x
	same $f x src.raw
	clean $f x
	quiet qemu-img convert -f raw -O $f $o src.raw y
	quiet vimg compare -f $f -F raw y src.raw
	clean $f y
	# We write into QEMU's image, QEMU into ours; then all over again.
	quiet vimg convert -n -f raw -O $f io.raw y
	same $f y io.raw
	clean $f y
	eval quiet qemu-io -f $f $writes x
	quiet vimg compare -f $f -F raw x io.raw
	clean $f x
	quiet vimg convert -n -f raw -O $f src.raw x
	same $f x src.raw
	# Maps say the same, in both images.
	for i in x y; do
		vimg map -f $f $i >ours
		qemu-img map -f $f $i >theirs
		cmp ours theirs || die "map of $f $o"
	done
	# To every other format and back.
	for g in raw qcow2 qcow vdi vmdk; do
		rm -f z w
		quiet vimg convert -f $f -O $g x z
		quiet vimg convert -f $g -O $f $o z w
		same $f w src.raw
	done
	fails vimg convert -c -f raw -O vdi src.raw z
done

# Compressed clusters, ours and QEMU's, read and written over.
quiet vimg convert -c -f raw -O qcow src.raw x
same qcow x src.raw
clean qcow x
[ "$(stat -c %s x)" -lt "$(stat -c %s src.raw)" ] || die "not compressed"
# QEMU 7.2 makes the image, and then exits with 1 and without a word.
qemu-img convert -c -f raw -O qcow src.raw y || [ -s y ]
quiet vimg compare -f qcow -F raw y src.raw
for i in x y; do
	quiet vimg convert -n -f raw -O qcow io.raw $i
	same qcow $i io.raw
	clean qcow $i
done

# Overlays of qcow: QEMU's over ours and the other way round.
quiet qemu-img create -f qcow -b src.raw -F raw x
quiet vimg create -f qcow -b src.raw -F raw y
cmp x y || die "create -f qcow with a backing file differs from QEMU's"
eval quiet qemu-io -f qcow $writes y
quiet vimg compare -f qcow -F raw y io.raw
quiet vimg convert -n -f raw -O qcow io.raw x
same qcow x io.raw
quiet vimg rebase -f qcow -b '' x
same qcow x io.raw
fails qemu-img info --backing-chain nothing
quiet vimg commit -f qcow y
cmp src.raw io.raw || die "commit"
clean qcow y
fails vimg create -f qcow -o encryption=on z 1M
says ncrypted

# Resizing, with a map that has to move: QEMU leaves no room behind it.
quiet qemu-img convert -f raw -O vdi src.raw x
cp src.raw r.raw
for s in 300M 8M 70000K 1000M 6M; do
	quiet vimg resize --shrink -f raw r.raw $s
	quiet vimg resize --shrink -f vdi x $s
	same vdi x r.raw
	clean vdi x
done

# Blocks of zeros go back to the file system.
quiet qemu-img create -f vdi x 30M
quiet qemu-io -f vdi -c 'write -q -P 1 0 30M' -c 'write -q -P 0 5M 20M' x
quiet qemu-img convert -f vdi -O raw x r.raw
quiet vimg amend -f vdi -o compact=on x
same vdi x r.raw
clean vdi x
[ "$(stat -c %s x)" -lt 11000000 ] || die "compact left $(stat -c %s x) bytes"

# A differencing image: QEMU has none, but we read what is below by it.
quiet vimg create -f vdi -o uuid=01234567-89ab-cdef-0123-456789abcdef b.vdi 4M
quiet vimg create -f vdi -b b.vdi -F vdi d.vdi
quiet vimg info d.vdi
says "parent uuid: 01234567-89ab-cdef-0123-456789abcdef"
quiet vimg info --backing-chain d.vdi
says "backing file: b.vdi"
says "parent uuid: 01234567-89ab-cdef-0123-456789abcdef"
# The UUIDs in JSON, and set by amend; every one can be given.
quiet vimg amend -f vdi -o uuid=76543210-89ab-cdef-0123-456789abcdef d.vdi
quiet vimg info --output=json -f vdi d.vdi
python3 - <<'P' || die "info --output=json: $(cat log)"
import json
d = json.load(open('log'))['format-specific']['data']
assert d['uuid'] == '76543210-89ab-cdef-0123-456789abcdef'
assert d['parent-uuid'] == '01234567-89ab-cdef-0123-456789abcdef'
assert len(d['modification-uuid']) == 36
P
# The modification UUID is on the disk before the first byte that changes.
if command -v strace >/dev/null && strace -f -qq -e trace=none true 2>/dev/null; then
	for i in d.vdi b.vdi; do
		quiet env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -e signal=none -e trace=pwrite64,pwritev,fdatasync,fsync -o trace vimg io -f vdi -c 'write -P 3 1M 64k' $i
		grep -v '= -1' trace | sed 's/^[0-9]* *\([a-z]*\).*/\1/' | head -2 | tr '\n' ' ' | grep -q '^pwritev\? f[a-z]* $' ||
			die "order of $i: $(head -3 trace)"
	done
	quiet vimg create -f vdi -b b.vdi -F vdi -o uuid=76543210-89ab-cdef-0123-456789abcdef d.vdi
fi
# What measure says is enough, and not much more.
for o in "vdi" "vdi -o static=on" "vdi -o block_size=64k" "vmdk" "qcow"; do
	rm -f z
	quiet vimg measure -f raw -O $o src.raw
	need=$(sed -n 's/^required size: //p' log)
	quiet vimg convert -f raw -O $o src.raw z
	has=$(stat -c %s z)
	[ "$has" -le "$need" ] && [ "$need" -le $((has + 200000)) ] ||
		die "measure -O $o: $need, but $has"
done
mv b.vdi b.img
fails vimg convert -O raw d.vdi z
says 01234567-89ab-cdef-0123-456789abcdef
mv b.img b.vdi
# The same input and UUID make the same file.
for i in x y; do
	quiet vimg convert -f raw -O vdi -o uuid=01234567-89ab-cdef-0123-456789abcdef \
		src.raw $i.vdi
done
cmp x.vdi y.vdi
