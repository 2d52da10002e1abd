# Sourced by tests/cli/*.sh: runs the same command line with vimg and with
# qemu-img, each in a folder of its own, and compares what they say.
#
#   both ARGS...    standard output and exit code are the same, and either both
#                   or neither complain on standard error
#   json ARGS...    exit code is the same, and standard output holds the same
#                   JSON; keys that only vimg has are fine
#   code ARGS...    exit code is the same
#   prepare CMD...  runs a shell command in both folders
#   io ARGS...      qemu-io and vimg io: output without times, exit code
#   images          the images of both folders hold the same disks
need qemu-img qemu-io python3
mkdir "$tmp/q" "$tmp/v"
failures=0

wrong() { echo "FAIL: $*" >&2; failures=$((failures + 1)); }

# What may differ: names of the programs, times, how much the host allocates.
normalise() {
    sed -E -e 's/^qemu-img: /vimg: /' -e '/^disk size: /d' \
        -e '/^Image end offset: /d' -e 's/^( +parent)? +cid: .*/cid/' \
        -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}/DATE/' \
        -e 's/( [0-9:]+\.[0-9]{3}) +[0-9]*$/\1/' \
        -e 's/completed in [0-9.]+/completed in TIME/' \
        -e 's/[0-9:]+\.[0-9]+ sec \([^)]*\)/TIME/' "$1"
}

run_both() {
    (cd "$tmp/q" && qemu-img "$@" >../q.out 2>../q.err </dev/null) \
        && q=0 || q=$?
    (cd "$tmp/v" && vimg "$@" >../v.out 2>../v.err </dev/null) \
        && v=0 || v=$?
    [ $q = $v ] && return
    wrong "$*: qemu-img ends with $q, vimg with $v"
    cat "$tmp/q.err" "$tmp/v.err" >&2
}

code() { run_both "$@"; }

both() {
    run_both "$@"
    normalise "$tmp/q.out" >"$tmp/q.txt"
    normalise "$tmp/v.out" >"$tmp/v.txt"
    diff -u "$tmp/q.txt" "$tmp/v.txt" >&2 || wrong "$*: output"
    if [ -s "$tmp/q.err" ] && ! [ -s "$tmp/v.err" ]; then
        wrong "$*: only qemu-img complains"; cat "$tmp/q.err" >&2
    elif [ -s "$tmp/v.err" ] && ! [ -s "$tmp/q.err" ]; then
        wrong "$*: only vimg complains"; cat "$tmp/v.err" >&2
    fi
}

json() {
    run_both "$@"
    python3 "$srcdir/tests/cli/same-json.py" "$tmp/q.out" "$tmp/v.out" \
        || wrong "$*: JSON"
}

prepare() {
    (cd "$tmp/q" && "$@" >/dev/null) || die "$*"
    (cd "$tmp/v" && "$@" >/dev/null) || die "$*"
}

images() {
    for file; do
        qemu-img compare -q "$tmp/q/$file" "$tmp/v/$file" \
            || wrong "$file: not the same disk"
    done
}

finish() { [ $failures = 0 ] || die "$failures differences"; }

n=0
io() {
    n=$((n + 1))
    (cd "$tmp/q" && qemu-io "$@" >../q.out 2>../q.err </dev/null) \
        && q=0 || q=$?
    (cd "$tmp/v" && vimg io "$@" >../v.out 2>../v.err </dev/null) \
        && v=0 || v=$?
    [ $q = $v ] || wrong "$n $*: qemu-io ends with $q, vimg with $v"
    for w in q v; do
        sed -E -e 's/[0-9.:]+( sec)? \([^)]*\)/TIME/' -e 's/ -- .*//' \
            -e 's/,[0-9]:[0-9:.]+,[0-9.,]+/,TIME/' "$tmp/$w.out" >"$tmp/$w.txt"
    done
    diff -u "$tmp/q.txt" "$tmp/v.txt" >&2 || wrong "$n $*: output"
}
