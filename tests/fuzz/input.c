#include "input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mapped.h"

static const uint8_t *input;
static size_t input_size;

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
    input = data;
    input_size = size;
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    return path;
}

void fuzz_touch(const uint8_t *data, uint64_t size) {
    const volatile uint8_t *bytes = data;
    (void)bytes[0];
    (void)bytes[size - 1];
}

/* In place of src/base/mapped.c: a mapping ends with its page, memory from malloc with its last byte, and the address
 * sanitizer sees who reads beyond. */
mx_status mx_mapped_open(const char *path, size_t least, mx_mapped *out, mx_error *error) {
    *out = (mx_mapped){.path = strdup(path), .size = input_size};
    if (!out->path) abort();
    if (input_size < least) return mx_fail(error, MX_INVALID_FILE, "%s: too short", path);
    if (!input_size) return MX_OK;
    out->data = malloc(input_size);
    if (!out->data) abort();
    memcpy(out->data, input, input_size);
    return MX_OK;
}

void mx_mapped_close(mx_mapped *m) {
    free(m->data);
    free(m->path);
    *m = (mx_mapped){0};
}
