#!/bin/bash
# Names in an image are data: which files they make us open.
. ./tests/functions.sh
need qemu-img qemu-io strace python3
cd "$tmp"
mkdir a a/sub a/su b

allowed() { vimg "$@" >out 2>err || { cat err >&2; die "refused: $*"; }; }
refused() {
    vimg "$@" >out 2>err && die "not refused: $*"
    grep -q "${because:-names}" err || { cat err >&2; die "other words: $*"; }
}

# The files that a command opens, one by one, of those below this folder.
opened() {
    strace -f -qq -e trace=open,openat,openat2,connect -o trace "$@" \
        >out 2>err || { cat err >&2; die "$*"; }
    grep -v ENOENT trace | grep -o "\"$tmp/[^\"]*\"" | tr -d '"' |
        sed "s,^$tmp/,," | sort -u | tr '\n' ' '
}

qemu-img create -q -f qcow2 b/base.qcow2 1M
qemu-io -c 'write -P 7 0 64k' b/base.qcow2 >/dev/null
cp b/base.qcow2 a/base.qcow2
cp b/base.qcow2 a/sub/base.qcow2
qemu-img create -q -f qcow2 -b ../b/base.qcow2 -F qcow2 a/far.qcow2
qemu-img create -q -f qcow2 -b "$tmp/b/base.qcow2" -F qcow2 a/abs.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a/near.qcow2
qemu-img create -q -f qcow2 -b sub/base.qcow2 -F qcow2 a/below.qcow2
ln -s ../b/base.qcow2 a/link.qcow2
qemu-img create -q -f qcow2 -b link.qcow2 -F qcow2 a/linked.qcow2
qemu-img create -q -f qcow2 -b far.qcow2 -F qcow2 a/deep.qcow2
(cd a && qemu-img create -q -f qcow2 -o data_file=d.raw data.qcow2 1M)
qemu-img create -q -f qcow2 -o data_file="$tmp/b/d.raw" a/dfar.qcow2 1M
(cd a && qemu-img create -q -f vmdk -o subformat=monolithicFlat f.vmdk 1M)

for f in far abs near below linked deep data dfar; do
    allowed map a/$f.qcow2
    allowed map --allow-files=local a/$f.qcow2
    allowed map --allow-files=any a/$f.qcow2
    refused map --allow-files=none a/$f.qcow2
    refused convert --allow-files=none -O raw a/$f.qcow2 x.raw
    refused compare --allow-files=none a/$f.qcow2 b/base.qcow2
    allowed info --allow-files=none a/$f.qcow2
done
refused map --allow-files=none a/f.vmdk
allowed info --allow-files=none a/f.vmdk
grep -q '^virtual size: 1 MiB' out || die "what a VMDK descriptor says"
for f in near below data; do
    allowed map --allow-files=same-dir a/$f.qcow2
    allowed map --allow-files=a a/$f.qcow2
    allowed map --allow-files="$tmp/a" a/$f.qcow2
    allowed map --allow-files=/ a/$f.qcow2
    refused map --allow-files=b a/$f.qcow2
done
for f in far abs linked deep dfar; do
    refused map --allow-files=same-dir a/$f.qcow2
    refused map --allow-files=a a/$f.qcow2
    allowed map --allow-files=. a/$f.qcow2
done
refused map --allow-files=a/su a/below.qcow2
because='No such file' refused map --allow-files=nowhere a/near.qcow2
allowed map --allow-files=same-dir a/f.vmdk
refused map --allow-files=b a/f.vmdk

# What the command line names is not asked about, what that names is.
(cd a && vimg create -q --allow-files=none -f qcow2 -b base.qcow2 -F qcow2 new.qcow2)
refused create --allow-files=none -f qcow2 -b far.qcow2 -F qcow2 a/new2.qcow2
[ ! -e a/new2.qcow2 ] || die "made in spite of the policy"
allowed info --allow-files=none --image-opts \
    driver=qcow2,file.filename=a/far.qcow2,backing.driver=qcow2,backing.file.filename=b/base.qcow2
allowed map --allow-files=none --image-opts \
    driver=qcow2,file.filename=a/far.qcow2,backing.driver=qcow2,backing.file.filename=b/base.qcow2
refused rebase --allow-files=none -b near.qcow2 -F qcow2 a/base.qcow2
allowed io --allow-files=none -s -c 'read -P 7 0 64k' a/base.qcow2
refused io --allow-files=none -s -c 'read 0 64k' a/near.qcow2

# URLs and JSON are no names of files.
for name in 'nbd://localhost:1/x' 'json:{"driver":"file","filename":"b/base.qcow2"}' \
    'http://localhost/x' 'fat:/etc'; do
    qemu-img rebase -u -F qcow2 -b "$name" a/new.qcow2
    because='only files' refused map a/new.qcow2
    refused map --allow-files=same-dir a/new.qcow2
    refused map --allow-files=/ a/new.qcow2
    allowed info a/new.qcow2
done

# info opens one file.
[ "$(opened vimg info "$tmp/a/deep.qcow2")" = 'a/deep.qcow2 ' ] ||
    die "info of an overlay opens: $(cat trace)"
[ "$(opened vimg info --output=json "$tmp/a/dfar.qcow2")" = 'a/dfar.qcow2 ' ] ||
    die "info of an image with a data file opens: $(cat trace)"
grep -q '"data-file": .*/b/d.raw' out || die "info does not tell the data file"
[ "$(opened vimg info --allow-files=none "$tmp/a/f.vmdk")" = 'a/f.vmdk ' ] ||
    die "info of a VMDK descriptor opens: $(cat trace)"
[ "$(opened vimg info "$tmp/a/new.qcow2")" = 'a/new.qcow2 ' ] || die 'info'
grep -q '"[^"]*fat:' trace && die "info of a URL"

# The sandbox holds, and can be left out.
vimg info -v a/near.qcow2 2>err >out || die "info -v"
if grep -q 'confined: yes (Landlock [1-9]*, seccomp)' err; then
    vimg info --no-sandbox -v a/near.qcow2 2>err >out
    grep -q 'confined: no (--no-sandbox)' err || die "--no-sandbox: $(cat err)"
    for how in '' --no-sandbox; do
        vimg-nbd -r $how --fork --pid-file pid -k "$tmp/s" a/near.qcow2
        seccomp=$(sed -n 's/^Seccomp:[[:space:]]*//p' "/proc/$(cat pid)/status")
        kill "$(cat pid)"
        while [ -e pid ]; do sleep 0.02; done
        case $seccomp$how in 2|0--no-sandbox) ;;
        *) die "vimg-nbd $how: Seccomp: $seccomp" ;; esac
    done
else
    echo "no sandbox here: $(cat err)" >&2
fi

# Commands of io that open files may, by whichever name.
for how in 'open -r' ' o -r'; do
    vimg io -c "$how a/near.qcow2" -c length >out 2>&1 || die "io $how: $(cat out)"
done

# A chain as long as the library takes it, and one that is longer.
qemu-img create -q -f qcow2 -o cluster_size=512 deep0000 1M
qemu-io -f qcow2 -c 'write -P 9 0 512' deep0000 >/dev/null
qemu-img create -q -u -f qcow2 -o cluster_size=512 -b deep0000 -F qcow2 \
    overlay 1M
python3 - <<'EOF'
image = open('overlay', 'rb').read()
for n in range(1, 1025):
    open('deep%04d' % n, 'wb').write(image.replace(b'deep0000',
                                                   b'deep%04d' % (n - 1)))
EOF
ulimit -n 4096 2>/dev/null || ulimit -n "$(ulimit -H -n)"
if [ "$(ulimit -n)" -gt 1100 ]; then
    allowed io -r -f qcow2 -c 'read -P 9 0 512' deep1023
    because='longer than 1024' refused map -f qcow2 deep1024
fi
rm deep* overlay

# The server has the same option.
for how in none same-dir; do
    vimg-nbd --allow-files=$how -r -k "$tmp/s" a/far.qcow2 2>err &&
        die "vimg-nbd --allow-files=$how"
    grep -q names err || die "vimg-nbd: $(cat err)"
done
exit 0
