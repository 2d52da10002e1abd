/* Fuzz target, one for each format (FUZZ_FORMAT): whatever the bytes are,
 * opening, describing, mapping, reading, checking and repairing them ends,
 * and errors say something. */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void read_all(struct img_disk *disk)
{
    static uint8_t buf[65536];
    uint64_t size = img_size(disk), off = 0;
    struct img_error err;
    struct img_extent e;

    for (int i = 0; off < size && i < 200; i++) {
        if (img_map(disk, off, size - off, 0, &e, &err) < 0)
            break;
        FUZZ_ASSERT(e.off == off && e.len && e.len <= size - off);
        if (e.kind != IMG_HOLE) {
            uint64_t n = e.len < sizeof(buf) ? e.len : sizeof(buf);

            if (img_pread(disk, buf, n, off, &err) < 0)
                FUZZ_ASSERT(err.message[0]);
        }
        off += e.len;
    }
}

static void check(struct img_disk *disk, unsigned repair)
{
    struct img_check_options opts = IMG_CHECK_OPTIONS;
    struct img_check_result result;
    struct img_error err = { 0 };

    opts.repair = repair;
    if (img_check(disk, &opts, NULL, &result, &err) < 0)
        FUZZ_ASSERT(err.message[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct img_disk *disk = fuzz_open(FUZZ_FORMAT, 0, data, len);
    struct img_info *info;

    if (disk) {
        if (img_info_get(disk, &info, NULL) >= 0)
            img_info_free(info);
        read_all(disk);
        check(disk, 0);
        img_close(disk, NULL);
    }
    disk = fuzz_open(FUZZ_FORMAT, IMG_OPEN_WRITE | IMG_OPEN_REPAIR, data,
                     len);
    if (disk) {
        check(disk, IMG_REPAIR_ALL);
        read_all(disk);
        img_close(disk, NULL);
    }
    return 0;
}
