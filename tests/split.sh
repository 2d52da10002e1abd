#!/bin/bash
# VMDK that is split into files: extents come and go with the size of the
# disk; what is there stays as it was whatever happens amid that.
# SPLIT_STEP=n: every n-th system call is the one that fails (1 = all).
. ./tests/functions.sh
need qemu-img qemu-io python3 strace
cd "$tmp"
step=${SPLIT_STEP:-5}
quiet() { "$@" >log 2>&1 || { cat log >&2; die "$*"; }; }
fails() { if "$@" >log 2>&1; then die "should fail: $*"; fi; }
says() { grep -q -e "$1" log || { cat log >&2; die "other words than $1"; }; }
io() { local i=$1 c a=(); shift; for c; do a+=(-c "$c"); done; quiet qemu-io -f "${i##*.}" "${a[@]}" "$i"; }
same() { quiet vimg compare -f vmdk -F raw "$1" "$2"; quiet qemu-img compare -f vmdk -F raw "$1" "$2"; }
clean() { quiet vimg check -f vmdk "$1"; quiet qemu-img check -f vmdk "$1"; }
names() { ls | grep -v -e log -e '\.raw' | tr '\n' ' '; }
mkdir d q; cd d

# Made by either, grown and shrunk by us, written by both, read by QEMU.
for s in Sparse Flat; do
	l=s; [ $s = Flat ] && l=f
	for who in vimg qemu-img; do
		rm -f ./*
		quiet $who create -q -f vmdk -o subformat=twoGbMaxExtent$s d.vmdk 3G
		truncate -s 3G d.raw
		for f in d.vmdk d.raw; do io $f 'write -P 7 100000 300000' 'write -P 8 3066M 6M'; done
		quiet vimg resize -f vmdk d.vmdk 4200M
		quiet vimg resize -f raw d.raw 4200M
		same d.vmdk d.raw
		quiet vimg resize -f vmdk d.vmdk +6G
		quiet vimg resize -f raw d.raw +6G
		[ "$(names)" = "d-${l}001.vmdk d-${l}002.vmdk d-${l}003.vmdk d-${l}004.vmdk d-${l}005.vmdk d-${l}006.vmdk d.vmdk " ] ||
			die "files: $(names)"
		same d.vmdk d.raw
		clean d.vmdk
		for f in d.vmdk d.raw; do io $f 'write -P 9 4095M 3M' 'write -P 9 9000M 8M'; done
		same d.vmdk d.raw
		quiet vimg io -f vmdk -c 'write -P 5 8191M 2M' -c 'write -z 9001M 1M' d.vmdk
		io d.raw 'write -P 5 8191M 2M' 'write -z 9001M 1M'
		same d.vmdk d.raw
		clean d.vmdk
		for size in 4097M 5G 1000000000 9G; do
			quiet vimg resize --shrink -f vmdk d.vmdk $size
			quiet vimg resize --shrink -f raw d.raw $size
			same d.vmdk d.raw
			clean d.vmdk
		done
		[ "$(names | wc -w)" = 6 ] || die "files: $(names)"
	done
done
quiet vimg resize -f vmdk --preallocation=falloc d.vmdk 9217M
fails vimg resize -f vmdk --preallocation=metadata d.vmdk 12G

# The other readers.
rm -f ./*
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentSparse d.vmdk 1G
quiet vimg resize -f vmdk d.vmdk 5G
io d.vmdk 'write -P 7 3G 300000'
if command -v vmdkinfo >/dev/null; then
	quiet vmdkinfo d.vmdk
	says 'Number of extents:.*3'
	says '5368709120'
fi

# Zeros are zeros: what was cut off, a longer base, and a shrink that a crash
# kept from the extent itself.
io d.vmdk 'write -P 1 0 1M' 'write -P 2 5000M 3M'
quiet vimg resize --shrink -f vmdk d.vmdk 4500M
quiet vimg resize -f vmdk d.vmdk 7G
io d.vmdk 'read -P 0 4999M 100M' 'read -P 0 7000M 168M'
grep -q 'failed' log && die "old bytes came back"
io d.vmdk 'write -P 2 6655M 2M' 'write -P 2 7000M 1M'
sed -i 's/RW 2097152 SPARSE/RW 1048576 SPARSE/' d.vmdk
quiet vimg resize -f vmdk d.vmdk 9G
truncate -s 9G d.raw
io d.raw 'write -P 1 0 1M' 'write -P 7 3G 300000' 'write -P 2 6655M 1M'
same d.vmdk d.raw
quiet vimg create -f vmdk -b d.vmdk -F vmdk -o subformat=twoGbMaxExtentSparse o.vmdk 1G
quiet vimg resize -f vmdk o.vmdk 9G
truncate -s 1G d.raw
truncate -s 9G d.raw
same o.vmdk d.raw

# A base that is split grows with what is committed.
rm -f ./*
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentSparse d.vmdk 1G
quiet vimg create -f vmdk -b d.vmdk -F vmdk o.vmdk 5G
io o.vmdk 'write -P 7 4G 1M'
quiet vimg commit -f vmdk o.vmdk
truncate -s 5G d.raw
io d.raw 'write -P 7 4G 1M'
same d.vmdk d.raw

# VMware's extents are a bit shorter; so are those that are added.
rm -f ./*
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentSparse test.vmdk 2047M
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentSparse b.vmdk 1000M
mv b-s001.vmdk test-s002.vmdk
sed -i 's/^RW 4192256 .*/&\r\nRW 2048000 SPARSE "test-s002.vmdk"/; s/\r*$/\r/' test.vmdk
mv test.vmdk renamed.vmdk
quiet vimg resize -f vmdk renamed.vmdk 10000M
grep -q 'RW 4192256 SPARSE "test-s004.vmdk".$' renamed.vmdk || die "$(cat renamed.vmdk)"
grep -q 'RW 3710976 SPARSE "test-s005.vmdk".$' renamed.vmdk || die "$(cat renamed.vmdk)"
truncate -s 10000M d.raw
for f in renamed.vmdk d.raw; do io $f 'write -P 3 2046M 2M' 'write -P 4 6140M 2M' 'write -P 5 9999M 1M'; done
same renamed.vmdk d.raw
clean renamed.vmdk

# What has the name stays, link or not; rights are those of the rest.
rm -f ./*
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentFlat d.vmdk 1G
chmod 600 d-f001.vmdk
echo mine >d-f002.vmdk
ln -s ../elsewhere d-f003.vmdk
quiet vimg resize -f vmdk d.vmdk 5G
grep -q 'd-f005.vmdk' d.vmdk && [ "$(cat d-f002.vmdk)" = mine ] && [ ! -e ../elsewhere ] ||
	die "a name that was taken: $(cat d.vmdk)"
[ "$(stat -c %a d-f004.vmdk)" = 600 ] || die "more may read it now"
# Nor is anything removed that is not just an extent.
truncate -s +512 d-f005.vmdk
quiet vimg resize --shrink -f vmdk d.vmdk 3G
[ -e d-f005.vmdk ] || die "a file that holds more than an extent is gone"
says 'd-f005.vmdk.* stays'

# Beside its name, and where that leads to; the policy.
rm -f ./*
quiet vimg create -f vmdk -o subformat=twoGbMaxExtentSparse d.vmdk 1G
mv d.vmdk ../q/real.vmdk
ln -s ../q/real.vmdk d.vmdk
quiet vimg resize -f vmdk d.vmdk 3G
[ -L d.vmdk ] && [ -e d-s002.vmdk ] && grep -q d-s002 ../q/real.vmdk || die "a link: $(names)"
fails vimg resize --allow-files=same-dir -f vmdk ../q/real.vmdk 5G
rm d.vmdk
mv ../q/real.vmdk d.vmdk
quiet vimg resize --allow-files=same-dir -f vmdk d.vmdk 5G
fails vimg resize --allow-files=../q -f vmdk d.vmdk 7G
quiet vimg resize --allow-files=.. -f vmdk d.vmdk 7G
quiet vimg io -f vmdk -c 'truncate 9G' d.vmdk
quiet vimg io -f vmdk -c ' t 11G' d.vmdk
(cd / && quiet vimg resize -f vmdk "$tmp/d/d.vmdk" 13G)
quiet vimg resize --no-sandbox -f vmdk d.vmdk 15G
[ "$(names | wc -w)" = 9 ] || die "files: $(names)"

# Held by another: nothing happens.
before=$(ls -l)
coproc Q { exec qemu-io -f vmdk d.vmdk; }
pid=$Q_PID
echo 'read 14G 512' >&"${Q[1]}"
read -r line <&"${Q[0]}"
fails vimg resize -f vmdk d.vmdk 17G
says 'lock'
fails vimg resize --shrink -f vmdk d.vmdk 1G
says 'lock'
echo quit >&"${Q[1]}"
wait "$pid" || :
[ "$(ls -l | grep -v log)" = "$(echo "$before" | grep -v log)" ] || die "locked: files have changed"
fails vimg resize -f vmdk d.vmdk 2000000000001
[ "$(ls -l | grep -v log)" = "$(echo "$before" | grep -v log)" ] || die "refused: files have changed"

# A system call fails, or the power does: the old disk or the new one, and
# after an error no other files than before.
strace -f -qq -e trace=none true 2>/dev/null || cannot "strace may not trace"
calls=pwrite64,pwritev,fallocate,ftruncate,fsync,fdatasync,linkat,rename,renameat2,unlink,fchmod
rm -f ./*
for s in Sparse Flat; do
	rm -rf ../q
	mkdir ../q
	(cd ../q
	quiet vimg create -f vmdk -o subformat=twoGbMaxExtent$s d.vmdk 3G
	io d.vmdk 'write -P 7 100000 300000' 'write -P 8 3000M 1M')
	quiet vimg convert -f vmdk -O raw ../q/d.vmdk ../3.raw
	for size in 7 1; do
		cp ../3.raw ../new.raw
		truncate -s ${size}G ../new.raw
		go() { rm -f ./*; cp --sparse=always ../q/* .; ASAN_OPTIONS=detect_leaks=0 strace -f -qq "$@" -o ../trace \
			vimg resize -q --shrink $box -f vmdk d.vmdk ${size}G >log 2>&1; }
		box=
		go -e trace=$calls || die "resize to ${size}G: $(cat log)"
		made=$(names)
		# The order in which it reaches the disk.
		python3 - "$size" ../trace <<'P' || die "order of $s to ${size}G"
import re, sys
ops = []
for line in open(sys.argv[2]):
    m = re.match(r'\d+ +(\w+)\((.*)\) += (-?\d+)', line)
    if m and int(m[3]) >= 0:
        ops.append((m[1], m[2]))
names = [o[0] for o in ops]
swap = max(i for i, o in enumerate(ops) if o[0] in ('rename', 'renameat2') and 'd.vmdk"' in o[1])
links = [i for i, o in enumerate(ops) if o[0] == 'linkat' and '.part' not in o[1]]
if sys.argv[1] == '7':
    assert len(links) == 2 and all(i < swap for i in links), links
    syncs = [i for i, n in enumerate(names) if 'sync' in n]
    assert all(any(i < s < j for s in syncs) for i, j in zip(links, links[1:] + [swap]))
    assert any(s > swap for s in syncs)
    for i in links:     # each was synced before it had a name
        fd = re.search(r'/proc/self/fd/(\d+)', ops[i][1])[1]
        assert any('sync' in n and a == fd for n, a in ops[:i]), fd
else:
    gone = [i for i, n in enumerate(names) if n == 'unlink']
    assert gone and all(any('sync' in n for n in names[swap:i]) for i in gone), gone
P
		sed -n 's/^[0-9]* *\([a-z0-9]*\)(.*/\1/p' ../trace | awk '{ print $1 ":" ++n[$1] }' |
			awk -v s="$step" '++i % s == 0 || s < 5 && /link|rename/' >../at
		killed=0 failed=0
		for at in $(cat ../at); do
			for how in signal=KILL error=EIO; do
				r=0 box=
				# An injected error looks like a forbidden call.
				[ $how = signal=KILL ] || box=--no-sandbox
				{ go -e trace=${at%:*} -e inject=${at%:*}:$how:when=${at#*:} || r=$?; } 2>/dev/null
				what="$s to ${size}G, $how at $at"
				if [ $how = signal=KILL ]; then
					[ $r -gt 100 ] && killed=$((killed + 1))
				elif [ $r != 0 ]; then
					failed=$((failed + 1))
					now=$(names)
					case "$now" in
					"d-"[sf]"001.vmdk d-"[sf]"002.vmdk d.vmdk ") ;;
					"$made") ;;
					*) die "$what: files $now" ;;
					esac
				fi
				if vimg compare -q -f vmdk -F raw d.vmdk ../3.raw >/dev/null 2>&1; then
					[ "$(vimg info -f vmdk --output=json d.vmdk | grep -o '"virtual-size": 3221225472')" ] ||
						[ $size != 1 ] || die "$what: half of it"
				else
					vimg compare -q -f vmdk -F raw d.vmdk ../new.raw >log 2>&1 ||
						die "$what: neither old nor new: $(vimg info d.vmdk 2>&1)"
				fi
				vimg check -q -f vmdk d.vmdk >log 2>&1 || [ $? = 3 ] || die "$what: $(cat log)"
				quiet vimg resize -q --shrink -f vmdk d.vmdk ${size}G
				quiet vimg compare -f vmdk -F raw d.vmdk ../new.raw
			done
		done
		[ $killed -gt 1 ] && [ $failed -gt 1 ] || die "only $killed killed, $failed failed"
		echo "$s to ${size}G: $killed killed, $failed failed"
	done
done
