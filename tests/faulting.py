"""What tests/fault-commands.py and tests/fault-servers.py share: the kinds of
faults, the shim that lets them come, and what has to hold of an image
afterwards."""
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

SHIM = os.path.abspath("tests/.libs/shim.so")
VIMG = os.path.abspath(".libs/vimg")
NBD = os.path.abspath(".libs/vimg-nbd")
FILES, CHANGE, MEMORY = 63, 14, 64      # as in tests/shim.h
EIO, ENOSPC, EINTR, ENOMEM, KILL = 5, 28, 4, 12, -9

# kinds, errno (0 = a part is done), for ever, may it be noticed?
KINDS = [
    ("EIO", FILES, EIO, "", True),
    ("ENOSPC for ever", CHANGE, ENOSPC, ":ever", True),
    ("EINTR", 15, EINTR, "", False),
    ("a part", 3, 0, "", False),
    ("no memory", MEMORY, ENOMEM, "", True),
    ("kill -9", FILES, KILL, "", True),
]

os.environ["LD_LIBRARY_PATH"] = os.path.abspath(".libs")


def can_run():
    return "asan" not in os.environ.get("LD_PRELOAD", "") and \
        os.path.exists(SHIM)


def step(default):
    return int(os.environ.get("FAULT_STEP", default))


def environment(kind, n, report):
    """For a program whose n-th call fails."""
    _, kinds, code, ever, _ = kind
    open(report, "w").close()
    return dict(os.environ, LD_PRELOAD=SHIM, SHIM_REPORT=report,
                SHIM_FAULT="%d:%d:%d%s" % (kinds, code, n, ever))


def has_come(report):
    """Nothing is reported by what was killed."""
    with open(report) as f:
        return int(f.read() or 1) > 0


def vimg(command, check=True, **more):
    return subprocess.run([VIMG] + shlex.split(command), check=check,
                          capture_output=True, text=True, **more)


def content(name):
    """What the guest sees; raises CalledProcessError."""
    out = tempfile.mktemp(dir=os.path.dirname(os.getcwd()))
    try:
        vimg("convert -O raw '%s' '%s'" % (name, out))
        with open(out, "rb") as f:
            return f.read()
    finally:
        if os.path.exists(out):
            os.unlink(out)


def raw_digests():
    """Of the files of this folder."""
    digests = {}
    for n in sorted(os.listdir(".")):
        with open(n, "rb") as f:
            digests[n] = hashlib.sha256(f.read()).hexdigest()
    return digests


def restore(saved):
    """This folder is as that one."""
    for n in os.listdir("."):
        os.unlink(n)
    for n in os.listdir(saved):
        shutil.copyfile(os.path.join(saved, n), n)


def leaks_at_most(where, target):
    r = vimg("check -q '%s'" % target, check=False)
    if r.returncode in (0, 3):
        return
    # Marked dirty amid a snapshot: repaired by whoever writes to it.
    errors = [e for e in (r.stdout + r.stderr).splitlines()
              if "ERROR" in e and "OFLAG_COPIED" not in e]
    vimg("io -c 'read 0 512' '%s'" % target, check=False)
    r = vimg("check -q '%s'" % target, check=False)
    if errors or r.returncode not in (0, 3):
        sys.exit("%s: %s %s" % (where, errors, r.stderr))
