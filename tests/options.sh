#!/bin/sh
# --help and the manual page of every command tell of the same options, letter
# by letter; the pages exist and say what the commands are.
. ./tests/functions.sh

# "-o --options" for each option, sorted; an option without a letter: "--x".
from_help() {
    vimg $1 --help | sed -n 's/^  \(-., \)\{0,1\} *\(--[a-z-]*\).*/\1\2/p' |
        tr -d , | sort
}
from_page() {
    sed -n 's/^=item \(B<-.>, \)\{0,1\}B<\(--[a-z-]*\)>.*/\1\2/p' \
        "$srcdir/doc/vimg${1:+-$1}.pod" | sed 's/B<//; s/>, / /' | sort
}

vimg --help >"$tmp/main"
commands=$(sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' "$tmp/main")
[ "$(echo "$commands" | wc -l)" -ge 18 ] || die "commands: $commands"
for c in '' $commands; do
    page="$builddir/doc/vimg${c:+-$c}.1"
    [ -s "$page" ] || die "$page: no such page"
    if [ -n "$c" ]; then
        from_help $c >"$tmp/help"
        grep -q "^=item B<$c>" "$srcdir/doc/vimg.pod" ||
            die "vimg.pod does not name $c"
    else
        sed -n 's/^  \(-.\), \(--[a-z]*\).*/\1 \2/p' "$tmp/main" |
            sort >"$tmp/help"
    fi
    from_page "$c" >"$tmp/page"
    [ -s "$tmp/help" ] || die "vimg $c --help: no options"
    diff -u "$tmp/help" "$tmp/page" >&2 ||
        die "vimg $c: --help (-) and the manual page (+) differ"
done

# Every setting of every format stands in its part of vimg-formats(1).
for f in raw qcow2 qcow vdi vmdk; do
    vimg create -f $f -o help | sed -n 's/^  \([a-z0-9_]*\)=.*/\1/p' |
        grep -v -x -e size -e backing_file -e backing_fmt >"$tmp/settings"
    [ -s "$tmp/settings" ] || die "$f has no settings"
    sed -n "/^=head2 $f\$/,/^=head2/p" "$srcdir/doc/vimg-formats.pod" |
        grep '^=item' >"$tmp/page"
    while read -r o; do
        grep -q "[ ]$o=" "$tmp/page" || die "vimg-formats.pod: $f has $o"
    done <"$tmp/settings"
done

# What qemu-img's own help shows is taken: every letter and long name.
command -v qemu-img >/dev/null || exit 0
qemu-img --help | sed -n '/^Command syntax:/,/^Command parameters:/p' |
    grep '^  [a-z]' | while read -r c line; do
    from_help $c | tr ' ' '\n' >"$tmp/help"
    for o in $(echo "$line" | grep -oE '(^|[[(| ])--?[a-zA-Z-]+' |
        grep -oE -- '--?[a-zA-Z-]+'); do
        grep -qx -- "$o" "$tmp/help" || die "vimg $c has no $o"
    done
done
vimg completion bash >"$tmp/completion"
bash -n "$tmp/completion" || die 'completion: syntax'
