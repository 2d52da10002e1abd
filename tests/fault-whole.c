/* Whole-image operations on every format when the n-th call on a file, or
 * the n-th allocation, fails, for n = 1, 2, 3 ... until a run gets through.
 *
 * Whatever fails: there is an error with its code and its cause, or success
 * and the right result.  Memory blocks and descriptors are as many as before.
 * A new file is whole or not there, one that is replaced is the old or the
 * new one, one that is changed in place passes check and shows old or new
 * sectors; no other file is touched, and none is left behind.
 *
 *   FAULT_SHARE=n     of the calls behind the first few every n-th; 1 = all
 *   FAULT_RECIPE=text only recipes whose name contains it
 *   FAULT_FROM=n      from the n-th call on
 *   FAULT_ALL=1       go on after what is wrong
 */
#include "fault-whole.h"
#include "shim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>

enum { FILES = 16, STAGES = 10, SECTOR = 512, SECTORS = 8192, ALL_OF = 6 };

enum {
    UNSEEN = 1,                 /* must not be noticed */
    SEEN = 2,                   /* must be */
    VAGUE = 4,                  /* where data are may be told otherwise */
};

static const struct kind {
    const char *name;
    struct shim_fault fault;
    unsigned how;
} kinds[] = {
    { "EIO", { .kinds = SHIM_FILES & ~SHIM_LOOK, .code = EIO }, 0 },
    { "EIO from looking", { .kinds = SHIM_LOOK, .code = EIO }, VAGUE },
    { "EIO for ever",
      { .kinds = SHIM_CHANGE, .code = EIO, .for_ever = true }, SEEN },
    { "ENOSPC, torn",
      { .kinds = SHIM_WRITE | SHIM_SPACE, .code = ENOSPC, .torn = true },
      0 },
    { "EIO from sync", { .kinds = SHIM_SYNC, .code = EIO }, SEEN },
    { "EINTR",
      { .kinds = SHIM_READ | SHIM_WRITE | SHIM_SYNC | SHIM_SPACE,
        .code = EINTR }, UNSEEN },
    { "a part", { .kinds = SHIM_READ | SHIM_WRITE }, UNSEEN },
    { "no memory", { .kinds = SHIM_MEMORY, .code = ENOMEM }, 0 },
};

struct view {                   /* what an image shows */
    bool works;
    bool partial;               /* a bitmap is marked inconsistent */
    uint64_t size, facts;
    uint64_t bits;              /* of the bitmaps that are not */
    uint64_t sums[SECTORS];     /* of the sectors n, n + SECTORS ... that
                                   are not zeros */
};

struct folder {
    unsigned n;
    struct {
        char name[64];
        uint8_t *data;
        size_t len;
        ino_t inode;
    } files[FILES];
};

/* What there is after none, one, two ... all of the steps. */
static struct stage {
    struct folder folder;
    struct view views[FILES];
} stages[STAGES];
static int last;
static uint64_t result;         /* what the steps tell */
static int refusal;             /* what they end with, or 0 */
static unsigned long runs, faults, wrongs;

struct run {
    const struct recipe *recipe;
    const struct kind *kind;
    long n;
};

static void wrong(const char *fmt, ...)
{
    char text[700];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s: %s\n", fault_run, text);
    wrongs++;
    if (!getenv("FAULT_ALL"))
        fail();
}

/* ---- files ------------------------------------------------------------- */

static void forget(struct folder *f)
{
    for (unsigned i = 0; i < f->n; i++)
        free(f->files[i].data);
    f->n = 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

static void see(struct folder *f)
{
    DIR *d = opendir(".");
    struct dirent *e;

    assert_non_null(d);
    f->n = 0;
    while ((e = readdir(d))) {
        struct stat st;
        int fd;

        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        assert_true(f->n < FILES);
        fd = open(e->d_name, O_RDONLY);
        assert_true(fd >= 0 && fstat(fd, &st) == 0);
        snprintf(f->files[f->n].name, sizeof f->files[0].name, "%.63s",
                 e->d_name);
        f->files[f->n].len = (size_t)st.st_size;
        f->files[f->n].inode = st.st_ino;
        f->files[f->n].data = malloc((size_t)st.st_size + 1);
        assert_int_equal(read(fd, f->files[f->n].data, (size_t)st.st_size),
                         st.st_size);
        close(fd);
        f->n++;
    }
    closedir(d);
    qsort(f->files, f->n, sizeof f->files[0], by_name);
}

static int find(const struct folder *f, const char *name)
{
    for (unsigned i = 0; i < f->n; i++)
        if (!strcmp(f->files[i].name, name))
            return (int)i;
    return -1;
}

static bool same_names(const struct folder *a, const struct folder *b)
{
    for (unsigned i = 0; i < a->n; i++)
        if (find(b, a->files[i].name) < 0)
            return false;
    return a->n == b->n;
}

/* Holes stay holes. */
static void put(const char *name, const uint8_t *data, size_t len)
{
    static const uint8_t zeros[4096];
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
    for (size_t at = 0; at < len; at += sizeof zeros) {
        size_t n = IMG_MIN(len - at, sizeof zeros);

        if (memcmp(data + at, zeros, n))
            assert_int_equal(pwrite(fd, data + at, n, (off_t)at), n);
    }
    close(fd);
}

static void restore(const struct folder *f)
{
    DIR *d = opendir(".");
    struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d)))
        if (e->d_type != DT_DIR && find(f, e->d_name) < 0)
            unlink(e->d_name);
    closedir(d);
    for (unsigned i = 0; i < f->n; i++)
        put(f->files[i].name, f->files[i].data, f->files[i].len);
}

static bool is_as(const struct folder *f, int i)
{
    static uint8_t buf[65536];
    int fd = open(f->files[i].name, O_RDONLY);
    size_t at = 0;
    ssize_t n;

    if (fd < 0)
        return false;
    while ((n = read(fd, buf, sizeof buf)) > 0) {
        if ((size_t)n > f->files[i].len - at ||
            memcmp(buf, f->files[i].data + at, (size_t)n))
            break;
        at += (size_t)n;
    }
    close(fd);
    return n == 0 && at == f->files[i].len;
}

/* ---- views ------------------------------------------------------------- */

/* Extents of other images are looked at with those. */
static bool is_image(const char *name)
{
    return strchr(name, '.') && !strchr(name, '-') && *name != '.' &&
           img_format_by_name(format_of(name));
}

static int open_view(const char *name, unsigned flags, struct img_disk **d,
                     struct img_error *err)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;

    o.flags = flags | IMG_OPEN_PROBE_BACKING;
    o.format = format_of(name);
    o.cache_bytes = 1 << 20;
    return img_open(name, &o, d, err);
}

static char first_error[200];

static void told(void *opaque, const char *message)
{
    if (!strncmp(message, "ERROR", 5) && !first_error[0])
        snprintf(first_error, sizeof first_error, "%s", message);
}

static int view_check(struct img_disk *d, struct img_error *err)
{
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result found = { 0 };
    int r;

    first_error[0] = 0;
    o.report = told;
    r = img_check(d, &o, NULL, &found, err);
    if (r == -ENOTSUP)
        return 0;               /* the format has nothing to check */
    if (r == 0 && (found.errors || found.check_errors))
        r = img_fail(err, IMG_ECORRUPT, "%s", first_error);
    return r;
}

static int view_bytes(struct img_disk *d, struct view *v,
                      struct img_error *err)
{
    static uint8_t buf[64 * SECTOR], zeros[SECTOR];
    uint64_t off = 0;
    int r = 0;

    while (off < v->size && r == 0) {
        struct img_extent e;
        uint64_t end;

        r = img_map(d, off, v->size - off, 0, &e, err);
        end = r < 0 ? off : off + e.len;
        if (r == 0 && (e.kind == IMG_HOLE || e.kind == IMG_ZEROS))
            off = end;
        while (off < end && r == 0) {
            uint64_t n = IMG_MIN(end - off, sizeof buf);

            memset(buf, 0, sizeof buf);
            r = img_pread(d, buf, n, off, err);
            for (uint64_t i = 0; r == 0 && i < n; i += SECTOR) {
                uint64_t at = (off + i) / SECTOR;

                if (memcmp(buf + i, zeros, SECTOR))
                    v->sums[at % SECTORS] ^= hash_bytes(at, buf + i, SECTOR);
            }
            off += n;
        }
    }
    return r;
}

static uint64_t bits_of(struct img_disk *d, const char *name)
{
    uint64_t off = 0, size = img_size(d), h = 5;
    struct img_extent e;

    while (off < size && img_bitmap_map(d, name, off, size - off, &e,
                                        NULL) == 0) {
        h = hash_bytes(h, &e.dirty, sizeof e.dirty);
        off += e.len;
        h = hash_bytes(h, &off, sizeof off);
    }
    return h + off;
}

static int view_facts(struct img_disk *d, bool specific, struct view *v,
                      struct img_error *err)
{
    struct img_info *info;
    int r = img_info_get(d, &info, err);
    uint64_t h = 7, bits;

    if (r < 0)
        return r;
    h = hash_text(h, info->backing);
    h = hash_text(h, info->backing_format);
    for (size_t i = 0; i < info->n_snapshots; i++)
        h = hash_text(h, info->snapshots[i].name);
    for (size_t i = 0; i < info->n_bitmaps; i++) {
        v->bits = hash_text(v->bits, info->bitmaps[i].name);
        v->partial |= info->bitmaps[i].inconsistent;
        bits = bits_of(d, info->bitmaps[i].name);
        v->bits = hash_bytes(v->bits, &bits, sizeof bits);
    }
    if (specific && info->specific)
        h = hash_specific(h, info->specific);
    v->facts = h;
    img_info_free(info);
    return 0;
}

/* Whoever opens an image that is marked dirty to write mends it. */
static int view_of(const char *name, bool specific, struct view *v,
                   struct img_error *err)
{
    struct img_disk *d;
    struct img_info *info = NULL;
    int r = open_view(name, 0, &d, err);

    memset(v, 0, sizeof *v);
    if (r < 0)
        return r;
    if (img_info_get(d, &info, err) == 0 && info->dirty) {
        img_close(d, NULL);
        r = open_view(name, IMG_OPEN_WRITE, &d, err);
    }
    img_info_free(info);
    if (r < 0)
        return r;
    v->size = img_size(d);
    r = view_check(d, err);
    if (r == 0)
        r = view_bytes(d, v, err);
    if (r == 0)
        r = view_facts(d, specific, v, err);
    img_close(d, NULL);
    v->works = r == 0;
    return r;
}

/* ---- judging ----------------------------------------------------------- */

static const struct view *at_stage(int stage, const char *name)
{
    int i = find(&stages[stage].folder, name);

    return i < 0 ? NULL : &stages[stage].views[i];
}

/* Is one of its numbers, at `off` of the structure, as after any step? */
static bool fits(const struct view *v, const char *name, size_t off)
{
    uint64_t is, was;

    memcpy(&is, (const char *)v + off, sizeof is);
    for (int k = 0; k <= last; k++) {
        const struct view *w = at_stage(k, name);

        if (w)
            memcpy(&was, (const char *)w + off, sizeof was);
        if (w && is == was)
            return true;
    }
    return false;
}

/* The image was changed in place, so parts of it may be old.  A bitmap that
 * is marked inconsistent promises nothing. */
static void judge_mixture(const struct run *run, const char *name,
                          const struct view *v)
{
    if (!fits(v, name, offsetof(struct view, size)))
        wrong("%s: the size is %llu", name, (unsigned long long)v->size);
    if (!fits(v, name, offsetof(struct view, facts)))
        wrong("%s: its facts are neither old nor new", name);
    if (!v->partial && !fits(v, name, offsetof(struct view, bits)))
        wrong("%s: its bitmaps are neither old nor new", name);
    for (uint64_t s = 0; s < SECTORS; s++)
        if (!fits(v, name, offsetof(struct view, sums[s]))) {
            wrong("%s: sector %llu is neither old nor new", name,
                  (unsigned long long)s);
            return;
        }
}

/* Was another file put in its place by one of the steps? */
static bool is_replaced(const char *name)
{
    int first = find(&stages[0].folder, name);

    for (int k = 1; k <= last; k++) {
        int i = find(&stages[k].folder, name);

        if (first >= 0 && i >= 0 && stages[k].folder.files[i].inode !=
                                    stages[0].folder.files[first].inode)
            return true;
    }
    return first < 0;
}

static bool is_touched(const char *name)
{
    const struct folder *f = &stages[0].folder;
    int was = find(f, name);

    for (int k = 1; k <= last; k++) {
        const struct folder *g = &stages[k].folder;
        int i = find(g, name);

        if (was < 0 || i < 0 || f->files[was].inode != g->files[i].inode ||
            f->files[was].len != g->files[i].len ||
            memcmp(f->files[was].data, g->files[i].data, f->files[was].len))
            return true;
    }
    return false;
}

static void judge_file(const struct run *run, const char *name, bool done)
{
    static struct view v;
    struct img_error err = { 0 };

    if (!is_touched(name)) {
        if (!is_as(&stages[0].folder, find(&stages[0].folder, name)))
            wrong("%s has changed", name);
        return;
    }
    if (!is_image(name) || access(name, F_OK) < 0)
        return;
    if (view_of(name, run->recipe->flags & FACTS, &v, &err) < 0) {
        wrong("%s is spoilt: %s", name, err.message);
        return;
    }
    for (int k = done ? last : 0; k <= last; k++) {
        const struct view *w = at_stage(k, name);

        if (w && !memcmp(&v, w, sizeof v))
            return;
    }
    if (done || is_replaced(name))
        wrong("%s is not what it should be", name);
    else
        judge_mixture(run, name, &v);
}

static void judge_folder(const struct run *run, bool done)
{
    const struct folder *f = &stages[last].folder;
    struct folder now;
    bool found = false;

    see(&now);
    for (int k = done ? last : 0; k <= last; k++)
        found |= same_names(&now, &stages[k].folder);
    if (!found) {
        wrong("files are missing, or left behind");
        for (unsigned i = 0; i < now.n; i++)
            fprintf(stderr, "    %s\n", now.files[i].name);
    }
    forget(&now);
    for (unsigned i = 0; i < f->n; i++)
        judge_file(run, f->files[i].name, done);
}

static void judge_error(const struct run *run, int r, long failed,
                        const struct img_error *err)
{
    int code = run->kind->fault.code;

    if (r == 0 && failed && (run->kind->how & SEEN))
        wrong("nobody noticed");
    if (r == refusal)
        return;
    if (!failed || (run->kind->how & UNSEEN))
        wrong("%s", err->message[0] ? err->message : "failed");
    if (r > 0 || !err->message[0])
        wrong("no words, or no code: %d", r);
    else if (r != -err->code)
        wrong("returns %d, says %d: %s", r, err->code, err->message);
    else if (r != -code)
        wrong("%d became %d: %s", code, -r, err->message);
}

/* Returns whether the fault came. */
static bool one_run(const struct run *run)
{
    struct shim_fault fault = run->kind->fault;
    struct img_error err = { 0 };
    int files, r;
    uint64_t told_now;
    long blocks;

    restore(&stages[0].folder);
    files = shim_descriptors();
    blocks = shim_blocks;
    snprintf(fault_run, sizeof fault_run, "%s, %s %ld", run->recipe->name,
             run->kind->name, run->n);
    atomic_store(&fault.left, run->n);
    shim_fault = &fault;
    r = run_steps(run->recipe->run, &told_now, &err);
    shim_fault = NULL;
    if (shim_blocks != blocks)
        wrong("%ld blocks of memory are not freed",
              (long)shim_blocks - blocks);
    if (shim_descriptors() != files)
        wrong("a descriptor is left open");
    judge_error(run, r, fault.failed, &err);
    if (r == refusal && told_now != result && 
        !(run->kind->how & VAGUE) &&
        !(fault.failed && (run->recipe->flags & VERDICT)))
        wrong("tells something else");
    if (r < 0 && (run->recipe->flags & UNTIES))
        assert_ok(run_steps("rebase -u o.vmdk m.vmdk", &told_now, &err), err);
    if (r < 0 && (run->recipe->flags & (RESUMES | DAMAGED))) {
        r = run_steps(run->recipe->run, &told_now, &err);
        if (r < 0)
            wrong("the next run fails: %s", err.message);
    }
    judge_folder(run, r == refusal);
    runs++;
    faults += fault.failed > 0;
    return fault.failed > 0;
}

/* Stage `last`: what there is after so many steps, without a fault. */
static void rehearse_steps(const struct recipe *recipe, const char *steps)
{
    struct stage *s = &stages[last];
    struct img_error err = { 0 };

    restore(&stages[0].folder);     /* as before each run: with holes */
    if (!last)
        forget(&stages[0].folder);
    refusal = run_steps(steps, &result, &err);
    if ((refusal < 0) != (last && recipe->flags & REFUSED))
        fail_msg("%s: %d, %s", recipe->name, refusal, err.message);
    see(&s->folder);
    for (unsigned i = 0; i < s->folder.n; i++)
        if (is_image(s->folder.files[i].name) &&
            view_of(s->folder.files[i].name, recipe->flags & FACTS,
                    &s->views[i], &err) < 0 &&
            (last || !(recipe->flags & DAMAGED)))
            fail_msg("%s: %s", recipe->name, err.message);
}

static void rehearse(const struct recipe *recipe)
{
    const char *end = recipe->run;
    struct img_error err = { 0 };
    char steps[512] = "";
    uint64_t ignored;

    assert_ok(run_steps(recipe->prepare, &ignored, &err), err);
    last = 0;
    see(&stages[0].folder);
    rehearse_steps(recipe, "");
    while (*end) {
        assert_true(++last < STAGES);
        end += strcspn(end, ";");
        end += *end == ';';
        snprintf(steps, sizeof steps, "%.*s", (int)(end - recipe->run),
                 recipe->run);
        rehearse_steps(recipe, steps);
    }
}

static long number_of(const char *name, long otherwise)
{
    const char *text = getenv(name);

    return text ? atol(text) : otherwise;
}

static void test_recipe(void **state)
{
    const struct recipe *recipe = *state;
    long share = number_of("FAULT_SHARE", 16);
    long from = number_of("FAULT_FROM", 1);
    char dir[PATH_MAX];

    snprintf(dir, sizeof dir, "%s/%ld", scratch, (long)(recipe - recipes));
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(chdir(dir), 0);
    wrongs = 0;
    rehearse(recipe);
    for (size_t k = 0; k < IMG_COUNT(kinds); k++) {
        struct run run = { .recipe = recipe, .kind = &kinds[k], .n = from };
        long stride = share > 1 ? share + (recipe - recipes + (long)k) % 7 : 1;

        while (one_run(&run))
            run.n += run.n < ALL_OF ? 1 : stride;
    }
    restore(&(struct folder){ 0 });
    for (int k = 0; k <= last; k++)
        forget(&stages[k].folder);
    memset(stages, 0, sizeof stages);
    last = 0;
    if (wrongs)
        fail();
}

int main(void)
{
    static struct CMUnitTest tests[256];
    const char *only = getenv("FAULT_RECIPE");
    size_t n = 0;
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    for (size_t i = 0; i < n_recipes && n < IMG_COUNT(tests); i++)
        if (!only || strstr(recipes[i].name, only))
            tests[n++] = (struct CMUnitTest) {
                recipes[i].name, test_recipe, NULL, NULL, (void *)&recipes[i]
            };
    r = _cmocka_run_group_tests("faults of whole-image operations", tests, n,
                                scratch_begin, scratch_end);
    printf("%lu runs, %lu of them with a fault\n", runs, faults);
    return r;
}
