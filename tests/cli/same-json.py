#!/usr/bin/env python3
"""Whether the second file has all that the first one has, as JSON."""
import json
import sys

VARY = {"actual-size", "cid", "parent-cid", "date-sec", "date-nsec",
        "image-end-offset", "icount"}


def differ(a, b, where):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a:
            if key in VARY:
                continue
            if key not in b:
                yield f"{where}.{key}: missing"
            else:
                yield from differ(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{where}: {len(a)} items against {len(b)}"
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differ(x, y, f"{where}[{i}]")
    elif type(a) is not type(b) or a != b:
        yield f"{where}: {a!r} against {b!r}"


def load(name):
    with open(name) as f:
        text = f.read()
    return json.loads(text) if text.strip() else None


def main():
    found = list(differ(load(sys.argv[1]), load(sys.argv[2]), ""))
    for line in found:
        print(line, file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
