#ifndef MX_BASE_MAPPED_H
#define MX_BASE_MAPPED_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A whole file in memory, read-only, at a 2 MiB boundary where it is larger than that, so that the kernel can use huge
 * pages. All zeros: none. A file that another program cuts while it is mapped ends the process with SIGBUS. */
typedef struct mx_mapped {
    char *path; /* owned */
    uint8_t *data;
    size_t size;
} mx_mapped;

/* Not a regular file, or fewer than `least` bytes: MX_INVALID_FILE. An empty file has no data. Free with
 * mx_mapped_close, also after a failure. */
mx_status mx_mapped_open(const char *path, size_t least, mx_mapped *out, mx_error *error);
void mx_mapped_close(mx_mapped *m);

#endif
