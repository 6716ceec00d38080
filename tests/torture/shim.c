/* Preloaded into a process: kills it, or fails, at the n-th change of files below a
   folder. Counted are opens for writing, writes, syncs, renames, folders made, links,
   removals and truncations. A killed write leaves half of its bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define MAX_FILES 65536
static char root[4096];
static long target, calls;
static int failure, repeats;
static unsigned char is_below[MAX_FILES];

/* failure: an errno, or -1 to be killed; repeats: every call from the n-th on fails. */
void torture_arm(const char *folder, long n, int how, int always) {
    strncpy(root, folder, sizeof root - 1);
    target = n, failure = how, repeats = always, calls = 0;
}
long torture_calls(void) { return calls; }

static int below(const char *path) {
    return root[0] && path && strncmp(path, root, strlen(root)) == 0;
}
static int known(int file) { return file >= 0 && file < MAX_FILES && is_below[file]; }
static int strikes(void) {
    calls++;
    return target && (calls == target || (repeats && calls > target));
}
static int strike(void) {
    if (failure < 0) raise(SIGKILL);
    errno = failure;
    return -1;
}
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

static int opened(int file, const char *path) {
    if (file >= 0 && file < MAX_FILES) is_below[file] = below(path);
    return file;
}
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))
#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                       \
        va_list rest; va_start(rest, flags);                           \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                  \
        REAL(name);                                                    \
        if (below(path) && WRITES(flags) && strikes()) return strike();\
        return opened(real(path, flags, mode), path);                  \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    if (known(file) && strikes()) {
        if (failure < 0) real(file, data, size / 2);
        return strike();
    }
    return real(file, data, size);
}
#define PWRITE(name, offset_type)                                              \
    ssize_t name(int file, const void *data, size_t size, offset_type offset) {\
        REAL(name);                                                            \
        if (known(file) && strikes()) return strike();                         \
        return real(file, data, size, offset);                                 \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
#define ON_FILE(name)                                          \
    int name(int file) {                                       \
        REAL(name);                                            \
        if (known(file) && strikes()) return strike();         \
        return real(file);                                     \
    }
ON_FILE(fsync)
ON_FILE(fdatasync)
ON_FILE(syncfs)
int ftruncate(int file, off_t size) {
    REAL(ftruncate);
    if (known(file) && strikes()) return strike();
    return real(file, size);
}
int ftruncate64(int file, off64_t size) {
    REAL(ftruncate64);
    if (known(file) && strikes()) return strike();
    return real(file, size);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    if (below(from) && strikes()) return strike();
    return real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (below(path) && strikes()) return strike();
    return real(path, mode);
}
int unlink(const char *path) {
    REAL(unlink);
    if (below(path) && strikes()) return strike();
    return real(path);
}
int link(const char *from, const char *to) {
    REAL(link);
    if (below(to) && strikes()) return strike();
    return real(from, to);
}
