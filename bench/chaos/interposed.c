/* What stands between a process of the service and libc, by LD_PRELOAD: it makes disks fail and clocks jump, and ends the
 * process at named points. Steered by a page of memory that all processes share with whoever tests them: see
 * interposed.py, which has the same structures.
 *
 * A point is "<role>: <when> <call> <what>", such as "collector: before write segment". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NAME 64
#define ROLES 4
#define PLANS 2
#define POINTS 256
#define DESCRIPTORS 65536
#define BLOCK 4096
#define LOOKED_AT 2048 /* bytes of what is sent or received in which to look for its kind */

struct role {
    _Atomic int64_t clock_ns;   /* added to the real-time clock */
    _Atomic int32_t disk_error; /* errno of whatever would change a file of the data folder; 0: none */
    _Atomic int32_t sync_error; /* errno of whatever would make one durable */
};
struct plan {
    char name[NAME];
    _Atomic uint32_t at; /* end the process the how many-th time it gets there; 0: never */
    _Atomic uint32_t passed;
    _Atomic uint32_t fired;
};
struct point {
    char name[NAME];
    _Atomic uint64_t passed;
};
struct control {
    struct role roles[ROLES];
    struct plan plans[PLANS]; /* the second counts from when the first has fired */
    _Atomic uint32_t locked;
    _Atomic uint32_t used;
    struct point points[POINTS];
};

static const char *const ROLE_NAMES[ROLES] = {"supervisor", "collector", "writer", "rollup"};
static struct control *control;
static const char *folder;
static size_t folder_length;
static int role;
/* What the descriptor is: NULL unless it was opened in the data folder. */
static const char *kinds[DESCRIPTORS];
static char synced[DESCRIPTORS];

/* Looked up at the first call, as other libraries call these before our constructors run. */
#define REAL(result, name, ...) \
    static result (*real_##name(void))(__VA_ARGS__) { \
        static result (*found)(__VA_ARGS__); \
        if (found == NULL) found = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name); \
        return found; \
    }
REAL(int, open, const char *, int, ...)
REAL(int, open64, const char *, int, ...)
REAL(int, close, int)
REAL(ssize_t, write, int, const void *, size_t)
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)
REAL(ssize_t, writev, int, const struct iovec *, int)
REAL(ssize_t, send, int, const void *, size_t, int)
REAL(ssize_t, sendmsg, int, const struct msghdr *, int)
REAL(ssize_t, read, int, void *, size_t)
REAL(ssize_t, recv, int, void *, size_t, int)
REAL(int, fsync, int)
REAL(int, fdatasync, int)
REAL(int, ftruncate64, int, off64_t)
REAL(int, rename, const char *, const char *)
REAL(int, unlink, const char *)
REAL(int, mkdir, const char *, mode_t)
REAL(int, clock_gettime, clockid_t, struct timespec *)
REAL(int, gettimeofday, struct timeval *, void *)

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_CONTROL"), *generation = getenv("FAULTS_GENERATION");
    folder = getenv("FAULTS_FOLDER");
    if (path == NULL || folder == NULL) return;
    folder_length = strlen(folder);
    /* The supervisor's children are collectors, theirs are writers. */
    role = generation == NULL ? 0 : atoi(generation);
    char next[12];
    snprintf(next, sizeof next, "%d", role + 1);
    setenv("FAULTS_GENERATION", next, 1);
    if (getenv("FAULTS_ROLLUP") != NULL || role > 3) role = 3;
    int descriptor = real_open()(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    void *page = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    real_close()(descriptor);
    if (page != MAP_FAILED) control = page;
}

/* Points. */

static void count(const char *name) {
    uint32_t used = atomic_load(&control->used);
    for (uint32_t place = 0; place < used; place++)
        if (strcmp(control->points[place].name, name) == 0) {
            atomic_fetch_add(&control->points[place].passed, 1);
            return;
        }
    /* Its holder may have been killed: then the name is added at the next passage, or never counted. */
    uint32_t unlocked = 0;
    if (used >= POINTS || !atomic_compare_exchange_strong(&control->locked, &unlocked, 1)) return;
    used = atomic_load(&control->used);
    for (uint32_t place = 0; place < used; place++)
        if (strcmp(control->points[place].name, name) == 0) goto known;
    strcpy(control->points[used].name, name);
    atomic_store(&control->points[used].passed, 1);
    atomic_store(&control->used, used + 1);
known:
    atomic_store(&control->locked, 0);
}

static int reaches(const char *when, const char *call, const char *what) {
    if (control == NULL) return 0;
    char name[NAME];
    snprintf(name, sizeof name, "%s: %s %s %s", ROLE_NAMES[role], when, call, what);
    count(name);
    for (int place = 0; place < PLANS; place++) {
        struct plan *plan = &control->plans[place];
        uint32_t at = atomic_load(&plan->at);
        if (at == 0 || atomic_load(&plan->fired)) continue;
        if (strcmp(plan->name, name) == 0 && atomic_fetch_add(&plan->passed, 1) + 1 == at) {
            atomic_store(&plan->fired, 1);
            return 1;
        }
        return 0;
    }
    return 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void pass(const char *when, const char *call, const char *what) {
    if (reaches(when, call, what)) die();
}

/* Files. */

static const char *kind_of(const char *path) {
    if (control == NULL || path == NULL || strncmp(path, folder, folder_length) != 0) return NULL;
    if (path[folder_length] != '/' && path[folder_length] != 0) return NULL;
    const char *name = strrchr(path, '/') + 1, *end = name + strlen(name);
    if (end - name > 8 && strcmp(end - 8, ".segment") == 0) return "segment";
    static const char *const NAMES[] = {"newest", "owners", "owners.new", "journal.json", "journal.json.new", "lock"};
    for (size_t place = 0; place < sizeof NAMES / sizeof *NAMES; place++)
        if (strcmp(name, NAMES[place]) == 0) return NAMES[place];
    return strstr(path + folder_length, "/journals") != NULL ? "file" : NULL;
}

static const char *kind_at(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS ? kinds[descriptor] : NULL;
}

static int fails(int32_t error) {
    errno = error;
    return error != 0;
}

static int disk_fails(void) { return fails(atomic_load(&control->roles[role].disk_error)); }
static int sync_fails(void) { return fails(atomic_load(&control->roles[role].sync_error)); }

/* Whether this would change what is on a disk that fails. A full one still opens what exists. */
static int open_fails(const char *path) {
    return disk_fails() && (errno != ENOSPC || access(path, F_OK) != 0) && disk_fails();
}

/* How much of this a full disk takes: what fits into the last block of the file. */
static size_t room(int descriptor, size_t size) {
    struct stat now;
    size_t used = fstat(descriptor, &now) == 0 ? (size_t)now.st_size % BLOCK : 0;
    size_t left = used == 0 ? 0 : BLOCK - used;
    return size < left ? size : left;
}

static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    const char *kind = kind_of(path);
    int changes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
    if (flags & O_DIRECTORY && control != NULL && strncmp(path, folder, folder_length) == 0) kind = "folder";
    if (kind != NULL && changes) {
        if (open_fails(path)) return -1;
        pass("before", "open", kind);
    }
    int descriptor = real(path, flags, mode);
    if (descriptor >= 0 && descriptor < DESCRIPTORS) {
        kinds[descriptor] = kind;
        synced[descriptor] = (flags & O_DSYNC) != 0;
    }
    if (kind != NULL && changes && descriptor >= 0) pass("after", "open", kind);
    return descriptor;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return opened(real_##name(), path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) kinds[descriptor] = NULL;
    return real_close()(descriptor);
}

static ssize_t write_file(int descriptor, const void *content, size_t size, const char *kind) {
    if (disk_fails() && (errno != ENOSPC || (size = room(descriptor, size)) == 0)) {
        disk_fails();
        return -1;
    }
    pass("before", "write", kind);
    if (reaches("torn", "write", kind)) {
        real_write()(descriptor, content, size / 2);
        die();
    }
    ssize_t written = real_write()(descriptor, content, size);
    if (written < 0) return written;
    pass("after", "write", kind);
    return synced[descriptor] && sync_fails() ? -1 : written;
}

ssize_t pwrite64(int descriptor, const void *content, size_t size, off64_t offset) {
    const char *kind = kind_at(descriptor);
    if (kind == NULL) return real_pwrite64()(descriptor, content, size, offset);
    if (disk_fails() && errno != ENOSPC) return -1;
    pass("before", "write", kind);
    ssize_t written = real_pwrite64()(descriptor, content, size, offset);
    pass("after", "write", kind);
    return written;
}
ssize_t pwrite(int, const void *, size_t, off_t) __attribute__((alias("pwrite64")));

static int sync_file(int (*real)(int), int descriptor) {
    const char *kind = kind_at(descriptor);
    if (kind == NULL) return real(descriptor);
    pass("before", "fsync", kind);
    if (sync_fails()) return -1;
    int result = real(descriptor);
    pass("after", "fsync", kind);
    return result;
}
int fsync(int descriptor) { return sync_file(real_fsync(), descriptor); }
int fdatasync(int descriptor) { return sync_file(real_fdatasync(), descriptor); }

#define CHANGE(call, kind, action) \
    do { \
        const char *what = kind; \
        if (what == NULL) return action; \
        /* A full disk still lets go of what it has. */ \
        if (disk_fails() && errno != ENOSPC) return -1; \
        pass("before", call, what); \
        int result = action; \
        pass("after", call, what); \
        return result; \
    } while (0)

int ftruncate64(int descriptor, off64_t size) {
    CHANGE("truncate", kind_at(descriptor), real_ftruncate64()(descriptor, size));
}
int ftruncate(int, off_t) __attribute__((alias("ftruncate64")));
int rename(const char *from, const char *to) { CHANGE("rename", kind_of(from), real_rename()(from, to)); }
int unlink(const char *path) { CHANGE("unlink", kind_of(path), real_unlink()(path)); }
int mkdir(const char *path, mode_t mode) {
    if (control != NULL && kind_of(path) != NULL && disk_fails()) return -1;
    CHANGE("mkdir", kind_of(path), real_mkdir()(path, mode));
}

/* Sockets: Postgres' protocol and HTTP, told apart by their first bytes. */

static int has(const char *content, size_t size, const char *words) {
    return memmem(content, size < LOOKED_AT ? size : LOOKED_AT, words, strlen(words)) != NULL;
}

static const char *sent(const char *content, size_t size) {
    if (size < 5) return NULL;
    switch (content[0]) {
    case 'Q':
        if (has(content, size, "COMMIT")) return "COMMIT";
        if (has(content, size, "BEGIN")) return "BEGIN";
        if (has(content, size, "COPY ")) return "COPY";
        return has(content, size, "ROLLBACK") ? "ROLLBACK" : NULL;
    case 'P':
        if (has(content, size, "WITH advanced AS")) return "advance";
        return has(content, size, "SET owner = ") ? "claim" : NULL;
    case 'd':
        return content[1] == 0 ? "rows" : NULL;
    case 'H':
        return has(content, size, "HTTP/1.1 200") && has(content, size, "\"accepted\"") ? "acknowledgement" : NULL;
    }
    return NULL;
}

static const char *received(const char *content, size_t size) {
    if (size < 5) return NULL;
    if (has(content, 5, "POST ")) return has(content, size, "/v1/events") ? "request" : NULL;
    /* The first byte of a length, which HTTP's methods do not have. */
    if (content[1] != 0) return NULL;
    if (content[0] == 'G') return "COPY";
    return content[0] == 'C' && memmem(content, size < LOOKED_AT ? size : LOOKED_AT, "COMMIT", 7) ? "COMMIT" : NULL;
}

static const char *sent_parts(const struct iovec *parts, size_t count) {
    char content[LOOKED_AT];
    size_t size = 0;
    if (control == NULL) return NULL;
    for (size_t place = 0; place < count && size < LOOKED_AT; place++) {
        size_t more = parts[place].iov_len < LOOKED_AT - size ? parts[place].iov_len : LOOKED_AT - size;
        memcpy(content + size, parts[place].iov_base, more);
        size += more;
    }
    return sent(content, size);
}

#define SEND(what, action) \
    do { \
        const char *name = what; \
        if (name == NULL) return action; \
        pass("before", "send", name); \
        ssize_t result = action; \
        pass("after", "send", name); \
        return result; \
    } while (0)

ssize_t write(int descriptor, const void *content, size_t size) {
    const char *kind = kind_at(descriptor);
    if (kind != NULL) return write_file(descriptor, content, size, kind);
    SEND(control != NULL ? sent(content, size) : NULL, real_write()(descriptor, content, size));
}
ssize_t send(int descriptor, const void *content, size_t size, int flags) {
    SEND(control != NULL ? sent(content, size) : NULL, real_send()(descriptor, content, size, flags));
}
ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    SEND(sent_parts(parts, (size_t)count), real_writev()(descriptor, parts, count));
}
ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags) {
    SEND(sent_parts(message->msg_iov, message->msg_iovlen), real_sendmsg()(descriptor, message, flags));
}

#define RECEIVE(action) \
    do { \
        ssize_t result = action; \
        if (control != NULL && result > 0 && kind_at(descriptor) == NULL) { \
            const char *name = received(content, (size_t)result); \
            if (name != NULL) pass("after", "receive", name); \
        } \
        return result; \
    } while (0)

ssize_t read(int descriptor, void *content, size_t size) { RECEIVE(real_read()(descriptor, content, size)); }
ssize_t recv(int descriptor, void *content, size_t size, int flags) {
    RECEIVE(real_recv()(descriptor, content, size, flags));
}

/* Clocks. */

static int64_t ahead_ns(void) { return control == NULL ? 0 : atomic_load(&control->roles[role].clock_ns); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = real_clock_gettime()(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = now->tv_nsec + ahead_ns() % 1000000000;
        now->tv_sec += ahead_ns() / 1000000000;
        if (ns < 0) ns += 1000000000, now->tv_sec--;
        if (ns >= 1000000000) ns -= 1000000000, now->tv_sec++;
        now->tv_nsec = ns;
    }
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = real_gettimeofday()(now, zone);
    if (result == 0) now->tv_sec += ahead_ns() / 1000000000;
    return result;
}
time_t time(time_t *kept) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept != NULL) *kept = now.tv_sec;
    return now.tv_sec;
}
