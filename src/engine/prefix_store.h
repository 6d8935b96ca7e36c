#ifndef MX_PREFIX_STORE_H
#define MX_PREFIX_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/status.h"
#include "model/model.h"

/* Computed tiles in a folder, for the next run and for other processes.
 *
 * A tile's key is a hash over what its bits depend on: the format of the files, all that `identity` names (the code,
 * all of the model, kernels, precision, type of the pages) and every token up to the tile's end. Its pages of full
 * layers are one file, those of sliding layers another, which only tiles have where prefixes will be gone on from. A
 * file is written under another name and then renamed, so that no reader sees half of one, and checked by a hash of its
 * content, so that a computer that went down leaves nothing that is believed. Any number of processes may use one
 * folder at the same time; each keeps it below its own bound, by removing what was read or written longest ago.
 *
 * A thread of its own writes: put and commit never wait for the disk. All other calls belong to one thread. */
typedef struct mx_prefix_store mx_prefix_store;

typedef struct mx_store_key {
    uint64_t low, high;
} mx_store_key;

typedef enum mx_store_part { MX_STORE_FULL, MX_STORE_WINDOW } mx_store_part;

typedef struct mx_prefix_store_options {
    const char *folder;      /* made where it is not there */
    uint64_t most;           /* bytes of files */
    const mx_config *config; /* how many layers are of which kind */
    int64_t page_bytes;
    const char *identity;                                      /* all else that the content of a page depends on */
    uint64_t queue_bytes;                                      /* pages that wait to be written; 0: 64 MiB */
    double patience;                                           /* seconds that closing waits for the disk; 0: 10 */
    ssize_t (*write)(int file, const void *data, size_t size); /* for tests; NULL: write(2) */
} mx_prefix_store_options;

/* MX_IO: the folder cannot be made or written; MX_INVALID_ARGUMENT: `most` does not hold one tile. */
mx_status mx_prefix_store_open(const mx_prefix_store_options *options, mx_prefix_store **out, mx_error *error);
/* When all waiting for the disk ends (mx_seconds): `patience` after the first call of this or of mx_prefix_store_close.
 */
double mx_prefix_store_ends(mx_prefix_store *store);
/* Waits until what was committed is written, or mx_prefix_store_ends. NULL allowed. */
void mx_prefix_store_close(mx_prefix_store *store);

mx_store_key mx_prefix_store_root(const mx_prefix_store *store); /* of no tokens */
mx_store_key mx_prefix_store_next(mx_store_key parent, const int32_t token[MX_TILE]);

/* Room for the pages of one file, in the order of the layers, to be filled before the commit; NULL: too many wait, or
 * the disk refused. */
void *mx_prefix_store_put(mx_prefix_store *store, mx_store_part part, mx_store_key key, const int32_t token[MX_TILE]);
void mx_prefix_store_commit(mx_prefix_store *store);

/* Until there is room for one more, at most so many seconds. false: there will be none. */
bool mx_prefix_store_wait(mx_prefix_store *store, double seconds);

bool mx_prefix_store_has(const mx_prefix_store *store, mx_store_part part, mx_store_key key);
/* The pages of one file, until the next call; it counts as used. NULL: not there, or not whole: then it is removed,
 * with one warning for all. */
const void *mx_prefix_store_read(mx_prefix_store *store, mx_store_part part, mx_store_key key,
                                 const int32_t token[MX_TILE]);

typedef struct mx_prefix_store_stats {
    int64_t read, written, known, removed, damaged; /* files; known: to be written, and there already */
    uint64_t bytes;                                 /* in the folder when it was last looked at, and written since */
} mx_prefix_store_stats;
mx_prefix_store_stats mx_prefix_store_get_stats(mx_prefix_store *store);

#endif
