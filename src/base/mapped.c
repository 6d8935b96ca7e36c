#include "base/mapped.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 };

static void *map_file(int fd, size_t size) {
    if (size < HUGE_PAGE) return mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    size_t reserved = size + HUGE_PAGE;
    char *area = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return area;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (size + page - 1) / page * page;
    char *aligned = area + (HUGE_PAGE - (uintptr_t)area % HUGE_PAGE) % HUGE_PAGE;
    void *map = mmap(aligned, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
    if (map == MAP_FAILED) {
        munmap(area, reserved);
        return map;
    }
    if (aligned > area) munmap(area, (size_t)(aligned - area));
    char *end = area + reserved;
    if (aligned + whole < end) munmap(aligned + whole, (size_t)(end - (aligned + whole)));
    madvise(map, size, MADV_HUGEPAGE); /* advice: where it is not taken, small pages do */
    return map;
}

static mx_status map_descriptor(int fd, size_t least, mx_mapped *m, mx_error *error) {
    struct stat info;
    if (fstat(fd, &info) != 0) return mx_fail(error, MX_IO, "%s: %s", m->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return mx_fail(error, MX_INVALID_FILE, "%s: not a regular file", m->path);
    if ((uint64_t)info.st_size < least)
        return mx_fail(error, MX_INVALID_FILE, "%s: %lld bytes, too short: it has at least %zu; download it again",
                       m->path, (long long)info.st_size, least);
    m->size = (size_t)info.st_size;
    if (!m->size) return MX_OK;
    void *map = map_file(fd, m->size);
    if (map == MAP_FAILED)
        return mx_fail(error, errno == ENOMEM ? MX_NO_MEMORY : MX_IO, "%s: mapping %zu bytes: %s%s", m->path, m->size,
                       strerror(errno), errno == ENOMEM ? ": is the address space limited (ulimit -v)?" : "");
    m->data = map;
    return MX_OK;
}

mx_status mx_mapped_open(const char *path, size_t least, mx_mapped *out, mx_error *error) {
    *out = (mx_mapped){.path = strdup(path)};
    if (!out->path) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its name", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe must not block */
    if (fd < 0) return mx_fail(error, MX_IO, "%s: %s", path, strerror(errno));
    mx_status status = map_descriptor(fd, least, out, error);
    close(fd);
    return status;
}

void mx_mapped_close(mx_mapped *m) {
    if (m->data) munmap(m->data, m->size);
    free(m->path);
    *m = (mx_mapped){0};
}
