/* New images.
 *
 * The file is header, refcount table, refcount blocks, L1 table, in this
 * order, with nothing between; the header is written last.
 */
#include "qcow2/qcow2.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/strings.h"
#include "file/file.h"

#include <stdlib.h>
#include <string.h>

const struct img_option_info img_qcow2_options[] = {
    { "backing_file", "str", "File name of a base image", IMG_OPTION_AMEND },
    { "backing_fmt", "str", "Image format of the base image",
      IMG_OPTION_AMEND },
    { "cluster_size", "size", "qcow2 cluster size, 512 to 2M", 0 },
    { "compat", "0.10|1.1", "Compatibility level (v2 [0.10] or v3 [1.1])",
      IMG_OPTION_AMEND },
    { "compression_type", "zlib|zstd",
      "Compression method used for image cluster compression", 0 },
    { "data_file", "str", "File name of an external data file",
      IMG_OPTION_AMEND },
    { "data_file_raw", "on|off",
      "The external data file must stay valid as a raw image",
      IMG_OPTION_AMEND },
    { "encryption", "off", "Encrypt the image (not supported)", 0 },
    { "extended_l2", "on|off", "Extended L2 tables (subclusters)", 0 },
    { "lazy_refcounts", "on|off", "Postpone refcount updates",
      IMG_OPTION_AMEND },
    { "nocow", "on|off", "Turn off copy-on-write (valid only on btrfs)", 0 },
    { "preallocation", "off|metadata|falloc|full", "Preallocation mode", 0 },
    { "refcount_bits", "num", "Width of a reference count entry in bits",
      IMG_OPTION_AMEND },
    { "size", "size", "Virtual disk size", IMG_OPTION_AMEND },
    { NULL, NULL, NULL, 0 }
};

static const char *const prealloc_names[] = {
    "off", "metadata", "falloc", "full", NULL
};

struct plan {
    struct qcow2_header h;
    unsigned prealloc;
    uint64_t reftable_clusters, blocks, l1_clusters;
};

/* ---- settings ---------------------------------------------------------- */

static int read_shape(const char *const *s, struct qcow2_header *h,
                      struct img_error *err)
{
    static const char *const compats[] = { "0.10", "v2", "1.1", "v3", NULL };
    static const char *const types[] = { "zlib", "zstd", NULL };
    uint64_t cluster = 0, bits = 16;
    unsigned compat = 2, type = 0;
    bool extended = false, lazy = false, encrypt = false;
    int r = img_setting_choice(s, "compat", compats, &compat, err);

    if (r == 0)
        r = img_setting_choice(s, "compression_type", types, &type, err);
    if (r == 0)
        r = img_setting_bool(s, "extended_l2", &extended, err);
    if (r == 0)
        r = img_setting_bool(s, "lazy_refcounts", &lazy, err);
    if (r == 0)
        r = img_setting_bool(s, "encryption", &encrypt, err);
    if (r == 0)
        r = img_setting_number(s, "refcount_bits", &bits, err);
    if (r == 0)
        r = img_setting_size(s, "cluster_size", &cluster, err);
    if (r < 0)
        return r;
    if (encrypt)
        return img_fail(err, ENOTSUP, "encryption is not supported");
    cluster = img_setting(s, "cluster_size") ? cluster : 65536;
    if (!img_is_pow2(cluster) || cluster < 512 || cluster > 2 << 20)
        return img_fail(err, EINVAL, "Cluster size must be a power of two "
                        "between 512 and 2048k");
    if (!img_is_pow2(bits) || bits > 64)
        return img_fail(err, EINVAL, "Refcount width must be a power of two "
                        "and may not exceed 64 bits");
    h->version = compat < 2 ? 2 : 3;
    h->cluster_bits = img_log2(cluster);
    h->refcount_order = img_log2(bits);
    h->compression = (uint8_t)type;
    h->incompatible = (type ? QCOW2_COMPRESSION : 0) |
                      (extended ? QCOW2_EXTENDED_L2 : 0);
    h->compatible = lazy ? QCOW2_LAZY_REFCOUNTS : 0;
    if (h->version < 3 && (bits != 16 || h->incompatible || h->compatible))
        return img_fail(err, EINVAL, "%s only supported with compatibility "
                        "level 1.1 and above (use compat=1.1 or greater)",
                        bits != 16 ? "Different refcount widths than 16 "
                        "bits are" : type ? "Non-zlib compression type is" :
                        extended ? "Extended L2 entries are" :
                        "Lazy refcounts are");
    if (extended && cluster < 16384)
        return img_fail(err, EINVAL, "Extended L2 entries are only supported "
                        "with cluster sizes of at least 16384 bytes");
    return 0;
}

static int read_data_file(const struct img_create_options *o, struct plan *p,
                          struct img_error *err)
{
    const char *name = img_setting(o->settings, "data_file");
    bool raw = false;
    int r = img_setting_bool(o->settings, "data_file_raw", &raw, err);

    if (r < 0)
        return r;
    if (raw && !name)
        return img_fail(err, EINVAL, "data_file_raw requires data_file");
    if (!name)
        return 0;
    if (p->h.version < 3)
        return img_fail(err, EINVAL, "External data files are only supported "
                        "with compatibility level 1.1 and above (use "
                        "compat=1.1 or greater)");
    if (raw && o->backing)
        return img_fail(err, EINVAL, "Backing file and data_file_raw cannot "
                        "be used at the same time");
    p->h.incompatible |= QCOW2_DATA_FILE;
    p->h.autoclear |= raw ? QCOW2_DATA_FILE_RAW : 0;
    /* Whoever reads the raw file alone must find the tables' mapping. */
    if (raw && p->prealloc == IMG_PREALLOC_OFF)
        p->prealloc = IMG_PREALLOC_METADATA;
    return img_qcow2_header_copy_text(&p->h.data_file, name, err);
}

static int read_options(const struct img_create_options *o, struct plan *p,
                        struct img_error *err)
{
    int r = read_shape(o->settings, &p->h, err);

    if (r == 0)
        r = img_setting_choice(o->settings, "preallocation", prealloc_names,
                               &p->prealloc, err);
    if (r == 0)
        r = read_data_file(o, p, err);
    if (r < 0)
        return r;
    if (o->backing && p->prealloc != IMG_PREALLOC_OFF &&
        !(p->h.incompatible & QCOW2_EXTENDED_L2))
        return img_fail(err, EINVAL, "Backing file and preallocation can "
                        "only be used at the same time if extended_l2 is "
                        "enabled");
    p->h.size = o->disk_size;
    r = img_qcow2_header_copy_text(&p->h.backing, o->backing, err);
    return r == 0 ? img_qcow2_header_copy_text(&p->h.backing_format,
                                               o->backing_format, err) : r;
}

/* ---- layout ------------------------------------------------------------ */

static int lay_out(const char *path, struct plan *p, struct img_error *err)
{
    struct qcow2_header *h = &p->h;
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    uint64_t entry = h->incompatible & QCOW2_EXTENDED_L2 ? 16 : 8;
    uint64_t refs = cluster * 8 >> h->refcount_order, total;
    uint64_t l1 = img_div_up(img_div_up(h->size, cluster), cluster / entry);

    if (h->size > INT64_MAX || l1 > QCOW2_MAX_L1_BYTES / 8)
        return img_fail(err, EFBIG, "%s: a disk of %llu bytes is too large "
                        "for clusters of %llu bytes", path,
                        (unsigned long long)h->size,
                        (unsigned long long)cluster);
    /* QEMU makes L1 tables of at least one entry as well. */
    h->l1_size = (uint32_t)IMG_MAX(l1, UINT64_C(1));
    p->l1_clusters = img_div_up((uint64_t)h->l1_size * 8, cluster);
    p->blocks = p->reftable_clusters = 1;
    for (;;) {
        total = 1 + p->reftable_clusters + p->blocks + p->l1_clusters;
        if (p->blocks * refs < total)
            p->blocks++;
        else if (p->reftable_clusters * (cluster / 8) < p->blocks)
            p->reftable_clusters++;
        else
            break;
    }
    h->reftable_offset = cluster;
    h->reftable_clusters = (uint32_t)p->reftable_clusters;
    h->l1_offset = (1 + p->reftable_clusters + p->blocks) * cluster;
    return 0;
}

static int write_refcounts(struct img_file *f, const struct plan *p,
                           struct img_error *err)
{
    const struct qcow2_header *h = &p->h;
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    uint64_t refs = cluster * 8 >> h->refcount_order;
    uint64_t used = 1 + p->reftable_clusters + p->blocks + p->l1_clusters;
    uint64_t table_bytes = p->reftable_clusters * cluster;
    img_autofree uint8_t *buf = calloc(1, table_bytes);
    uint64_t first_block = h->reftable_offset + table_bytes;
    int r;

    if (!buf)
        return img_fail_nomem(err);
    for (uint64_t i = 0; i < p->blocks; i++)
        img_put_be64(buf + i * 8, first_block + i * cluster);
    r = img_file_pwrite(f, buf, table_bytes, h->reftable_offset, err);
    for (uint64_t i = 0; r == 0 && i < p->blocks; i++) {
        memset(buf, 0, cluster);
        for (uint64_t k = 0; k < refs && i * refs + k < used; k++)
            img_qcow2_refs_store(buf, h->refcount_order, k, 1);
        r = img_file_pwrite(f, buf, cluster, first_block + i * cluster, err);
    }
    return r;
}

static int write_image(struct img_file *f, const char *path,
                       const struct plan *p, struct img_error *err)
{
    uint64_t cluster = UINT64_C(1) << p->h.cluster_bits;
    img_autofree uint8_t *buf = malloc(cluster);
    int r;

    if (!buf)
        return img_fail_nomem(err);
    r = img_qcow2_header_build(path, &p->h, NULL, buf, err);
    if (r == 0)
        r = write_refcounts(f, p, err);
    if (r == 0 && f->is_device)
        r = img_file_zero(f, p->h.l1_offset, p->l1_clusters * cluster, 0,
                          err);
    else if (r == 0)
        r = img_file_truncate(f, p->h.l1_offset + p->l1_clusters * cluster,
                              err);
    /* On a device, the header makes the image: last, and after the rest. */
    if (r == 0 && f->is_device)
        r = img_file_sync(f, err);
    return r == 0 ? img_file_pwrite(f, buf, cluster, 0, err) : r;
}

static int make_data_file(struct img_build *b, const struct plan *p,
                          struct img_file **data, struct img_error *err)
{
    int r;

    if (!(p->h.incompatible & QCOW2_DATA_FILE))
        return 0;
    r = b->add_file(b, p->h.data_file, data, err);
    return r == 0 ? img_file_truncate(*data, p->h.size, err) : r;
}

/* ---- preallocation of a new image -------------------------------------- */

struct handed {
    struct img_layer layer;
    struct img_file *data;
};

static int hand_data_file(struct img_layer *layer, const char *name,
                          bool writable, struct img_file **file,
                          struct img_error *err)
{
    *file = ((struct handed *)layer->core)->data;
    return 0;
}

static int preallocate(struct img_build *b, struct img_file *data,
                       enum img_prealloc prealloc, struct img_error *err)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_file **files = malloc(sizeof *files);
    struct handed t = { .data = data };
    int r, closed;

    if (!files)
        return img_fail_nomem(err);
    files[0] = b->file;
    t.layer = (struct img_layer){
        .format = &img_qcow2, .path = b->path, .files = files,
        .n_files = 1, .writable = true, .open_file = hand_data_file,
        .core = &t,
    };
    r = img_tcache_new(8 << 20, &t.layer.tables, err);
    if (r == 0)
        r = img_qcow2.open(&t.layer, &opts, err);
    if (r == 0)
        r = img_qcow2_preallocate(img_qcow2_of(&t.layer), 0, t.layer.size,
                                  prealloc, err);
    if (r == 0) {
        closed = img_qcow2_settle(img_qcow2_of(&t.layer), err);
        r = closed;
    }
    img_qcow2.close(&t.layer);
    img_tcache_free(t.layer.tables);
    free(t.layer.backing);
    free(t.layer.backing_format);
    free(t.layer.files);
    return r;
}

static int new_header(struct img_build *b, struct plan *p,
                      struct img_error *err)
{
    int r = read_options(b->opts, p, err);

    if (r == 0)
        r = img_qcow2_identity_note(&p->h, b->backing, err);
    return r == 0 ? lay_out(b->path, p, err) : r;
}

int img_qcow2_header_new(struct img_build *b, struct qcow2_header *h,
                         bool *prealloc, struct img_error *err)
{
    struct plan p = { .prealloc = IMG_PREALLOC_OFF };
    int r = new_header(b, &p, err);

    *h = p.h;
    *prealloc = p.prealloc != IMG_PREALLOC_OFF;
    return r;
}

int img_qcow2_create(struct img_build *b, struct img_error *err)
{
    struct img_file *data = NULL;
    struct plan p = { .prealloc = IMG_PREALLOC_OFF };
    int r = new_header(b, &p, err);

    if (r == 0)
        r = make_data_file(b, &p, &data, err);
    if (r == 0)
        r = write_image(b->file, b->path, &p, err);
    if (r == 0 && p.prealloc != IMG_PREALLOC_OFF)
        r = preallocate(b, data, (enum img_prealloc)p.prealloc, err);
    img_qcow2_header_free(&p.h);
    return r;
}

/* ---- what create would use, what an image would take ------------------- */

static int add_setting(const struct img_create_options *o, const char *key,
                       const char *otherwise, struct img_strings *out,
                       struct img_error *err)
{
    const char *value = img_setting(o->settings, key);

    value = value ? value : otherwise;
    return value ? img_strings_addf(out, err, "%s=%s", key, value) : 0;
}

int img_qcow2_defaults(const struct img_create_options *o,
                       struct img_strings *out, struct img_error *err)
{
    static const struct { const char *key, *otherwise; } before[] = {
        { "encryption", NULL }, { "cluster_size", "65536" },
        { "extended_l2", "off" }, { "preallocation", NULL },
        { "compression_type", "zlib" },
    }, after[] = {
        { "data_file", NULL }, { "data_file_raw", NULL },
        { "lazy_refcounts", "off" }, { "refcount_bits", "16" },
        { "nocow", NULL },
    };
    struct plan p = { .prealloc = IMG_PREALLOC_OFF };
    uint64_t cluster = 65536;
    int r = read_options(o, &p, err);

    img_qcow2_header_free(&p.h);
    for (size_t i = 0; r == 0 && i < IMG_COUNT(before); i++) {
        if (i == 1) {
            r = img_setting_size(o->settings, "cluster_size", &cluster, err);
            if (r == 0)
                r = img_strings_addf(out, err, "cluster_size=%llu",
                                     (unsigned long long)cluster);
            continue;
        }
        r = add_setting(o, before[i].key, before[i].otherwise, out, err);
    }
    if (r == 0)
        r = img_strings_addf(out, err, "size=%llu",
                             (unsigned long long)o->disk_size);
    if (r == 0)
        r = add_setting(o, "compat", NULL, out, err);
    if (r == 0 && o->backing)
        r = img_strings_addf(out, err, "backing_file=%s", o->backing);
    if (r == 0 && o->backing && o->backing_format)
        r = img_strings_addf(out, err, "backing_fmt=%s", o->backing_format);
    for (size_t i = 0; r == 0 && i < IMG_COUNT(after); i++)
        r = add_setting(o, after[i].key, after[i].otherwise, out, err);
    return r;
}

/* Bytes of an image that holds so many data clusters, tables and all. */
static uint64_t image_bytes(const struct plan *p, uint64_t data)
{
    const struct qcow2_header *h = &p->h;
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    uint64_t entry = h->incompatible & QCOW2_EXTENDED_L2 ? 16 : 8;
    uint64_t refs = cluster * 8 >> h->refcount_order;
    uint64_t guest = img_div_up(h->size, cluster);
    uint64_t tables = img_div_up(guest, cluster / entry);
    uint64_t l1 = img_div_up(img_round_up(tables, cluster / 8) * 8, cluster);
    uint64_t rest = 1 + l1 + tables, blocks = 0, reftable = 0;

    if (!(h->incompatible & QCOW2_DATA_FILE))
        rest += data;
    for (;;) {
        uint64_t b = img_div_up(rest + blocks + reftable, refs);
        uint64_t t = img_div_up(b * 8, cluster);

        if (b == blocks && t == reftable)
            break;
        blocks = b;
        reftable = t;
    }
    return (rest + blocks + reftable) * cluster;
}

int img_qcow2_measure(const struct img_create_options *o, uint64_t size,
                      uint64_t data_clusters_of(void *, uint32_t),
                      void *opaque, struct img_measure *m,
                      struct img_error *err)
{
    struct plan p = { .prealloc = IMG_PREALLOC_OFF };
    struct img_create_options sized = *o;
    uint64_t all, used;
    int r;

    sized.disk_size = size;
    r = read_options(&sized, &p, err);
    if (r == 0)
        r = lay_out("measure", &p, err);
    if (r == 0) {
        all = img_div_up(size, UINT64_C(1) << p.h.cluster_bits);
        used = p.prealloc == IMG_PREALLOC_FULL ||
               p.prealloc == IMG_PREALLOC_FALLOC
               ? all : data_clusters_of(opaque, 1u << p.h.cluster_bits);
        m->fully_allocated = image_bytes(&p, all);
        m->required = m->fully_allocated;
        if (!(p.h.incompatible & QCOW2_DATA_FILE))
            m->required -= (all - used) << p.h.cluster_bits;
    }
    img_qcow2_header_free(&p.h);
    return r;
}
