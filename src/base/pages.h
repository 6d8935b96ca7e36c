#ifndef MX_BASE_PAGES_H
#define MX_BASE_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What kind of memory an address range lies in, as the kernel says. */
typedef struct mx_pages {
    uint64_t resident; /* bytes that this process has mapped to memory */
    uint64_t huge;     /* of them, in huge pages */
} mx_pages;

/* Of the mappings that lie in base[0 .. size) or touch it (/proc/self/smaps; slow, milliseconds a gigabyte). Zeros
 * where nothing is known. */
mx_pages mx_pages_of(const void *base, size_t size);

/* May a process have huge pages where it asks for them? */
bool mx_pages_huge(void);

/* Bytes of a mapped file that are in the page cache, by a sample of one page in 2 MiB. */
uint64_t mx_pages_cached(const void *base, size_t size);

#endif
