"""What the benches share: running a program and what it took."""
import mmap
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

VIMG = os.environ.get("VIMG", "vimg")
# In a build tree that is a script of libtool's; the program is beside it.
SCRIPT = shutil.which(VIMG)
BUILT = SCRIPT and os.path.join(os.path.dirname(SCRIPT), ".libs")
if BUILT and os.path.exists(os.path.join(BUILT, "vimg")):
    VIMG = os.path.join(BUILT, "vimg")
    os.environ["LD_LIBRARY_PATH"] = BUILT
PEER = os.environ.get("PEER", "qemu-img")
MIB = 1 << 20
PIECE = b"x" * MIB
WARM = int(os.environ.get("WARM_MIB") or 3072) * MIB
# Python's own memory would be counted as that of what it starts, so that a
# small program of Debian's "time" starts it and says what it saw.
TIME = shutil.which("time")


def size_of(text):
    number, unit = re.fullmatch(r"(\d+)([KMGT]?)", text).groups()
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]


def human(count):
    return "%.1f MiB" % (count / MIB)


def warm():
    """Takes memory and gives it back.  In a virtual machine the first use of
    a page may cost its host ten times what copying it does: whoever comes
    first would pay for that."""
    with mmap.mmap(-1, WARM + MIB) as memory:
        for _ in range(WARM // MIB):
            memory.write(PIECE)


def run(argv, codes=(0,), stderr=False, cwd=None):
    """Wall seconds, CPU seconds, peak KiB."""
    full, note = argv, None
    if TIME:
        note = tempfile.NamedTemporaryFile("r")
        full = [TIME, "-q", "-f", "%M", "-o", note.name] + argv
    with open(os.devnull, "r+b") as null:
        actions = [(os.POSIX_SPAWN_DUP2, null.fileno(), 0),
                   (os.POSIX_SPAWN_DUP2, null.fileno(), 1)]
        if not stderr:
            actions.append((os.POSIX_SPAWN_DUP2, null.fileno(), 2))
        here = os.open(".", os.O_RDONLY)
        if cwd:
            os.chdir(cwd)
        began = time.monotonic()
        pid = os.posix_spawnp(full[0], full, os.environ,
                              file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        took = time.monotonic() - began
        os.fchdir(here)
        os.close(here)
    code = os.waitstatus_to_exitcode(status)
    if code not in codes:
        sys.exit("bench: %s: exit %d" % (" ".join(argv), code))
    peak = usage.ru_maxrss
    if note:
        peak = int(note.read() or 0)
        note.close()
    return took, usage.ru_utime + usage.ru_stime, peak


def quiet(*argv, **more):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, **more)


def text_of(*argv, codes=(0,)):
    """Standard output of a program."""
    done = subprocess.run(argv, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)
    if done.returncode not in codes:
        sys.exit("bench: %s: exit %d" % (" ".join(argv), done.returncode))
    return done.stdout


# The longest that a row may take for its runs, but for the first: some of
# qemu-img's take minutes.
ENOUGH = float(os.environ.get("ENOUGH") or 40)


def enough(ours, theirs, runs):
    """Rows of wall seconds and more, one for each run.  What is short is run
    more often."""
    spent = sum(run[0] for run in ours + theirs)
    return (spent > ENOUGH or len(ours) >= 5 * runs or
            (len(ours) >= runs and spent > 1))


def markdown(text):
    """Adds to the file that BENCH_MARKDOWN names, for doc/performance.md."""
    name = os.environ.get("BENCH_MARKDOWN")
    if name:
        with open(name, "a") as file:
            file.write(text)


def table(title, columns):
    markdown("\n%s\n\n| %s |\n|%s\n" % (title, " | ".join(columns),
                                       "---|" * len(columns)))


def table_row(cells):
    markdown("| %s |\n" % " | ".join(cells))


def head(title):
    print("%-23s %8s %8s %6s %5s %-6s   %13s   %17s   %21s %4s" % (
        title, "vimg s", "peer s", "ratio", "goal", "", "CPU s",
        "memory MiB", "output MiB", "runs"))
    table(title, ["row", "vimg s", "qemu-img s", "ratio", "goal", "",
                  "CPU s", "memory MiB", "output MiB", "runs", "command"])


def line(name, ours, theirs, goal, argv):
    """Medians of rows of wall, CPU, peak KiB, output bytes.  goal: the
    ratio, None = there is none; with "size" that of the output counts, too,
    to half a percent."""
    a = [statistics.median(column) for column in zip(*ours)]
    b = [statistics.median(column) for column in zip(*theirs)]
    ratio, sized = a[0] / b[0], False
    if isinstance(goal, tuple):
        goal, sized = goal[0], True
    met = ""
    if goal:
        met = "met" if ratio <= goal and (
            not sized or a[3] <= b[3] * 1.005) else "MISSED"
    print("%-23s %8.3f %8.3f %6.3f %5s %-6s   %6.2f %6.2f   %8.1f %8.1f   "
          "%10.1f %10.1f %4d" % (
              name, a[0], b[0], ratio, goal or "-", met, a[1], b[1],
              a[2] / 1024, b[2] / 1024, a[3] / MIB, b[3] / MIB, len(ours)),
          flush=True)
    table_row([name, "%.3f" % a[0], "%.3f" % b[0], "%.3f" % ratio,
               "%s%s" % (goal or "", ", no larger" if sized else ""),
               "**missed**" if met == "MISSED" else met,
               "%.2f / %.2f" % (a[1], b[1]),
               "%.1f / %.1f" % (a[2] / 1024, b[2] / 1024),
               "%.1f / %.1f" % (a[3] / MIB, b[3] / MIB), str(len(ours)),
               "`%s`" % " ".join(argv)])


def folder_for(wanted):
    """Memory, if there is enough of it."""
    try:
        room = os.statvfs("/dev/shm")
        if room.f_bavail * room.f_frsize > wanted:
            return "/dev/shm"
    except OSError:
        pass
    print("bench: not enough room in /dev/shm; this is the disk's speed too")
    return None
