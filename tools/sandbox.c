/* Landlock and seccomp, by their system calls: see sandbox.h.
 *
 * Landlock knows files by what they are, not by their names: a rule holds
 * wherever a link leads.  The seccomp filter lets pass what it does not name,
 * so that a new libc keeps working; what it names fails with EPERM.  io_uring
 * is named because its requests would go around the filter.
 *
 * Interfaces: Documentation/userspace-api/landlock.rst and
 * seccomp_filter.rst of Linux.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef HAVE_LINUX_SECCOMP_H
# include <linux/audit.h>
# include <linux/filter.h>
# include <linux/seccomp.h>
#endif

#if defined(__has_feature)
# if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#  define SANITIZER 1
# endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
# define SANITIZER 1
#endif

/* ---- Landlock ---------------------------------------------------------- */

/* The kernel's numbers, which its headers of that day may not have yet. */
enum {
    LL_EXECUTE = 1 << 0, LL_WRITE_FILE = 1 << 1, LL_READ_FILE = 1 << 2,
    LL_READ_DIR = 1 << 3, LL_REMOVE_DIR = 1 << 4, LL_REMOVE_FILE = 1 << 5,
    LL_MAKE_REG = 1 << 8, LL_MAKE_SOCK = 1 << 9, LL_REFER = 1 << 13,
    LL_TRUNCATE = 1 << 14,
    LL_ALL_1 = (1 << 13) - 1    /* what version 1 knows */
};
enum { LL_NET_BIND = 1, LL_NET_CONNECT = 2 };
enum { LL_SCOPE_ABSTRACT = 1, LL_SCOPE_SIGNAL = 2 };
enum { LL_VERSION = 1, LL_RULE_PATH = 1 };

struct ll_ruleset {
    uint64_t fs, net, scoped;
};
struct ll_path {
    uint64_t allowed;
    int32_t fd;
} __attribute__((packed));

#ifdef SYS_landlock_create_ruleset
static int landlock_version(void)
{
    long v = syscall(SYS_landlock_create_ruleset, NULL, 0, LL_VERSION);

    return v > 0 ? (int)v : 0;
}

static uint64_t to_landlock(unsigned rights, bool folder)
{
    uint64_t r = 0;

    if (rights & SANDBOX_READ)
        r |= LL_READ_FILE;
    if (rights & SANDBOX_WRITE)
        r |= LL_WRITE_FILE | LL_TRUNCATE;
    if (!folder)
        return r;
    if (rights & SANDBOX_LIST)
        r |= LL_READ_DIR;
    if (rights & SANDBOX_MAKE)
        r |= LL_MAKE_REG | LL_REMOVE_FILE;
    if (rights & SANDBOX_SOCKET)
        r |= LL_MAKE_SOCK | LL_REMOVE_FILE;
    return r;
}

/* What cannot be allowed stays forbidden; opening it will say so. */
static void allow(int ruleset, uint64_t handled,
                  const struct sandbox_rule *rule)
{
    int fd = open(rule->path, O_PATH | O_CLOEXEC);
    struct ll_path path = { .fd = fd };
    struct stat st;

    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0) {
        path.allowed = to_landlock(rule->rights, S_ISDIR(st.st_mode)) &
                       handled;
        if (path.allowed)
            syscall(SYS_landlock_add_rule, ruleset, LL_RULE_PATH, &path, 0);
    }
    close(fd);
}

static int enter_landlock(const struct sandbox_rule *rules, size_t n,
                          unsigned flags)
{
    int version = landlock_version(), fd;
    struct ll_ruleset set = { .fs = LL_ALL_1 };
    size_t size = sizeof set.fs;
    bool held;

    if (!version)
        return 0;
    if (version >= 2)
        set.fs |= LL_REFER;
    if (version >= 3)
        set.fs |= LL_TRUNCATE;
    if (version >= 4) {
        set.net = (flags & SANDBOX_SOCKETS ? 0 : LL_NET_BIND) |
                  (flags & SANDBOX_CONNECT ? 0 : LL_NET_CONNECT);
        size += sizeof set.net;
    }
    if (version >= 6) {
        set.scoped = LL_SCOPE_SIGNAL |
                     (flags & SANDBOX_CONNECT ? 0 : LL_SCOPE_ABSTRACT);
        size += sizeof set.scoped;
    }
    fd = (int)syscall(SYS_landlock_create_ruleset, &set, size, 0);
    if (fd < 0)
        return 0;
    for (size_t i = 0; i < n; i++)
        allow(fd, set.fs, &rules[i]);
#ifdef SANITIZER
    allow(fd, set.fs, &(struct sandbox_rule){
          "/proc", SANDBOX_READ | SANDBOX_LIST });
#endif
    held = syscall(SYS_landlock_restrict_self, fd, 0) == 0;
    close(fd);
    return held ? version : 0;
}
#else
static int enter_landlock(const struct sandbox_rule *rules, size_t n,
                          unsigned flags)
{
    return 0;
}
#endif

/* ---- seccomp ----------------------------------------------------------- */

#if defined(__x86_64__) && !defined(__ILP32__)
# define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
# define ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
# define ARCH AUDIT_ARCH_RISCV64
#elif defined(__powerpc64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
# define ARCH AUDIT_ARCH_PPC64LE
#elif defined(__s390x__)
# define ARCH AUDIT_ARCH_S390X
#endif

#if defined(ARCH) && defined(HAVE_LINUX_SECCOMP_H) && defined(SYS_seccomp)
static const int never[] = {
    SYS_execve, SYS_execveat, SYS_mount, SYS_umount2, SYS_pivot_root,
    SYS_chroot, SYS_unshare, SYS_setns, SYS_open_by_handle_at,
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load,
    SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_add_key,
    SYS_request_key, SYS_keyctl, SYS_process_vm_readv, SYS_process_vm_writev,
    SYS_swapon, SYS_swapoff, SYS_reboot, SYS_acct, SYS_settimeofday,
    SYS_clock_settime, SYS_quotactl,
#ifdef SYS_kexec_file_load
    SYS_kexec_file_load,
#endif
#ifdef SYS_io_uring_setup
    SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
#endif
#ifdef SYS_fsopen
    SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsmount, SYS_fspick,
#endif
#ifdef SYS_pidfd_getfd
    SYS_pidfd_getfd,
#endif
#ifndef SANITIZER
    SYS_ptrace,
#endif
};
static const int sockets[] = {
    SYS_socket, SYS_socketpair, SYS_bind, SYS_listen, SYS_accept4,
#ifdef SYS_accept
    SYS_accept,
#endif
};
static const int connects[] = { SYS_connect };

#define COUNT(list) (sizeof(list) / sizeof(list)[0])

struct program {
    struct sock_filter code[2 * (COUNT(never) + COUNT(sockets) +
                                 COUNT(connects)) + 8];
    unsigned short n;
};

static void add(struct program *p, struct sock_filter f)
{
    p->code[p->n++] = f;
}

static void refuse(struct program *p, const int *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                                            (uint32_t)list[i], 0, 1));
        add(p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
                                            SECCOMP_RET_ERRNO | EPERM));
    }
}

static bool enter_seccomp(unsigned flags)
{
    struct program p = { .n = 0 };
    struct sock_fprog prog;

    add(&p, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
        offsetof(struct seccomp_data, arch)));
    add(&p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1,
                                         0));
    add(&p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
                                         SECCOMP_RET_KILL_PROCESS));
    add(&p, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
        offsetof(struct seccomp_data, nr)));
#ifdef __x86_64__
    /* The x32 interface, whose numbers have this bit. */
    add(&p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K,
                                         0x40000000, 0, 1));
    add(&p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
                                         SECCOMP_RET_KILL_PROCESS));
#endif
    refuse(&p, never, COUNT(never));
    if (!(flags & SANDBOX_SOCKETS))
        refuse(&p, sockets, COUNT(sockets));
    if (!(flags & SANDBOX_CONNECT))
        refuse(&p, connects, COUNT(connects));
    add(&p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
                                         SECCOMP_RET_ALLOW));
    prog = (struct sock_fprog){ .len = p.n, .filter = p.code };
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                   SECCOMP_FILTER_FLAG_TSYNC, &prog) == 0;
}
#else
static bool enter_seccomp(unsigned flags)
{
    return false;
}
#endif

struct sandbox_state sandbox_enter(const struct sandbox_rule *rules, size_t n,
                                   unsigned flags)
{
    struct sandbox_state state = { 0 };

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return state;
    state.landlock = enter_landlock(rules, n, flags);
    state.seccomp = enter_seccomp(flags);
    return state;
}
