#include "base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void mx_make_folders(char *path, mode_t mode) {
    if (!*path) return;
    for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, mode);
        *slash = '/';
    }
}

static bool write_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

bool mx_replace_file(const char *path, const void *data, size_t size, bool durable) {
    char *beside;
    if (asprintf(&beside, "%s.XXXXXX", path) < 0) {
        errno = ENOMEM;
        return false;
    }
    int fd = mkostemp(beside, O_CLOEXEC);
    bool done = fd >= 0 && write_all(fd, data, size) && (!durable || fsync(fd) == 0);
    int problem = errno;
    if (fd >= 0 && close(fd) != 0 && done) {
        done = false;
        problem = errno;
    }
    if (done && rename(beside, path) != 0) {
        done = false;
        problem = errno;
    }
    if (fd >= 0 && !done) unlink(beside);
    free(beside);
    if (!done) errno = problem;
    return done;
}

bool mx_sync_folder(const char *path) {
    char *folder = strdup(path), *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) slash[slash == folder] = 0;
    const int fd = folder ? open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    const bool done = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL); /* some file systems know no such thing */
    const int problem = errno;
    if (fd >= 0) close(fd);
    free(folder);
    errno = problem;
    return done;
}
