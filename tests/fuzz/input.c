#include "input.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"

static void drop(void *user, mx_log_level level, const char *line) {
    (void)user, (void)level, (void)line;
}

const char *fuzz_file(const uint8_t *data, size_t size) {
    static char path[40];
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        mx_log_set_sink(drop, NULL);
    }
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    return path;
}

void fuzz_touch(const uint8_t *data, uint64_t size) {
    static volatile uint8_t sink;
    sink = data[0];
    sink = data[size - 1];
}
