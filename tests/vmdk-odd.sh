#!/bin/bash
# Odd VMDK images that a descriptor or a header can describe: extents that
# share a file, other kinds of extents beside each other, odd names, headers
# that claim too much.  Nothing outside of what was asked for may change.
. ./tests/functions.sh
need qemu-img qemu-io python3
cd "$tmp"
quiet() { "$@" >log 2>&1 || { cat log >&2; die "$*"; }; }
fails() { if "$@" >log 2>&1; then die "should fail: $*"; fi; }
says() { grep -q -e "$1" log || { cat log >&2; die "other words than $1"; }; }
same() { quiet vimg compare -f vmdk -F raw "$1" "$2"; }
both() { same "$@"; quiet qemu-img compare -f vmdk -F raw "$1" "$2"; }
# descriptor NAME CREATETYPE LINE...
descriptor() {
	local name=$1 type=$2
	shift 2
	printf '# Disk DescriptorFile\nversion=1\nCID=11223344\nparentCID=ffffffff\ncreateType="%s"\n# Extents\n' "$type" >"$name"
	printf '%s\n' "$@" >>"$name"
	printf 'ddb.adapterType = "ide"\n' >>"$name"
}
fill() { # fill FILE SIZE SEED
	python3 - "$@" <<'P'
import random, sys
open(sys.argv[1], 'wb').write(random.Random(int(sys.argv[3])).randbytes(int(sys.argv[2])))
P
}
M=1048576

# Extents of a split disk that lie in one file: what goes is the extent, the
# file stays as long as another one is in it.
fill x0.bin $((2 * M)) 1
fill y0.bin $((2 * M)) 2
row() { # row SIZE LINE...: shrunk to SIZE
	local size=$1
	shift
	rm -f x.bin y.bin d.vmdk
	cp x0.bin x.bin
	cp y0.bin y.bin
	descriptor d.vmdk twoGbMaxExtentFlat "$@"
	quiet vimg convert -f vmdk -O raw d.vmdk d.raw
	quiet vimg resize --shrink -f vmdk d.vmdk "$size"
	truncate -s "$size" d.raw
	both d.vmdk d.raw
	quiet vimg check -f vmdk d.vmdk
}
row 1536K 'RW 2048 FLAT "x.bin" 0' 'RW 2048 FLAT "y.bin" 0' 'RW 2048 FLAT "x.bin" 2048'
cmp x.bin x0.bin || die "the other part of a shared file"
row 2560K 'RW 2048 FLAT "x.bin" 0' 'RW 2048 FLAT "y.bin" 0' 'RW 2048 FLAT "x.bin" 2048'
row 512K 'RW 2048 FLAT "x.bin" 0' 'RW 2048 FLAT "x.bin" 2048'
row 512K 'RW 2048 FLAT "x.bin" 2048' 'RW 2048 FLAT "x.bin" 0' 'RW 4096 FLAT "y.bin" 0'
[ ! -e y.bin ] || die "an extent's own file stays"
row 1M 'RW 2048 FLAT "x.bin" 2048' 'RW 2048 FLAT "y.bin" 0' 'RW 2048 FLAT "y.bin" 2048' 'RW 2048 FLAT "x.bin" 0'
cmp x.bin x0.bin && cmp y.bin y0.bin || die "files that nobody asked to change"
row 1M 'RW 2048 FLAT "x.bin" 0' 'RW 8 ZERO' 'RW 2048 FLAT "x.bin" 2048'
row $((M + 2048)) 'RW 2048 FLAT "x.bin" 0' 'RW 8 ZERO' 'RW 2048 FLAT "x.bin" 2048'
cmp x.bin x0.bin || die "zeros have no file to cut"
# The end of the file is another's.
descriptor d.vmdk twoGbMaxExtentFlat 'RW 2048 FLAT "x.bin" 2048' 'RW 2048 FLAT "x.bin" 0'
fails vimg resize -f vmdk d.vmdk 4M
says 'another extent lies behind'
fails vimg resize -f vmdk d.vmdk 5G
says 'another extent lies behind'
cmp x.bin x0.bin || die "a refusal changed a file"
quiet vimg resize --shrink -f vmdk d.vmdk 1536K
cmp x.bin x0.bin || die "the other extent's bytes"
# Through another name of the same file.
cp x0.bin x.bin
descriptor d.vmdk monolithicFlat 'RW 3072 FLAT "x.bin" 0' 'RW 2048 FLAT "./x.bin" 2048'
fails vimg io -f vmdk -c 'write 0 512' d.vmdk
cmp x.bin x0.bin

# A last extent that stays has to be one that can become shorter.
quiet vimg create -f vmdk -o subformat=vmfsSparse c.vmdk 4M
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentSparse s.vmdk 4M
quiet vimg io -f vmdk -c 'write -P 5 1M 64k' c.vmdk
descriptor d.vmdk twoGbMaxExtentSparse 'RW 8192 VMFSSPARSE "c-delta.vmdk"' 'RW 8192 SPARSE "s-s001.vmdk"'
cp c-delta.vmdk c0; cp d.vmdk d0
fails vimg resize --shrink -f vmdk d.vmdk 3M
says 'cannot be resized'
cmp c-delta.vmdk c0 && cmp d.vmdk d0 || die "a refusal changed a file"
quiet vimg resize --shrink -f vmdk d.vmdk 4M
quiet vimg io -f vmdk -c 'read -P 5 1M 64k' -c 'read -P 0 2M 2M' d.vmdk
! grep failed log || die "not what was written"
[ ! -e s-s001.vmdk ] || die "its file stays"
cp x0.bin x.bin
cp y0.bin y.bin
descriptor d.vmdk twoGbMaxExtentFlat 'RDONLY 4096 FLAT "x.bin" 0' 'RW 4096 FLAT "y.bin" 0'
cp d.vmdk d0
fails vimg resize --shrink -f vmdk d.vmdk 1M
says 'not for writing'
cmp d.vmdk d0 && cmp x.bin x0.bin && cmp y.bin y0.bin || die "a refusal changed a file"
quiet vimg resize --shrink -f vmdk d.vmdk 2M
cmp x.bin x0.bin && [ ! -e y.bin ] || die "RDONLY stays whole"
rm -f ./*

# Odd names.
i=0
for n in 'a b.vmdk' "it's (1).vmdk" '100%s%n.vmdk' 'x-s001.vmdk' '.vmdk' 'noend' '-f.vmdk' $'\xff\xfe.vmdk' 'a.b-s9.vmdk' 'a;$(x)`.vmdk'; do
	for s in Sparse Flat; do
		i=$((i + 1))
		[ $s = Sparse ] || [ $((i % 3)) = 1 ] || continue
		mkdir "$i.s001"
		cd "$i.s001"
		quiet vimg create -f vmdk -o subformat=twoGbMaxExtent$s "./$n" 1G
		quiet vimg io -f vmdk -c 'write -P 7 1000M 1M' "./$n"
		quiet vimg resize -f vmdk "./$n" 5G
		quiet vimg io -f vmdk -c 'write -P 8 4999M 2M' "./$n"
		quiet vimg check -f vmdk "./$n"
		quiet qemu-img info -f vmdk "./$n"
		truncate -s 5G r.raw
		quiet vimg io -f raw -c 'write -P 7 1000M 1M' -c 'write -P 8 4999M 2M' r.raw
		same "./$n" r.raw
		rm log
		[ "$(ls -A | wc -l)" = 5 ] || die "$n: $(ls -A)"
		quiet vimg resize --shrink -f vmdk "./$n" 1G
		truncate -s 1G r.raw
		same "./$n" r.raw
		rm log
		[ "$(ls -A | wc -l)" = 3 ] || die "$n: $(ls -A)"
		cd ..
		rm -r "$i.s001"
	done
done
# Names that a descriptor cannot hold: refused before anything is there.
for n in 'a"b.vmdk' $'a\nb.vmdk' $'a\rb.vmdk'; do
	fails vimg create -f vmdk -o subformat=twoGbMaxExtentFlat "$n" 1G
	says 'cannot hold'
done
mkdir f
cd f
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentFlat d.vmdk 1G
mv d-f001.vmdk one.bin
sed -i 's/d-f001.vmdk/one.bin/' d.vmdk
mv d.vmdk 'd"e.vmdk'
fails vimg resize -f vmdk 'd"e.vmdk' 5G
says 'cannot hold'
rm log
[ "$(ls | wc -l)" = 2 ] && [ "$(stat -c %s one.bin)" = 1073741824 ] || die "left behind: $(ls -l)"
# An extent below the descriptor's folder has its neighbours there; digits
# that are no number of an extent are none.
mv 'd"e.vmdk' d.vmdk
mkdir sub
mv one.bin sub/n-f0001.bin
sed -i 's,one.bin,sub/n-f0001.bin,' d.vmdk
quiet vimg resize -f vmdk d.vmdk 3G
[ "$(stat -c %s sub/n-f0002.bin)" = 1073741824 ] || die "$(ls -R)"
mv sub/n-f0002.bin sub/nf02.bin
sed -i 's,n-f0002,nf02,' d.vmdk
quiet vimg resize -f vmdk d.vmdk 6G
[ "$(stat -c %s d-f001.vmdk)" = 2147483648 ] || die "$(ls -R)"
cd ..
rm -r f

# What a header calls the descriptor's room may be more than that: what lies
# there is not written over.
quiet vimg create -f vmdk r.vmdk 64M
quiet vimg io -f vmdk -c 'write -P 3 1M 4M' r.vmdk
python3 - <<'P'
with open('r.vmdk', 'r+b') as f:
    f.seek(36)
    f.write((400).to_bytes(8, 'little'))
P
quiet vimg io -f vmdk -c 'write -P 4 2M 64k' r.vmdk
quiet vimg io -f vmdk -c 'read -P 3 1M 1M' -c 'read -P 4 2M 64k' -c 'read -P 0 5M 59M' r.vmdk
! grep failed log || die "the first write has overwritten tables"
quiet vimg amend -f vmdk -o ddb=note=$(printf %09000d 0) r.vmdk
fails vimg amend -f vmdk -o ddb=more=$(printf %02000d 0) r.vmdk
says 'something else begins'
quiet vimg io -f vmdk -c 'read -P 3 1M 1M' -c 'read -P 4 2M 64k' -c 'read -P 0 5M 59M' r.vmdk
! grep failed log || die "a long descriptor has overwritten tables"
quiet qemu-io -f vmdk -r -c 'read -P 3 1M 1M' r.vmdk

# QEMU writes a shorter content ID and leaves the end of the longer text behind
# the new one's NUL.  The next first write needs that room again.
quiet vimg create -f vmdk -o cid=12345678 q.vmdk 1M
python3 - <<'P'
with open('q.vmdk', 'r+b') as f:
    f.seek(512)
    old = f.read(10240)
    text = old[:old.index(0)]
    new = text.replace(b'CID=12345678', b'CID=12345', 1)
    f.seek(512)
    f.write(new + b'\0' + old[len(new) + 1:])
P
quiet vimg io -f vmdk -c 'write -P 4 0 64k' q.vmdk
! grep -q failed log || die "what QEMU leaves behind a shorter content ID"
quiet qemu-io -f vmdk -r -c 'read -P 4 0 64k' q.vmdk
! grep -q failed log || die "what QEMU leaves behind a shorter content ID"

# Content IDs are hexadecimal digits and nothing else.
for v in -1 +1 0x12 ' 12' '12 ' 123456789 g; do
	fails vimg create -f vmdk -o "cid=$v" n.vmdk 1M
	says 'hexadecimal'
	fails vimg create -f vmdk -o "parent_cid=$v" n.vmdk 1M
	fails vimg amend -f vmdk -o "cid=$v" r.vmdk
	says 'hexadecimal'
done

# Resizing what is odd: no geometry to follow, files longer than their extents,
# a disk of nothing, an end that is zeros, descriptors that cannot be replaced.
rm -f ./*
fill x0.bin $((2 * M)) 3
grown() { # grown OLD NEW LINE...: what comes is zeros, what was there stays
	local old=$1 new=$2
	shift 2
	rm -f x.bin d.vmdk
	cp x0.bin x.bin
	descriptor d.vmdk monolithicFlat "$@"
	quiet vimg convert -f vmdk -O raw d.vmdk d.raw
	[ "$(stat -c %s d.raw)" = "$old" ] || die "size before: $(stat -c %s d.raw)"
	quiet vimg resize -f vmdk d.vmdk "$new"
	truncate -s "$new" d.raw
	both d.vmdk d.raw
}
grown $M 1536K 'RW 2048 FLAT "x.bin" 0'
grown $M 3M 'RW 2048 FLAT "x.bin" 0'
grown $((M / 2)) 3M 'RW 1024 FLAT "x.bin" 512'
grown $((M + 4096)) 3M 'RW 2048 FLAT "x.bin" 0' 'RW 8 ZERO'
cmp x.bin x0.bin || die "zeros that grow are nobody's bytes"
descriptor d.vmdk monolithicFlat 'RW 4096 FLAT "x.bin" 0'
for p in full falloc; do
	cp x0.bin x.bin
	sed -i 's/^RW [0-9]*/RW 4096/' d.vmdk
	quiet vimg resize -f vmdk --preallocation=$p d.vmdk 4M
	[ "$(stat -c %b x.bin)" -ge 8192 ] || die "--preallocation=$p: $(stat -c %b x.bin) blocks"
	cp x0.bin d.raw
	truncate -s 4M d.raw
	both d.vmdk d.raw
done
fails vimg resize -f vmdk d.vmdk 5000001
says 'whole sectors'
fails vimg resize -f vmdk d.vmdk 8E
fails vimg resize -f vmdk --preallocation=metadata d.vmdk 8M
says 'no metadata'
descriptor e.vmdk custom 'RW 4096 FLAT "x.bin" 0' 'RW 8 ZERO'
fails vimg resize --shrink -f vmdk e.vmdk 1M
says 'only its last extent, from 2097152'
descriptor e.vmdk custom 'RW 8 ZERO' 'RDONLY 4096 FLAT "x.bin" 0'
fails vimg resize -f vmdk e.vmdk 4M
says 'not for writing'
quiet vimg create -f vmdk -o subformat=vmfsSparse c.vmdk 4M
fails vimg resize -f vmdk c.vmdk 8M
says 'cannot be resized'
quiet vimg create -f vmdk z.vmdk 0
quiet vimg resize -f vmdk z.vmdk 5M
quiet vimg io -f vmdk -c 'write -P 6 4M 1M' z.vmdk
fails vimg resize -f vmdk --preallocation=full z.vmdk 8M
says 'no preallocation'
quiet vimg resize --shrink -f vmdk z.vmdk 512
quiet vimg resize -f vmdk z.vmdk 5M
quiet vimg check -f vmdk z.vmdk
truncate -s 0 d.raw
truncate -s 5M d.raw
both z.vmdk d.raw
fails vimg resize -f vmdk z.vmdk 4E
says 'too many'
# Geometry: followed where it is one.
grep -aq 'cylinders = "10"' z.vmdk || die "cylinders: $(grep -a cylinders z.vmdk)"
for g in 'heads = "0"' 'sectors = "x"' 'heads = "70000"' 'sectors = "99999999999"'; do
	cp z.vmdk g.vmdk
	quiet vimg amend -f vmdk -o "ddb=geometry.${g%% =*}=$(echo "${g#*= }" | tr -d '"')" g.vmdk
	quiet vimg resize -f vmdk g.vmdk 50M
	grep -aq 'cylinders = "10"' g.vmdk || die "$g: $(grep -a cylinders g.vmdk)"
done
quiet vimg resize -f vmdk z.vmdk 50M
grep -aq 'cylinders = "101"' z.vmdk || die "cylinders: $(grep -a cylinders z.vmdk)"
# An extent by itself, without a descriptor.
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentSparse s.vmdk 70M
quiet vimg io -f vmdk -c 'write -P 9 69M 1M' s.vmdk
quiet vimg resize -f vmdk s-s001.vmdk 200M
quiet vimg io -f vmdk -c 'read -P 9 69M 1M' -c 'read -P 0 70M 130M' s-s001.vmdk
! grep failed log || die "a bare extent grown"
quiet vimg resize --shrink -f vmdk s-s001.vmdk 69M
quiet vimg resize -f vmdk s-s001.vmdk 70M
quiet vimg io -f vmdk -c 'read -P 0 0 70M' s.vmdk
! grep failed log || die "a bare extent cut"
quiet vimg check -f vmdk s.vmdk

# What info says of each kind, and of extents that may not be opened.
quiet vimg info -f vmdk --output=json s.vmdk
says '"format": "SPARSE"'
quiet vimg info -f vmdk --output=json s-s001.vmdk
says '"create-type": ""'
quiet vimg info -f vmdk --allow-files=none --output=json s.vmdk
says '"filename": "s-s001.vmdk"'
quiet vimg info -f vmdk --output=json e.vmdk
says '"format": "ZERO"'
quiet vimg info -f vmdk --output=json z.vmdk
says '"adapterType": "ide"'

# Over a parent that is not opened, its ID is read from it.
quiet vimg create -f vmdk b.vmdk 5M
quiet vimg create -f vmdk -o subformat=monolithicFlat bf.vmdk 5M
for b in b bf; do
	quiet vimg create -u -f vmdk -b $b.vmdk -F vmdk o.vmdk 5M
	quiet vimg io -f vmdk -c 'write -P 0 0 64k' o.vmdk
	quiet vimg rebase -u -f vmdk -b '' o.vmdk
	quiet vimg rebase -u -f vmdk -b $b.vmdk -F vmdk o.vmdk
	quiet vimg compare -f vmdk -F vmdk o.vmdk $b.vmdk || die "its own parent"
done
fails vimg rebase -u -f vmdk -b x.bin -F vmdk o.vmdk
fails vimg create -u -f vmdk -b gone.vmdk -F vmdk n.vmdk 5M
says 'content ID of the backing file is needed'
quiet vimg create -u -f vmdk -b gone.vmdk -F vmdk -o parent_cid=77 n.vmdk 5M
grep -aq 'parentCID=00000077' n.vmdk || die "a given ID"
fails vimg create -f vmdk -o ddb=x n.vmdk 5M
says 'NAME=VALUE'
quiet vimg create -f vmdk -o ddb=note=7,ddb=more=8 n.vmdk 5M
grep -aq 'ddb.note = "7"' n.vmdk && grep -aq 'ddb.more = "8"' n.vmdk || die "ddb"
fails vimg create -f vmdk -o "ddb=note=$(printf %012000d 0)" n.vmdk 5M
says 'does not fit'
fails vimg create -f vmdk n.vmdk 4E
says 'too many'
