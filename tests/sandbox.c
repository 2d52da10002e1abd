/* The sandbox of the tools, against code that an image took over: planted
 * after the parse, it tries to open, make, connect, listen and execute.
 *
 * Each attempt is made in a child that entered as vimg does, and in one that
 * did not, where it has to work: else the test would prove nothing. */
#include "../tools/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/vimg-test.XXXXXX";
static int tcp_port;

static const char *in_folder(const char *name)
{
    static char path[4][200];
    static unsigned turn;

    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int opens(const char *path, int flags)
{
    int fd = open(path, flags, 0600);

    return fd < 0 ? -errno : 0;
}

/* ---- what is tried ----------------------------------------------------- */

static int read_image(void) { return opens(in_folder("top.qcow2"), O_RDONLY); }
static int read_base(void) { return opens(in_folder("base.qcow2"), O_RDONLY); }
static int write_image(void) { return opens(in_folder("top.qcow2"), O_RDWR); }
static int write_base(void) { return opens(in_folder("base.qcow2"), O_RDWR); }
static int read_other(void) { return opens(in_folder("secret"), O_RDONLY); }
static int read_passwd(void) { return opens("/etc/passwd", O_RDONLY); }
static int write_other(void) { return opens(in_folder("secret"), O_WRONLY); }

static int by_link(void)
{
    return opens(in_folder("link"), O_RDONLY);
}

static int make(void)
{
    return opens(in_folder("made"), O_CREAT | O_WRONLY);
}

static int make_output(void)
{
    return opens(in_folder("out/made"), O_CREAT | O_WRONLY);
}

static int cut(void)
{
    return truncate(in_folder("secret"), 0) < 0 ? -errno : 0;
}

static int rename_it(void)
{
    return rename(in_folder("victim"), in_folder("moved")) < 0 ? -errno : 0;
}

static int remove_it(void)
{
    return unlink(in_folder("victim")) < 0 ? -errno : 0;
}

static int connect_tcp(void)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)tcp_port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
    };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    return fd < 0 || connect(fd, (void *)&to, sizeof to) < 0 ? -errno : 0;
}

static int connect_unix(void)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(to.sun_path, sizeof to.sun_path, "%s/sock", folder);
    return fd < 0 || connect(fd, (void *)&to, sizeof to) < 0 ? -errno : 0;
}

static int listen_tcp(void)
{
    struct sockaddr_in at = { .sin_family = AF_INET };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    return fd < 0 || bind(fd, (void *)&at, sizeof at) < 0 ||
        listen(fd, 1) < 0 ? -errno : 0;
}

/* A child, so that the one that works can be told from the one that fails. */
static int execute(void)
{
    int p[2], error = 0, status;
    pid_t pid;

    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    pid = fork();
    if (pid == 0) {
        char *argv[] = { (char *)"true", NULL };

        execv("/bin/true", argv);
        error = errno;
        _exit(write(p[1], &error, sizeof error) < 0);
    }
    close(p[1]);
    if (read(p[0], &error, sizeof error) < 0)
        error = errno;
    waitpid(pid, &status, 0);
    return -error;
}

static int use_ring(void)
{
    char params[120] = { 0 };
    long fd = syscall(SYS_io_uring_setup, 1, params);

    /* A kernel without it has nothing to be held back from. */
    return fd < 0 && errno != ENOSYS ? -errno : 0;
}

static const struct attempt {
    const char *what;
    int (*run)(void);
    bool image;                 /* what the sandbox is to let pass */
    bool output;
} attempts[] = {
    { "read the image", read_image, true, true },
    { "read the backing file", read_base, true, false },
    { "write to the backing file", write_base, false, false },
    { "write to the image", write_image, false, false },
    { "read another file of the folder", read_other, false, false },
    { "read by a link", by_link, false, false },
    { "read /etc/passwd", read_passwd, false, false },
    { "write to another file", write_other, false, false },
    { "cut another file", cut, false, false },
    { "make a file", make, false, false },
    { "make a file where the output goes", make_output, false, true },
    { "connect to TCP", connect_tcp, false, false },
    { "connect to a socket", connect_unix, false, false },
    { "listen", listen_tcp, false, false },
    { "execute", execute, false, false },
    { "use io_uring", use_ring, false, false },
    { "rename", rename_it, false, false },
    { "remove", remove_it, false, false },
};

/* ---- running them ------------------------------------------------------ */

enum how { FREELY, READING, MAKING };

static void fill(const char *name)
{
    FILE *f = fopen(in_folder(name), "w");

    if (!f || fputs("secret\n", f) < 0 || fclose(f) != 0)
        abort();
}

/* As vimg does it: say, enter, open, parse.  What the image makes of the
 * process comes after that. */
static int taken_over(const struct attempt *a, enum how how)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_error err = { 0 };
    struct img_disk *disk;
    char buf[512];

    opts.format = "qcow2";
    if (how != FREELY) {
        struct img_open_options say = opts;

        say.flags = how == MAKING ? IMG_OPEN_NO_BACKING : 0;
        confine_image(in_folder("top.qcow2"), &say, 0);
        if (how == MAKING)
            confine_output(in_folder("out/x.qcow2"));
        confine_enter();
        if (!confine_held()) {
            fprintf(stderr, "SKIP: confined: %s\n", confine_state());
            return 200;
        }
    }
    if (how == MAKING)
        opts.flags = IMG_OPEN_NO_BACKING;
    if (img_open(in_folder("top.qcow2"), &opts, &disk, &err) < 0 ||
        img_pread(disk, buf, sizeof buf, 0, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return 201;
    }
    if (how == READING && buf[0] != 7)
        return 201;
    return -a->run();
}

static void *thread_entry(void *arg)
{
    const struct attempt *a = arg;

    return (void *)(intptr_t)-a->run();
}

/* Threads made afterwards are held too. */
static int in_thread(const struct attempt *a, enum how how)
{
    const struct attempt nothing = { .run = read_image };
    pthread_t t;
    void *result;
    int r = taken_over(&nothing, how);

    if (r || pthread_create(&t, NULL, thread_entry, (void *)a))
        return r ? r : 202;
    pthread_join(t, &result);
    return (int)(intptr_t)result;
}

static int in_child(const struct attempt *a, enum how how,
                    int run(const struct attempt *, enum how))
{
    int status;
    pid_t pid;

    fill("secret");
    fill("victim");
    unlink(in_folder("moved"));
    unlink(in_folder("made"));
    unlink(in_folder("out/made"));
    fflush(NULL);
    pid = fork();
    if (pid == 0)
        _exit(run(a, how));
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return 203;
    return WEXITSTATUS(status);
}

static int expect(const char *where, const struct attempt *a, bool allowed,
                  int got)
{
    bool ok = allowed ? got == 0 : got == EACCES || got == EPERM;

    if (!ok)
        fprintf(stderr, "FAIL: %s, %s: %s\n", where, a->what,
                got == 0 ? "not refused" : strerror(got));
    return !ok;
}

static void run_image(const char *name, const char *backing)
{
    struct img_create_options create = IMG_CREATE_OPTIONS;
    struct img_error err;

    create.format = "qcow2";
    create.disk_size = 1 << 20;
    create.has_size = true;
    create.backing = backing;
    create.backing_format = backing ? "qcow2" : NULL;
    create.flags = IMG_CREATE_NO_SYNC;
    if (img_create(in_folder(name), &create, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
}

static void make_images(void)
{
    struct img_open_options opts = IMG_OPEN_OPTIONS;
    struct img_disk *disk;
    char buf[512];

    run_image("base.qcow2", NULL);
    run_image("top.qcow2", "base.qcow2");
    opts.format = "qcow2";
    opts.flags = IMG_OPEN_WRITE;
    memset(buf, 7, sizeof buf);
    if (img_open(in_folder("base.qcow2"), &opts, &disk, NULL) < 0 ||
        img_pwrite(disk, buf, sizeof buf, 0, 0, NULL) < 0 ||
        img_close(disk, NULL) < 0)
        abort();
}

/* Somebody to connect to. */
static void make_peers(void)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    struct sockaddr_in in = { .sin_family = AF_INET };
    socklen_t len = sizeof in;
    int u = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int t = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(un.sun_path, sizeof un.sun_path, "%s/sock", folder);
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (u < 0 || bind(u, (void *)&un, sizeof un) < 0 || listen(u, 9) < 0 ||
        t < 0 || bind(t, (void *)&in, sizeof in) < 0 || listen(t, 9) < 0 ||
        getsockname(t, (void *)&in, &len) < 0)
        abort();
    tcp_port = ntohs(in.sin_port);
}

static int try_all(void)
{
    int bad = 0, n = sizeof attempts / sizeof attempts[0];

    for (int i = 0; i < n; i++) {
        const struct attempt *a = &attempts[i];
        int r = in_child(a, READING, taken_over);

        if (r == 200)
            return 77;
        bad += expect("confined", a, a->image, r);
        bad += expect("confined, in a thread", a, a->image,
                      in_child(a, READING, in_thread));
        bad += expect("with an output", a, a->output,
                      in_child(a, MAKING, taken_over));
        if (a->run != use_ring || geteuid() == 0)
            bad += expect("free", a, true, in_child(a, FREELY, taken_over));
    }
    printf("%d attempts, %d wrong\n", 4 * n, bad);
    return bad ? 1 : 0;
}

int main(void)
{
    char command[100];
    int r;

    if (!mkdtemp(folder) || mkdir(in_folder("out"), 0700) < 0 ||
        symlink("secret", in_folder("link")) < 0)
        return 1;
    make_images();
    make_peers();
    r = try_all();
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command) ? 1 : r;
}
