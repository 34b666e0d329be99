/* Loaded into the guard by the test of power cuts: writes down, in their order, what became durable and what was only
 * written of the file or folder VARCAS_SYNC_OF, as lines in VARCAS_SYNC_LOG: "w SIZE" after a write, "s SIZE" after a
 * sync, with the size from before it, because what is written meanwhile may be missing. A folder has size 0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The size, or -1 if it is another file. */
static long long size_of(int fd) {
    const char *of = getenv("VARCAS_SYNC_OF");
    char link[64], path[4096];
    struct stat there;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = of ? readlink(link, path, sizeof path - 1) : -1;
    if (n > 0) path[n] = 0;
    int ours = n > 0 && strcmp(path, of) == 0 && fstat(fd, &there) == 0;
    errno = saved;
    if (!ours) return -1;
    return S_ISDIR(there.st_mode) ? 0 : (long long)there.st_size;
}

static void note(char what, long long size) {
    const char *log = getenv("VARCAS_SYNC_LOG");
    char line[64];
    int saved = errno;
    int fd = log ? open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd >= 0) {
        int n = snprintf(line, sizeof line, "%c %lld\n", what, size);
        if (REAL(write)(fd, line, (size_t)n) != n) abort();
        close(fd);
    }
    errno = saved;
}

ssize_t write(int fd, const void *data, size_t n) {
    ssize_t done = REAL(write)(fd, data, n);
    if (done > 0) {
        long long size = size_of(fd);
        if (size >= 0) note('w', size);
    }
    return done;
}

static int synced(int fd, int (*real)(int)) {
    long long before = size_of(fd);
    int result = real(fd);
    if (result == 0 && before >= 0) note('s', before);
    return result;
}
int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
