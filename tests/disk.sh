# Sourced after functions.sh.  Builds, once per build tree, the real disk that
# the tests and the quickstart work on, and names it in $disk.
#
#   $disk          1.25 GiB, raw: GPT; partition 1 ext4 with files of this
#                  machine, partition 2 empty
#   $part_offset   where partition 1 begins, bytes
#   $part_size     and its length
#   $disk_sum      SHA-256 of the whole disk, to see that nobody wrote to it

PATH="$PATH:/usr/sbin:/sbin"
need mke2fs e2fsck sfdisk sha256sum

disk_dir="$builddir/tests/disk"
disk="$disk_dir/disk.raw"
part_offset=$((1024 * 1024))
part_size=$((900 * 1024 * 1024))
disk_size=$((1280 * 1024 * 1024))

# About $1 MiB of real files: programs, libraries, headers, texts.
disk_stage() {
    find /usr/bin /usr/include /usr/lib /usr/share/doc /usr/share/perl* \
        -xdev -type f -readable -size -8192k -printf '%s %p\n' 2>/dev/null |
        LC_ALL=C sort -k2 | awk -v max="$1" '
            # Every file whose running total ends in an even MiB: a sample of
            # all folders that does not depend on how many there are.
            { all += $1; if (int(all / 1048576) % 2 || kept > max * 1048576)
                  next; kept += $1; sub(/^[0-9]+ \//, ""); print }' \
        >"$2.list"
    mkdir -p "$2"
    tar -C / -cf - --no-recursion -T "$2.list" 2>/dev/null | tar -C "$2" -xf -
}

disk_make() {
    rm -rf "$disk_dir/new" "$disk_dir/new.list"
    disk_stage 320 "$disk_dir/new"
    truncate -s 0 "$disk.new"
    truncate -s "$disk_size" "$disk.new"
    sfdisk -q "$disk.new" <<EOT
label: gpt
label-id: 6D0C1A5E-0000-4000-8000-000000000001
first-lba: 2048
start=2048, size=$((part_size / 512)), type=linux
start=$(((part_offset + part_size) / 512)), size=262144, type=linux
EOT
    mke2fs -q -F -t ext4 -d "$disk_dir/new" -E offset=$part_offset \
        "$disk.new" $((part_size / 1024))k
    rm -rf "$disk_dir/new" "$disk_dir/new.list"
    sha256sum <"$disk.new" | cut -d' ' -f1 >"$disk_dir/sum"
    mv "$disk.new" "$disk"
}

# e2fsck of the ext4 in a raw file; read-only.
disk_fsck() {
    e2fsck -fn "$1?offset=$part_offset" >"$tmp/fsck.out" 2>&1 || {
        cat "$tmp/fsck.out"
        return 1
    }
}

mkdir -p "$disk_dir"
(
    flock 9
    [ -f "$disk" ] && [ -f "$disk_dir/sum" ] || disk_make
) 9>"$disk_dir/lock"
disk_sum=$(cat "$disk_dir/sum")
