#!/bin/bash
# A VMDK descriptor that is a file of its own and longer than a sector, changed
# by commands in their sandbox: another file takes its place where it may, with
# all that the old one had; else it stays the file it is.
. ./tests/functions.sh
need qemu-img python3
cd "$tmp"
quiet() { "$@" >log 2>&1 || { cat log >&2; die "$*"; }; }
inode() { stat -L -c %i "$1"; }
long=$(printf '%0450d' 0)
fresh() { # fresh SUBFORMAT BASE: d/d.vmdk
	rm -rf d
	mkdir d
	(cd d && quiet vimg create -q -f vmdk -o subformat="$1" ${2:+-b "$2" -F vmdk} d.vmdk 1M)
	quiet vimg io -f vmdk -c 'write -P 7 64k 128k' d/d.vmdk
	quiet vimg amend -f vmdk -o ddb=a="$long",ddb=b="$long",ddb=c="$long" d/d.vmdk
	i=$(inode d/d.vmdk)
}
sound() { # sound WORDS: in the descriptor; what is shown is what was
	grep -q -e "$1" d/d.vmdk || die "no $1: $(cat d/d.vmdk)"
	[ "$(tr -d '\0' <d/d.vmdk | wc -c)" = "$(stat -L -c %s d/d.vmdk)" ] || die "NULs"
	quiet qemu-img info d/d.vmdk
	quiet vimg io -r -f vmdk -c 'read -P 7 64k 128k' d/d.vmdk
	! grep -q fail log || die "$(cat log)"
	[ -z "$(ls -A d | grep part)" ] || die "left behind: $(ls -A d)"
}
replaced() { [ "$(inode d/d.vmdk)" != "$i" ] || die "still the same file"; i=$(inode d/d.vmdk); }
same_file() { [ "$(inode d/d.vmdk)" = "$i" ] || die "another file"; }

quiet vimg create -q -f vmdk base.vmdk 1M
for s in monolithicFlat twoGbMaxExtentFlat twoGbMaxExtentSparse; do
	fresh $s
	chmod 640 d/d.vmdk
	quiet vimg amend -f vmdk -o hwversion=21 d/d.vmdk
	replaced
	sound 'virtualHWVersion = "21"'
	[ "$(stat -c %a d/d.vmdk)" = 640 ] || die "mode: $(stat -c %a d/d.vmdk)"
	quiet vimg amend -f vmdk -o hwversion=14 d/d.vmdk
	same_file
	sound 'virtualHWVersion = "14"'
	quiet vimg resize -f vmdk d/d.vmdk 20M
	replaced
	sound 'RW 40960'
	quiet vimg io -f vmdk -c 'write -P 7 64k 64k' d/d.vmdk
	same_file
done
fresh twoGbMaxExtentSparse ../base.vmdk
for b in ../d/../base.vmdk ''; do
	quiet vimg rebase -f vmdk -b "$b" ${b:+-F vmdk} d/d.vmdk
	replaced
	sound "${b:-CID=ffffffff}"
done

# Where a link leads.
mv d/d.vmdk real.vmdk
ln -s ../real.vmdk d/d.vmdk
quiet vimg amend -f vmdk -o hwversion=21 d/d.vmdk
[ -L d/d.vmdk ] || die "the link is gone"
replaced
sound 'virtualHWVersion = "21"'
# Extended attributes go with it.
if python3 -c 'import os; os.setxattr("real.vmdk", "user.mine", b"yes")' 2>/dev/null; then
	quiet vimg amend -f vmdk -o hwversion=7 d/d.vmdk
	replaced
	[ "$(python3 -c 'import os; print(os.getxattr("real.vmdk", "user.mine").decode())')" = yes ] ||
		die "an attribute is gone"
fi

# A second name leads to the same descriptor, grown, shrunk, amended; so it does
# when extents go.
fresh twoGbMaxExtentSparse
ln d/d.vmdk d/twin.vmdk
for o in hwversion=21 ddb=d="$long" hwversion=4 ddb=d=; do
	quiet vimg amend -f vmdk -o "$o" d/d.vmdk
	same_file
done
sound 'virtualHWVersion = "4"'
rm d/twin.vmdk
quiet vimg resize -f vmdk d/d.vmdk 5G
i=$(inode d/d.vmdk)
ln d/d.vmdk d/twin.vmdk
quiet vimg resize -f vmdk --shrink d/d.vmdk 1M
same_file
sound 'RW 2048'
[ "$(ls d | grep -v log | tr "\n" " ")" = "d-s001.vmdk d.vmdk twin.vmdk " ] || die "files: $(ls d)"

# A folder that is not ours.
fresh monolithicFlat
as=()
if [ "$(id -u)" = 0 ]; then
	as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
	chmod 755 "$tmp"
	chown 65534:65534 d/*
fi
chmod 555 d
if "${as[@]}" vimg info d/d.vmdk >log 2>&1; then
	quiet "${as[@]}" vimg amend -f vmdk -o hwversion=21 d/d.vmdk
	same_file
	sound 'virtualHWVersion = "21"'
	# Of another owner, who lets us write.
	chmod 777 d
	if [ "$(id -u)" = 0 ]; then
		chown 0:0 d/d.vmdk
		chmod 666 d/*
		quiet "${as[@]}" vimg amend -f vmdk -o hwversion=9 d/d.vmdk
		same_file
		[ "$(stat -c %u:%a d/d.vmdk)" = 0:666 ] || die "owner: $(ls -l d)"
		sound 'virtualHWVersion = "9"'
	fi
fi
chmod 755 d
