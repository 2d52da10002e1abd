#!/usr/bin/env python3
"""make lint: clang-tidy, cppcheck and gcc -fanalyzer over all that is shipped.

A finding that tests/lint-explained does not explain fails it; an explanation
of what is not found any more is named, to be taken out.  Each tool must also find its
defect in tests/lint-planted.c, so that a tool that does not run is noticed.
The explanations are for Debian 12's tools: clang-tidy 14, cppcheck 2.10 and
gcc 12.

    lint.py [FILE...]       all files of libimg, tools and nbd, or these

Switched off as a class, because the tool is wrong about all of them here
(.clang-tidy says what is off in clang-tidy):
  cppcheck memleak: does not know the cleanup attribute
  -Wanalyzer-malloc-leak, -use-of-uninitialized-value, -double-free: gcc 12
    follows a callee's failure into the caller's success
AddressSanitizer, LeakSanitizer and the failing allocator of tests/fault-ops
cover that ground.
"""
import collections
import concurrent.futures
import glob
import os
import re
import shutil
import subprocess
import sys
import time

BUILD = os.getcwd()
SRC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
PLANTED = "tests/lint-planted.c"
JOBS = 2
os.chdir(SRC)

FLAGS = ["-std=gnu11", "-include", BUILD + "/config.h",
         "-Ilibimg", "-Inbd", "-Itools"]
GCC_OFF = ["malloc-leak", "use-of-uninitialized-value", "double-free"]
FOUND = re.compile(r"^(?:\./|.*/(?=(?:libimg|tools|nbd|tests)/))?"
                   r"((?:libimg|tools|nbd|tests)/[^:]*):(\d+):(?:\d+:)? "
                   r"(?:warning|error): .*\[([-A-Za-z.0-9+_]+)")


def told(path):
    """What tests/lint.h tells the analyzers, but where that is defined."""
    own = path in ("libimg/base/error.c", "nbd/objects.c")
    return FLAGS + ([] if own else ["-include", "tests/lint.h"])


def clang_tidy(path):
    # A third of the paths that it looks at by itself, in a third of the time.
    return (["clang-tidy", "--quiet", path, "--"] + told(path) +
            ["-Xclang", "-analyzer-config", "-Xclang", "max-nodes=75000"])


def cppcheck(path):
    return ["cppcheck", "-q", "--enable=warning,performance,portability",
            "--std=c11", "--suppress=missingIncludeSystem",
            "--suppress=memleak",
            "--template={file}:{line}: warning: {message} [{id}]",
            "--include=" + BUILD + "/config.h",
            "-Ilibimg", "-Inbd", "-Itools", path]


def gcc(path):
    return (["gcc"] + told(path) + ["-O1", "-fanalyzer"] +
            ["-Wno-analyzer-" + name for name in GCC_OFF] +
            ["-fdiagnostics-plain-output", "-c", "-o", "/dev/null", path])


TOOLS = {"clang-tidy": clang_tidy, "cppcheck": cppcheck, "gcc": gcc}


def function_at(path, line):
    """The function that a line is in: the last name at a line's beginning."""
    with open(path, encoding="utf-8") as file:
        for text in reversed(file.readlines()[:line]):
            at = re.match(r"(?!#|/|\*|typedef)[a-z][^;=]*?(\w+)\(", text)
            if at:
                return at[1]
    return "-"


def run(job):
    """(tool, {finding: its lines}, what went wrong)"""
    tool, path = job
    done = subprocess.run(TOOLS[tool](path), text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found = collections.defaultdict(list)
    for text in done.stdout.splitlines():
        at = FOUND.match(text)
        if at:
            where = os.path.normpath(at[1])
            found[where, function_at(where, int(at[2])), at[3]].append(
                text if where == path else path + ": " + text)
    broken = done.returncode and not found
    return tool, found, done.stdout if broken else ""


def explained():
    """Lines FILE FUNCTION [CHECK], each with an indented why below."""
    known = {}
    with open("tests/lint-explained", encoding="utf-8") as file:
        for text in file:
            at = re.match(r"(\S+) (\S+) \[(\S+)\]$", text)
            if at:
                key = at[1], at[2], at[3]
                known[key] = ""
            elif re.match(r"    \S", text):
                known[key] += text
            elif not re.match(r"#|$", text):
                sys.exit("tests/lint-explained: not understood: " + text)
    for key, why in known.items():
        if not why:
            sys.exit("tests/lint-explained: no reason: %s %s [%s]" % key)
    return known


def main():
    began = time.time()
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        sys.exit("lint: please install " + " ".join(missing))
    packages = subprocess.run(
        ["pkg-config", "--cflags", "fuse3", "gnutls", "jansson", "libnbd"],
        text=True, stdout=subprocess.PIPE, check=True)
    FLAGS.extend(packages.stdout.split())
    paths = sys.argv[1:] or sorted(
        sum((glob.glob(d + "/*.c") for d in
             ("libimg", "libimg/*", "tools", "nbd")), []))
    jobs = [(tool, path) for path in [PLANTED] + paths for tool in TOOLS]
    known = explained()
    found = {tool: {} for tool in TOOLS}
    failed = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for tool, new, broken in pool.map(run, jobs):
            found[tool].update(new)
            if broken:
                failed[tool] += 1
                print(tool + " did not work:\n" + broken)
    left = {key for key in known if key[0] in paths}
    for tool in TOOLS:
        planted = {k: v for k, v in found[tool].items() if k[0] == PLANTED}
        if not planted:
            failed[tool] += 1
            print(tool + " did not find its defect in " + PLANTED)
        for key in set(found[tool]) - set(planted) - set(known):
            failed[tool] += 1
            print("not explained: %s %s [%s]" % key, *found[tool][key],
                  sep="\n  ")
        left -= set(found[tool])
        print("%s: %s: %d files, %d findings explained" % (
            "FAIL" if failed[tool] else "PASS", tool, len(paths),
            len(set(found[tool]) & set(known))))
    for key in left:
        print("note: explained but not found any more: %s %s [%s]" % key)
    fails = sum(1 for tool in TOOLS if failed[tool])
    print("lint: %d files, %d findings explained, %d s" % (
        len(paths), sum(len(set(found[tool]) & set(known)) for tool in TOOLS),
        time.time() - began))
    print("# PASS: %d\n# FAIL: %d" % (len(TOOLS) - fails, fails))
    return 1 if fails else 0


sys.exit(main())
