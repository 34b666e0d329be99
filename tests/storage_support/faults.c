/* Loaded into the guard by the storage tests: while the file VARCAS_FAULT_WHEN exists, whatever changes a file whose
 * path contains VARCAS_FAULT_AT fails with the error number VARCAS_FAULT_ERRNO, or first waits for
 * VARCAS_FAULT_SLOW milliseconds. With VARCAS_FAULT_ONLY=sync only fsync and fdatasync do.
 * A write that fails has written half of its bytes, as a disk that fills up does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int armed(void) {
    const char *when = getenv("VARCAS_FAULT_WHEN");
    return when && REAL(access)(when, F_OK) == 0;
}

static int meant(const char *path) {
    const char *at = getenv("VARCAS_FAULT_AT");
    return path && at && strstr(path, at) != NULL;
}

static int strike(const char *path, int is_sync) {
    int saved = errno;
    if (!armed() || !meant(path)) { errno = saved; return 0; }
    const char *only = getenv("VARCAS_FAULT_ONLY");
    if (only && strcmp(only, "sync") == 0 && !is_sync) { errno = saved; return 0; }
    const char *slow = getenv("VARCAS_FAULT_SLOW");
    if (slow) { usleep(1000 * atoi(slow)); errno = saved; return 0; }
    const char *number = getenv("VARCAS_FAULT_ERRNO");
    errno = number ? atoi(number) : EIO;
    return 1;
}

static int strike_fd(int fd, int is_sync) {
    char link[64], path[4096];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n <= 0) return 0;
    path[n] = 0;
    return strike(path, is_sync);
}

ssize_t write(int fd, const void *data, size_t n) {
    if (strike_fd(fd, 0)) {
        int number = errno;
        if (n > 1 && number == ENOSPC) return REAL(write)(fd, data, n / 2);
        errno = number;
        return -1;
    }
    return REAL(write)(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *v, int n) {
    return strike_fd(fd, 0) ? -1 : REAL(writev)(fd, v, n);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    return strike_fd(fd, 0) ? -1 : REAL(pwrite64)(fd, data, n, at);
}
int fsync(int fd) { return strike_fd(fd, 1) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return strike_fd(fd, 1) ? -1 : REAL(fdatasync)(fd); }
int rename(const char *from, const char *to) { return strike(to, 0) ? -1 : REAL(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { return strike(path, 0) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char *path) { return strike(path, 0) ? -1 : REAL(unlink)(path); }
int fallocate64(int fd, int mode, off64_t at, off64_t n) {
    return strike_fd(fd, 0) ? -1 : REAL(fallocate64)(fd, mode, at, n);
}
int fallocate(int fd, int mode, off_t at, off_t n) {
    return strike_fd(fd, 0) ? -1 : REAL(fallocate)(fd, mode, at, n);
}
int open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && strike(path, 0)) return -1;
    return REAL(open64)(path, flags, mode);
}
