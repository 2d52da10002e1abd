/* The shim in a program that knows nothing of it:
 *
 *   LD_PRELOAD=shim.so SHIM_FAULT=KINDS:CODE:N[:ever] program ...
 *
 * KINDS and CODE are numbers as in shim.h and errno.h.  Where the environment
 * names a file in SHIM_REPORT, the number of faults that came is written
 * there. */
#include "shim.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct shim_fault fault;
static int report = -1;

/* A child counts for itself, and nobody would know. */
static void in_child(void)
{
    shim_fault = NULL;
}

__attribute__((constructor)) static void begin(void)
{
    const char *text = getenv("SHIM_FAULT"), *file = getenv("SHIM_REPORT");
    long n = 0;

    if (!text || sscanf(text, "%u:%d:%ld", &fault.kinds, &fault.code,
                        &n) != 3)
        return;
    fault.for_ever = strstr(text, ":ever") != NULL;
    if (file)
        report = (int)syscall(SYS_openat, AT_FDCWD, file,
                              O_WRONLY | O_CREAT | O_TRUNC, 0600);
    atomic_store(&fault.left, n);
    pthread_atfork(NULL, NULL, in_child);
    shim_fault = &fault;
}

#ifdef WITH_GCOV
/* What gcov does when the program ends is not ours to fail: it has no answer
 * to a malloc that returns NULL. */
static int (*program)(int, char **, char **);

static int run_program(int argc, char **argv, char **envp)
{
    int r = program(argc, argv, envp);

    shim_fault = NULL;
    return r;
}

int __libc_start_main(int (*)(int, char **, char **), int, char **,
                      void (*)(void), void (*)(void), void (*)(void), void *);
int __libc_start_main(int (*start)(int, char **, char **), int argc,
                      char **argv, void (*first)(void), void (*last)(void),
                      void (*rtld)(void), void *stack)
{
    typeof(__libc_start_main) *real = dlsym(RTLD_NEXT, "__libc_start_main");

    program = start;
    return real(run_program, argc, argv, first, last, rtld, stack);
}
#endif

__attribute__((destructor)) static void end(void)
{
    char line[32];
    int n;

    shim_fault = NULL;
    if (report < 0)
        return;
    n = snprintf(line, sizeof line, "%ld\n", atomic_load(&fault.failed));
    if (syscall(SYS_write, report, line, n) != n)
        abort();
}
