#!/bin/bash
# Every option of qemu-nbd is one of ours, with the same letter and likewise
# with or without an argument; --help and the manual page agree; places to
# listen that need something of the machine.
. ./tests/functions.sh
. "$srcdir/tests/nbd/nbd.sh"

# "-x --long" for each option; "--long" for one without a letter.
from_help() {
    "$1" --help | sed -nE 's/^ +((-., )? *--[a-z-]+).*/\1/p' | tr -d , |
        tr -s ' ' | sed 's/^ //' | sort -u
}
from_page() {
    grep '^=item B<-' "$srcdir/doc/vimg-nbd.pod" | tr ';' '\n' |
        grep -oE '(B<-.>, )?B<--[a-z-]+>' | sed 's/B<//g; s/>//g; s/,//' |
        sort -u
}
from_help vimg-nbd >"$tmp/ours"
from_page >"$tmp/page"
[ "$(wc -l <"$tmp/ours")" -gt 35 ] || die "--help was not understood"
diff "$tmp/ours" "$tmp/page" >&2 || die "--help (<) and manual page (>) differ"

# Is the option known, and may it have an argument?  getopt's own words.
takes() { # PROGRAM --LONG
    timeout 10 "$1" "$2=?" 2>&1 </dev/null | sed -n \
        -e 's/.*unrecognized option.*/unknown/p' \
        -e "s/.*doesn't allow an argument.*/none/p" | head -n 1
}
needs() { # PROGRAM -X
    timeout 10 "$1" "$2" 2>&1 </dev/null |
        sed -n "s/.*requires an argument.*/argument/p" | head -n 1
}
if command -v qemu-nbd >/dev/null; then
    from_help qemu-nbd >"$tmp/theirs"
    [ "$(wc -l <"$tmp/theirs")" -gt 30 ] || die "qemu-nbd --help"
    { comm -23 "$tmp/theirs" "$tmp/ours"; } >"$tmp/lacking"
    [ ! -s "$tmp/lacking" ] || die "not ours: $(cat "$tmp/lacking")"
    # --tls-hostname is in its manual, not in its help.
    for o in $(tr ' ' '\n' <"$tmp/theirs" | grep -- ^--) --tls-hostname; do
        a=$(takes qemu-nbd "$o") b=$(takes vimg-nbd "$o")
        [ "$a" = "$b" ] || die "$o=...: '$a' with qemu-nbd, '$b' with ours"
    done
    for o in $(tr ' ' '\n' <"$tmp/theirs" | grep -E '^-.$'); do
        case $o in -h | -V | -L | -d) continue ;; esac
        a=$(needs qemu-nbd "$o") b=$(needs vimg-nbd "$o")
        [ "$a" = "$b" ] || die "$o: '$a' with qemu-nbd, '$b' with ours"
    done
fi

# And what they do.
if command -v qemu-nbd >/dev/null && command -v nbdinfo >/dev/null; then
    python3 "$srcdir/tests/nbd/options.py" "$tmp" >&2 || die "not as qemu-nbd"
fi
rm -f "$tmp/s" "$tmp/pid"

refused() { # WORDS OPTIONS...
    words=$1
    shift
    ! timeout 10 vimg-nbd "$@" >"$tmp/out" 2>&1 || die "$*: was accepted"
    grep -q -- "$words" "$tmp/out" || die "$*: $(cat "$tmp/out")"
}
truncate -s 1M "$tmp/disk.raw"
refused "PAM is not supported" --object authz-pam,id=a,service=x "$tmp/disk.raw"
refused "not known" --object secret_keyring,id=a,serial=1 "$tmp/disk.raw"
refused "'polcy' is not expected" --object authz-list,id=a,polcy=deny x
refused "needs a type and an id" --object secret x
refused "two have the id" --object secret,id=a --object secret,id=a x
refused "needs --tls-creds" --tls-authz a "$tmp/disk.raw"
refused "no number" -p 65536 "$tmp/disk.raw"
refused "no number" -e -1 "$tmp/disk.raw"
refused "mutually exclusive" --image-opts -f raw driver=raw
refused "detect-zeroes to unmap" --detect-zeroes=unmap "$tmp/disk.raw"
refused "only be specified once" -n --cache=none "$tmp/disk.raw"
refused "Invalid number of arguments" "$tmp/disk.raw" "$tmp/disk.raw"
refused "beyond the end" -f raw -o 2M -k "$sock" "$tmp/disk.raw"
refused "List mode" -L "$tmp/disk.raw"

# A label is only for machines with SELinux; elsewhere it is no silent no-op.
if [ -d /sys/fs/selinux/booleans ]; then
    echo "SELinux is on: --selinux-label is not tried"
else
    refused "selinux-label" --selinux-label=system_u:object_r:x_t:s0 -f raw \
        -k "$sock" "$tmp/disk.raw"
fi

# Two sockets passed by whoever starts us; they are used, and no other.
command -v python3 >/dev/null && python3 - "$tmp" <<'END'
import os, socket, subprocess, sys
tmp, fds = sys.argv[1], []
for i in range(2):
    s = socket.socket(socket.AF_UNIX)
    s.bind("%s/act%d" % (tmp, i))
    s.listen()
    fds.append(s)
pid = os.fork()
if pid == 0:
    high = [os.dup(os.dup(s.fileno()) + 0) for s in fds]
    high = [__import__("fcntl").fcntl(h, 0, 50) for h in high]
    for i, h in enumerate(high):
        os.dup2(h, 3 + i)
    os.environ["LISTEN_FDS"] = "2"
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execvp("vimg-nbd", ["vimg-nbd", "-t", "-e", "0", "-f", "raw",
                           tmp + "/disk.raw"])
for s in fds:
    s.close()
for i in range(2):
    out = subprocess.run(["vimg-nbd", "-L", "-k", "%s/act%d" % (tmp, i)],
                         capture_output=True, timeout=60).stdout
    assert b"size:  1048576" in out, out
os.kill(pid, 15)
assert os.waitpid(pid, 0)[1] == 0
# What is no listening socket would be accepted from for ever.
for wrong in socket.socket(socket.AF_UNIX), open("/dev/null"):
    pid = os.fork()
    if pid == 0:
        os.dup2(wrong.fileno(), 3)
        os.dup2(os.open(tmp + "/said", os.O_CREAT | os.O_WRONLY), 2)
        os.environ["LISTEN_FDS"] = "1"
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.execvp("vimg-nbd", ["vimg-nbd", "-f", "raw", tmp + "/disk.raw"])
    assert os.waitpid(pid, 0)[1] == 1 << 8
    assert "descriptor 3" in open(tmp + "/said").read()
END
[ $? = 0 ] || die "socket activation"

# Vsock, where the kernel lets a machine talk to itself.
if python3 -c 'import socket; s = socket.socket(socket.AF_VSOCK)
s.bind((1, 40123)); s.listen()' 2>/dev/null; then
    vimg-nbd -t -f raw --vsock=1:40123 --fork --pid-file "$pidfile" \
        "$tmp/disk.raw" || die "--vsock"
    python3 -c 'import socket; s = socket.socket(socket.AF_VSOCK)
s.connect((1, 40123)); assert s.recv(8) == b"NBDMAGIC"' || die "over vsock"
    stop_server
else
    refused "vsock port 40123" --vsock=1:40123 -f raw "$tmp/disk.raw"
    echo "this kernel has no vsock to itself: only the refusal was tried"
fi
