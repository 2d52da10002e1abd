#!/bin/bash
# What a file is: named in words where it is not what was expected, and never
# taken for raw then.
. ./tests/functions.sh
need vimg python3 cmp
cd "$tmp"
fails() { if "$@" >log 2>&1; then die "should fail: $*"; fi; }
says() { grep -qi -- "$1" log || { cat log >&2; die "does not say: $1"; }; }
probed() { vimg info "$1" | sed -n 's/^file format: //p'; }

# The beginnings (or ends) that the formats' own descriptions print.
python3 - <<'P'
import struct
def make(name, at, what, size=2 << 20):
    with open(name, 'wb') as f:
        f.truncate(size)
        for off, data in zip(at, what):
            f.seek(off if off >= 0 else size + off)
            f.write(data)
footer = b'conectix' + bytes(52)
make('dynamic.vhd', [0, -512], [footer + struct.pack('>I', 3)] * 2)
make('differencing.vhd', [0, -512], [footer + struct.pack('>I', 4)] * 2)
make('fixed.vhd', [-512], [footer + struct.pack('>I', 2)])
make('old.vhd', [-511], [footer + struct.pack('>I', 2)])
make('disk.vhdx', [0], [b'vhdxfile'])
make('disk.hdd', [0], [b'WithoutFreeSpace'])
make('disk.hds', [0], [b'WithouFreSpacExt'])
make('disk.qed', [0], [b'QED\0'])
make('disk.dmg', [-512], [b'koly' + struct.pack('>II', 4, 512)])
make('disk.luks', [0], [b'LUKS\xba\xbe\0\1'])
make('disk.iso', [0x8001], [b'CD001\1'])
# Two formats: all of VDI and a VMDK descriptor.
make('two.img', [0, 64], [b'# Disk DescriptorFile\nversion=1\n' + b'#' * 31,
                          struct.pack('<I', 0xbeda107f)])
make('zeros.img', [], [])
P

# Known by its end alone: raw where nobody says otherwise, with a warning.
is_raw() {
	local file=$1 words=$2

	[ "$(probed "$file" 2>log)" = raw ] || die "$file is $(probed "$file")"
	says "$words"
	vimg info -f raw "$file" 2>log >/dev/null
	[ ! -s log ] || die "a warning although the format is given"
	vimg convert -O qcow2 "$file" o.qcow2 2>log || die "$file to qcow2"
	says "$words"
	vimg compare -q -f qcow2 -F raw o.qcow2 "$file" || die "$file: qcow2"
	rm o.qcow2
	# But such a guess is not recorded.
	fails vimg create -f qcow2 -b "$file" o.qcow2
	says "$words"
	vimg create -q -f qcow2 o.qcow2 2M
	for how in 'rebase -u -b' 'rebase -b' 'amend -o'; do
		name=$file; [ "$how" != 'amend -o' ] || name=backing_file=$file
		fails vimg $how "$name" o.qcow2
		says "$words"
		vimg info o.qcow2 | grep -q backing && die "$how recorded a guess"
	done
	vimg create -q -f qcow2 -b "$file" -F raw o.qcow2
	# Nor does it keep an image from being read that records nothing.
	python3 -c '
f = open("o.qcow2", "r+b")
f.seek(f.read(4096).index(b"\xe2\x79\x2a\xca"))
f.write(b"none")'
	vimg compare -q -f qcow2 -F raw o.qcow2 "$file" 2>log || die "on $file"
	says "$words"
}

while read -r file words; do
	case $file in
	fixed.vhd | old.vhd | disk.dmg)
		is_raw "$file" "$words"
		;;
	*)
		fails vimg info "$file"
		says "$words"
		fails vimg convert -O qcow2 "$file" out
		says "$words"
		# As a backing file of undeclared format.
		fails vimg create -f qcow2 -b "$file" o.qcow2
		says "$words"
		;;
	esac
	[ ! -e out ] || die "$file was converted"
	for f in qcow2 qcow vdi vmdk; do
		fails vimg convert -f $f -O raw "$file" out
		says "$words"
		[ ! -e out ] || die "$file was converted as $f"
	done
	# As a backing file of another format.
	vimg create -q -f qcow2 -u -b "$file" -F qcow2 o.qcow2 2M
	fails vimg convert -O raw o.qcow2 out
	says "$words"
	# Who says that it is raw gets its bytes.
	vimg convert -f raw -O raw "$file" out
	cmp "$file" out
	rm out
done <<'LIST'
dynamic.vhd a VHD image
differencing.vhd Hyper-V differencing disk
fixed.vhd a VHD image
old.vhd a VHD image
disk.vhdx a VHDX image
disk.hdd a Parallels image
disk.hds a Parallels image
disk.qed a QED image
disk.dmg Apple disk image (DMG)
disk.luks LUKS-encrypted
LIST

# An ISO is its own bytes, but no image of another format.
[ "$(probed disk.iso)" = raw ] || die "an ISO is $(probed disk.iso)"
for f in qcow2 qcow vdi vmdk; do
	fails vimg convert -f $f -O raw disk.iso out
	says 'ISO 9660'
	fails vimg info -f $f zeros.img
	says zeros.img
done

# Our formats for each other.
for f in qcow2 qcow vdi vmdk; do
	vimg create -q -f $f a.$f 4M
	[ "$(probed a.$f)" = $f ] || die "$f is $(probed a.$f)"
done
for f in qcow2 qcow vdi vmdk; do
	for g in qcow2 qcow vdi vmdk; do
		[ $f != $g ] || continue
		fails vimg info -f $g a.$f
		says "is no $g image, but $f"
	done
done

# Two that both fit: whoever knows must say.
fails vimg info two.img
says 'looks like vmdk and like vdi'

# Headers further in are the guest's affair.
for f in qcow2 qcow vdi vmdk; do
	{ head -c 1048576 /dev/zero; cat a.$f; } >inside.raw
	truncate -s 8M inside.raw
	[ "$(probed inside.raw)" = raw ] || die "$f inside a raw disk"
	vimg convert -O qcow2 inside.raw b.qcow2 2>log
	vimg compare -q -f qcow2 -F raw b.qcow2 inside.raw ||
		die "$f inside a raw disk"
done

# A descriptor without its extents.
for s in monolithicFlat twoGbMaxExtentSparse vmfs; do
	rm -f d*.vmdk
	vimg create -q -f vmdk -o subformat=$s d.vmdk 4M
	rm d-*.vmdk
	for c in "info -f vmdk d.vmdk" "check d.vmdk" \
		"convert -O raw d.vmdk out"; do
		# shellcheck disable=SC2086
		fails vimg $c
		says 'd.vmdk: descriptor line [0-9]*: extent "d-.*No such file'
	done
done
