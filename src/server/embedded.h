#ifndef MX_SERVER_EMBEDDED_H
#define MX_SERVER_EMBEDDED_H

#include <stddef.h>

/* Files that the program carries within itself: those of the list in meson.build, as embedded.py turns them to C. */
typedef struct mx_embedded {
    const char *name;          /* "openapi.json", without folders */
    const unsigned char *data; /* [size] */
    size_t size;
    const char *tag; /* of its content, 16 hexadecimal digits: for ETag */
} mx_embedded;

extern const mx_embedded mx_embedded_files[]; /* name NULL ends it */

const mx_embedded *mx_embedded_find(const char *name); /* NULL: there is none */

#endif
