/* Servers that the command line asks for, see spawn.h.
 *
 * Between us and each server stands a keeper, a process of ours.  It holds
 * the reading end of a pipe, `life`, whose writing end is ours and is
 * inherited by whatever goes on in the background: when nobody has it any
 * more, after exit, error or SIGKILL, the keeper ends the server, removes the
 * socket, and ends.  Should the keeper be killed, the kernel ends the server.
 * Whoever waits for the end reads `done` until the keeper has closed it.
 */
#include <errno.h>
#include <fcntl.h>
#include <libimg.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "spawn.h"

enum {
    MOST = 16,                  /* servers of one command line */
    PATIENCE_MS = 10000,        /* after SIGTERM; then SIGKILL */
    LISTENER = 3, LIFE = 4, DONE = 5    /* descriptors of a keeper */
};

static struct { int life, done; } servers[MOST];
static unsigned n_servers;
/* The arguments that took the place of the brackets. */
static char *uris[MOST], **words_left;
static unsigned n_uris;

static int fail(struct img_error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct img_error *err, int code, const char *fmt, ...)
{
    va_list ap;

    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    return -code;
}

/* ---- the keeper -------------------------------------------------------- */

static void point_at_nothing(int fd)
{
    int null = open("/dev/null", O_RDWR);

    if (null < 0 || dup2(null, fd) < 0)
        _exit(1);
    if (null != fd)
        close(null);
}

/* The server itself.  Its standard output would mix with ours. */
static void become_server(char **argv, int words, pid_t keeper)
{
    char text[24];

    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != keeper)
        _exit(1);
    close(LIFE);
    close(DONE);
    if (dup2(words, 1) < 0 || dup2(words, 2) < 0)
        _exit(1);
    close(words);
    snprintf(text, sizeof text, "%ld", (long)getpid());
    setenv("LISTEN_PID", text, 1);
    setenv("LISTEN_FDS", "1", 1);
    unsetenv("LISTEN_FDNAMES");
    execvp(argv[0], argv);
    fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static void pass_on(int words)
{
    char text[1024];
    ssize_t n = read(words, text, sizeof text), done = 0;

    while (done < n) {
        ssize_t w = write(2, text + done, (size_t)(n - done));

        if (w < 0 && errno != EINTR)
            return;
        done += w > 0 ? w : 0;
    }
}

/* Until nobody needs the server any more.  A byte on LIFE: be quiet. */
static void watch(int words)
{
    char byte;

    for (;;) {
        struct pollfd p[2] = { { .fd = LIFE, .events = POLLIN },
                               { .fd = words, .events = POLLIN } };
        ssize_t n;

        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return;
        if (p[1].revents & POLLIN)
            pass_on(words);
        else if (p[1].revents)
            words = -1;
        if (!p[0].revents)
            continue;
        n = read(LIFE, &byte, 1);
        if (n == 0 || (n < 0 && errno != EINTR))
            return;
        if (n == 1)
            point_at_nothing(2);
    }
}

/* False: it did not end in time. */
static bool wait_for(pid_t server, int words)
{
    int fd = (int)syscall(SYS_pidfd_open, server, 0), left = 1;

    while (fd >= 0 && left > 0) {
        struct pollfd p[2] = { { .fd = fd, .events = POLLIN },
                               { .fd = words, .events = POLLIN } };

        left = poll(p, 2, PATIENCE_MS);
        if (p[1].revents & POLLIN)
            pass_on(words);
        else if (p[1].revents)
            words = -1;
        if (p[0].revents)
            break;
    }
    if (fd >= 0)
        close(fd);
    return left != 0;
}

static void keep(const char *folder, const char *path, char **argv)
{
    pid_t keeper = getpid(), server;
    int words[2];

    if (pipe(words) < 0)
        _exit(1);
    server = fork();
    if (server == 0) {
        close(words[0]);
        become_server(argv, words[1], keeper);
    }
    close(words[1]);
    close(LISTENER);
    fcntl(words[0], F_SETFL, O_NONBLOCK);
    if (server > 0) {
        watch(words[0]);
        kill(server, SIGTERM);
        if (!wait_for(server, words[0]))
            kill(server, SIGKILL);
        while (waitpid(server, NULL, 0) < 0 && errno == EINTR)
            ;
        pass_on(words[0]);
    }
    unlink(path);
    rmdir(folder);
    _exit(0);
}

/* In the keeper: nothing of ours but what it needs.  A signal from the
 * terminal is for us; it waits for what we make of it. */
static void become_keeper(int listener, int life, int done)
{
    static const int deaf[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE,
                                SIGUSR1, SIGUSR2, SIGTSTP };
    int high[] = { fcntl(listener, F_DUPFD, 16), fcntl(life, F_DUPFD, 16),
                   fcntl(done, F_DUPFD, 16) };

    for (unsigned i = 0; i < sizeof deaf / sizeof deaf[0]; i++)
        signal(deaf[i], SIG_IGN);
    for (int i = 0; i < 3; i++)
        if (high[i] < 0 || dup2(high[i], LISTENER + i) < 0)
            _exit(1);
    syscall(SYS_close_range, DONE + 1, ~0u, 0);
    if (!isatty(0))
        point_at_nothing(0);
    point_at_nothing(1);
}

/* ---- starting one ------------------------------------------------------ */

static int make_socket(char **folder, char **path, struct img_error *err)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    const char *where = getenv("TMPDIR");
    int fd;

    if (!where || *where != '/' || strlen(where) > sizeof to.sun_path - 32)
        where = "/tmp";
    if (asprintf(folder, "%s/vimg.XXXXXX", where) < 0) {
        *folder = NULL;
        return fail(err, ENOMEM, "out of memory");
    }
    if (!mkdtemp(*folder)) {
        fail(err, errno, "%s: %s", *folder, strerror(errno));
        free(*folder);
        *folder = NULL;
        return -err->code;
    }
    if (asprintf(path, "%s/sock", *folder) < 0) {
        *path = NULL;
        return fail(err, ENOMEM, "out of memory");
    }
    snprintf(to.sun_path, sizeof to.sun_path, "%s", *path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&to, sizeof to) < 0 ||
        listen(fd, SOMAXCONN) < 0) {
        fail(err, errno, "%s: %s", *path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -err->code;
    }
    return fd;
}

static int fork_keeper(int listener, const char *folder, const char *path,
                       char **argv, struct img_error *err)
{
    int life[2], done[2] = { -1, -1 };
    pid_t pid = -1;

    if (pipe2(life, O_CLOEXEC) < 0)
        return fail(err, errno, "cannot make a pipe: %s", strerror(errno));
    if (pipe2(done, O_CLOEXEC) == 0) {
        fflush(NULL);
        pid = fork();
    }
    if (pid == 0) {
        become_keeper(listener, life[0], done[1]);
        keep(folder, path, argv);
    }
    if (pid < 0)
        fail(err, errno, "cannot start '%s': %s", argv[0], strerror(errno));
    close(life[0]);
    if (done[1] >= 0)
        close(done[1]);
    if (pid < 0) {
        close(life[1]);
        if (done[0] >= 0)
            close(done[0]);
        return -err->code;
    }
    servers[n_servers].life = life[1];
    servers[n_servers++].done = done[0];
    return 0;
}

/* Nothing in it means anything to a URI, nor to a list of options. */
static char *make_uri(const char *prefix, const char *path)
{
    char *uri = malloc(strlen(prefix) + 3 * strlen(path) + 32), *out = uri;

    if (!uri)
        return NULL;
    out += sprintf(out, "%snbd+unix:///?socket=", prefix);
    for (; *path; path++)
        out += sprintf(out, strchr("/._-", *path) ||
                       (*path >= '0' && *path <= '9') ||
                       (*path >= 'A' && *path <= 'Z') ||
                       (*path >= 'a' && *path <= 'z') ? "%c" : "%%%02X",
                       (unsigned char)*path);
    return uri;
}

static int start(char **argv, const char *prefix, char **uri,
                 struct img_error *err)
{
    char *folder = NULL, *path = NULL;
    int fd, ret;

    if (n_servers == MOST)
        return fail(err, EINVAL, "more than %d servers in brackets", MOST);
    fd = make_socket(&folder, &path, err);
    ret = fd < 0 ? fd : fork_keeper(fd, folder, path, argv, err);
    if (ret == 0) {
        *uri = uris[n_uris++] = make_uri(prefix, path);
        if (!*uri)
            ret = fail(err, ENOMEM, "out of memory");
    } else {
        if (path)
            unlink(path);
        if (folder)
            rmdir(folder);
    }
    if (fd >= 0)
        close(fd);
    free(folder);
    free(path);
    return ret;
}

/* ---- the command line -------------------------------------------------- */

/* "[", or "if=[" and "file.filename=[". */
static bool opens(const char *word)
{
    size_t len = strlen(word);

    return !strcmp(word, "[") || (len > 2 && !strcmp(word + len - 2, "=["));
}

/* Where the bracket that opens at i is closed; 0 = nowhere, or nothing is
 * between them. */
static int closes(int argc, char **argv, int i)
{
    for (int j = i + 1; j < argc; j++)
        if (!strcmp(argv[j], "]"))
            return j > i + 1 ? j : 0;
    return 0;
}

int nbd_spawn_servers(int *argc, char ***argv, struct img_error *err)
{
    char **in = *argv, **out = calloc((size_t)*argc + 1, sizeof *out);
    int n = 0, end, ret = 0;

    if (!out)
        return fail(err, ENOMEM, "out of memory");
    for (int i = 0; i < *argc && ret == 0; i++) {
        end = i && opens(in[i]) ? closes(*argc, in, i) : 0;
        if (!end) {
            out[n++] = in[i];
            continue;
        }
        in[i][strlen(in[i]) - 1] = 0;
        in[end] = NULL;
        ret = start(in + i + 1, in[i], &out[n++], err);
        i = end;
    }
    if (n_servers == 0) {
        free(out);
        return ret;
    }
    *argc = n;
    *argv = words_left = out;
    return ret;
}

void nbd_spawn_quiet(void)
{
    for (unsigned i = 0; i < n_servers; i++)
        while (write(servers[i].life, "", 1) < 0 && errno == EINTR)
            ;
}

void nbd_spawn_forget(void)
{
    for (unsigned i = 0; i < n_servers; i++) {
        close(servers[i].life);
        close(servers[i].done);
    }
    n_servers = 0;
}

void nbd_spawn_end(void)
{
    char byte;

    for (unsigned i = 0; i < n_servers; i++)
        close(servers[i].life);
    for (unsigned i = 0; i < n_servers; i++) {
        while (read(servers[i].done, &byte, 1) < 0 && errno == EINTR)
            ;
        close(servers[i].done);
    }
    n_servers = 0;
    while (n_uris)
        free(uris[--n_uris]);
    free(words_left);
    words_left = NULL;
}
