#!/bin/bash
# VMDK both ways: what we write QEMU, 7z and libvmdk read, what QEMU writes we
# read and write in place; resizing, overlays, descriptors, streams.
. ./tests/functions.sh
need vimg qemu-img qemu-io python3 cmp
cd "$tmp"
quiet() { "$@" >log 2>&1 || { cat log >&2; die "$*"; }; }
fails() { if "$@" >log 2>&1; then die "should fail: $*"; fi; }
same() { quiet qemu-img compare -f vmdk -F raw "$1" "$2"; }
clean() { quiet vimg check -f vmdk "$1"; quiet qemu-img check -f vmdk "$1"; }

python3 - <<'P'
import random
random.seed(5)
n = 66 * 1024 * 1024 + 37 * 512
f = open('src.raw', 'wb')
f.truncate(n)
for i in range(40):
    o = random.randrange(0, n - 200000)
    f.seek(o)
    f.write(random.randbytes(random.randrange(1, 100000)))
for i in range(20):
    f.seek(random.randrange(0, n - 200000))
    f.write(b'abc' * random.randrange(1, 30000))
f.seek(n - 100)
f.write(b'x' * 100)
P
cp src.raw io.raw
quiet qemu-io -f raw -c 'write -q -P 7 100000 300000' \
	-c 'write -q -z 200000 70000' -c 'write -q -P 9 69200000 50' io.raw

# Every sub-format and option, in both directions.
for s in subformat=monolithicSparse subformat=monolithicFlat \
	subformat=twoGbMaxExtentSparse subformat=twoGbMaxExtentFlat \
	subformat=streamOptimized zeroed_grain=on compat6=on \
	adapter_type=lsilogic hwversion=13,toolsversion=9 \
	subformat=twoGbMaxExtentSparse,zeroed_grain=on; do
	rm -f x* y*
	quiet vimg convert -f raw -O vmdk -o $s src.raw x.vmdk
	same x.vmdk src.raw
	clean x.vmdk
	quiet qemu-img convert -f raw -O vmdk -o $s src.raw y.vmdk
	quiet vimg compare -f vmdk -F raw y.vmdk src.raw
	clean y.vmdk
	[ $s = subformat=streamOptimized ] && continue
	# We write into QEMU's image, QEMU into ours.
	quiet vimg convert -n -f raw -O vmdk io.raw y.vmdk
	same y.vmdk io.raw
	clean y.vmdk
	quiet qemu-io -f vmdk -c 'write -q -P 7 100000 300000' \
		-c 'write -q -z 200000 70000' -c 'write -q -P 9 69200000 50' \
		x.vmdk
	quiet vimg compare -f vmdk -F raw x.vmdk io.raw
	clean x.vmdk
done

# What QEMU reads but does not make.
for s in vmfs vmfsSparse; do
	rm -f x*
	quiet vimg convert -f raw -O vmdk -o subformat=$s src.raw x.vmdk
	same x.vmdk src.raw
	clean x.vmdk
done

# The same command, the same bytes; a given identity is kept.
quiet vimg create -f vmdk -o cid=1234,uuid=428fbafb-8694-4ee2-9ce8-333d77f90140 a.vmdk 1G
cp a.vmdk b.vmdk
quiet vimg create -f vmdk -o cid=1234,uuid=428fbafb-8694-4ee2-9ce8-333d77f90140 a.vmdk 1G
cmp a.vmdk b.vmdk || die "create is not reproducible"
quiet vimg info --output=json a.vmdk
grep -q '"cid": 4660' log || die "cid"
grep -q '42 8f ba fb 86 94 4e e2-9c e8 33 3d 77 f9 01 40' log || die "uuid"

# The descriptor is QEMU's but for the content ID.
quiet qemu-img create -f vmdk a.vmdk 1G
for f in a b; do
	dd if=$f.vmdk bs=512 skip=1 count=20 status=none | tr -d '\0' |
		grep -v -e ^CID -e uuid -e SPARSE >$f.text
done
cmp a.text b.text || die "descriptors differ"

# info has QEMU's keys with QEMU's values.
quiet vimg convert -f raw -O vmdk -o subformat=twoGbMaxExtentSparse src.raw x.vmdk
qemu-img info --output=json x.vmdk >q.json
vimg info --output=json -f vmdk x.vmdk >v.json
python3 - <<'P' || die "info differs from qemu-img's"
import json, sys
q = json.load(open('q.json'))['format-specific']['data']
v = json.load(open('v.json'))['format-specific']['data']
for k in q:
    if k != 'extents' and q[k] != v[k]:
        sys.exit(k)
for a, b in zip(q['extents'], v['extents']):
    for k in a:
        if a[k] != b[k]:
            sys.exit(f"{k}: {a[k]} {b[k]}")
P

# Streams: to a pipe, and read by others.
vimg convert -f raw -O vmdk -o subformat=streamOptimized src.raw - >pipe.vmdk ||
	die "stream to a pipe"
same pipe.vmdk src.raw
clean pipe.vmdk
quiet vimg compare -f vmdk -F raw pipe.vmdk src.raw
truncate -s -512 pipe.vmdk
fails vimg compare -f vmdk -F raw pipe.vmdk src.raw
grep -q 'cut off' log || die "a cut stream is not named"
# A sub-format of one file goes to a pipe too; one of several does not, and
# says so before a byte is written.
vimg convert -f raw -O vmdk src.raw - >pipe.vmdk || die "sparse to a pipe"
same pipe.vmdk src.raw
for s in monolithicFlat twoGbMaxExtentSparse twoGbMaxExtentFlat vmfs \
	vmfsSparse; do
	fails vimg convert -f raw -O vmdk -o subformat=$s src.raw - 
	grep -q 'more than one file' log || die "$s to a pipe: $(cat log)"
	[ "$(vimg convert -f raw -O vmdk -o subformat=$s src.raw - 2>log | wc -c)" = 0 ] ||
		die "$s to a pipe: a part of it"
done
rm -f s.vmdk
quiet vimg convert -f raw -O vmdk -o subformat=streamOptimized src.raw s.vmdk
if command -v 7z >/dev/null; then
	quiet 7z x -y -so s.vmdk
	7z x -y -so s.vmdk 2>/dev/null | cmp - src.raw || die "7z reads a stream otherwise"
	rm -f m.vmdk
	quiet vimg convert -f raw -O vmdk src.raw m.vmdk
	7z x -y -so m.vmdk 2>/dev/null | cmp - src.raw || die "7z reads sparse otherwise"
fi
if command -v vmdkinfo >/dev/null; then
	quiet vmdkinfo s.vmdk
	grep -q 'Stream optimized' log || die "vmdkinfo"
	for s in monolithicSparse twoGbMaxExtentSparse monolithicFlat; do
		rm -f v*.vmdk
		quiet vimg convert -f raw -O vmdk -o subformat=$s src.raw v.vmdk
		quiet vmdkinfo v.vmdk
	done
fi
fails vimg resize -f vmdk s.vmdk 1G

# Resizing: within the directory's sector, beyond it, back, and forth again.
cp src.raw g.raw
rm -f g.vmdk
quiet qemu-img convert -f raw -O vmdk src.raw g.vmdk
for size in 67M 200M 6G 69206016 68M 300M; do
	case $size in 69206016 | 68M) shrink=--shrink ;; *) shrink= ;; esac
	quiet vimg resize $shrink -f vmdk g.vmdk $size
	quiet vimg resize $shrink -f raw g.raw $size
	same g.vmdk g.raw
	clean g.vmdk
done
quiet qemu-io -f vmdk -c 'write -q -P 5 250M 1M' g.vmdk
quiet qemu-io -f raw -c 'write -q -P 5 250M 1M' g.raw
quiet vimg compare -f vmdk -F raw g.vmdk g.raw
clean g.vmdk
rm -f f*.vmdk
quiet vimg convert -f raw -O vmdk -o subformat=monolithicFlat src.raw f.vmdk
cp src.raw g.raw
for size in 100M 68M; do
	quiet vimg resize --shrink -f vmdk f.vmdk $size
	quiet vimg resize --shrink -f raw g.raw $size
	same f.vmdk g.raw
done

# Overlays: the parent's content ID is recorded, and counts.
quiet vimg convert -f raw -O vmdk src.raw base.vmdk
quiet vimg create -f vmdk -b base.vmdk -F vmdk o.vmdk
quiet qemu-img compare -f vmdk -F raw o.vmdk src.raw
quiet qemu-io -f vmdk -c 'write -q -P 7 100000 300000' o.vmdk
quiet vimg convert -f vmdk -O raw o.vmdk o.raw
cp src.raw p.raw
quiet qemu-io -f raw -c 'write -q -P 7 100000 300000' p.raw
cmp o.raw p.raw || die "overlay"
quiet vimg create -f vmdk -b o.vmdk -F vmdk -o zeroed_grain=on o2.vmdk
quiet qemu-io -f vmdk -c 'write -q -z 0 1M' o2.vmdk
quiet qemu-io -f raw -c 'write -q -z 0 1M' p.raw
quiet vimg compare -f vmdk -F raw o2.vmdk p.raw
quiet vimg commit -f vmdk o2.vmdk
quiet vimg compare -f vmdk -F raw o.vmdk p.raw
quiet vimg compare -f vmdk -F raw o2.vmdk p.raw
same o2.vmdk p.raw
quiet vimg rebase -f vmdk -b base.vmdk -F vmdk o2.vmdk
quiet vimg compare -f vmdk -F raw o2.vmdk p.raw
same o2.vmdk p.raw
cp base.vmdk base.old
quiet vimg convert -n -f raw -O vmdk io.raw base.vmdk
fails vimg compare -f vmdk -F raw o.vmdk p.raw
grep -q 'parentCID' log || die "a changed base is not named"
fails qemu-img compare -f vmdk -F raw o.vmdk p.raw
quiet vimg rebase -u -f vmdk -b base.vmdk -F vmdk o.vmdk
quiet vimg info -f vmdk o.vmdk
fails vimg create -f vmdk -b src.raw -F raw bad.vmdk
fails vimg create -f vmdk -b base.vmdk -F vmdk -o subformat=monolithicFlat bad.vmdk
fails vimg create -f vmdk -o hwversion=4,compat6=on bad.vmdk 1M
fails vimg create -f vmdk -o adapter_type=foo bad.vmdk 1M

# On a block device, whose length does not say where the image ends.
truncate -s 100M dev.img
if [ "$(id -u)" = 0 ] && dev=$(losetup -f --show dev.img 2>log); then
	cleanup() { losetup -d "$dev" 2>/dev/null || :; }
	quiet vimg convert -f raw -O vmdk src.raw "$dev"
	same "$dev" src.raw
	clean "$dev"
	quiet vimg io -f vmdk -c 'write -P 7 100000 300000' \
		-c 'write -z 200000 70000' -c 'write -P 9 69200000 50' "$dev"
	quiet vimg compare -f vmdk -F raw "$dev" io.raw
	same "$dev" io.raw
	clean "$dev"
	quiet vimg resize -f vmdk "$dev" 6G
	quiet vimg resize --shrink -f vmdk "$dev" "$(stat -c %s io.raw)"
	same "$dev" io.raw
	clean "$dev"
	# A device as an extent, by a name in the folder.
	ln -s "$dev" dev-flat.vmdk
	printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 8 FLAT "dev-flat.vmdk" 0\n' >dev.vmdk
	fails vimg convert --no-sandbox -f vmdk -O raw dev.vmdk out.raw
	grep -q 'is a device' log || die "a device as an extent: $(cat log)"
	quiet vimg convert -O raw --image-opts driver=vmdk,file.filename=dev.vmdk,free-names=on out.raw
	cmp -n 4096 out.raw "$dev" || die "a device as an extent"
	rm dev.vmdk dev-flat.vmdk out.raw
	fails vimg convert -f raw -O vmdk -o subformat=streamOptimized src.raw "$dev"
	grep -q 'cannot be written to a device' log || die "a stream on a device"
	cleanup
	cleanup() { :; }
fi
rm -f dev.img

# A foreign descriptor keeps what we do not know.
rm -f k*
quiet vimg convert -f raw -O vmdk -o subformat=monolithicFlat src.raw k.vmdk
python3 - <<'P'
t = open('k.vmdk', 'rb').read()
t = t.replace(b'version=1\n', b'version=1\nencoding="GBK"\nodd=\xff\xfe\n')
t += b'ddb.longContentID = "d3e5471e615a8f7ad75b6f551c110279"\n# \xe9nd\n'
open('k.vmdk', 'wb').write(t)
P
quiet vimg amend -f vmdk -o uuid=428fbafb-8694-4ee2-9ce8-333d77f90140 k.vmdk
grep -aq 'ddb.uuid = "42 8f ba fb 86 94 4e e2-9c e8 33 3d 77 f9 01 40"' k.vmdk ||
	die "amend -o uuid="
quiet vimg info -f vmdk k.vmdk
grep -q 'uuid: 42 8f ba fb' log || die "uuid: $(cat log)"
cp k.vmdk k.before
quiet vimg amend -f vmdk -o adapter_type=lsilogic,ddb=comment=hello k.vmdk
grep -a -v -e adapterType -e comment k.vmdk | cmp - <(grep -a -v adapterType k.before) ||
	die "amend changed more than it should"
grep -aq 'ddb.comment = "hello"' k.vmdk || die "ddb entry"
quiet vimg convert -n -f raw -O vmdk io.raw k.vmdk
grep -a -v -e adapterType -e comment -e ^CID k.vmdk |
	cmp - <(grep -a -v -e adapterType -e ^CID k.before) || die "a write changed the descriptor"
if command -v strace >/dev/null && strace -f -qq -e trace=none true 2>/dev/null; then
	quiet env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -e signal=none -e trace=pwrite64,pwritev,fdatasync,fsync -o trace vimg io -f vmdk -c 'write -P 3 1M 64k' k.vmdk
	grep -v '= -1' trace | sed 's/^[0-9]* *\([a-z]*\).*/\1/' | head -2 | tr '\n' ' ' | grep -q '^pwritev\? f[a-z]* $' ||
		die "data before the content ID: $(head -3 trace)"
fi
cmp -s <(grep -a ^CID k.vmdk) <(grep -a ^CID k.before) && die "the content ID did not change"

# CVE-2022-47951: a descriptor that names a file outside its folder.
echo secret >secret
mkdir -p in
for n in "$tmp/secret" ../secret; do
	printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "%s" 0\n' "$n" >in/evil.vmdk
	fails vimg convert -f vmdk -O raw in/evil.vmdk out.raw
	grep -q 'not in the folder' log || die "name is not refused"
	[ ! -e out.raw ] || die "something was written"
	truncate -s 512 secret
	quiet vimg convert -O raw --image-opts driver=vmdk,file.filename=in/evil.vmdk,free-names=on out.raw
	cmp secret out.raw || die "free-names"
	rm out.raw
done

# Defaults for a product, and their check.
quiet vimg convert -f raw -O vmdk -o target=esxi src.raw t.vmdk
quiet vimg info -f vmdk t.vmdk
grep -q 'create type: streamOptimized' log || die "target=esxi"
grep -q 'adapterType: lsilogic' log || die "target=esxi"
for p in esxi workstation virtualbox; do
	rm -f t.vmdk u.vmdk
	quiet vimg convert -f raw --target $p -o uuid=derived src.raw t.vmdk
	same t.vmdk src.raw
	quiet vimg info -f vmdk t.vmdk
	case $p in
	esxi) says='streamOptimized lsilogic' ;;
	workstation) says='monolithicSparse lsilogic' ;;
	virtualbox) says='monolithicSparse ide' ;;
	esac
	grep -q "create type: ${says% *}" log && grep -q "adapterType: ${says#* }" log ||
		die "--target $p: $(cat log)"
	[ $p = esxi ] && continue       # a stream is only converted to
	quiet vimg create --target=$p u.vmdk 8M
	quiet vimg check -f vmdk u.vmdk
done
fails vimg convert -f raw --target nonsense src.raw t2.vmdk
fails vimg convert -f raw -O qcow2 --target esxi src.raw t2.vmdk
fails vimg convert -f raw --target virtualbox -o zeroed_grain=on src.raw t2.vmdk
fails vimg convert -f raw --target esxi -o subformat=vmfsSparse src.raw t2.vmdk
fails vimg create -f vmdk -o target=esxi,subformat=twoGbMaxExtentSparse t2.vmdk 1M

# Several extents of one file: written beside each other, never over each
# other; thousands are looked at as fast as one.
parts() { # name, lines...
	name=$1; shift
	printf '%s\n' '# Disk DescriptorFile' version=1 CID=12345678 \
		parentCID=ffffffff 'createType="monolithicFlat"' "$@" >"$name"
}
truncate -s 4M parts.bin
parts two.vmdk 'RW 2048 FLAT "parts.bin" 2048' 'RW 2048 FLAT "parts.bin" 0'
quiet vimg io -f vmdk -c 'write -P 7 512k 1M' two.vmdk
quiet vimg io -f raw -r -c 'read -P 7 0 512k' -c 'read -P 7 1536k 512k' \
	-c 'read -P 0 512k 1M' -c 'read -P 0 2M 2M' parts.bin
parts over.vmdk 'RW 2048 FLAT "parts.bin" 1024' 'RW 2048 FLAT "parts.bin" 0'
fails vimg io -f vmdk -c 'write 0 512' over.vmdk
quiet vimg info -f vmdk over.vmdk
parts many.vmdk $(yes 'RW_2_FLAT_"parts.bin"_0' | head -n 5000)
tr _ ' ' <many.vmdk >spaced.vmdk
(ulimit -t 10; quiet vimg info -f vmdk spaced.vmdk)

# Images of VMware, VirtualBox and QEMU, with known content.
if [ -e "$shared/MANIFEST.tsv" ]; then
	grep '	vmdk	' "$shared/MANIFEST.tsv" | cut -f1,5 |
		while IFS='	' read -r name hash; do
		xz -dkc "$shared/$name.xz" >"$name"
		case $hash in
		must*) fails vimg convert -f vmdk -O raw "$name" out.raw
		       fails vimg info -f vmdk "$name" ;;
		*) quiet vimg convert -f vmdk -O raw "$name" out.raw
		   sha256sum out.raw | grep -q "^$hash" || die "$name"
		   quiet vimg check -f vmdk "$name"
		   for o in qcow2 vdi vmdk; do
			quiet vimg convert -f vmdk -O $o "$name" back.$o
			quiet vimg compare -f $o -F raw back.$o out.raw
		   done ;;
		esac
	done
	# The fuzzer's find again, with the line ends mended: still refused.
	printf '\n \r\n' | dd of=bad-fuzzed-l1.vmdk bs=1 seek=73 conv=notrunc status=none
	fails vimg info -f vmdk bad-fuzzed-l1.vmdk
fi
