/* vimg mount and umount: a disk as files of this machine. */
#include "mountfs.h"
#include "open.h"
#include "vimg.h"
#include "../nbd/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LOOP_MS = 10000 };      /* a loop device lets go of its file late */

static struct {
    struct open_how how;
    const char *fs;
    bool write, foreground;
} args;

static const struct option_def mount_options[] = {
    OPEN_FORMAT_ROW(&args.how),
    { OPTION_FLAG, 'w', "writable", NULL, "let the disk be written",
      &args.write },
    { OPTION_TEXT, 0, "fs", "N",
      "mount the file system of partition N (0 = of the whole disk) itself; "
      "needs root", &args.fs },
    { OPTION_FLAG, 0, "foreground", NULL, "serve until it is unmounted",
      &args.foreground },
    { OPTION_TEXT, 'l', "snapshot", "SNAPSHOT",
      "show an internal snapshot, by ID or name", &args.how.snapshot },
    OPEN_CACHE_ROW('t', "cache", &args.how),
    OPEN_SHARE_ROW(&args.how),
    OPEN_IMAGE_OPTS_ROW(&args.how),
    OPTIONS_OBJECT_ROW(&args.how.objects),
    OPEN_CONFINE_ROWS,
    OPTIONS_HELP_ROW,
    { 0 }
};

static const struct option_def umount_options[] = {
    OPTIONS_HELP_ROW,
    { 0 }
};

/* Runs a program without a shell; its exit code. */
static int run_program(char *const *argv)
{
    int status;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        execvp(argv[0], argv);
        complain("%s: %s", argv[0], strerror(errno));
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return 127;
    return WEXITSTATUS(status);
}

static int serve(const char *image, const char *folder)
{
    struct img_disk *disk;
    int code;

    disk = open_image(image, &args.how, args.write ? IMG_OPEN_WRITE |
                      IMG_OPEN_UNMAP : 0);
    if (!disk)
        return 1;
    code = mountfs_serve(disk, folder, args.write, args.foreground);
    return close_image(disk) ? code : 1;
}

/* ---- where things are mounted ------------------------------------------ */

/* The kernel writes blanks and the like as three octal digits. */
static void unescape(char *text)
{
    char *out = text;
    unsigned code;

    while (*text) {
        if (*text == '\\' && sscanf(text + 1, "%3o", &code) == 1) {
            *out++ = (char)code;
            text += 4;
        } else {
            *out++ = *text++;
        }
    }
    *out = 0;
}

/* The type and source of what is mounted at path. */
static bool mounted(const char *path, char type[64], char source[4096])
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    char *line = NULL, *dash, at[4096];
    size_t room = 0;
    bool found = false;

    while (f && getline(&line, &room, f) > 0) {
        dash = strstr(line, " - ");
        if (!dash || sscanf(line, "%*s %*s %*s %*s %4095s", at) != 1)
            continue;
        unescape(at);
        if (!strcmp(at, path))
            found = sscanf(dash, " - %63s %4095s", type, source) == 2;
    }
    free(line);
    if (f)
        fclose(f);
    return found;
}

static bool is_ours(const char *path)
{
    char type[64], source[4096];

    return mounted(path, type, source) && !strcmp(type, "fuse.vimg");
}

/* The folder of ours that holds the file behind the loop device. */
static bool behind_loop(const char *device, char folder[4096])
{
    char name[256];
    FILE *f;
    char *slash;

    snprintf(name, sizeof name, "/sys/block/%.100s/loop/backing_file",
             strrchr(device, '/') ? strrchr(device, '/') + 1 : device);
    f = fopen(name, "re");
    if (!f || !fgets(folder, 4096, f)) {
        if (f)
            fclose(f);
        return false;
    }
    fclose(f);
    folder[strcspn(folder, "\n")] = 0;
    slash = strrchr(folder, '/');
    if (slash)
        *slash = 0;
    return slash && is_ours(folder);
}

/* ---- umount ------------------------------------------------------------ */

/* in_use_ms: how long somebody may still be busy with letting go of it. */
static int unmount(const char *path, int in_use_ms)
{
    const struct timespec tick = { .tv_nsec = 20 * 1000 * 1000 };
    char *argv[] = { "fusermount3", "-u", (char *)path, NULL };
    int r;

    while ((r = umount2(path, 0)) < 0 && errno == EBUSY && in_use_ms > 0) {
        nanosleep(&tick, NULL);
        in_use_ms -= 20;
    }
    if (r == 0)
        return 0;
    if (geteuid() != 0)
        return run_program(argv) ? 1 : 0;
    complain("%s: %s", path, strerror(errno));
    return 1;
}

static int read_pid(const char *folder)
{
    char *name = format_text("%s/.vimg", folder), text[32];
    FILE *f = fopen(name, "re");
    int pid = f && fgets(text, sizeof text, f) ? atoi(text) : 0;

    if (f)
        fclose(f);
    free(name);
    return pid;
}

/* Everything on its way to the disk, and whether it arrived. */
static bool flush(const char *folder)
{
    char *name = format_text("%s/disk", folder);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;

    if (!ok)
        complain("%s: writing back: %s", name, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(name);
    return ok;
}

/* The server closes the image after the folder is gone: only then may
 * others open it. */
static int unmount_ours(const char *folder, int in_use_ms)
{
    int pid = read_pid(folder), fd = -1, code;
    bool ok = flush(folder);

    if (pid > 0)
        fd = (int)syscall(SYS_pidfd_open, pid, 0);
    code = unmount(folder, in_use_ms);
    if (fd >= 0) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        while (code == 0 && poll(&p, 1, -1) < 0 && errno == EINTR)
            ;
        close(fd);
    }
    return ok ? code : 1;
}

/* Without a server the folder itself cannot be asked for its name. */
static char *mount_point(const char *name)
{
    char *path = realpath(name, NULL), *copy, *parent, *slash;
    size_t len;

    if (path || errno != ENOTCONN)
        return path;
    copy = need_memory(strdup(name));
    for (len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
        copy[len - 1] = 0;
    slash = strrchr(copy, '/');
    if (slash)
        *slash = 0;
    parent = realpath(!slash ? "." : *copy ? copy : "/", NULL);
    if (parent)
        path = format_text("%s/%s", strcmp(parent, "/") ? parent : "",
                           slash ? slash + 1 : copy);
    free(parent);
    free(copy);
    return path;
}

static int run_umount(int argc, char **argv)
{
    char *path, type[64], source[4096], folder[4096];
    int code = 1;

    if (argc != 1)
        return usage_error("Expecting one folder");
    path = mount_point(argv[0]);
    if (!path || !mounted(path, type, source)) {
        complain("%s: nothing is mounted there", argv[0]);
    } else if (!strcmp(type, "fuse.vimg")) {
        code = unmount_ours(path, 0);
    } else if (behind_loop(source, folder)) {
        code = unmount(path, 0);
        if (code == 0)
            code = unmount_ours(folder, LOOP_MS);
        if (!is_ours(folder))
            rmdir(folder);
    } else {
        complain("%s: was not mounted by vimg", argv[0]);
    }
    free(path);
    return code;
}

/* ---- mount ------------------------------------------------------------- */

/* The disk at a folder of its own, and its file system at the user's. */
static int mount_fs(const char *image, const char *target)
{
    char folder[] = "/run/vimg.XXXXXX";
    char *file, *end;
    long n = strtol(args.fs, &end, 10);
    char *argv[] = { "mount", "-o", args.write ? "loop" : "loop,ro", NULL,
                     (char *)target, NULL };
    int status, code;
    pid_t pid;

    if (*end || end == args.fs || n < 0 || n > 256)
        return usage_error("--fs: '%s' is no number of a partition",
                           args.fs);
    if (geteuid() != 0) {
        complain("--fs needs root: it mounts a file system");
        return 1;
    }
    if (!mkdtemp(folder)) {
        complain("%s: %s", folder, strerror(errno));
        return 1;
    }
    fflush(NULL);
    pid = fork();               /* serve returns in its own child */
    if (pid == 0) {
        code = serve(image, folder);
        nbd_spawn_end();
        _exit(code);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
        WEXITSTATUS(status)) {
        rmdir(folder);
        return 1;
    }
    nbd_spawn_forget();
    file = n ? format_text("%s/p%ld", folder, n) :
        format_text("%s/disk", folder);
    argv[3] = file;
    code = run_program(argv);
    if (code) {
        unmount_ours(folder, LOOP_MS);
        rmdir(folder);
    }
    free(file);
    return code ? 1 : 0;
}

static char *real_folder(const char *name)
{
    char *path = realpath(name, NULL);
    struct stat st;

    if (path && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return path;
    complain("%s: %s", name, strerror(path ? ENOTDIR : errno));
    free(path);
    return NULL;
}

static int run_mount(int argc, char **argv)
{
    char *folder;
    int code;

    if (argc != 2)
        return usage_error("Expecting an image and a folder");
    if (!open_check(&args.how))
        return 1;
    if (args.write && args.how.snapshot)
        return usage_error("A snapshot can only be read");
    folder = real_folder(argv[1]);
    if (!folder)
        return 1;
    code = args.fs ? mount_fs(argv[0], folder) : serve(argv[0], folder);
    free(folder);
    return code;
}

const struct command command_mount = {
    "mount", "FILE FOLDER", "Show a disk and its partitions as files",
    mount_options, run_mount, false
};
const struct command command_umount = {
    "umount", "FOLDER", "Undo mount, when all is written back",
    umount_options, run_umount, false
};
