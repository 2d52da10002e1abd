#!/bin/sh
# The kernel's own client: a Linux under QEMU (without KVM) attaches an
# overlay by vimg-nbd -c, mounts its partition, writes, detaches; the overlay
# comes back through a second disk and is looked at here.  And vsock, which a
# machine can speak to itself where its kernel has vsock_loopback.
. ./tests/functions.sh
need qemu-system-x86_64 qemu-img cpio busybox sfdisk mke2fs debugfs e2fsck \
    dpkg-deb
dir=$builddir/tests/nbd-guest
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev
    virtio_pci virtio_blk nbd vsock vmw_vsock_virtio_transport_common
    vsock_loopback"

get_kernel() {
    rm -rf "$dir/deb"
    mkdir -p "$dir/deb"
    (
        cd "$dir/deb"
        pkg=$(apt-cache depends linux-image-cloud-amd64 |
            awk '/Depends: linux-image/ { print $2; exit }')
        [ -n "$pkg" ] && apt-get -qq -o APT::Sandbox::User=root \
            download "$pkg" && dpkg-deb -x ./*.deb .
    ) >"$dir.log" 2>&1 || return 1
    for m in $modules; do
        find "$dir/deb/lib/modules" -name "$m.ko" -exec cp {} "$dir/" \;
    done
    cp "$dir"/deb/boot/vmlinuz-* "$dir/vmlinuz"
    rm -rf "$dir/deb"
}
[ -f "$dir/vmlinuz" ] && [ -f "$dir/vsock_loopback.ko" ] || get_kernel || skip "no Debian cloud kernel to be had"
[ -f "$dir/nbd.ko" ] || skip "that kernel has no nbd"

# The programs and the libraries they need.
root=$tmp/root
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/mnt" \
    "$root/img" "$root/tmp"
cp "$(command -v busybox)" "$root/bin/busybox"
for m in $modules; do
    [ ! -f "$dir/$m.ko" ] || cp "$dir/$m.ko" "$root/"
done
take() { # PROGRAM OR PLUGIN AS
    cp "$1" "$root/$2"
    LD_LIBRARY_PATH="$builddir/.libs" ldd "$1" | grep -o '/[^ ]*' |
        while read -r lib; do
            case $lib in
            */ld-linux*) to=$root$lib ;;
            *) to=$root/lib/$(basename "$lib") ;;
            esac
            mkdir -p "$(dirname "$to")"
            cp -L "$lib" "$to"
        done
}
for prog in vimg vimg-nbd; do
    built=$builddir/.libs/$prog
    [ -x "$built" ] || built=$builddir/$prog
    take "$built" "bin/$prog"
done
# Other people's clients and servers, for vsock.
! command -v nbdinfo >/dev/null || take "$(command -v nbdinfo)" bin/nbdinfo
if command -v nbdkit >/dev/null; then
    take "$(command -v nbdkit)" bin/nbdkit
    plugins=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
    take "$plugins/nbdkit-file-plugin.so" bin/nbdkit-file-plugin.so
fi

# A disk with one partition, and an overlay on it.
truncate -s 40M "$tmp/base.raw"
echo 'start=2048, type=83' | sfdisk -q "$tmp/base.raw"
mkdir "$tmp/files"
seq 1 50000 >"$tmp/files/numbers"
mke2fs -q -F -t ext4 -d "$tmp/files" -E offset=1048576 "$tmp/base.raw" 36M \
    >/dev/null 2>&1 || die "mke2fs"
qemu-img convert -f raw -O qcow2 "$tmp/base.raw" "$root/img/base.qcow2"
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$root/img/top.qcow2"
mkdir "$root/keys"
echo "alice:a1b2c3d4e5f60718293a4b5c6d7e8f90" >"$root/keys/keys.psk"

cat >"$root/init" <<'EOT'
#!/bin/busybox sh
b=/bin/busybox
export LD_LIBRARY_PATH=/lib
say() { echo "GUEST: $*"; }
stop() { say "$*"; $b sync; $b poweroff -f; }
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev \
    virtio_pci virtio_blk nbd vsock vmw_vsock_virtio_transport_common \
    vsock_loopback; do
    [ ! -f /$m.ko ] || $b insmod /$m.ko || stop "no module $m"
done
gone() { # DEVICE
    n=0
    while [ -e /sys/block/$1/pid ] && [ $n -lt 200 ]; do
        n=$((n + 1))
        $b usleep 50000
    done
    [ ! -e /sys/block/$1/pid ]
}
vimg-nbd -c /dev/nbd0 -f qcow2 --discard=unmap --pid-file /tmp/pid \
    /img/top.qcow2 || stop "no attach"
[ -b /dev/nbd0p1 ] || stop "no partition when -c returned"
$b mount -t ext4 /dev/nbd0p1 /mnt || stop "no mount"
say "base $($b md5sum </mnt/numbers)"
$b dd if=/dev/urandom of=/mnt/random bs=64k count=64 2>/dev/null
$b cp /mnt/numbers /mnt/copy
$b sync
say "random $($b md5sum </mnt/random)"
$b fstrim /mnt || say "no trim"
$b umount /mnt || stop "no umount"
say "queues $(ls /sys/block/nbd0/mq 2>/dev/null | $b wc -l)"
! vimg-nbd -c /dev/nbd0 -f qcow2 /img/base.qcow2 2>/dev/null ||
    stop "a device in use was taken"
vimg-nbd -d /dev/nbd0 || stop "no detach"
gone nbd0 || stop "still attached"
n=0
while [ -e /tmp/pid ] && [ $n -lt 200 ]; do
    n=$((n + 1))
    $b usleep 50000
done
[ ! -e /tmp/pid ] || stop "the server is still there"
# Read-only, whichever device is free; a signal detaches too.
d=$(vimg-nbd -r --connect=auto -f qcow2 --pid-file /tmp/pid /img/top.qcow2)
say "auto $d"
$b mount -t ext4 -o ro ${d}p1 /mnt || stop "no read-only mount"
say "again $($b md5sum </mnt/random)"
$b umount /mnt
$b kill $($b cat /tmp/pid)
gone ${d#/dev/} || stop "a signal did not detach"
# Its server is killed, and another one takes over while it is mounted.
ended() { # PIDFILE
    n=0
    while [ -e $1 ] && [ $n -lt 200 ]; do
        n=$((n + 1))
        $b usleep 50000
    done
    [ ! -e $1 ] || stop "the server is still there: $1"
}
vimg-nbd -c /dev/nbd1 --reconnect=200 -f qcow2 --pid-file /tmp/pid1 \
    /img/top.qcow2 || stop "no attach with --reconnect"
$b mount -t ext4 /dev/nbd1p1 /mnt || stop "no mount of nbd1p1"
$b dd if=/dev/urandom of=/mnt/before bs=64k count=16 2>/dev/null
$b sync
$b kill -9 $($b cat /tmp/pid1)
! vimg-nbd -c /dev/nbd1 -r -f qcow2 /img/top.qcow2 2>/dev/null ||
    stop "taken over without being told to"
! vimg-nbd -c /dev/nbd1 --reconnect=200 -r -f qcow2 /img/base.qcow2 \
    2>/dev/null || stop "taken over by another image"
($b dd if=/dev/urandom of=/mnt/after bs=64k count=16 2>/dev/null; $b sync) &
vimg-nbd -c /dev/nbd1 --reconnect=200 -f qcow2 --pid-file /tmp/pid2 \
    /img/top.qcow2 || stop "not taken over"
wait
say "before $($b md5sum </mnt/before)"
say "after $($b md5sum </mnt/after)"
$b umount /mnt || stop "no umount of nbd1p1"
vimg-nbd -d /dev/nbd1 || stop "no detach of nbd1"
gone nbd1 || stop "nbd1 is still attached"
ended /tmp/pid2
# Where there is no netlink, as in another network namespace: by ioctl.
$b unshare -n /bin/vimg-nbd -c /dev/nbd2 -f qcow2 --pid-file /tmp/pid3 \
    /img/top.qcow2 || stop "no attach by ioctl"
[ -b /dev/nbd2p1 ] || stop "no partition when -c returned, by ioctl"
$b mount -t ext4 /dev/nbd2p1 /mnt || stop "no mount, by ioctl"
$b dd if=/dev/urandom of=/mnt/ioctl bs=64k count=16 2>/dev/null
$b sync
say "ioctl $($b md5sum </mnt/ioctl)"
$b umount /mnt || stop "no umount, by ioctl"
! $b unshare -n /bin/vimg-nbd -c /dev/nbd2 -r -f qcow2 /img/base.qcow2 \
    2>/dev/null || stop "a device in use was taken by ioctl"
$b unshare -n /bin/vimg-nbd -d /dev/nbd2 || stop "no detach by ioctl"
gone nbd2 || stop "nbd2 is still attached"
ended /tmp/pid3
d=$($b unshare -n /bin/vimg-nbd -r --connect=auto -f qcow2 \
    --pid-file /tmp/pid4 /img/top.qcow2)
$b mount -t ext4 -o ro ${d}p1 /mnt || stop "no read-only mount of $d"
[ "$($b md5sum </mnt/numbers)" = "$($b md5sum </mnt/copy)" ] ||
    stop "other bytes by ioctl"
$b umount /mnt
$b kill $($b cat /tmp/pid4)
gone ${d#/dev/} || stop "a signal did not detach by ioctl"
ended /tmp/pid4
say "auto-ioctl $d"
# Vsock, from this machine to itself (CID 1): our server, to our own client
# and libnbd's, plain and by TLS; then nbdkit's server.
vsock() {
    uri=nbd+vsock://1:10809/
    vimg-nbd -t -e 0 -f qcow2 --vsock=1:10809 --fork --pid-file /tmp/pid5 \
        /img/top.qcow2 || stop "no server on vsock"
    vimg info -f raw $uri >/tmp/info || stop "vsock: no info"
    $b grep -q '40 MiB' /tmp/info || stop "vsock: $($b cat /tmp/info)"
    if [ -x /bin/nbdinfo ]; then
        [ "$(nbdinfo --size $uri)" = 41943040 ] || stop "vsock: nbdinfo"
    fi
    vimg compare -f raw -F qcow2 -U $uri /img/top.qcow2 >/dev/null ||
        stop "vsock: read otherwise"
    vimg io -f raw -c 'write -P 0x77 39M 512k' -c flush $uri >/dev/null ||
        stop "vsock: no write"
    $b kill $($b cat /tmp/pid5)
    ended /tmp/pid5
    vimg io -f qcow2 -c 'read -P 0x77 39M 512k' /img/top.qcow2 >/dev/null ||
        stop "vsock: what was written is not there"
    # Any address of this machine; a shared key.
    vimg-nbd -t -e 0 -f qcow2 --vsock=10810 --fork --pid-file /tmp/pid6 \
        --object tls-creds-psk,id=t,endpoint=server,dir=/keys \
        --tls-creds t /img/top.qcow2 || stop "no server on vsock with TLS"
    vimg convert -f raw -O raw \
        "nbds+vsock://alice@1:10810/?tls-psk-file=/keys/keys.psk" \
        /tmp/tls.raw || stop "vsock: TLS"
    vimg compare -f raw -F qcow2 -U /tmp/tls.raw /img/top.qcow2 >/dev/null ||
        stop "vsock: TLS: read otherwise"
    ! vimg info -f raw nbd+vsock://1:10810/ >/dev/null 2>&1 ||
        stop "vsock: plain text"
    $b kill $($b cat /tmp/pid6)
    ended /tmp/pid6
    if [ -x /bin/nbdkit ]; then
        nbdkit --vsock -p 10811 -P /tmp/pid7 /bin/nbdkit-file-plugin.so \
            /tmp/tls.raw || stop "no nbdkit on vsock"
        vimg compare -f raw -F raw nbd+vsock://1:10811/ /tmp/tls.raw \
            >/dev/null || stop "vsock: from nbdkit"
        $b kill $($b cat /tmp/pid7)
    fi
    say "vsock fine"
}
if [ -f /vsock_loopback.ko ]; then
    PATH=/bin
    vsock
fi
$b dd if=/img/top.qcow2 of=/dev/vda bs=64k conv=fsync 2>/dev/null
say "size $($b stat -c %s /img/top.qcow2)"
stop "done"
EOT
sed -i 's/^vimg-nbd/\/bin\/vimg-nbd/; s/! vimg-nbd/! \/bin\/vimg-nbd/; s/(vimg-nbd/(\/bin\/vimg-nbd/; s/\$(ls/$($b ls/' "$root/init"
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc -R 0:0 2>/dev/null) | gzip -1 \
    >"$tmp/initrd"

truncate -s 96M "$tmp/out.raw"
timeout ${VIMG_GUEST_TIME:-300} qemu-system-x86_64 -accel tcg -m 768 -smp 1 -nodefaults \
    -display none -serial file:"$tmp/console" -no-reboot \
    -kernel "$dir/vmlinuz" -initrd "$tmp/initrd" \
    -append "console=ttyS0 quiet panic=-1" \
    -drive "file=$tmp/out.raw,format=raw,if=virtio" </dev/null ||
    { cat "$tmp/console"; die "qemu: exit $?"; }
tr -d '\r' <"$tmp/console" >"$tmp/said"
grep -q '^GUEST: done' "$tmp/said" ||
    { cat "$tmp/said"; die "the guest did not finish"; }
[ ! -f "$dir/vsock_loopback.ko" ] || grep -q '^GUEST: vsock fine' "$tmp/said" ||
    die "vsock"
said() { sed -n "s/^GUEST: $1 \([^ ]*\).*/\1/p" "$tmp/said"; }

# What the guest wrote is in the overlay, and the overlay is sound.
[ "$(said base)" = "$(md5sum <"$tmp/files/numbers" | cut -d' ' -f1)" ] ||
    die "the guest read something else"
[ "$(said random)" = "$(said again)" ] || die "read back differently"
head -c "$(said size)" "$tmp/out.raw" >"$root/img/top.qcow2"
qemu-img check -q -f qcow2 "$root/img/top.qcow2" || die "qemu-img check"
qemu-img convert -f qcow2 -O raw "$root/img/top.qcow2" "$tmp/now.raw"
dd if="$tmp/now.raw" of="$tmp/part" bs=1M skip=1 status=none
e2fsck -fn "$tmp/part" >/dev/null 2>&1 || die "e2fsck"
for f in random before after ioctl; do
    debugfs -R "dump /$f $tmp/$f" "$tmp/part" 2>/dev/null
    [ "$(md5sum <"$tmp/$f" | cut -d' ' -f1)" = "$(said $f)" ] ||
        die "$f is not what the guest wrote"
done
