#!/usr/bin/env python3
"""Dependencies point down only: reads the #include "..." lines of the tree and
fails on any edge that is not in the table below (HACKING.md has the picture).
"""
import os
import re
import sys

SRC = os.path.join(os.environ.get("srcdir", "."))
FORMATS = ["raw", "qcow2", "vdi", "vmdk", "qcow"]
DOWN = {
    "base": {"base", "libimg.h"},
    "file": {"file", "base", "libimg.h"},
    "cache": {"cache", "codec", "file", "base", "libimg.h"},
    "codec": {"codec", "base", "format.h", "libimg.h"},
    "format.h": {"libimg.h"},
    "formats.c": {"format.h", "libimg.h", "base", "foreign.h", *FORMATS},
    "foreign.c": {"foreign.h", "libimg.h", "base"},
    "foreign.h": {"libimg.h", "base"},
    "core": {"core", "format.h", "foreign.h", "cache", "codec", "file",
             "base", "libimg.h"},
    "ops": {"ops", "core", "format.h", "foreign.h", "cache", "codec", "file",
            "base", "libimg.h"},
    "libimg.h": set(),
}
for f in FORMATS:
    DOWN[f] = {f, "format.h", "cache", "codec", "file", "base", "libimg.h"}


def room(path):
    """Which module a file of libimg/, given as libimg/..., belongs to."""
    return path.split("/")[1]


def includes(path):
    with open(os.path.join(SRC, path), encoding="utf-8") as text:
        for number, line in enumerate(text, 1):
            found = re.match(r'\s*#\s*include\s*([<"])([^">]+)[">]', line)
            if found:
                yield number, found.group(1), found.group(2)


def check_library(path):
    mine = room(path)
    if mine not in DOWN:
        yield "%s: libimg/%s is not in the table" % (path, mine)
        return
    for number, quote, name in includes(path):
        if quote == "<":
            continue
        beside = os.path.join(os.path.dirname(path), name)
        if os.path.exists(os.path.join(SRC, beside)):
            other = room(beside)
        else:
            other = name.split("/")[0]
        if other not in DOWN[mine]:
            yield '%s:%d: %s may not include "%s"' % (path, number, mine, name)


def check_user(path, top):
    for number, quote, name in includes(path):
        inside = os.path.join(SRC, "libimg", name)
        own = os.path.join(SRC, top, name)
        if (name != "libimg.h" and os.path.exists(inside)
                and not (quote == '"' and os.path.exists(own))):
            yield "%s:%d: %s/ knows nothing but libimg.h" % (path, number, top)


def main():
    bad, seen = [], 0
    for top in ("libimg", "tools", "nbd"):
        for where, _, names in os.walk(os.path.join(SRC, top)):
            for name in sorted(names):
                if not name.endswith((".c", ".h")):
                    continue
                path = os.path.relpath(os.path.join(where, name), SRC)
                seen += 1
                bad += (check_library(path) if top == "libimg"
                        else check_user(path, top))
    for line in bad:
        print(line)
    print("%d files, %d wrong edges" % (seen, len(bad)))
    return 1 if bad or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
