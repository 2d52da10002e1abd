#!/bin/bash
# The shared library shows what libimg.map lists and nothing else, and every
# global of the library's code begins with img_.
. ./tests/functions.sh
need nm

awk '/global:/ { on = 1; next } /local:/ { on = 0 } on' \
    "$srcdir/libimg/libimg.map" | tr -d ' \n' | tr ';' '\n' |
    sort >"$tmp/listed"
nm -D --defined-only .libs/libimg.so | awk '$2 != "A" { print $3 }' |
    sed 's/@.*//' | sort >"$tmp/shown"
[ -s "$tmp/listed" ] || die "libimg.map lists nothing"
diff "$tmp/listed" "$tmp/shown" || die "< listed, > shown by libimg.so"

# Sanitizers and gcov add names with two underscores.
nm -g --defined-only .libs/libimgcore.a 2>/dev/null |
    awk 'NF == 3 && $3 !~ /^(img_|__)/ { print $3 }' >"$tmp/strangers"
[ ! -s "$tmp/strangers" ] || die "globals without img_: $(cat "$tmp/strangers")"
