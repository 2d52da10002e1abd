/* See fault-whole.h: what the lines of text mean.
 *
 *   create FILE SIZE           -b BASE  -u  KEY=VALUE...
 *   resolve FILE SIZE          the same
 *   open FILE                  info, map, all bytes; -w to write
 *   io FILE VERB OFF LEN       write, packed, zero, unmap, discard
 *   convert FROM... TO         -c  -B BASE  -S  -C  -W  -n  -m  -t THREADS
 *   stream FROM TO             the same, through a pipe
 *   copy FROM TO               into an image that is there
 *   resize FILE SIZE           -p PREALLOCATION
 *   amend FILE KEY=VALUE...
 *   check FILE                 -r all, -r leaks, -y BYTES of memory
 *   measure FILE FORMAT        KEY=VALUE...
 *   compare A B                -s strict
 *   rebase FILE [BASE]         -u  -c
 *   commit FILE                -d DEPTH  -k
 *   snapshot FILE VERB NAME    create, apply, delete
 *   bitmap FILE VERB NAME      add, remove, clear, enable, disable
 *   merge FILE NAME FROM NAME
 *   vmstate FILE OFF LEN
 *   inspect FILE
 *   poke FILE OFF BYTE...      without libimg, as are the two that follow
 *   cut FILE LEN
 *   mark FILE OFF              adds one to the byte there
 *
 * What is worked on is opened without faults and closed with them. */
#include "fault-whole.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>

enum { WORDS = 24, ROOM = 4 << 20 };

struct step {
    char text[512];
    const char *words[WORDS];   /* the first is its verb; ends with NULL */
    int n;
    const char *settings[WORDS];
    const char *options[128];   /* by letter; "" where it takes no value */
    uint64_t digest;
    struct img_error *err;
};

static uint8_t room[ROOM];
char fault_run[200];

const char *format_of(const char *file)
{
    const char *dot = strrchr(file, '.');

    return dot ? dot + 1 : "raw";
}

uint64_t hash_bytes(uint64_t h, const void *data, size_t len)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return h;
}

uint64_t hash_text(uint64_t h, const char *text)
{
    return text ? hash_bytes(h, text, strlen(text) + 1) : h * 3;
}

static uint64_t hash_number(uint64_t h, uint64_t number)
{
    return hash_bytes(h, &number, sizeof number);
}

uint64_t hash_specific(uint64_t h, const struct img_value *v)
{
    h = hash_text(h, v->name);
    if (v->type == IMG_VALUE_BOOL)
        return hash_number(h, v->flag);
    if (v->type == IMG_VALUE_UINT)
        return hash_number(h, v->number);
    if (v->type == IMG_VALUE_STRING)
        return hash_text(h, v->text);
    for (size_t i = 0; i < v->n_items; i++)
        h = hash_specific(h, &v->items[i]);
    return h;
}

static void tell(struct step *s, uint64_t number)
{
    s->digest = hash_number(s->digest, number);
}

/* ---- words ------------------------------------------------------------- */

static const char *word(const struct step *s, int i)
{
    if (i >= s->n)
        fail_msg("%s: a word is missing", s->words[0]);
    return s->words[i];
}

static uint64_t number_in(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 0);

    switch (*end) {
    case 'k': return n << 10;
    case 'M': return n << 20;
    case 'G': return n << 30;
    }
    return n;
}

static uint64_t number(const struct step *s, int i)
{
    return number_in(word(s, i));
}

static int choice(const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (!strcmp(names[i], text))
            return i;
    fail_msg("what is '%s'?", text);
    return -1;
}

static void split(struct step *s, const char *text, size_t len)
{
    static const char with_value[] = "bBtprdy";
    char *save, *w;
    int settings = 0;

    assert_true(len < sizeof s->text);
    memcpy(s->text, text, len);
    s->text[len] = 0;
    for (w = strtok_r(s->text, " ", &save); w;
         w = strtok_r(NULL, " ", &save)) {
        assert_true(s->n < WORDS - 1 && settings < WORDS - 1);
        if (w[0] != '-' || !w[1])
            *(strchr(w, '=') ? &s->settings[settings++]
                             : &s->words[s->n++]) = w;
        else
            s->options[(unsigned char)w[1]] =
                strchr(with_value, w[1]) ? strtok_r(NULL, " ", &save) : "";
    }
}

static const char *option(const struct step *s, char letter)
{
    return s->options[(unsigned char)letter];
}

/* ---- opening ----------------------------------------------------------- */

static int open_it(struct step *s, const char *file, unsigned flags,
                   struct img_disk **d)
{
    struct img_open_options o = IMG_OPEN_OPTIONS;

    o.flags = flags | IMG_OPEN_PROBE_BACKING;
    o.format = format_of(file);
    o.cache_bytes = 1 << 20;
    return img_open(file, &o, d, s->err);
}

/* Without faults. */
static struct img_disk *open_quietly(struct step *s, const char *file,
                                     unsigned flags)
{
    struct shim_fault *fault = shim_fault;
    struct img_disk *d;

    shim_fault = NULL;
    if (open_it(s, file, flags, &d) < 0)
        fail_msg("%s: opening: %s", fault_run, s->err->message);
    shim_fault = fault;
    return d;
}

/* The first error is the one that counts. */
static int closed(struct step *s, struct img_disk *d, int r)
{
    int c = img_close(d, r < 0 ? NULL : s->err);

    return r < 0 ? r : c;
}

/* Which parts the file system has holes for is told by nobody whose looking
 * fails, and no error. */
static int look_at_map(struct step *s, struct img_disk *d, unsigned flags)
{
    uint64_t off = 0, size = img_size(d);
    int r = 0, kind = -1;

    while (off < size && r == 0) {
        struct img_extent e[8];
        size_t n = 0;

        r = img_map_list(d, off, size - off, flags, e, 8, &n, s->err);
        for (size_t i = 0; r == 0 && i < n; i++) {
            if (kind != (int)e[i].kind && !flags) {
                tell(s, e[i].off);
                tell(s, e[i].kind);
            }
            kind = (int)e[i].kind;
            off = e[i].off + e[i].len;
        }
    }
    return r;
}

static int look_at(struct step *s, struct img_disk *d)
{
    uint64_t size = IMG_MIN(img_size(d), ROOM);
    struct img_info *info;
    int r = img_info_get(d, &info, s->err);

    if (r < 0)
        return r;
    tell(s, info->size);
    s->digest = hash_text(s->digest, info->backing);
    s->digest = hash_text(s->digest, info->backing_path);
    tell(s, info->n_snapshots);
    tell(s, info->n_bitmaps);
    if (info->specific)
        s->digest = hash_specific(s->digest, info->specific);
    img_info_free(info);
    r = look_at_map(s, d, 0);
    if (r == 0)
        r = look_at_map(s, d, IMG_MAP_EXACT);
    if (r == 0)
        r = img_pread(d, room, size, 0, s->err);
    if (r == 0)
        s->digest = hash_bytes(s->digest, room, size);
    return r;
}

static int step_open(struct step *s)
{
    struct img_disk *d;
    int r = open_it(s, word(s, 1), option(s, 'w') ? IMG_OPEN_WRITE : 0, &d);

    return r < 0 ? r : closed(s, d, look_at(s, d));
}

/* ---- new images -------------------------------------------------------- */

static struct img_create_options to_create(struct step *s, const char *file)
{
    struct img_create_options o = IMG_CREATE_OPTIONS;
    const char *base = option(s, 'b') ? option(s, 'b') : option(s, 'B');

    o.format = format_of(file);
    o.settings = s->settings;
    o.backing = base;
    o.backing_format = base ? format_of(base) : NULL;
    if (option(s, 'u'))
        o.flags |= IMG_CREATE_NO_OPEN_BACKING;
    return o;
}

static int step_create(struct step *s)
{
    struct img_create_options o = to_create(s, word(s, 1));

    o.disk_size = number(s, 2);
    o.has_size = !option(s, 'z');
    if (option(s, 'i'))
        o.flags |= IMG_CREATE_IN_PLACE;
    return img_create(s->words[1], &o, s->err);
}

static int step_resolve(struct step *s)
{
    struct img_create_options o = to_create(s, word(s, 1));
    char **settings;
    int r;

    o.disk_size = number(s, 2);
    o.has_size = o.disk_size > 0;
    r = img_create_resolve(s->words[1], &o, &settings, s->err);
    if (r < 0)
        return r;
    for (char **p = settings; *p; p++)
        s->digest = hash_text(s->digest, *p);
    img_settings_free(settings);
    return 0;
}

/* ---- data -------------------------------------------------------------- */

static int step_io(struct step *s)
{
    static const char *const verbs[] = {
        "write", "packed", "zero", "unmap", "discard", NULL
    };
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);
    int verb = choice(word(s, 2), verbs), r;
    uint64_t off = number(s, 3), len = number(s, 4);

    assert_true(verb > 1 || len <= ROOM);
    for (uint64_t i = 0; verb < 2 && i < len; i++)
        room[i] = (uint8_t)((off + i) / 512 * 7 + 13 * len / 512 +
                            (verb ? 1 : i % 251 + i / 1024 * 3));
    if (verb < 2)
        r = img_pwrite(d, room, len, off, verb ? IMG_COMPRESS : 0, s->err);
    else if (verb < 4)
        r = img_zero(d, off, len, verb == 3 ? IMG_MAY_UNMAP : 0, s->err);
    else
        r = img_discard(d, off, len, s->err);
    return closed(s, d, r);
}

static int step_vmstate(struct step *s)
{
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);
    uint64_t off = number(s, 2), len = number(s, 3);
    int r;

    memset(room, 0x5a, len);
    r = img_vmstate_pwrite(d, room, len, off, s->err);
    if (r == 0)
        r = img_vmstate_pread(d, room, len, off, s->err);
    if (r == 0)
        s->digest = hash_bytes(s->digest, room, len);
    return closed(s, d, r);
}

/* ---- copies ------------------------------------------------------------ */

static struct img_convert_options to_convert(struct step *s,
                                   const struct img_create_options *create)
{
    struct img_convert_options o = IMG_CONVERT_OPTIONS;

    o.create = create;
    o.compress = option(s, 'c');
    o.no_sparse = option(s, 'S');
    o.copy_range = option(s, 'C');
    o.out_of_order = option(s, 'W');
    o.bitmaps = option(s, 'm');
    o.target_exists = option(s, 'n');
    o.scratch = ".";
    return o;
}

static struct img_job to_work(struct step *s)
{
    struct img_job job = IMG_JOB;

    job.threads = option(s, 't') ? (unsigned)number_in(option(s, 't')) : 1;
    return job;
}

/* The last word is the target. */
static size_t open_sources(struct step *s, struct img_disk **from)
{
    size_t n = 0;

    for (int i = 1; i < s->n - 1; i++)
        from[n++] = open_quietly(s, word(s, i), 0);
    return n;
}

static int close_sources(struct step *s, struct img_disk **from, size_t n,
                         int r)
{
    for (size_t i = 0; i < n; i++)
        r = closed(s, from[i], r);
    return r;
}

static int step_convert(struct step *s)
{
    const char *to = word(s, s->n - 1);
    struct img_create_options create = to_create(s, to);
    struct img_convert_options o = to_convert(s, &create);
    struct img_job job = to_work(s);
    struct img_disk *from[WORDS];
    size_t n = open_sources(s, from);

    return close_sources(s, from, n,
                         img_convert(from, n, to, &o, &job, s->err));
}

/* What came out of the pipe becomes a file. */
static void keep(int fd, const char *to, bool whole)
{
    size_t len = 0;
    ssize_t n;
    int out;

    while ((n = read(fd, room + len, ROOM - len)) > 0)
        len += (size_t)n;
    close(fd);
    if (!whole)
        return;
    out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(out >= 0 && write(out, room, len) == (ssize_t)len);
    close(out);
}

static int step_stream(struct step *s)
{
    const char *to = word(s, s->n - 1);
    struct img_create_options create = to_create(s, to);
    struct img_convert_options o = to_convert(s, &create);
    struct img_job job = to_work(s);
    struct shim_fault *fault = shim_fault;
    struct img_disk *from[WORDS];
    size_t n = open_sources(s, from);
    int ends[2], r;

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    assert_true(fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) >= 0);
    r = close_sources(s, from, n,
                      img_convert_fd(from, n, ends[1], &o, &job, s->err));
    close(ends[1]);
    shim_fault = NULL;
    keep(ends[0], to, r == 0);
    shim_fault = fault;
    return r;
}

static int step_copy(struct step *s)
{
    const char *to = word(s, s->n - 1);
    struct img_convert_options o = to_convert(s, NULL);
    struct img_job job = to_work(s);
    struct img_disk *from[WORDS], *d;
    size_t n = open_sources(s, from);
    int r;

    d = open_quietly(s, to, IMG_OPEN_WRITE);
    r = closed(s, d, img_copy(from, n, d, &o, &job, s->err));
    return close_sources(s, from, n, r);
}

static int step_compare(struct step *s)
{
    struct img_disk *a = open_quietly(s, word(s, 1), 0);
    struct img_disk *b = open_quietly(s, word(s, 2), 0);
    struct img_job job = to_work(s);
    uint64_t at = 0;
    int r = img_compare(a, b, option(s, 's'), &job, &at, s->err);

    tell(s, (uint64_t)r);
    tell(s, at);
    r = closed(s, a, IMG_MIN(r, 0));
    return closed(s, b, r);
}

static int step_measure(struct step *s)
{
    struct img_disk *d = open_quietly(s, word(s, 1), 0);
    struct img_create_options o = IMG_CREATE_OPTIONS;
    struct img_measure m = { 0 };
    int r;

    o.format = word(s, 2);
    o.settings = s->settings;
    r = img_measure(d, &o, &m, s->err);
    tell(s, m.required);
    tell(s, m.fully_allocated);
    tell(s, m.bitmaps);
    return closed(s, d, r);
}

static int step_inspect(struct step *s)
{
    struct img_inspect_options o = IMG_INSPECT_OPTIONS;
    struct img_verdict *v;
    int r;

    o.untrusted = true;
    r = img_inspect(word(s, 1), &o, &v, s->err);
    if (r < 0)
        return r;
    tell(s, v->safe);
    tell(s, v->n_findings);
    tell(s, v->size);
    for (size_t i = 0; i < v->n_findings; i++)
        s->digest = hash_text(s->digest, v->findings[i].text);
    img_verdict_free(v);
    return 0;
}

/* ---- in place ---------------------------------------------------------- */

static int step_resize(struct step *s)
{
    static const char *const kinds[] = {
        "off", "metadata", "falloc", "full", NULL
    };
    const char *kind = option(s, 'p') ? option(s, 'p') : "off";
    enum img_prealloc prealloc = (enum img_prealloc)choice(kind, kinds);
    struct img_job job = to_work(s);
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);

    return closed(s, d, img_resize(d, number(s, 2), true, prealloc, &job,
                                   s->err));
}

static int step_amend(struct step *s)
{
    struct img_job job = to_work(s);
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);

    return closed(s, d, img_amend(d, s->settings, &job, s->err));
}

static int step_check(struct step *s)
{
    const char *repair = option(s, 'r');
    struct img_check_options o = IMG_CHECK_OPTIONS;
    struct img_check_result result = { 0 };
    struct img_job job = to_work(s);
    struct img_disk *d;
    int r;

    if (repair)
        o.repair = strcmp(repair, "all") ? IMG_REPAIR_LEAKS : IMG_REPAIR_ALL;
    if (option(s, 'y'))
        o.memory = number_in(option(s, 'y'));
    d = open_quietly(s, word(s, 1), repair ? IMG_OPEN_WRITE | IMG_OPEN_REPAIR
                                           : IMG_OPEN_REPAIR);
    r = img_check(d, &o, &job, &result, s->err);
    if (r == 0 && result.check_errors)
        r = img_fail(s->err, EIO, "places could not be looked at");
    tell(s, result.errors);
    tell(s, result.allocated);
    return closed(s, d, r);
}

static int step_rebase(struct step *s)
{
    struct img_rebase_options o = IMG_REBASE_OPTIONS;
    struct img_job job = to_work(s);
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE |
                                      (option(s, 'u') ? IMG_OPEN_NO_BACKING
                                                      : 0));

    o.backing = s->n > 2 ? s->words[2] : "";
    o.backing_format = s->n > 2 ? format_of(s->words[2]) : NULL;
    o.unsafe = option(s, 'u');
    o.compress = option(s, 'c');
    return closed(s, d, img_rebase(d, &o, &job, s->err));
}

static int step_commit(struct step *s)
{
    const char *depth = option(s, 'd');
    struct img_job job = to_work(s);
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);

    return closed(s, d, img_commit(d, depth ? (unsigned)number_in(depth) : 1,
                                   option(s, 'k'), &job, s->err));
}

static int step_snapshot(struct step *s)
{
    static int (*const verbs[])(struct img_disk *, const char *,
                                struct img_error *) = {
        img_snapshot_create, img_snapshot_apply, img_snapshot_delete
    };
    static const char *const names[] = { "create", "apply", "delete", NULL };
    int verb = choice(word(s, 2), names);
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);

    return closed(s, d, verbs[verb](d, word(s, 3), s->err));
}

static int step_bitmap(struct step *s)
{
    static const char *const verbs[] = {
        "add", "remove", "clear", "enable", "disable", NULL
    };
    enum img_bitmap_verb verb = (enum img_bitmap_verb)choice(word(s, 2),
                                                             verbs);
    struct img_disk *d = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);

    return closed(s, d, img_bitmap_edit(d, word(s, 3), verb, 4096, s->err));
}

static int step_merge(struct step *s)
{
    struct img_disk *to = open_quietly(s, word(s, 1), IMG_OPEN_WRITE);
    bool other = strcmp(word(s, 1), word(s, 3));
    struct img_disk *from = other ? open_quietly(s, word(s, 3), 0) : to;
    int r = img_bitmap_merge(to, word(s, 2), from, word(s, 4), s->err);

    r = closed(s, to, r);
    return other ? closed(s, from, r) : r;
}

/* ---- damage ------------------------------------------------------------ */

static int step_poke(struct step *s)
{
    int fd = open(word(s, 1), O_RDWR);
    bool mark = !strcmp(s->words[0], "mark");
    uint64_t off = number(s, 2);
    uint8_t byte = 0;

    assert_true(fd >= 0);
    assert_true(!mark || pread(fd, &byte, 1, (off_t)off) == 1);
    byte++;
    for (int i = 3; i < s->n || mark; i++) {
        if (!mark)
            byte = (uint8_t)number(s, i);
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)off++), 1);
        if (mark)
            break;
    }
    close(fd);
    return 0;
}

static int step_cut(struct step *s)
{
    assert_int_equal(truncate(word(s, 1), (off_t)number(s, 2)), 0);
    return 0;
}

/* ---- lines ------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*run)(struct step *);
} verbs[] = {
    { "create", step_create }, { "resolve", step_resolve },
    { "open", step_open }, { "io", step_io }, { "vmstate", step_vmstate },
    { "convert", step_convert }, { "stream", step_stream },
    { "copy", step_copy }, { "compare", step_compare },
    { "measure", step_measure }, { "inspect", step_inspect },
    { "resize", step_resize }, { "amend", step_amend },
    { "check", step_check }, { "rebase", step_rebase },
    { "commit", step_commit }, { "snapshot", step_snapshot },
    { "bitmap", step_bitmap }, { "merge", step_merge },
    { "poke", step_poke }, { "mark", step_poke }, { "cut", step_cut },
};

static int run_step(struct step *s)
{
    for (size_t i = 0; i < IMG_COUNT(verbs); i++)
        if (!strcmp(verbs[i].name, word(s, 0)))
            return verbs[i].run(s);
    fail_msg("what is '%s'?", s->words[0]);
    return -1;
}

int run_steps(const char *steps, uint64_t *digest, struct img_error *err)
{
    int r = 0;

    *digest = UINT64_C(0xcbf29ce484222325);
    while (*steps && r == 0) {
        size_t len = strcspn(steps, ";");
        struct step s = { .digest = *digest, .err = err };

        split(&s, steps, len);
        if (s.n)
            r = run_step(&s);
        *digest = s.digest;
        steps += len + (steps[len] == ';');
    }
    return r;
}
