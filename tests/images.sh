#!/bin/bash
# Images that other programs made: they read with the hash that is known of
# them, through every other format too, or are refused.
. ./tests/functions.sh
need vimg xz sha256sum
[ -d "$shared" ] || cannot "there is no $shared"
shared=$(cd "$shared" && pwd)
cd "$tmp"
hash_of() { sha256sum "$1" | cut -d' ' -f1; }

seen=0
while IFS=$'\t' read -r file format producer size hash; do
	case $file in \#*) continue ;; esac
	xz -dkc "$shared/$file.xz" >"$file"
	seen=$((seen + 1))
	case $file in bad-*)
		if vimg convert -O raw "$file" out.raw 2>log; then
			die "$file was read: $producer"
		fi
		grep -q "$file" log || die "$file: $(cat log)"
		rm -f "$file"
		continue ;;
	esac
	probed=$(vimg info "$file" | sed -n 's/^file format: //p')
	[ "$probed" = "$format" ] || die "$file is taken for $probed"
	vimg convert -O raw "$file" out.raw
	[ "$(stat -c %s out.raw)" = "$size" ] || die "$file: size"
	[ "$(hash_of out.raw)" = "$hash" ] || die "$file: other bytes"
	case $format in qcow2 | vdi) vimg check -q "$file" ;; esac
	for f in qcow2 qcow vdi vmdk; do
		vimg convert -f "$format" -O $f "$file" other
		vimg compare -q -f $f -F "$format" other "$file" ||
			die "$file by way of $f"
	done
	rm -f "$file" out.raw other
done <"$shared/MANIFEST.tsv"
[ $seen -ge 10 ] || die "only $seen images"
