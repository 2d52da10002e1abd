#!/bin/bash
# Standard input, output or error that the caller closed: no image gets their
# number, so that nothing is printed into one.  (Under libtool's script others
# have them; the program itself is what is run.)
. ./tests/functions.sh
cd "$tmp"
[ -x "$builddir/.libs/vimg" ] || cannot 'linked statically'
export LD_LIBRARY_PATH="$builddir/.libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
vimg="$builddir/.libs/vimg" server="$builddir/.libs/vimg-nbd"

head -c 256k /dev/urandom >image
cp image before
same() { cmp -s image before || die "$*: the image was written to"; }
for command in bogus 'read 0 512' 'write -P 300 0 512' 'write 10M 512'; do
    "$vimg" io -f raw -c "$command" image 2>&- >out </dev/null || :
    same "$command, without standard error"
    "$vimg" io -f raw -c "$command" image >&- 2>err && die "$command: standard output was missed by nobody"
    same "$command, without standard output"
    "$vimg" io -f raw -c "$command" image <&- >&- 2>&- && die "$command: nothing is missed"
    same "$command, with none of them"
done
"$vimg" io -f raw -c 'read 0 512' image >&- 2>err && die 'read to nowhere'
grep -q 'standard output: Bad file descriptor' err || die "read: $(cat err)"
"$vimg" resize -f raw image 256k <&- >&- 2>&- || :
same resize
# What is copied is whole, or says that it is not.
"$vimg" convert -p -f raw -O raw image copy <&- >&- 2>&- || :
cmp copy before || die convert
for f in raw qcow2; do
    "$vimg" convert -f raw -O $f image - >&- 2>err && die "convert -O $f to nowhere"
    grep -q 'Bad file descriptor' err || die "convert -O $f: $(cat err)"
done
"$vimg" convert -f raw - copy <&- 2>err && die 'convert from nowhere'

# The server: its first three files are no images, and no sockets.
"$server" -v -t -f raw -k "$tmp/s" image <&- >&- 2>&- &
pid=$!
cleanup() { kill $pid 2>/dev/null || :; wait; }
while ! [ -S s ]; do kill -0 $pid || die 'the server ended'; sleep 0.02; done
for n in 0 1 2; do
    [ "$(readlink "/proc/$pid/fd/$n")" = / ] || die "$n is $(readlink "/proc/$pid/fd/$n")"
done
same vimg-nbd
