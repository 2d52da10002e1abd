#!/bin/bash
# Every command of the lab sheet, on a real disk; what each one made is opened
# by real qemu-img, and what qemu-img writes is read back.
. ./tests/functions.sh
. "$srcdir/tests/disk.sh"
need qemu-img qemu-io jq
VIMG=${VIMG:-vimg}
cd "$tmp"

# Each command, so that a log can be read from top to bottom.
v() { echo "\$ vimg $*" >&2; "$VIMG" "$@"; }

# expect FILE JQ-FILTER...: each is true of what qemu-img info says.
expect() {
    f=$1; shift
    qemu-img info --output=json "$f" >peer.json || die "$f: qemu-img info"
    for e; do
        jq -e "$e" peer.json >/dev/null ||
            die "$f: not $e: $(tr -d '\n' <peer.json)"
    done
}

# Everything that qemu-img's JSON says, ours says too.
covers() {
    jq -n --slurpfile a "$1" --slurpfile b "$2" '
        def covers(x; y):
            if (x | type) == "object" and (y | type) == "object" then
                all(x | keys[]; . as $k | (y | has($k)) and
                    covers(x[$k]; y[$k]))
            elif (x | type) == "array" and (y | type) == "array" then
                (x | length) == (y | length) and
                all(range(x | length); . as $i | covers(x[$i]; y[$i]))
            else x == y end;
        covers($a[0]; $b[0])' | grep -q true
}

# Our info, map and check of an image, and the peer's.
same_answers() {
    for c in info map check; do
        [ "$c" != check ] ||
            [ "$(jq -r .format peer.json)" != raw ] || continue
        v "$c" --output=json "$1" >ours || die "$c $1: exit $?"
        qemu-img "$c" --output=json "$1" >theirs || die "qemu-img $c $1"
        covers theirs ours || { diff theirs ours; die "$c $1"; }
        v "$c" "$1" >ours || die "$c $1: exit $?"
        qemu-img "$c" "$1" >theirs || die "qemu-img $c $1"
        diff theirs ours || die "$c $1: text"
    done
}

G=$((1024 * 1024 * 1024))

# ---- new disks --------------------------------------------------------------
v create -f qcow2 virtualdisk.qcow 2G >out
qemu-img create -f qcow2 peer.qcow 2G | sed s/peer.qcow/virtualdisk.qcow/ |
    diff - out || die "create: the Formatting line"
expect virtualdisk.qcow '.format=="qcow2"' ".[\"virtual-size\"]==$((2 * G))"
same_answers virtualdisk.qcow

v create -f qcow2 debian.img 8G >out
[ "$(du -k debian.img | cut -f1)" -lt 200 ] || die "debian.img is not sparse"
expect debian.img '.format=="qcow2"' ".[\"virtual-size\"]==$((8 * G))"
qemu-img check -q debian.img || die "debian.img"

# ---- bases made of the real disk, one of each kind -------------------------
cp --sparse=always "$disk" input.img
v convert -f raw -O qcow2 input.img output.qcow2
expect output.qcow2 '.format=="qcow2"' ".[\"virtual-size\"]==$disk_size"
qemu-img check -q output.qcow2 || die "output.qcow2"
qemu-img compare -q -f raw -F qcow2 input.img output.qcow2 || die "differs"
same_answers output.qcow2
mv output.qcow2 debian-11.qcow2
ln debian-11.qcow2 debian-base.img
ln debian-11.qcow2 kali.qcow2
mv input.img taxing.img
base_sum=$(sha256sum <debian-11.qcow2)

v convert -O raw debian-11.qcow2 debian-11.img
cmp "$disk" debian-11.img || die "convert -O raw"
disk_fsck debian-11.img || die "e2fsck of debian-11.img"
[ "$(du -k debian-11.img | cut -f1)" -le \
    "$(($(du -k "$disk" | cut -f1) + 1024))" ] || die "lost its holes"
rm debian-11.img

# ---- overlays ---------------------------------------------------------------
backed='.["backing-filename-format"]=="qcow2"'
v create -f qcow2 -o backing_file=debian-base.img debian1.img
expect debian1.img '.["backing-filename"]=="debian-base.img"' "$backed" \
    ".[\"virtual-size\"]==$disk_size"
v create -b debian-11.qcow2 vm1.qcow2
expect vm1.qcow2 '.format=="qcow2"' "$backed" \
    '.["backing-filename"]=="debian-11.qcow2"' \
    ".[\"virtual-size\"]==$disk_size"
v create -f qcow2 -b debian-11.qcow2 sda-vm1.qcow2
expect sda-vm1.qcow2 "$backed" '.["backing-filename"]=="debian-11.qcow2"'
v create -f qcow2 -o backing_file=kali.qcow2 kali-temp.qcow2 40G
expect kali-temp.qcow2 "$backed" ".[\"virtual-size\"]==$((40 * G))"
v create -f qcow2 -o backing_file=taxing.img taxing-test.qcow2
expect taxing-test.qcow2 '.["backing-filename-format"]=="raw"' \
    ".[\"virtual-size\"]==$disk_size"

# Each reads as its base, and both sides write to it.
for f in debian1.img vm1.qcow2 sda-vm1.qcow2 kali-temp.qcow2 \
    taxing-test.qcow2; do
    qemu-img check -q "$f" || die "$f"
    qemu-img compare -q -f qcow2 -F raw "$f" "$disk" || die "$f differs"
    qemu-io -f qcow2 -c "write -P 0x5a 4k 100k" -c "write -z 700M 3M" \
        -c "discard 1200M 1M" "$f" >/dev/null || die "qemu-io $f"
    v check "$f" >/dev/null || die "check $f: exit $?"
    v convert -O raw "$f" ours.raw
    qemu-img convert -O raw "$f" theirs.raw
    cmp ours.raw theirs.raw || die "$f: read differently"
    expect "$f"
    same_answers "$f"
    rm ours.raw theirs.raw
done
for o in text json; do
    v info --backing-chain $([ $o = text ] || echo --output=json) \
        vm1.qcow2 >ours
    qemu-img info --backing-chain $([ $o = text ] || echo --output=json) \
        vm1.qcow2 >theirs
    if [ $o = text ]; then diff theirs ours; else covers theirs ours; fi ||
        die "info --backing-chain, $o"
done
[ "$(sha256sum <debian-11.qcow2)" = "$base_sum" ] || die "base was changed"
rm -f debian1.img sda-vm1.qcow2 kali-temp.qcow2

# ---- a chain of five --------------------------------------------------------
below=vm1.qcow2
for i in 3 4 5; do
    v create -q -f qcow2 -b "$below" "layer$i.qcow2"
    qemu-io -f qcow2 -c "write -P $i ${i}00M 2000k" -c "write -P $i 13k 512" \
        -c "write -z ${i}10M 128k" "layer$i.qcow2" >/dev/null
    below=layer$i.qcow2
done
v convert -O raw layer5.qcow2 ours.raw
qemu-img convert -O raw layer5.qcow2 theirs.raw
cmp ours.raw theirs.raw || die "chain of five: read differently"
v map --output=json layer5.qcow2 >ours
qemu-img map --output=json layer5.qcow2 >theirs
covers theirs ours || die "chain of five: map"
[ "$(v info --backing-chain --output=json layer5.qcow2 | jq length)" = 5 ] ||
    die "chain of five: info"
v convert -O qcow2 layer5.qcow2 flat.qcow2
qemu-img check -q flat.qcow2 || die "flat.qcow2"
qemu-img compare -q -f raw -F qcow2 theirs.raw flat.qcow2 || die "flat.qcow2"
rm -f ours.raw theirs.raw flat.qcow2 layer?.qcow2

# ---- resize -----------------------------------------------------------------
v convert -q -O qcow2 debian-11.qcow2 disk_image
v resize disk_image +10G >ours
grep -q 'Image resized' ours || die "resize: $(cat ours)"
expect disk_image ".[\"virtual-size\"]==$((disk_size + 10 * G))"
qemu-img check -q disk_image || die "disk_image"
qemu-img compare -q -F raw disk_image "$disk" || die "resized disk differs"
r=0; v resize disk_image 1G 2>/dev/null || r=$?
[ $r = 1 ] || die "resize shrank without --shrink: exit $r"
v resize --shrink disk_image 1000M >/dev/null
qemu-img check -q disk_image || die "disk_image, shrunk"
v convert -O raw disk_image ours.raw
cmp -n $((1000 * 1024 * 1024)) ours.raw "$disk" || die "shrunk disk differs"
disk_fsck ours.raw || die "e2fsck of the shrunk disk"
rm ours.raw disk_image

# ---- round trips ------------------------------------------------------------
# A part of the disk, for compression takes its time.
dd if="$disk" of=part.raw bs=1M count=160 conv=sparse 2>/dev/null
truncate -s 200M part.raw
while read -r format opts; do
    # shellcheck disable=SC2086
    v convert -f raw -O "$format" $opts part.raw "there.$format" ||
        die "convert $format $opts"
    qemu-img compare -q -f raw -F "$format" part.raw "there.$format" ||
        die "$format $opts: the peer reads another disk"
    [ "$format" = raw ] || [ "$format" = vmdk ] || [ "$format" = qcow ] ||
        qemu-img check -q -f "$format" "there.$format" || die "$format $opts"
    v convert -f "$format" -O raw "there.$format" back.raw
    cmp part.raw back.raw || die "$format $opts: not what it was"
    # And the peer's image of that kind.
    # shellcheck disable=SC2086
    qemu-img convert -f raw -O "$format" $opts part.raw peer.img
    v convert -f "$format" -O raw peer.img back.raw
    cmp part.raw back.raw || die "$format $opts, from the peer"
    rm "there.$format" peer.img back.raw
done <<'EOT'
raw
raw -S 0
qcow2
qcow2 -c
qcow2 -c -o compression_type=zstd
qcow2 -o compat=0.10
qcow2 -o cluster_size=4k,lazy_refcounts=on
qcow2 -o extended_l2=on,cluster_size=128k
qcow2 -o cluster_size=2M,refcount_bits=64
qcow2 -o preallocation=metadata
vdi
vmdk
EOT

[ "$(sha256sum <debian-11.qcow2)" = "$base_sum" ] || die "base was changed"
cmp taxing.img "$disk" || die "the raw base was changed"
