#!/bin/bash
# The same input and options make the same bytes, with any number of threads:
# every output format, where it has IDs with these given or derived.
. ./tests/functions.sh
need vimg python3 cmp
cd "$tmp"

python3 - <<'P'
import random
random.seed(3)
n = 9 * 1024 * 1024 + 5 * 512
f = open('src.raw', 'wb')
f.truncate(n)
for i in range(60):
    f.seek(random.randrange(0, n - 200000))
    if i % 2:
        f.write(random.randbytes(random.randrange(1, 60000)))
    else:
        f.write(b'abc' * random.randrange(1, 20000))
P
vimg convert -f raw -O qcow2 src.raw src.qcow2
uuid=01234567-89ab-cdef-0123-456789abcdef
mkdir one two

# make FOLDER THREADS INPUT ARGUMENTS...
make() {
	rm -rf "$1"
	mkdir "$1"
	(cd "$1" && vimg convert -m "$2" "${@:4}" "../$3" disk) || die "$*"
}
while read -r args; do
	# shellcheck disable=SC2086
	make one 1 src.raw -f raw $args
	for m in 2 8; do
		# shellcheck disable=SC2086
		make two $m src.raw -f raw $args
		diff -r one two || die "$args: not the same with $m threads"
	done
	[ "${args#*-c}" = "$args" ] || continue
	# shellcheck disable=SC2086
	make two 4 src.qcow2 -f qcow2 $args
	diff -r one two || die "$args: not the same from a qcow2"
done <<E
-O raw
-O raw -S 0
-O qcow2
-O qcow2 -o cluster_size=4k,compat=0.10
-O qcow2 -o extended_l2=on
-O qcow2 -c
-O qcow2 -c -o compression_type=zstd
-O qcow
-O qcow -c
-O vdi -o uuid=$uuid
-O vdi -o uuid=derived
-O vdi -o uuid=
-O vdi -o uuid=derived:word,static=on
-O vdi -o uuid=derived,block_size=64k
-O vmdk -o cid=1234
-O vmdk -o cid=derived,zeroed_grain=on
-O vmdk -o uuid=derived
-O vmdk -o uuid=$uuid,subformat=streamOptimized
-O vmdk -o cid=derived:word,subformat=streamOptimized
-O vmdk -o cid=derived,subformat=monolithicFlat
-O vmdk -o cid=derived,subformat=twoGbMaxExtentSparse
-O vmdk -o cid=derived,subformat=twoGbMaxExtentFlat
-O vmdk -o cid=derived,subformat=vmfs
-O vmdk -o cid=derived,subformat=vmfsSparse
E

# To a pipe too.
for i in one two; do
	vimg convert -f raw -O vmdk -o cid=derived,subformat=streamOptimized \
		src.raw - >$i.pipe
done
cmp one.pipe two.pipe || die "a stream to a pipe"

# Derived IDs follow from the shape and the word, and nothing else.
id() { vimg info -f "$1" "$2" | sed -n "s/^ *$3: //p" | head -1; }
vimg create -q -f vdi -o uuid=derived a.vdi 8M
vimg create -q -f vdi -o uuid=derived b.vdi 9M
vimg create -q -f vdi -o uuid=derived:w c.vdi 8M
[ "$(id vdi a.vdi uuid)" != "$(id vdi b.vdi uuid)" ] || die "two sizes, one UUID"
[ "$(id vdi a.vdi uuid)" != "$(id vdi c.vdi uuid)" ] || die "the word"
id vdi a.vdi uuid | grep -q '^........-....-8...-[89ab]...-............$' ||
	die "not an UUID of version 8: $(id vdi a.vdi uuid)"
vimg amend -f vdi -o uuid=derived:w a.vdi
[ "$(id vdi a.vdi uuid)" = "$(id vdi c.vdi uuid)" ] || die "amend"
vimg create -q -f vmdk -o uuid=derived a.vmdk 8M
vimg create -q -f vmdk -o uuid=derived:w b.vmdk 8M
[ "$(id vmdk a.vmdk cid)" != "$(id vmdk b.vmdk cid)" ] || die "the word"
vimg info -f vmdk a.vmdk | grep -q 'uuid: .. .. .. .. .. .. 8. ..-[89ab]' ||
	die "not an UUID of version 8"

# By default each image is one of its own, as in QEMU.
for f in vdi vmdk; do
	vimg create -q -f $f a.$f 8M
	cp a.$f b.$f
	vimg create -q -f $f a.$f 8M
	if cmp -s a.$f b.$f; then die "two $f images with the same IDs"; fi
done
# So a base that was replaced by another one does not pass for it.
vimg create -q -f vmdk base.vmdk 8M
vimg create -q -f vmdk -b base.vmdk -F vmdk o.vmdk
vimg create -q -f vmdk base.vmdk 8M
if vimg convert -f vmdk -O raw o.vmdk out 2>log; then
	die "the base was exchanged, unseen"
fi
grep -q parentCID log || die "$(cat log)"
