#!/usr/bin/env python3
"""Every option of every command of qemu-img and qemu-io once, with vimg on
the same images: exit code, output, complaints, and what the images hold
afterwards.  Which options there are is asked of the programs themselves.

    options.py [WORD]       only the lines that contain WORD
"""
import filecmp
import json
import os
import re
import runpy
import shutil
import string
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
DIFFER = runpy.run_path(os.path.join(HERE, "same-json.py"))["differ"]
IMAGE_OPTS = "driver=qcow2,file.driver=file,file.filename="

# Made once by QEMU; every line begins with a copy.
FIXTURES = """
qemu-img create -q -f qcow2 a.qcow2 4M
qemu-io -c 'write -P 1 0 1M' -c 'write -z 1M 64k' -c 'write -P 2 3M 100k' a.qcow2
qemu-img snapshot -c s1 a.qcow2
qemu-io -c 'write -P 3 64k 64k' a.qcow2
qemu-img bitmap --add a.qcow2 b0
qemu-io -c 'write -P 4 2M 64k' a.qcow2
qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 m.qcow2
qemu-io -c 'write -P 5 1M 64k' m.qcow2
qemu-img create -q -f qcow2 -b m.qcow2 -F qcow2 t.qcow2 5M
qemu-io -c 'write -P 6 2M 64k' -c 'write -z 0 64k' t.qcow2
qemu-img convert -O raw a.qcow2 a.raw
qemu-img create -q -f qcow2 n.qcow2 6M
qemu-img create -q -f qcow2 p.qcow2 4M
qemu-io -c 'write -P 5 1M 128k' p.qcow2
qemu-img bitmap --add -g 32k p.qcow2 b5
qemu-io -c 'write -P 5 1M 64k' p.qcow2
qemu-img create -q -f qcow2 -o extended_l2=on e.qcow2 1M
qemu-io -c 'write 2k 2k' -c 'write -z 8k 4k' -c 'write 128k 64k' e.qcow2
qemu-img create -q -f qcow2 -b p.qcow2 -F qcow2 -o extended_l2=on f.qcow2
qemu-io -c 'write 2k 2k' -c 'write -z 8k 4k' -c 'write 128k 6k' -c 'discard 130k 2k' f.qcow2
qemu-img create -q -f qcow2 leak.qcow2 4M
qemu-io -c 'write -P 1 0 1M' leak.qcow2
sh -c "printf '\\0\\1' | dd of=leak.qcow2 bs=1 seek=131152 conv=notrunc status=none; truncate -s 2M leak.qcow2"
sh -c "printf abcdef >pattern"
"""

# A line for each option, and for what depends on more than one.
LINES = """
amend -o lazy_refcounts=on a.qcow2
amend -f qcow2 -o compat=1.1 -q a.qcow2
amend -p -t none -o lazy_refcounts=on n.qcow2
amend --force -o lazy_refcounts=on n.qcow2
amend --image-opts -o lazy_refcounts=on @n.qcow2
amend --object secret,id=s,data=x -o compat=0.10 n.qcow2
amend -h
amend --help
bench -c 10 -d 2 -s 4096 -S 8k -o 64k a.qcow2
bench -c 10 -f qcow2 -q a.qcow2
bench -c 10 -w --pattern=7 --flush-interval=4 -d 4 n.qcow2
bench -c 10 -w --flush-interval=4 -d 2 --no-drain n.qcow2
bench -c 10 -i threads -t none -U a.qcow2
bench -c 10 -n -t none a.qcow2
bench -c 10 --force-share --image-opts @a.qcow2
bench -h
bench --help
bitmap --add -g 16k n.qcow2 x
bitmap --add --disable -f qcow2 n.qcow2 x
bitmap --remove a.qcow2 b0
bitmap --clear a.qcow2 b0
bitmap --disable a.qcow2 b0
bitmap --disable --enable a.qcow2 b0
bitmap --merge b5 -b p.qcow2 -F qcow2 a.qcow2 b0
bitmap --image-opts --add @n.qcow2 x
bitmap --object secret,id=s,data=x --add n.qcow2 x
bitmap -h
bitmap --help
check a.qcow2
check -f qcow2 -q a.qcow2
check --format qcow2 -T none a.qcow2
check --output=json -U a.qcow2
check --output human leak.qcow2
check -r leaks leak.qcow2
check --repair all leak.qcow2
check --force-share --image-opts @t.qcow2
check --object secret,id=s,data=x a.qcow2
check -h
check --help
commit -f qcow2 -q t.qcow2
commit -d -t none t.qcow2
commit -b a.qcow2 -r 100M t.qcow2
commit -p --image-opts @m.qcow2
commit --object secret,id=s,data=x t.qcow2
commit -h
commit --help
compare -f qcow2 -F raw a.qcow2 a.raw
compare -s -T none a.qcow2 t.qcow2
compare -p -U a.qcow2 a.raw
compare -q a.qcow2 m.qcow2
compare --force-share a.qcow2 p.qcow2
compare --image-opts @a.qcow2 @m.qcow2
compare --object secret,id=s,data=x a.qcow2 m.qcow2
compare -h
compare --help
convert -f qcow2 -O raw t.qcow2 x
convert -O qcow2 -o cluster_size=4k -q t.qcow2 x
convert -c -O qcow2 -m 4 -W t.qcow2 x
convert -B m.qcow2 -F qcow2 -O qcow2 t.qcow2 x
convert -l s1 -O qcow2 a.qcow2 x
convert -l snapshot.name=s1 -O qcow2 a.qcow2 x
convert -S 0 -O raw a.qcow2 x
convert -S 64k -O qcow2 a.qcow2 x
convert -n -O qcow2 a.qcow2 n.qcow2
convert -n --target-is-zero -O qcow2 a.qcow2 n.qcow2
convert -C -O raw a.raw x
convert -p -r 100M -O qcow2 a.qcow2 x
convert -t unsafe -T none -U -O qcow2 a.qcow2 x
convert --force-share --salvage -O raw a.qcow2 x
convert --bitmaps -O qcow2 a.qcow2 x
convert --bitmaps --skip-broken-bitmaps -O qcow2 a.qcow2 x
convert --image-opts -O raw @a.qcow2 x
convert -n --target-image-opts a.qcow2 @n.qcow2
convert --object secret,id=s,data=x -O raw a.qcow2 x
convert -h
convert --help
create -f qcow2 x 3M
create -q -f qcow2 -o cluster_size=4k,refcount_bits=8 x 3M
create -f qcow2 -b a.qcow2 -F qcow2 x
create -f qcow2 -u -b gone.qcow2 -F qcow2 x 3M
create --object secret,id=s,data=x -f raw x 3M
create -h
create --help
dd -f qcow2 -O raw bs=1M count=2 skip=1 if=a.qcow2 of=x
dd -U -O qcow2 if=t.qcow2 of=x
dd --force-share --image-opts -O raw if=@a.qcow2 of=x
dd --object secret,id=s,data=x -O raw if=a.qcow2 of=x
dd -h
dd --help
info a.qcow2
info -f qcow2 -U a.qcow2
info --format qcow2 --force-share t.qcow2
info --output=json a.qcow2
info --output=json --backing-chain t.qcow2
info --backing-chain t.qcow2
info --image-opts @a.qcow2
info --object secret,id=s,data=x a.qcow2
info -h
info --help
map a.qcow2
map -f qcow2 -U t.qcow2
map --format qcow2 --force-share t.qcow2
map --output=json t.qcow2
map --output=json e.qcow2
map --output=json f.qcow2
map -s 64k -l 1M --output=json t.qcow2
map --start-offset=64k --max-length=1M t.qcow2
map --image-opts @a.qcow2
map --object secret,id=s,data=x a.qcow2
map -h
map --help
measure -f qcow2 -O qcow2 a.qcow2
measure --output=json -O raw -U a.qcow2
measure --output=json -O qcow2 -o cluster_size=4k --size 1G
measure -l s1 -O qcow2 --force-share a.qcow2
measure --image-opts -O qcow2 @t.qcow2
measure --object secret,id=s,data=x -O qcow2 a.qcow2
measure -h
measure --help
rebase -f qcow2 -b a.qcow2 -F qcow2 t.qcow2
rebase -q -t none -T none -b p.qcow2 -F qcow2 t.qcow2
rebase -p -b '' t.qcow2
rebase -u -b p.qcow2 -F qcow2 t.qcow2
rebase -U -b a.qcow2 -F qcow2 t.qcow2
rebase --force-share -u -b p.qcow2 -F qcow2 t.qcow2
rebase --image-opts -b a.qcow2 -F qcow2 @t.qcow2
rebase --object secret,id=s,data=x -b a.qcow2 -F qcow2 t.qcow2
rebase -h
rebase --help
resize a.qcow2 5M
resize -f qcow2 -q t.qcow2 +1M
resize --shrink t.qcow2 3M
resize --shrink t.qcow2 -- -1000k
resize --preallocation=metadata n.qcow2 7M
resize --preallocation full n.qcow2 7M
resize --image-opts @n.qcow2 7M
resize --object secret,id=s,data=x n.qcow2 7M
resize -h
resize --help
snapshot -l a.qcow2
snapshot -c s2 -q a.qcow2
snapshot -a s1 a.qcow2
snapshot -d s1 a.qcow2
snapshot -U -l a.qcow2
snapshot --force-share -l a.qcow2
snapshot --image-opts -l @a.qcow2
snapshot --object secret,id=s,data=x -l a.qcow2
snapshot -h
snapshot --help
-T nothing info a.qcow2
--trace nothing info a.qcow2
-V
--version
-h
--help
"""

IO_LINES = """
-f qcow2 -c 'read -P 1 0 64k' a.qcow2
--format qcow2 --cmd 'read -v 0 64' a.qcow2
-r -c 'write 0 64k' a.qcow2
--read-only -c 'read 0 64k' a.qcow2
-s -c 'write -P 9 0 64k' -c 'read -P 9 0 64k' a.qcow2
--snapshot -c 'write -P 9 0 64k' a.qcow2
-n -c 'write -P 9 0 64k' a.qcow2
--nocache -c 'read 0 64k' a.qcow2
-C -c 'read 0 64k' m.qcow2
--copy-on-read -c 'read 0 64k' m.qcow2
-m -c 'read 0 64k' a.qcow2
--misalign -c 'write 0 64k' a.qcow2
-k -n -c 'read 0 64k' a.qcow2
--native-aio -t none -c 'read 0 64k' a.qcow2
-i threads -c 'read 0 64k' a.qcow2
--aio threads -c 'read 0 64k' a.qcow2
-t writethrough -c 'write 0 64k' a.qcow2
--cache none -c 'write 0 64k' a.qcow2
-d unmap -c 'discard 0 64k' n.qcow2
--discard ignore -c 'discard 0 64k' n.qcow2
-T nothing -c length a.qcow2
--trace nothing -c length a.qcow2
-U -c 'read 0 64k' a.qcow2
--force-share -c 'read 0 64k' a.qcow2
--image-opts -c 'read 0 64k' @a.qcow2
--object secret,id=s,data=x -c 'read 0 64k' a.qcow2
-h
--help
-V
--version
-c 'read -C 0 64k' -c 'read -q 0 64k' -c 'read -p 0 64k' -c 'read -v 0 16' a.qcow2
-c 'read -P 1 -s 512 -l 512 0 64k' -c 'read -P 7 0 64k' -c 'read -P 7 -q 0 64k' a.qcow2
-c 'read -b 0 512' a.qcow2
-c 'readv -C 0 512 512' -c 'readv -P 1 0 512 512' -c 'readv -v 0 16 16' -c 'readv -q 0 1k' a.qcow2
-c 'aio_read -C 0 64k' -c aio_flush a.qcow2
-c 'aio_read -P 7 0 64k' -c aio_flush -c 'aio_read -v 0 16' -c aio_flush a.qcow2
-c 'aio_read -q 0 64k' -c 'aio_read -i 0 64k' -c aio_flush a.qcow2
-c 'aio_write -P 7 0 64k' -c aio_flush -c 'aio_write -C 0 64k' -c aio_flush a.qcow2
-c 'aio_write -f 0 64k' -c aio_flush -c 'aio_write -q 0 64k' -c 'aio_write -i 0 64k' -c aio_flush a.qcow2
-c 'aio_write -z 0 64k' -c aio_flush -c 'aio_write -z -u 64k 64k' -c aio_flush a.qcow2
-c 'write -P 7 0 64k' -c 'write -C 0 1k' -c 'write -q 1k 1k' -c 'write -p 0 1k' a.qcow2
-c 'write -f 0 64k' -c 'write -z 64k 64k' -c 'write -z -u 128k 64k' -c 'write -z -n 192k 64k' a.qcow2
-c 'write -c -P 3 2560k 64k' -c 'write -s pattern 0 64k' a.qcow2
-c 'write -b 0 512' n.qcow2
-c 'writev -P 7 0 512 512' -c 'writev -C 0 1k' -c 'writev -f 0 1k' -c 'writev -q 0 1k' a.qcow2
-c 'discard -C 0 64k' -c 'discard -q 64k 64k' -c 'discard 128k 64k' a.qcow2
-c 'alloc 0' -c 'alloc 0 4M' -c map -c length -c flush -c info a.qcow2
-c 'map' -c 'alloc 1M 128k' t.qcow2
-c map e.qcow2
-c 'truncate 5M' -c length -c 'truncate -m metadata 6M' -c 'truncate -m off 7M' n.qcow2
-c 'open -r a.qcow2' -c 'write 0 1k' -c close -c 'open -s a.qcow2' -c 'write 0 1k'
-c 'open -n a.qcow2' -c 'read 0 1k' -c close -c 'open -C m.qcow2' -c 'read 0 1k'
-c 'open -U a.qcow2' -c 'read 0 1k'
-c 'open -U -r a.qcow2' -c 'read 0 1k'
-c 'open -k -n a.qcow2' -c close -c 'open -i threads a.qcow2' -c 'read 0 1k'
-c 'open -t none a.qcow2' -c close -c 'open -d unmap a.qcow2' -c 'read 0 1k'
-c 'open -o driver=qcow2 a.qcow2' -c length
-c 'open -o driver=qcow2,file.filename=a.qcow2' -c length
-c 'reopen -r' -c 'write 0 1k' -c 'reopen -w' -c 'write 0 1k' a.qcow2
-c 'reopen -c none' -c 'write 0 1k' -c 'reopen -o discard=unmap' -c 'write 0 1k' a.qcow2
-c 'reopen -o lazy-refcounts=on' -c 'write 0 1k' a.qcow2
-c 'reopen -o nonsense=1' a.qcow2
-c 'reopen -o read-only=on' -c 'write 0 1k' a.qcow2
-c 'reopen -r -o read-only=off' a.qcow2
-c 'reopen -c none -o cache.direct=on' a.qcow2
-c 'sleep 1' -c quit -c length a.qcow2
-c help
-c 'help read'
-c 'read -a 0 512' a.qcow2
-c 'break pwritev x' a.qcow2
-c 'wait_break x' a.qcow2
-c 'resume x' a.qcow2
-c 'remove_break x' a.qcow2
-c 'sigraise 0' a.qcow2
-c abort a.qcow2
"""

# What is another way on purpose.  What: code, out, err, disk; all of them are
# told in doc/vimg.pod or on the command's own page.
OUR_WAY = [
    (r"(^| )(-h|--help|-V|--version)$|-c help|-c 'help read'", "out",
     "help and version are our own"),
    (r"^(-T|--trace) | -T nothing|^--trace", "err",
     "there are no trace events; said, not passed over"),
    (r"^bench .*-q ", "out", "quiet is quiet"),
    (r"-c info ", "out", "bitmaps are marked as in use by the first write"),
    (r"read-only=on' -c 'write", "out err",
     "the same words as after reopen -r; QEMU has others"),
    (r"^resize (-h|--help)", "code err", "qemu-img asks for a size first"),
    (r"^commit -p --image-opts @m", "code out err disk",
     "t.qcow2 rests on a.qcow2, too: commit wants --force"),
    (r"^snapshot -a s1 a.qcow2", "code err disk",
     "QEMU refuses where there are bitmaps; here all of what changes is "
     "marked in them"),
    (r"^dd .*count=2 skip=1", "disk",
     "qemu-img counts what is skipped: it copies one block, not two"),
    (r"read -a", "code out err", "QEMU's synopsis has it, its parser not"),
    (r"(break|resume|wait_break|remove_break) .*x'|sigraise|abort",
     "code out err disk", "commands that debug QEMU"),
]

# ---- what the programs print ------------------------------------------------

# What may differ between two runs, and between the programs.
NORMAL = [
    (r"^qemu-(img|io): ", "vimg: "),            # the program's name
    (r"(?m)^disk size: .*\n", ""),              # what the host allocates
    (r"(?m)^Image end offset: .*\n", ""),       # where in the file things are
    (r"\d{4}-\d\d-\d\d [\d:]{8}", "DATE"),      # snapshots
    (r"(?m)( [\d:]+\.\d{3}) +\d*$", r"\1"),     # icount, of record and replay
    (r"completed in [\d.]+", "completed in TIME"),
    (r"[\d:.]+( sec)? \([^)]* ops/sec\)", "TIME"),
    (r"(?m)^(\d+,\d+,)\d+:[\d:.]+,[\d.]+,[\d.]+$", r"\1TIME"),
    (r"(?s)^.*\(100\.00/100%\)\s*", "PROGRESS"), # up to its end
    (r"(?m)^(0x\w+ +0x\w+ +)0x\w+", r"\1AT"),   # map: where in the file
]
VARY = {"actual-size", "date-sec", "date-nsec", "image-end-offset", "icount",
        "offset"}


def normal(text):
    for pattern, by in NORMAL:
        text = re.sub(pattern, by, text)
    return text.strip()


def same_text(line, a, b):
    if "--output=json" in line:
        try:
            return not list(DIFFER(json.loads(a), json.loads(b), ""))
        except ValueError:
            pass
    return normal(a) == normal(b)


# ---- one line ---------------------------------------------------------------

def words(line):
    out = re.findall(r"'[^']*'|\S+", line)
    return [re.sub(r"(^|=)@", r"\1" + IMAGE_OPTS, w.strip("'")) for w in out]


def run(folder, program, line):
    # QEMU waits for a break that nobody set for ever.
    limit = 2 if "wait_break" in line else 120
    try:
        r = subprocess.run(program + words(line), cwd=folder, timeout=limit,
                           stdin=subprocess.DEVNULL, capture_output=True)
    except subprocess.TimeoutExpired:
        return 124, "", "not ended after %d s" % limit
    return r.returncode, r.stdout.decode(), r.stderr.decode()


def quiet(folder, *argv):
    return subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL,
                          capture_output=True)


def look_at(folder, name):
    """What the image holds, and what is wrong with it."""
    info = quiet(folder, "qemu-img", "info", "--output=json", name)
    if info.returncode:
        return "cannot be opened", None
    info = json.loads(info.stdout)
    flat = quiet(folder, "qemu-img", "convert", "-O", "raw", name, name + ".flat")
    content = b""
    if flat.returncode == 0:
        with open(os.path.join(folder, name + ".flat"), "rb") as f:
            content = f.read()
        os.unlink(os.path.join(folder, name + ".flat"))
    wrong = None
    if info["format"] == "qcow2":
        check = quiet(folder, "qemu-img", "check", name)
        if check.returncode:
            wrong = check.stdout.decode() + check.stderr.decode()
    return (info["format"], flat.returncode, hash(content), len(content),
            str(info.get("backing-filename")), info.get("backing-filename-format"),
            json.dumps(info.get("format-specific"), sort_keys=True),
            [s["name"] for s in info.get("snapshots", [])]), wrong


def same_disks(fixtures, q, v):
    names = set(os.listdir(q))
    if names != set(os.listdir(v)):
        yield "files: %s" % sorted(names ^ set(os.listdir(v)))
    for name in sorted(names & set(os.listdir(v))):
        old = os.path.join(fixtures, name)
        if name == "pattern" or (os.path.exists(old) and all(
                filecmp.cmp(old, os.path.join(d, name), False)
                for d in (q, v))):
            continue
        (a, bad), (b, wrong) = look_at(q, name), look_at(v, name)
        if a != b:
            yield "%s: %s against %s" % (name, a, b)
        if wrong and not bad:
            yield "%s: qemu-img check: %s" % (name, wrong)


def try_line(task):
    work, number, peer, ours, line = task
    fixtures = os.path.join(work, "fixtures")
    q, v = (os.path.join(work, "%d%s" % (number, d)) for d in "qv")
    shutil.copytree(fixtures, q)
    shutil.copytree(fixtures, v)
    a, b = run(q, peer, line), run(v, ours, line)
    found = []
    if a[0] != b[0]:
        found.append(("code", "%d against %d: %s" % (a[0], b[0],
                                                     a[2] + b[2])))
    if not same_text(line, a[1], b[1]):
        found.append(("out", "\n--- QEMU\n%s--- vimg\n%s" % (a[1], b[1])))
    if bool(a[2]) != bool(b[2]):
        found.append(("err", "%r against %r" % (a[2], b[2])))
    found += [("disk", f) for f in same_disks(fixtures, q, v)]
    shutil.rmtree(q)
    shutil.rmtree(v)
    return line, found


def excused(line, what):
    return any(what in aspects.split() and re.search(pattern, line)
               for pattern, aspects, reason in OUR_WAY)


# ---- is any option forgotten? -----------------------------------------------

def say(argv):
    r = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True,
                       env=dict(os.environ, LC_ALL="C"))
    return r.stderr.decode()


def long_options(command):
    """getopt tells what an abbreviation could mean."""
    found = set()
    for letter in string.ascii_lowercase:
        for argv in ([*command, "--" + letter + "=1"],
                     [*command, "--" + letter]):
            for text in say(argv).splitlines():
                if "ambiguous" in text:
                    found |= set(re.findall(r"'(--[a-z-]{2,})'", text))
                m = re.search(r"option '(--[a-z-]+)' (doesn't|requires)", text)
                if m:
                    found.add(m[1])
    return found


def short_options(command):
    return {"-" + c for c in string.ascii_letters
            if not re.search("invalid|unrecognized",
                             say([*command, "-" + c, "image", "1M"]))}


def forgotten():
    commands = re.findall(r"(?m)^  ([a-z]+) ", re.search(
        r"Command syntax:(.*?)Command parameters",
        subprocess.run(["qemu-img", "--help"], capture_output=True)
        .stdout.decode(), re.S)[1])
    if len(commands) < 15:
        yield "qemu-img --help lists only %s" % commands
    for name in commands:
        used = {re.sub("=.*", "", w) for line in LINES.splitlines()
                if line.split(" ")[0] == name for w in line.split()}
        command = ["qemu-img", name]
        for option in long_options(command) | short_options(command):
            if option not in used:
                yield "qemu-img %s %s" % (name, option)
    used = {re.sub("=.*", "", w) for line in IO_LINES.splitlines()
            for w in re.sub("'[^']*'", "", line).split()}
    for option in long_options(["qemu-io"]) | short_options(["qemu-io"]):
        if option not in used:
            yield "qemu-io " + option
    yield from forgotten_io_commands()


def forgotten_io_commands():
    def told(*words):
        return subprocess.run(["qemu-io", "-c", " ".join(words)],
                              capture_output=True).stdout.decode()
    given = [a or b for a, b in re.findall(r"-c (?:'([^']*)'|(\S+))",
                                           IO_LINES)]
    for name in re.findall(r"(?m)^([a-z_]+) .*--", told("help")):
        lines = [g for g in given if g.split()[0:1] == [name]]
        if not lines:
            yield "qemu-io -c " + name
        options = set(re.findall(r"(?m)^ (-[a-zA-Z]), --",
                                 told("help", name)))
        options |= {"-" + c for g in re.findall(
            r"\[-([a-zA-Z]+)[\]| ]", told("help", name).split("--")[0])
            for c in g}
        for option in options:
            if not any(option in g.split() for g in lines):
                yield "qemu-io -c '%s %s'" % (name, option)


# ---- all lines --------------------------------------------------------------

def main():
    os.environ["PATH"] = os.getcwd() + ":" + os.environ["PATH"]
    if not all(map(shutil.which, ("qemu-img", "qemu-io", "vimg"))):
        sys.exit(1 if os.environ.get("VIMG_CI") == "1" else 77)
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="vimg-test.") as work:
        fixtures = os.path.join(work, "fixtures")
        os.mkdir(fixtures)
        for line in FIXTURES.strip().splitlines():
            subprocess.run(line, shell=True, cwd=fixtures, check=True,
                           stdout=subprocess.DEVNULL)
        tasks = [(work, i, peer, ours, line) for i, (peer, ours, line) in
                 enumerate([(["qemu-img"], ["vimg"], l)
                            for l in LINES.strip().splitlines()] +
                           [(["qemu-io"], ["vimg", "io"], l)
                            for l in IO_LINES.strip().splitlines()])
                 if only in line]
        with ThreadPoolExecutor(2) as pool:
            for line, found in pool.map(try_line, tasks):
                for what, text in found:
                    if not excused(line, what):
                        print("FAIL: %s: %s: %s" % (line, what, text))
                        failures += 1
    if not only:
        for option in sorted(forgotten()):
            print("FAIL: %s has no line" % option)
            failures += 1
    print("%d lines, %d differences" % (len(tasks), failures))
    sys.exit(failures > 0)


main()
