#!/bin/bash
# An image that a running QEMU has is not written by us, and the other way
# round; both share what is only read, as qemu-img does.
. ./tests/functions.sh
need qemu-img qemu-io qemu-system-x86_64
cd "$tmp"

refused() {
    "$@" >out 2>&1 </dev/null && die "not refused: $*"
    grep -qi 'lock\|in use\|another' out || die "other words: $*: $(cat out)"
}
allowed() { "$@" >out 2>&1 </dev/null || die "refused: $*: $(cat out)"; }

# qemu DRIVE-OPTIONS: a QEMU that has it, until quit.
qemu() {
    coproc Q { exec qemu-system-x86_64 -accel tcg -S -display none -m 32 \
        -nodefaults -drive "if=virtio,format=qcow2,file=disk.qcow2$1" \
        -qmp stdio 2>qemu.err; }
    qemu_pid=$Q_PID
    read -r line <&"${Q[0]}" || die "QEMU does not start: $(cat qemu.err)"
}
quit() {
    printf '{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n' >&"${Q[1]}"
    wait "$qemu_pid"
}

vimg create -q -f qcow2 disk.qcow2 16M
vimg create -q -b disk.qcow2 top.qcow2

qemu ''
for who in vimg qemu-img; do
    refused $who check -r all disk.qcow2
    refused $who resize disk.qcow2 32M
    refused $who info disk.qcow2
    refused $who convert -O raw disk.qcow2 x.raw
    refused $who commit top.qcow2
    allowed $who info -U disk.qcow2
done
refused vimg io -c 'write 0 4k' disk.qcow2
refused vimg create -f qcow2 disk.qcow2 1M
refused vimg-nbd -f qcow2 -k "$tmp/sock" disk.qcow2
quit

qemu ',readonly=on'
for who in vimg qemu-img; do
    allowed $who info disk.qcow2
    allowed $who convert -O raw disk.qcow2 x.raw
    refused $who resize disk.qcow2 32M
done
quit

# We have it: for writing, then for reading.
vimg-nbd -f qcow2 --fork --pid-file pid -t -k "$tmp/sock" disk.qcow2
refused qemu-img info disk.qcow2
refused qemu-io -c 'write 0 4k' disk.qcow2
refused qemu-system-x86_64 -accel tcg -S -display none -m 32 -nodefaults \
    -drive if=virtio,format=qcow2,file=disk.qcow2
kill "$(cat pid)"
while [ -e pid ]; do sleep 0.02; done
vimg-nbd -r -f qcow2 --fork --pid-file pid -t -k "$tmp/sock" disk.qcow2
allowed qemu-img info disk.qcow2
refused qemu-io -c 'write 0 4k' disk.qcow2
kill "$(cat pid)"
while [ -e pid ]; do sleep 0.02; done
allowed qemu-io -c 'write 0 4k' disk.qcow2
exit 0
