# Sourced after disk.sh: a real Linux, under QEMU without KVM, that works on
# a disk.  The kernel is Debian's for clouds, the rest is busybox.

need qemu-system-x86_64 cpio debugfs busybox

guest_dir="$builddir/tests/guest"

guest_kernel() {
    rm -rf "$guest_dir/deb" && mkdir -p "$guest_dir/deb"
    (
        cd "$guest_dir/deb"
        pkg=$(apt-cache depends linux-image-cloud-amd64 |
            awk '/Depends:/ { print $2; exit }')
        [ -n "$pkg" ] && apt-get -qq -o APT::Sandbox::User=root \
            download "$pkg" && dpkg-deb -x ./*.deb .
    ) >"$guest_dir/get.log" 2>&1 || return 1
    mkdir -p "$guest_dir/root/bin" "$guest_dir/root/mnt" \
        "$guest_dir/root/dev" "$guest_dir/root/proc"
    for m in virtio_ring virtio virtio_pci_legacy_dev \
        virtio_pci_modern_dev virtio_pci virtio_blk; do
        find "$guest_dir/deb/lib/modules" -name "$m.ko" \
            -exec cp {} "$guest_dir/root/" \;
    done
    cp "$(command -v busybox)" "$guest_dir/root/bin/busybox"
    cat >"$guest_dir/root/init" <<'EOT'
#!/bin/busybox sh
b=/bin/busybox
say() { echo "GUEST: $*"; }
stop() { say "$*"; $b sync; $b poweroff -f; }
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev \
    virtio_pci virtio_blk; do
    [ ! -f /$m.ko ] || $b insmod /$m.ko || stop "no module $m"
done
n=0
while [ ! -b /dev/vda1 ] && [ $n -lt 600 ]; do
    n=$((n + 1))
    $b usleep 50000
done
$b mount -t ext4 /dev/vda1 /mnt || stop "no mount"
say "files $($b find /mnt -type f | $b wc -l)"
$b mkdir /mnt/guest
$b seq 1 200000 >/mnt/guest/numbers
$b dd if=/dev/urandom of=/mnt/guest/random bs=64k count=128 2>/dev/null
$b cp -r /mnt/usr/include /mnt/guest/copy
$b rm -r /mnt/usr/share/doc
$b sync
for f in numbers random; do
    say "sum $f $($b sha256sum </mnt/guest/$f)"
done
$b fstrim /mnt && say "trimmed"
$b umount /mnt || stop "no umount"
$b dd if=/bin/busybox of=/dev/vda2 bs=4096 conv=fsync 2>/dev/null
stop "done"
EOT
    chmod +x "$guest_dir/root/init"
    cp "$guest_dir"/deb/boot/vmlinuz-* "$guest_dir/vmlinuz.new"
    (cd "$guest_dir/root" && find . | cpio -o -H newc -R 0:0 2>/dev/null) |
        gzip -1 >"$guest_dir/initrd"
    rm -rf "$guest_dir/deb" "$guest_dir/root"
    mv "$guest_dir/vmlinuz.new" "$guest_dir/vmlinuz"
}

# Runs the guest on the drive that the arguments of -blockdev name; what it
# said is in $tmp/console.  The guest's last word must be "done".
guest_run() {
    timeout 300 qemu-system-x86_64 -accel tcg -m 512 -smp 1 \
        -nodefaults -display none -serial file:"$tmp/console" \
        -no-reboot -kernel "$guest_dir/vmlinuz" -initrd "$guest_dir/initrd" \
        -append "console=ttyS0 quiet panic=-1" \
        -blockdev "$1,node-name=disk" \
        -device virtio-blk-pci,drive=disk </dev/null >"$tmp/qemu.out" 2>&1 ||
        { cat "$tmp/qemu.out" "$tmp/console"; die "qemu: exit $?"; }
    tr -d '\r' <"$tmp/console" >"$tmp/console.txt"
    grep -q '^GUEST: done' "$tmp/console.txt" ||
        { cat "$tmp/console.txt"; die "the guest did not finish"; }
}

# Does the raw disk $1 hold what the guest said it wrote?
guest_verify() {
    disk_fsck "$1" || die "$1: e2fsck"
    for f in numbers random; do
        debugfs -R "dump /guest/$f $tmp/$f" "$1?offset=$part_offset" \
            2>/dev/null
        want=$(sed -n "s/^GUEST: sum $f \([0-9a-f]*\).*/\1/p" \
            "$tmp/console.txt")
        got=$(sha256sum <"$tmp/$f" | cut -d' ' -f1)
        [ -n "$want" ] && [ "$got" = "$want" ] ||
            die "$1: /guest/$f is $got, the guest wrote $want"
    done
    seq 1 200000 | cmp - "$tmp/numbers" || die "$1: numbers"
    cmp -n "$(stat -Lc %s "$(command -v busybox)")" \
        "$(command -v busybox)" "$1" 0 $((part_offset + part_size)) ||
        die "$1: second partition"
}

mkdir -p "$guest_dir"
(
    flock 9
    [ -f "$guest_dir/vmlinuz" ] || guest_kernel
) 9>"$guest_dir/lock" || skip "no Debian cloud kernel to be had"
