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
	# To every other format and back.  The largest one, 8 GiB of holes, has
	# its hash taken once, and goes to each format in one way only.
	for f in raw qcow2 "qcow2 -c" qcow vdi vmdk \
		"vmdk -o subformat=streamOptimized" \
		"vmdk -o subformat=twoGbMaxExtentSparse"; do
		to=${f%% *}
		[ "$to" = "$f" ] || [ "$size" -lt 1000000000 ] || continue
		# shellcheck disable=SC2086
		vimg convert -f "$format" -O $f "$file" other
		vimg compare -q -f $to -F "$format" other "$file" ||
			die "$file by way of $f"
		vimg convert -f $to -O "$format" other back
		if [ "$size" -gt 1000000000 ]; then
			vimg compare -q -f "$format" -F raw back out.raw &&
				vimg info --output=json back |
				grep -q "\"virtual-size\": $size," ||
				die "$file by way of $f and back"
		else
			vimg convert -f "$format" -O raw back back.raw
			[ "$(hash_of back.raw)" = "$hash" ] ||
				die "$file by way of $f and back: other bytes"
		fi
		rm -f other* back*
	done
	rm -f "$file" out.raw
done <"$shared/MANIFEST.tsv"
[ $seen -ge 10 ] || die "only $seen images"
