/* What a power cut leaves of a VMDK descriptor that is a file of its own.
 *
 * Operations that change the descriptor run on images whose files, and the
 * descriptor's name, keep one log.  Then, many times: any prefix of the log,
 * and of what no sync covers any sectors of any writes, lengths and renames.
 * In each such state the name leads to the old text or the new one, whole;
 * the image opens and shows what it showed.
 *
 * And who comes by at any moment of it finds the image locked.
 *
 * CRASH_VMDK_STATES=n: how many states of each operation.
 */
#include "unit/unit.h"
#include "unit/scratch.h"
#include "record.h"
#include "shim.h"
#include "file/file.h"

#include <fcntl.h>

enum { SECTOR = 512, SIZE = 512 << 10, ROOM = 1 << 20, MAX_TEXT = 65536 };
#define TEN(text) text text text text text text text text text text
#define LONG TEN("a long entry of thirty letters")

enum what { RENUMBER, LENGTHEN, REMOVE, CID, APPEND, LONGER, TAKE_AWAY,
            BOTH_ENDS, REBASE, REBASE_LONG, REBASE_NONE, GROW, SHRINK, WRITE,
            N_WHATS };
static const struct {
    const char *name;
    const char *settings[3];    /* of amend */
    const char *backing;        /* of rebase */
    uint64_t size;              /* of resize */
    bool in_place;              /* changes one sector: needs no other file */
} whats[N_WHATS] = {
    [RENUMBER] = { .name = "amend: a longer number",
                   .settings = { "hwversion=21" } },
    [LENGTHEN] = { .name = "amend: a long entry",
                   .settings = { "ddb=comment=" LONG } },
    [REMOVE] = { .name = "amend: an entry less",
                 .settings = { "ddb=pad01=" } },
    [CID] = { .name = "amend: content ID", .settings = { "cid=12345678" },
              .in_place = true },
    [APPEND] = { .name = "amend: an entry more",
                 .settings = { "ddb=more=x" }, .in_place = true },
    [LONGER] = { .name = "amend: a longer entry",
                 .settings = { "ddb=zlast=yes" }, .in_place = true },
    [TAKE_AWAY] = { .name = "amend: the last entry but one gone",
                    .settings = { "ddb=zlast=" }, .in_place = true },
    [BOTH_ENDS] = { .name = "amend: two things",
                    .settings = { "cid=12345678", "ddb=zlast=n" } },
    [REBASE] = { .name = "rebase", .backing = "other.vmdk" },
    [REBASE_LONG] = { .name = "rebase: a long name", .backing = "./././././././"
                      "././././././././././././././././other.vmdk" },
    [REBASE_NONE] = { .name = "rebase: to none", .backing = "" },
    [GROW] = { .name = "growing", .size = 3 * SIZE / 2 },
    [SHRINK] = { .name = "shrinking", .size = SIZE / 2 },
    [WRITE] = { .name = "the first write", .in_place = true },
};

static const struct shape {
    const char *name, *subformat;
    bool overlay, linked;       /* linked: the descriptor has another name */
    unsigned pads, cid_at, cid_len;     /* 0 = as it came */
} shapes[] = {
    { .name = "monolithicFlat", .subformat = "monolithicFlat", .pads = 24 },
    { .name = "monolithicFlat, short", .subformat = "monolithicFlat" },
    { .name = "twoGbMaxExtentSparse", .subformat = "twoGbMaxExtentSparse",
      .overlay = true, .pads = 24 },
    { .name = "twoGbMaxExtentFlat, linked", .linked = true, .pads = 24,
      .subformat = "twoGbMaxExtentFlat" },
    { .name = "an ID over two sectors", .overlay = true, .pads = 24,
      .subformat = "twoGbMaxExtentSparse", .cid_at = 509 },
    { .name = "an ID over two sectors, linked", .linked = true, .pads = 24,
      .subformat = "monolithicFlat", .cid_at = 506 },
    { .name = "a short ID", .overlay = true, .linked = true, .pads = 24,
      .subformat = "twoGbMaxExtentSparse", .cid_len = 7 },
};

static uint8_t before[ROOM], after[ROOM], now[ROOM];
static char old_text[MAX_TEXT], new_text[MAX_TEXT];
static struct img_error err;
static uint64_t states, want_states = 60;
static bool has_qemu;

static int qemu(const char *command, const char *name)
{
    char line[3 * PATH_MAX];

    if (!has_qemu)
        return 0;
    snprintf(line, sizeof line, "cd '%s' && f='%s' && { %s; } >log 2>&1 || "
             "{ cat log >&2; false; }", scratch, name, command);
    return system(line);
}

static void read_text(const char *name, char *to)
{
    int fd = open(in_scratch(name), O_RDONLY);
    ssize_t n = read(fd, to, MAX_TEXT - 1);

    assert_true(fd >= 0 && n >= 0);
    to[n] = 0;
    close(fd);
}

static void write_file(const char *name, const void *data, uint64_t len)
{
    int fd = open(in_scratch(name), O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0 && write(fd, data, len) == (ssize_t)len);
    close(fd);
}

static struct img_disk *open_disk(const char *name, unsigned flags)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct img_disk *d;

    o.flags = flags;
    o.format = "vmdk";
    return img_open(in_scratch(name), &o, &d, &err) < 0 ? NULL : d;
}

/* ---- the images -------------------------------------------------------- */

static void make(const char *name, const char *subformat, const char *base)
{
    struct img_create_options o = IMG_CREATE_OPTIONS;
    char setting[64];
    const char *settings[] = { setting, NULL };

    snprintf(setting, sizeof setting, "subformat=%s", subformat);
    o.format = "vmdk";
    o.disk_size = SIZE;
    o.has_size = true;
    o.settings = settings;
    o.backing = base;
    o.backing_format = base ? "vmdk" : NULL;
    o.flags = IMG_CREATE_NO_SYNC;
    assert_ok(img_create(in_scratch(name), &o, &err), err);
}

static void fill(const char *name, uint64_t seed, uint64_t from, uint64_t to)
{
    struct img_disk *d = open_disk(name, IMG_OPEN_WRITE | IMG_OPEN_FORCE);

    for (uint64_t at = from; at < to; at += SECTOR)
        memset(now + at, (int)(1 + unit_random(&seed) % 200), SECTOR);
    assert_ok(img_pwrite(d, now + from, to - from, from, 0, &err), err);
    assert_ok(img_close(d, &err), err);
}

/* Entries, the last of them such that the text ends within a sector. */
static void lengthen(const struct shape *s)
{
    struct img_disk *d = open_disk("d.vmdk", IMG_OPEN_WRITE | IMG_OPEN_FORCE);
    char entry[700];
    const char *settings[] = { entry, NULL };
    size_t rest;

    for (unsigned i = 0; i < s->pads; i++) {
        snprintf(entry, sizeof entry, "ddb=pad%02u=%.60s", i, LONG);
        assert_ok(img_amend(d, settings, NULL, &err), err);
    }
    read_text("d.vmdk", old_text);
    rest = (SECTOR + 200 - (strlen(old_text) + 44) % SECTOR) % SECTOR;
    snprintf(entry, sizeof entry, "ddb=pad98=%.*s", s->pads ? (int)rest : 1,
             LONG LONG);
    assert_ok(img_amend(d, settings, NULL, &err), err);
    snprintf(entry, sizeof entry, "ddb=zlast=y");
    assert_ok(img_amend(d, settings, NULL, &err), err);
    snprintf(entry, sizeof entry, "ddb=zz=z");
    assert_ok(img_amend(d, settings, NULL, &err), err);
    assert_ok(img_close(d, &err), err);
}

/* Comments before the content ID, or digits less. */
static void move_cid(const struct shape *s)
{
    char *cid, comment[SECTOR + 1] = "", *text;
    unsigned n;
    int len;

    if (!s->cid_at && !s->cid_len)
        return;
    read_text("d.vmdk", old_text);
    cid = strstr(old_text, "\nCID=") + 1;
    n = s->cid_at ? s->cid_at - (unsigned)(cid + 4 - old_text) : 0;
    if (n)
        memset(comment, '#', n);
    if (n)
        comment[n - 1] = '\n';
    len = asprintf(&text, "%.*s%sCID=%.*s%s", (int)(cid - old_text),
                   old_text, comment, s->cid_len ? 7 : 8, "1a2b3c4d",
                   cid + 12);
    assert_true(len > 0);
    write_file("d.vmdk", text, (uint64_t)len);
    free(text);
}

static void make_all(const struct shape *s)
{
    const char *old[] = { "d.vmdk", "d-flat.vmdk", "d-s001.vmdk",
                          "d-f001.vmdk", "twin" };

    for (size_t i = 0; i < IMG_COUNT(old); i++)
        unlink(in_scratch(old[i]));
    make("d.vmdk", s->subformat, s->overlay ? "base.vmdk" : NULL);
    fill("d.vmdk", 3, 0, SIZE / 4);
    fill("d.vmdk", 4, SIZE / 2, SIZE);
    lengthen(s);
    move_cid(s);
    if (s->linked)
        assert_int_equal(link(in_scratch("d.vmdk"), in_scratch("twin")), 0);
    read_text("d.vmdk", old_text);
    assert_true(!s->pads || strlen(old_text) > 3 * SECTOR);
}

static const char *extent_name(const struct shape *s)
{
    return !strcmp(s->subformat, "monolithicFlat") ? "d-flat.vmdk" :
           !strcmp(s->subformat, "twoGbMaxExtentFlat") ? "d-f001.vmdk"
                                                       : "d-s001.vmdk";
}

/* ---- the operations ---------------------------------------------------- */

static bool applies(const struct shape *s, enum what what)
{
    if (s->linked && !whats[what].in_place)
        return false;
    if ((s->cid_len && what == CID) || (!s->pads && what == REMOVE))
        return false;
    if (s->cid_at && what == CID)
        return !s->linked;
    return !whats[what].backing || s->overlay;
}

static int run(struct img_disk *d, enum what what)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_job job = IMG_JOB;
    char sector[SECTOR];

    job.threads = 1;
    o.backing = whats[what].backing;
    o.backing_format = o.backing && *o.backing ? "vmdk" : NULL;
    memset(sector, 0x77, sizeof sector);
    if (what == WRITE)
        return img_pwrite(d, sector, sizeof sector, 0, 0, &err);
    if (o.backing)
        return img_rebase(d, &o, &job, &err);
    if (whats[what].size)
        return img_resize(d, whats[what].size, true, IMG_PREALLOC_OFF, &job,
                          &err);
    return img_amend(d, whats[what].settings, &job, &err);
}

static bool read_all(const char *name, uint8_t *to, uint64_t *size)
{
    struct img_disk *d = open_disk(name, IMG_OPEN_WRITE | IMG_OPEN_FORCE);
    int r;

    memset(to, 0, ROOM);
    if (!d)
        return false;
    *size = img_size(d);
    assert_true(*size <= ROOM);
    r = img_pread(d, to, *size, 0, &err);
    img_close(d, NULL);
    return r == 0;
}

/* ---- states ------------------------------------------------------------ */

struct choice {
    uint64_t seed;
    unsigned percent;
};

static bool choose(void *opaque, size_t entry, int64_t sector)
{
    const struct choice *c = opaque;
    uint64_t mixed = c->seed + entry * 7919 + (uint64_t)sector * 104729;

    unit_random(&mixed);
    return unit_random(&mixed) % 100 < c->percent;
}

static void put(const struct record *r, unsigned file, size_t n,
                struct choice *c, const char *name)
{
    struct record_point p;
    uint8_t *data;
    uint64_t len;

    record_point_begin(&p, r, file, n);
    record_state(&p, choose, c, &data, &len);
    record_point_end(&p);
    write_file(name, data, len);
    free(data);
}

static bool shows(uint64_t size)
{
    uint64_t old = IMG_MIN(size, (uint64_t)SIZE);

    for (uint64_t at = 0; at < old; at += SECTOR)
        if (memcmp(now + at, before + at, SECTOR) &&
            memcmp(now + at, after + at, SECTOR))
            return false;
    for (uint64_t at = old; at < size; at++)
        if (now[at])
            return false;
    return true;
}

/* A safe rebase gives the image a new content ID first. */
static bool is_old(char *text)
{
    char *cid = strstr(text, "\nCID=");

    if (!strcmp(text, old_text))
        return true;
    if (!cid || memcmp(cid, strstr(new_text, "\nCID="), 13))
        return false;
    memcpy(cid, strstr(old_text, "\nCID="), 13);
    return !strcmp(text, old_text);
}

static void check_state(const struct shape *s, enum what what,
                        const struct record *r, size_t n, struct choice *c)
{
    char text[MAX_TEXT], path[PATH_MAX];
    uint64_t size = 0;

    snprintf(path, sizeof path, "state/%s", extent_name(s));
    put(r, 1, n, c, path);
    put(r, record_named(r, 0, n, choose, c), n, c, "state/d.vmdk");
    read_text("state/d.vmdk", text);
    if (strcmp(text, new_text) && !is_old(text))
        fail_msg("%s, %s, after %zu entries: neither text, but\n%s", s->name,
                 whats[what].name, n, text);
    if (!read_all("state/d.vmdk", now, &size) || !shows(size) ||
        (size != SIZE && size != whats[what].size))
        fail_msg("%s, %s, after %zu entries: other content (%s)", s->name,
                 whats[what].name, n, err.message);
    if (states++ % 50 == 0)
        assert_int_equal(qemu("qemu-img info -f vmdk $f && (qemu-img check -f "
                              "vmdk $f || [ $? = 63 ])", "state/d.vmdk"), 0);
}

/* Right behind a change, where something may be open. */
static size_t some_point(const struct record *r, uint64_t *seed)
{
    size_t n;

    do
        n = unit_random(seed) % (r->n + 1);
    while (n && n < r->n && r->log[n - 1].kind == RECORD_SYNC);
    return n;
}

static void one(const struct shape *s, enum what what)
{
    const unsigned percents[] = { 10, 40, 50, 60, 90 };
    uint64_t seed = 7, size;
    struct img_disk *d;
    struct record r;

    make_all(s);
    assert_true(read_all("d.vmdk", before, &size));
    d = open_disk("d.vmdk", IMG_OPEN_WRITE | IMG_OPEN_FORCE);
    assert_non_null(d);
    record_begin(&r);
    assert_int_equal(record_watch(&r, in_scratch("d.vmdk")), 0);
    assert_int_equal(record_watch(&r, in_scratch(extent_name(s))), 1);
    record_watch_name(&r, in_scratch("d.vmdk"), 0);
    shim_record = &r;
    assert_ok(run(d, what), err);
    assert_ok(img_close(d, &err), err);
    shim_record = NULL;
    read_text("d.vmdk", new_text);
    assert_string_not_equal(old_text, new_text);
    assert_true(read_all("d.vmdk", after, &size));
    for (uint64_t i = 0; i < want_states; i++) {
        struct choice c = { seed * 31 + i, percents[i % 5] };

        check_state(s, what, &r, some_point(&r, &seed), &c);
    }
    record_end(&r);
    write_file("raw", after, size);
    assert_int_equal(qemu("qemu-img compare -f vmdk -F raw $f raw", "d.vmdk"),
                     0);
}

static void test_shape(void **state)
{
    const struct shape *s = *state;

    for (int what = 0; what < N_WHATS; what++)
        if (applies(s, (enum what)what))
            one(s, (enum what)what);
}

/* ---- locks ------------------------------------------------------------- */

static struct img_file *early;      /* opened before, not locked yet */
static bool inside;
static unsigned visits;

/* By name, and whoever has opened that before. */
static void nobody_gets_it(void)
{
    struct img_file *f;

    if (early)
        assert_int_equal(img_file_lock(early, IMG_PERM_WRITE, 0, NULL),
                         -EBUSY);
    assert_ok(img_file_open(in_scratch("d.vmdk"), IMG_FILE_WRITE, &f, &err),
              err);
    assert_int_equal(img_file_lock(f, IMG_PERM_WRITE, 0, NULL), -EBUSY);
    img_file_close(f);
}

static int passer_by(const char *call, int fd, unsigned long flags, void *arg)
{
    if (inside || !strcmp(call, "fcntl"))
        return 0;
    inside = true;
    nobody_gets_it();
    visits++;
    inside = false;
    return 0;
}

static void test_locks(void **state)
{
    for (int what = 0; what < N_WHATS; what++) {
        struct img_disk *d;

        make_all(&shapes[2]);
        d = open_disk("d.vmdk", IMG_OPEN_WRITE | IMG_OPEN_FORCE);
        assert_ok(img_file_open(in_scratch("d.vmdk"), IMG_FILE_WRITE, &early,
                                &err), err);
        visits = 0;
        shim_answers = passer_by;
        assert_ok(run(d, (enum what)what), err);
        shim_answers = NULL;
        assert_true(visits > 3);
        nobody_gets_it();
        assert_ok(img_close(d, &err), err);
        img_file_close(early);
    }
}

/* ---- no name to give to another file ----------------------------------- */

static int resolve(void *opaque, const char *path, const char *name,
                   bool writable)
{
    return open(in_scratch(name), writable ? O_RDWR : O_RDONLY);
}

static void test_from_fd(void **state)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;
    struct stat was, is;
    struct img_disk *d;
    int fd;

    make_all(&shapes[2]);
    assert_int_equal(stat(in_scratch("d.vmdk"), &was), 0);
    fd = open(in_scratch("d.vmdk"), O_RDWR);
    o.flags = IMG_OPEN_WRITE | IMG_OPEN_FORCE;
    o.format = "vmdk";
    o.resolve = resolve;
    assert_ok(img_open_fd(fd, &o, &d, &err), err);
    assert_ok(run(d, LENGTHEN), err);
    assert_ok(run(d, RENUMBER), err);
    assert_ok(img_close(d, &err), err);
    assert_int_equal(stat(in_scratch("d.vmdk"), &is), 0);
    assert_int_equal(was.st_ino, is.st_ino);
    read_text("d.vmdk", new_text);
    assert_int_equal(strlen(new_text), is.st_size);
    assert_non_null(strstr(new_text, "ddb.comment = \"" LONG "\"\n"));
    assert_non_null(strstr(new_text, "HWVersion = \"21\"\n"));
}

/* ---- all of it -------------------------------------------------------- */

static int begin(void **state)
{
    if (scratch_begin(state) || mkdir(in_scratch("state"), 0700))
        return -1;
    make("base.vmdk", "monolithicSparse", NULL);
    fill("base.vmdk", 1, 0, SIZE / 3);
    make("other.vmdk", "monolithicSparse", NULL);
    fill("other.vmdk", 2, SIZE / 8, SIZE / 2);
    assert_int_equal(link(in_scratch("base.vmdk"),
                          in_scratch("state/base.vmdk")), 0);
    assert_int_equal(link(in_scratch("other.vmdk"),
                          in_scratch("state/other.vmdk")), 0);
    return 0;
}

int main(void)
{
    struct CMUnitTest tests[IMG_COUNT(shapes) + 2];
    const char *n = getenv("CRASH_VMDK_STATES");
    int r;

    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    if (n)
        want_states = strtoull(n, NULL, 10);
    has_qemu = system("command -v qemu-img >/dev/null") == 0;
    for (size_t i = 0; i < IMG_COUNT(shapes); i++)
        tests[i] = (struct CMUnitTest) {
            shapes[i].name, test_shape, NULL, NULL, (void *)&shapes[i]
        };
    tests[IMG_COUNT(shapes)] = (struct CMUnitTest)cmocka_unit_test(test_locks);
    tests[IMG_COUNT(shapes) + 1] =
        (struct CMUnitTest)cmocka_unit_test(test_from_fd);
    r = cmocka_run_group_tests_name("crash-vmdk", tests, begin, scratch_end);
    printf("%lu crash states\n", (unsigned long)states);
    return r;
}
