/* Fuzz target: an image of whatever bytes is judged and converted.  What
 * arrives is what was read, in each format. */
#include "fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST = 8 << 20 };

static void judge(const char *path)
{
    struct img_inspect_options opts = IMG_INSPECT_OPTIONS;
    struct img_verdict *v = NULL;
    struct img_error err = { 0 };

    opts.untrusted = true;
    if (img_inspect(path, &opts, &v, &err) < 0) {
        FUZZ_ASSERT(err.message[0]);
        return;
    }
    /* Nothing is rejected without a reason. */
    for (size_t i = 0; i < v->n_findings; i++)
        FUZZ_ASSERT(!v->safe || !v->findings[i].rejects);
    FUZZ_ASSERT(v->safe || v->n_findings);
    FUZZ_ASSERT(!v->safe || !v->n_references);
    img_verdict_free(v);
}

static void convert(struct img_disk *from, const char *format, bool compress)
{
    struct img_convert_options opts = IMG_CONVERT_OPTIONS;
    struct img_create_options create = IMG_CREATE_OPTIONS;
    struct img_open_options open = IMG_OPEN_OPTIONS;
    struct img_error err = { 0 };
    char path[] = "/tmp/fuzz-convert.XXXXXX";
    struct img_disk *to = NULL;
    uint64_t at;
    int fd = mkstemp(path), r;

    FUZZ_ASSERT(fd >= 0);
    close(fd);
    create.format = open.format = format;
    create.flags = IMG_CREATE_NO_SYNC | IMG_CREATE_IN_PLACE;
    opts.create = &create;
    opts.no_sync = true;
    opts.compress = compress;
    r = img_convert(&from, 1, path, &opts, NULL, &err);
    if (r < 0) {
        FUZZ_ASSERT(err.message[0]);
    } else {
        FUZZ_ASSERT(img_open(path, &open, &to, &err) == 0);
        FUZZ_ASSERT(img_compare(from, to, false, NULL, &at, &err) == 0);
    }
    img_close(to, NULL);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *from = NULL;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    char path[40];

    FUZZ_ASSERT(fd >= 0 && write(fd, data, len) == (ssize_t)len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    judge(path);
    opts.flags = IMG_OPEN_PROBE | IMG_OPEN_NO_BACKING | IMG_OPEN_NO_LOCK;
    opts.allow_files = IMG_FILES_NONE;
    if (img_open(path, &opts, &from, NULL) == 0 && img_size(from) <= MOST) {
        convert(from, "raw", false);
        convert(from, "qcow2", len % 2);
        convert(from, len % 3 ? "vdi" : "vmdk", false);
    }
    img_close(from, NULL);
    close(fd);
    return 0;
}
