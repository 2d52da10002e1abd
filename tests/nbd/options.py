#!/usr/bin/env python3
"""Every option of qemu-nbd, in both spellings, given to qemu-nbd and to
vimg-nbd: what a client sees, what the disk holds after a write, and the exit
code are the same.  The table is held to `qemu-nbd --help`: an option that is
not in it fails the test.

    options.py FOLDER"""
import hashlib
import json
import os
import re
import subprocess
import sys
import time

tmp = sys.argv[1]
os.chdir(tmp)
OURS, THEIRS = "vimg-nbd", "qemu-nbd"
BITS = ["-f", "qcow2"]
PORT = str(20000 + os.getpid() % 20000)
URI = "nbd+unix:///%s?socket=" + tmp + "/s"
PSK = ["--object", "tls-creds-psk,id=t,endpoint=server,dir=" + tmp]

# Each case: arguments before the image; then what is out of the ordinary:
# name of the export, uri, image, start (False = it must not), write = what
# is written (None = nothing), only = no client comes.
TABLE = {
    "-h --help": [(["OPT"], {"only": True})],
    "-V --version": [(["OPT"], {"only": True})],
    "-p --port": [
        (["OPT", PORT, "-b", "127.0.0.1"], {"uri": "nbd://127.0.0.1:" + PORT}),
        (["OPT", "0x10000"], {"start": False}),
        (["OPT", "x"], {"start": False})],
    "-b --bind": [
        (["OPT", "localhost", "-p", PORT], {"uri": "nbd://127.0.0.1:" + PORT}),
        (["OPT", "no.such.host.invalid", "-p", PORT], {"start": False})],
    "-k --socket": [(["OPT", tmp + "/s"], {"uri": URI % ""}),
                    (["OPT", tmp + "/none/s"], {"start": False})],
    "-e --shared": [(["OPT", "5"], {}), (["OPT", "1"], {}),
                    (["OPT", "x"], {"start": False}),
                    (["OPT", "-3"], {"start": False})],
    "-t --persistent": [(["OPT"], {})],
    "-v --verbose": [(["OPT"], {})],
    "-x --export-name": [(["OPT", "a name"], {"name": "a%20name"}),
                         (["OPT", "n" * 5000], {"start": False})],
    "-D --description": [(["OPT", "some text"], {})],
    # We take 1M and the like too.
    "-o --offset": [(["OPT", "1048576"], {}), (["OPT", "512"], {}),
                    (["OPT", "0x1000"], {}),
                    (["OPT", "8388609"], {"start": False}),
                    (["OPT", "-1"], {"start": False})],
    "-A --allocation-depth": [(["OPT"], {})],
    "-B --bitmap": [(["OPT", "bm"], {"write": None}),
                    (["OPT", "none"], {"start": False})],
    "-L --list": [(["OPT", "-k", tmp + "/nobody"], {"only": True}),
                  (["OPT", "image"], {"only": True})],
    "--object": [(["OPT", "secret,id=s,data=x"], {}),
                 (["OPT", "nonsense,id=s"], {"start": False}),
                 (["OPT", "secret"], {"start": False})],
    "--tls-creds": [
        (PSK + ["OPT", "t"], {"uri": "nbds+unix://alice@/?socket=" + tmp +
                              "/s&tls-psk-file=" + tmp + "/keys.psk"}),
        (["OPT", "none"], {"start": False})],
    # QEMU does not look at who has a key; we do, see tls.sh.
    "--tls-authz": [
        (PSK + ["--tls-creds", "t", "--object",
                "authz-simple,id=a,identity=alice", "OPT", "a"],
         {"uri": "nbds+unix://alice@/?socket=" + tmp +
          "/s&tls-psk-file=" + tmp + "/keys.psk"}),
        (["OPT", "a"], {"start": False})],
    "-T --trace": [(["OPT", "nbd_none"], {})],
    "--fork": [(["OPT"], {})],
    "--pid-file": [(["OPT", tmp + "/pid"], {}),
                   (["OPT", tmp + "/none/pid"], {"start": False})],
    "--selinux-label": [(["OPT", "a:b:c:s0"], {"start": False})],
    "-c --connect": [(["OPT", tmp + "/nbd7"], {"only": True})],
    "-d --disconnect": [(["OPT", tmp + "/nbd7"], {"only": True})],
    "-f --format": [(["OPT", "qcow2"], {}),
                    (["OPT", "raw"], {"write": None}),
                    (["OPT", "vmdk"], {"start": False}),
                    (["OPT", "nonsense"], {"start": False})],
    "-r --read-only": [(["OPT"], {})],
    "-s --snapshot": [(["OPT"], {})],
    "-l --load-snapshot": [
        (["OPT", "one"], {}), (["OPT", "1"], {}),
        (["OPT", "snapshot.name=one"], {}),
        (["OPT", "snapshot.id=1,snapshot.name=one"], {}),
        (["OPT", "none"], {"start": False})],
    "-n --nocache": [(["OPT"], {}),
                     (["OPT", "--cache=unsafe"], {"start": False})],
    "--cache": [(["OPT", m], {}) for m in (
        "none", "off", "writeback", "writethrough", "directsync", "unsafe")] +
               [(["OPT", "much"], {"start": False})],
    "--aio": [(["OPT", "threads"], {}),
              (["--cache=none", "OPT", "native"], {}),
              (["OPT", "much"], {"start": False})],
    "--discard": [(["OPT", m], {}) for m in ("ignore", "unmap")] +
                 [(["OPT", "much"], {"start": False})],
    "--detect-zeroes": [(["OPT", "off"], {"write": 0}),
                        (["OPT", "on"], {"write": 0}),
                        (["--discard=unmap", "OPT", "unmap"], {"write": 0}),
                        (["OPT", "unmap"], {"start": False}),
                        (["OPT", "much"], {"start": False})],
    "--image-opts": [
        (["OPT"], {"image": "driver=qcow2,file.filename=image"}),
        (["OPT", "-r"], {"image": "driver=qcow2,file.driver=file,"
                         "file.filename=image,read-only=on"}),
        (["OPT"], {"image": "driver=qcow2,nonsense=1", "start": False})],
}


def run(*argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=120,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)


def make_image():
    for f in ("image", "s", "pid", "out"):
        if os.path.lexists(f):
            os.unlink(f)
    subprocess.run(["cp", "pristine", "image"], check=True)


def stop(pid):
    try:
        os.kill(pid, 15)
        while True:
            os.kill(pid, 0)
            time.sleep(0.01)
    except ProcessLookupError:
        pass


def look(uri):
    """What a client is told."""
    got = run("nbdinfo", "--list", "--json", uri)
    text = re.sub(r'"(export-size-str|uri)": .*\n', "", got.stdout)
    text = re.sub(r".*(content|is_rotational).*\n", "", text)
    # We can do more: see the man page.
    text = re.sub(r'"(can_fast_zero|can_df|can_cache)": .*', r"\1", text)
    return got.returncode, text


def case(program, args, how):
    make_image()
    image = how.get("image", "image")
    if how.get("only"):
        done = run(program, *args)
        return done.returncode, bool(done.stdout), bool(done.stderr)
    uri = how.get("uri") or URI % how.get("name", "")
    argv = [program, "-t", "--fork", "--pid-file", tmp + "/pid"] + args
    if "-p" not in args and "--port" not in args and "-k" not in args and \
            "--socket" not in args:
        argv += ["-k", tmp + "/s"]
    if "--image-opts" not in args and "-f" not in args and \
            "--format" not in args:
        argv += BITS
    if "-v" in args or "--verbose" in args:
        argv.remove("--fork")
        server = subprocess.Popen(argv + [image], stdin=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        while not os.path.exists("pid") and server.poll() is None:
            time.sleep(0.01)
        started = server.poll() is None
        code = 0 if started else server.returncode
    else:
        started = run(*argv, image)
        code, started = started.returncode, started.returncode == 0
        server = None
    if not started:
        return "does not start", code
    with open("pid", encoding="ascii") as f:
        pid = int(f.read())
    seen = [look(uri)]
    write = how.get("write", 7)
    run("nbdcopy", uri, "out")
    with open("out", "rb") as f:
        seen.append(hashlib.sha256(f.read()).hexdigest())
    if write is not None:
        done = run("qemu-io", "-f", "raw", "-c",
                   "write -P %d 64k 128k" % write, "-c", "flush",
                   "-c", "discard 1M 1M", uri) if "tls" not in uri else \
            run("nbdcopy", "out", uri)
        seen.append(bool(done.returncode) or "failed" in done.stdout)
    if server:
        server.terminate()
        server.wait()
    else:
        stop(pid)
    after = run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image",
                "after")
    with open("after", "rb") as f:
        seen += [after.returncode, hashlib.sha256(f.read()).hexdigest()]
    if "--detect-zeroes" in args or "--discard" in args:
        seen.append(has_data())
    return seen


def has_data():
    """Is there data where zeros were written, and where was discarded?"""
    out = json.loads(run("qemu-img", "map", "--output=json", "image").stdout)
    return [any(e["data"] and e["start"] < end and
                e["start"] + e["length"] > start for e in out)
            for start, end in ((65536, 196608), (1 << 20, 2 << 20))]


def options_of_help():
    text = run(THEIRS, "--help").stdout
    found = set()
    for line in text.splitlines():
        m = re.match(r" {2,6}((-\w), )?(--[a-z-]+)", line)
        if m:
            found.add(" ".join(x for x in (m.group(2), m.group(3)) if x))
    return found


def main():
    # --tls-hostname is in the manual alone, and of use with -L alone.
    there = options_of_help()
    assert len(there) > 30 and there == set(TABLE), \
        (there ^ set(TABLE), "the table and qemu-nbd --help differ")
    with open("keys.psk", "w", encoding="ascii") as f:
        f.write("alice:a1b2c3d4e5f60718293a4b5c6d7e8f90\n")
    run("qemu-img", "create", "-f", "qcow2", "pristine", "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 3M", "pristine")
    run("qemu-img", "snapshot", "-c", "one", "pristine")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 1M", "pristine")
    run("qemu-img", "bitmap", "--add", "pristine", "bm")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 3 5M 100k", "pristine")
    cases, bad = 0, 0
    for names, rows in TABLE.items():
        for n, (args, how) in enumerate(rows):
            results = []
            spellings = names.split()
            for program in (THEIRS, OURS):
                # Both spellings of ours, once; the long one of theirs.
                for name in spellings[-1:] if program == THEIRS or n else \
                        spellings:
                    argv = [name if a == "OPT" else a for a in args]
                    results.append((argv, case(program, argv, how)))
                    cases += 1
            want = results[0][1]
            if how.get("start") is False and want[0] != "does not start":
                print("qemu-nbd itself accepts", results[0][0])
                bad += 1
            for argv, got in results[1:]:
                if got != want:
                    print("%s %s:\n  qemu-nbd: %s\n  vimg-nbd: %s" %
                          (argv, how, want, got))
                    bad += 1
    print("%d runs" % cases)
    sys.exit(1 if bad else 0)


main()
