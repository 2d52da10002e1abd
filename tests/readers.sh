#!/bin/bash
# Second opinions: what we write, libvmdk, libqcow and 7-Zip read with the same
# hash.  libvmdk 20200926 and libqcow 20201213 know no zeroed grains, no
# subclusters, no zstd; libvmdk describes monolithicFlat (QEMU's too), but does
# not read it.
. ./tests/functions.sh
need vimg vmdkinfo vmdkmount qcowinfo qcowmount 7z python3 sha256sum fusermount
[ -w /dev/fuse ] || cannot "there is no /dev/fuse"
cd "$tmp"
mkdir mnt
cleanup() { fusermount -qu "$tmp/mnt" 2>/dev/null || :; }

python3 - <<'P'
import random
random.seed(17)
n = 12 * 1024 * 1024 + 3 * 512
f = open('src.raw', 'wb')
f.truncate(n)
for i in range(30):
    f.seek(random.randrange(0, n - 200000))
    if i % 3:
        f.write(random.randbytes(random.randrange(1, 100000)))
    else:
        f.write(b'abc' * random.randrange(1, 30000))
f.seek(n - 100)
f.write(b'x' * 100)
P
hash_of() { sha256sum <"$1"; }
want=$(hash_of src.raw)

# mounted TOOL IMAGE: what it shows has our hash.
mounted() {
	"$1" "$2" mnt >log 2>&1 || { cat log >&2; die "$1 $2 ($what)"; }
	# shellcheck disable=SC2012
	file=$(ls mnt | head -1)
	[ -n "$file" ] || die "$1 shows nothing of $2 ($what)"
	got=$(hash_of "mnt/$file")
	fusermount -u mnt
	[ "$got" = "$want" ] || die "$1 reads other bytes from $2 ($what)"
}
unpacked() {
	got=$(7z x -y -so "$1" 2>log | sha256sum)
	[ "$got" = "$want" ] || { cat log >&2; die "7z reads other bytes from $1 ($what)"; }
}

for what in subformat=monolithicSparse subformat=streamOptimized \
	subformat=monolithicFlat subformat=twoGbMaxExtentSparse \
	subformat=twoGbMaxExtentFlat subformat=vmfs subformat=vmfsSparse \
	target=workstation target=virtualbox; do
	rm -f v*.vmdk
	vimg convert -f raw -O vmdk -o $what src.raw v.vmdk
	vmdkinfo v.vmdk >log 2>&1 || { cat log >&2; die "vmdkinfo: $what"; }
	grep -q "Media size:.*($(stat -c %s src.raw) bytes)" log ||
		{ cat log >&2; die "vmdkinfo: size of $what"; }
	[ $what = subformat=monolithicFlat ] || mounted vmdkmount v.vmdk
	case $what in *Flat | *MaxExtent* | *vmfs*) ;; *) unpacked v.vmdk ;; esac
done
# A pipe has no name; libvmdk looks for the one that stands inside.
vimg convert -f raw -O vmdk -o subformat=streamOptimized src.raw - >disk.vmdk
what='stream to a pipe' mounted vmdkmount disk.vmdk
# Written in place, after it was made.
vimg create -q -f vmdk v.vmdk "$(stat -c %s src.raw)"
vimg convert -n -f raw -O vmdk src.raw v.vmdk
what='in place' mounted vmdkmount v.vmdk

for what in compat=1.1 compat=0.10 cluster_size=4k cluster_size=2M \
	refcount_bits=1 lazy_refcounts=on; do
	vimg convert -f raw -O qcow2 -o $what src.raw v.qcow2
	qcowinfo v.qcow2 >log 2>&1 || { cat log >&2; die "qcowinfo: $what"; }
	mounted qcowmount v.qcow2
	unpacked v.qcow2
done
vimg convert -c -f raw -O qcow2 src.raw v.qcow2
what='qcow2 -c'
mounted qcowmount v.qcow2
unpacked v.qcow2
for what in '' -c; do
	# shellcheck disable=SC2086
	vimg convert $what -f raw -O qcow src.raw v.qcow
	qcowinfo v.qcow >log 2>&1 || { cat log >&2; die "qcowinfo: qcow $what"; }
	mounted qcowmount v.qcow
done

for what in static=off static=on; do
	vimg convert -f raw -O vdi -o $what src.raw v.vdi
	unpacked v.vdi
done
