/* What img_info_get tells, as text and as JSON. */
#include "show.h"
#include "size.h"
#include "vimg.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum output output_argument(const char *text)
{
    if (!text || !strcmp(text, "human"))
        return OUTPUT_TEXT;
    if (!strcmp(text, "json"))
        return OUTPUT_JSON;
    complain("--output must be used with human or json as argument.");
    return OUTPUT_BAD;
}

void show_snapshots(const struct img_info *info)
{
    if (!info->n_snapshots)
        return;
    puts("Snapshot list:");
    printf("%-9s %-16s %8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
           "VM CLOCK", "ICOUNT");
    for (size_t i = 0; i < info->n_snapshots; i++) {
        const struct img_snapshot_info *s = &info->snapshots[i];
        uint64_t sec = s->vm_clock_nsec / 1000000000;
        char size[SIZE_TEXT], date[32] = "", clock[48], icount[24] = "";
        time_t t = (time_t)s->date_sec;
        struct tm tm;

        if (localtime_r(&t, &tm))
            strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
        snprintf(clock, sizeof clock,
                 "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64,
                 sec / 3600, sec / 60 % 60, sec % 60,
                 s->vm_clock_nsec / 1000000 % 1000);
        if (s->icount != UINT64_MAX)
            snprintf(icount, sizeof icount, "%" PRIu64, s->icount);
        printf("%-9s %-16s %8s%20s%13s%11s\n", s->id, s->name,
               size_human(s->vm_state_size, size), date, clock, icount);
    }
}

/* Format-specific facts are shallow (three levels at most), so that walking
 * them may recurse. */
static void show_value(const struct img_value *v, size_t index, int depth)
{
    printf("%*s", 4 * depth, "");
    if (v->name)
        for (const char *p = v->name; *p; p++)
            putchar(*p == '-' ? ' ' : *p);
    else
        printf("[%zu]", index);
    switch (v->type) {
    case IMG_VALUE_BOOL:
        printf(": %s\n", v->flag ? "true" : "false");
        return;
    case IMG_VALUE_UINT:
        printf(": %" PRIu64 "\n", v->number);
        return;
    case IMG_VALUE_STRING:
        printf(": %s\n", v->text ? v->text : "");
        return;
    case IMG_VALUE_LIST:
    case IMG_VALUE_GROUP:
        break;
    }
    puts(":");
    for (size_t i = 0; i < v->n_items; i++)
        show_value(&v->items[i], i, depth + 1);
}

void show_specific(const struct img_info *info)
{
    if (!info->specific)
        return;
    puts("Format specific information:");
    for (size_t i = 0; i < info->specific->n_items; i++)
        show_value(&info->specific->items[i], i, 1);
}

static void show_backing(const struct img_info *info)
{
    if (!info->backing)
        return;
    printf("backing file: %s", info->backing);
    if (!info->backing_path)
        printf(" (cannot determine actual path)");
    else if (strcmp(info->backing, info->backing_path))
        printf(" (actual path: %s)", info->backing_path);
    putchar('\n');
    if (info->backing_format)
        printf("backing file format: %s\n", info->backing_format);
}

static void show_one(const struct img_info *info, const char *name)
{
    char text[SIZE_TEXT];

    printf("image: %s\nfile format: %s\n", name, info->format);
    printf("virtual size: %s (%" PRIu64 " bytes)\n",
           size_human(info->size, text), info->size);
    printf("disk size: %s\n", info->allocated == UINT64_MAX ? "unavailable" :
           size_human(info->allocated, text));
    if (info->encrypted)
        puts("encrypted: yes");
    if (info->cluster_size)
        printf("cluster_size: %" PRIu32 "\n", info->cluster_size);
    if (info->dirty)
        puts("cleanly shut down: no");
    show_backing(info);
    show_snapshots(info);
    show_specific(info);
}

void show_info(const struct img_info *info, const char *name, bool chain)
{
    show_one(info, name ? name : info->path);
    while (chain && (info = info->below)) {
        putchar('\n');
        show_one(info, info->path);
    }
}

static json_t *value_json(const struct img_value *v)
{
    json_t *made;

    switch (v->type) {
    case IMG_VALUE_BOOL:
        return json_boolean(v->flag);
    case IMG_VALUE_UINT:
        return json_integer((json_int_t)v->number);
    case IMG_VALUE_STRING:
        return json_from_text(v->text ? v->text : "");
    case IMG_VALUE_LIST:
        made = json_new_array();
        for (size_t i = 0; i < v->n_items; i++)
            json_add(made, value_json(&v->items[i]));
        return made;
    case IMG_VALUE_GROUP:
        break;
    }
    made = json_new_object();
    for (size_t i = 0; i < v->n_items; i++)
        json_put(made, v->items[i].name, value_json(&v->items[i]));
    return made;
}

static json_t *snapshots_json(const struct img_info *info)
{
    json_t *list = json_new_array();

    for (size_t i = 0; i < info->n_snapshots; i++) {
        const struct img_snapshot_info *s = &info->snapshots[i];
        json_t *o = json_new_object();

        json_put_text(o, "id", s->id);
        json_put_text(o, "name", s->name);
        json_put_number(o, "vm-state-size", s->vm_state_size);
        json_put_number(o, "date-sec", s->date_sec);
        json_put_number(o, "date-nsec", s->date_nsec);
        json_put_number(o, "vm-clock-sec", s->vm_clock_nsec / 1000000000);
        json_put_number(o, "vm-clock-nsec", s->vm_clock_nsec % 1000000000);
        if (s->icount != UINT64_MAX)
            json_put_number(o, "icount", s->icount);
        json_add(list, o);
    }
    return list;
}

json_t *show_info_json(const struct img_info *info, const char *name)
{
    json_t *o = json_new_object(), *specific;

    json_put_text(o, "filename", name ? name : info->path);
    json_put_text(o, "format", info->format);
    json_put_number(o, "virtual-size", info->size);
    if (info->allocated != UINT64_MAX)
        json_put_number(o, "actual-size", info->allocated);
    if (info->cluster_size)
        json_put_number(o, "cluster-size", info->cluster_size);
    if (info->encrypted)
        json_put_bool(o, "encrypted", 1);
    if (info->compressed)
        json_put_bool(o, "compressed", 1);
    json_put_bool(o, "dirty-flag", info->dirty);
    if (info->backing)
        json_put_text(o, "backing-filename", info->backing);
    if (info->backing && info->backing_path)
        json_put_text(o, "full-backing-filename", info->backing_path);
    if (info->backing && info->backing_format)
        json_put_text(o, "backing-filename-format", info->backing_format);
    if (info->n_snapshots)
        json_put(o, "snapshots", snapshots_json(info));
    if (info->specific) {
        specific = json_new_object();
        json_put_text(specific, "type", info->format);
        json_put(specific, "data", value_json(info->specific));
        json_put(o, "format-specific", specific);
    }
    return o;
}
