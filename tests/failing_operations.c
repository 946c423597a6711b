/* Fails, kills or pauses a process at its n-th change of a file below one folder.

   Loaded by LD_PRELOAD, so that it stands where a disk would: below Python, its libraries in C and
   in Rust, and the processes that they fork, which share one counter. See failing_operations.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, KILL, PAUSE };
enum { CHANGE, REMOVAL, LOCK };

struct shared {
    long count, number;     /* changes so far, and the one that is disturbed */
    int mode, error, stays; /* stays: all later changes fail, too */
    int locks;              /* whether taking a lock counts as a change */
    int report, release;    /* pipes of a paused process */
    pid_t owner;
    char root[4096], place[4400];
};

static struct shared *shared;
static int armed; /* the process that makes the trials is not disturbed itself */

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static struct shared *mapped(const char *file) {
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || syscall(SYS_ftruncate, fd, sizeof *shared)) return NULL;
    void *place = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return place == MAP_FAILED ? NULL : place;
}

struct shared *failing_begin(const char *file, const char *root, long number, int mode, int error,
                             int stays, int locks, int report, int release) {
    if (!(shared = mapped(file))) return NULL;
    shared->number = number, shared->mode = mode, shared->error = error, shared->stays = stays;
    shared->locks = locks, shared->report = report, shared->release = release;
    snprintf(shared->root, sizeof shared->root, "%s", root);
    return shared;
}

/* A program that a disturbed process starts is disturbed as well, but not paused. */
__attribute__((constructor)) static void join(void) {
    const char *file = getenv("OPENBOOK_FAILING_STATE");
    if (file && (shared = mapped(file))) armed = shared->mode != PAUSE;
}

void failing_arm(void) { armed = 1, shared->owner = getpid(); }
long failing_count(struct shared *one) { return one->count; }
const char *failing_place(struct shared *one) { return one->place; }
void failing_end(struct shared *one) { munmap(one, sizeof *one); }

static void say(char letter) { syscall(SYS_write, shared->report, &letter, 1); }

/* The absolute path of a name in a folder, or of an open file (name NULL), is below the root. */
static int inside(int folder, const char *name, char *path, size_t size) {
    char link[64], place[4096] = "";
    if (!name || name[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        long n = readlink(folder == AT_FDCWD ? "/proc/self/cwd" : link, place, sizeof place - 1);
        place[n < 0 ? 0 : n] = 0;
    }
    snprintf(path, size, name && name[0] != '/' ? "%s/%s" : "%s%s", place, name ? name : "");
    size_t n = strlen(shared->root);
    return !strncmp(path, shared->root, n) && (path[n] == '/' || !path[n]);
}

/* Whether this change fails; errno is set then. */
static int fails(const char *what, int kind, int folder, const char *name) {
    char path[4200];
    int before = errno;
    if (!armed || (kind == LOCK && !shared->locks)) return 0;
    if (!inside(folder, name, path, sizeof path)) return errno = before, 0;
    errno = before;
    long n = __atomic_add_fetch(&shared->count, 1, __ATOMIC_SEQ_CST);
    if (n < shared->number || (n > shared->number && !shared->stays) || !shared->number) return 0;
    /* A full disk, unlike a broken one, still removes files. */
    int error = kind == REMOVAL ? EIO : shared->error;
    if (n > shared->number && kind == REMOVAL && shared->error != EIO) return 0;
    if (n == shared->number) snprintf(shared->place, sizeof shared->place, "%s %s", what, path);
    if (shared->mode == KILL) {
        kill(shared->owner, SIGKILL);
        kill(getpid(), SIGKILL);
    } else if (shared->mode == PAUSE) {
        char letter;
        say('p');
        while (syscall(SYS_read, shared->release, &letter, 1) < 0 && errno == EINTR) {}
        errno = before;
    }
    return shared->mode == FAIL ? errno = error, 1 : 0;
}

#define OPEN_FILE(what, result, parameters, arguments) \
    result what parameters { \
        if (fails(#what, CHANGE, fd, NULL)) return -1; \
        return REAL(what) arguments; \
    }
#define NAMED(what, kind, folder, name, parameters, arguments) \
    int what parameters { \
        if (fails(#what, kind, folder, name)) return -1; \
        return REAL(what) arguments; \
    }

ssize_t write(int fd, const void *data, size_t n) {
    if (fails("write", CHANGE, fd, NULL)) {
        /* What still fits on a full disk is written. */
        if (errno == EIO || n < 2 || shared->count != shared->number) return -1;
        ssize_t half = REAL(write)(fd, data, n / 2);
        return errno = shared->error, half == 0 ? -1 : half;
    }
    return REAL(write)(fd, data, n);
}

OPEN_FILE(pwrite64, ssize_t, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at))
OPEN_FILE(writev, ssize_t, (int fd, const struct iovec *data, int n), (fd, data, n))
OPEN_FILE(fsync, int, (int fd), (fd))
OPEN_FILE(fdatasync, int, (int fd), (fd))
OPEN_FILE(ftruncate, int, (int fd, off_t n), (fd, n))
OPEN_FILE(ftruncate64, int, (int fd, off64_t n), (fd, n))
OPEN_FILE(fchmod, int, (int fd, mode_t mode), (fd, mode))

ssize_t sendfile64(int fd, int from, off64_t *at, size_t n) {
    if (fails("sendfile", CHANGE, fd, NULL)) return -1;
    ssize_t (*call)(int, int, off64_t *, size_t) = real("sendfile64");
    return call(fd, from, at, n);
}

ssize_t copy_file_range(int from, off64_t *at, int fd, off64_t *to, size_t n, unsigned flags) {
    if (fails("copy_file_range", CHANGE, fd, NULL)) return -1;
    return REAL(copy_file_range)(from, at, fd, to, n, flags);
}

NAMED(rename, CHANGE, AT_FDCWD, to, (const char *from, const char *to), (from, to))
NAMED(renameat, CHANGE, b, to, (int a, const char *from, int b, const char *to), (a, from, b, to))
NAMED(renameat2, CHANGE, b, to,
      (int a, const char *from, int b, const char *to, unsigned how), (a, from, b, to, how))
NAMED(link, CHANGE, AT_FDCWD, to, (const char *from, const char *to), (from, to))
NAMED(symlink, CHANGE, AT_FDCWD, to, (const char *from, const char *to), (from, to))
NAMED(mkdir, CHANGE, AT_FDCWD, name, (const char *name, mode_t mode), (name, mode))
NAMED(mkdirat, CHANGE, at, name, (int at, const char *name, mode_t mode), (at, name, mode))
NAMED(unlink, REMOVAL, AT_FDCWD, name, (const char *name), (name))
NAMED(unlinkat, REMOVAL, at, name, (int at, const char *name, int how), (at, name, how))
NAMED(rmdir, REMOVAL, AT_FDCWD, name, (const char *name), (name))
NAMED(remove, REMOVAL, AT_FDCWD, name, (const char *name), (name))

static mode_t mode_of(va_list rest, int how) { return how & O_CREAT ? va_arg(rest, mode_t) : 0; }

#define OPENED(what, folder, parameters, ...) \
    int what parameters { \
        va_list rest; \
        va_start(rest, how); \
        mode_t mode = mode_of(rest, how); \
        va_end(rest); \
        if (how & (O_CREAT | O_TRUNC) && fails(#what, CHANGE, folder, name)) return -1; \
        return REAL(what)(__VA_ARGS__, mode); \
    }

OPENED(open, AT_FDCWD, (const char *name, int how, ...), name, how)
OPENED(open64, AT_FDCWD, (const char *name, int how, ...), name, how)
OPENED(openat, at, (int at, const char *name, int how, ...), at, name, how)
OPENED(openat64, at, (int at, const char *name, int how, ...), at, name, how)

/* A lock that has to be waited for is reported, so that nobody waits for who waits. */
int flock(int fd, int how) {
    if (fails("flock", LOCK, fd, NULL)) return -1;
    if (armed && shared->report >= 0 && how == LOCK_EX) {
        if (!REAL(flock)(fd, how | LOCK_NB)) return 0;
        if (errno == EWOULDBLOCK) say('w');
    }
    return REAL(flock)(fd, how);
}
