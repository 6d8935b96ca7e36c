#ifndef MX_HUB_HASHER_H
#define MX_HUB_HASHER_H

#include <pthread.h>

#include "base/status.h"
#include "hub/download.h"
#include "hub/pieces.h"

/* SHA-256 of a file that is coming in, by a thread of its own: it follows what is there without a gap and reads it
 * back, out of the page cache if it keeps up. */
typedef struct mx_hasher mx_hasher;

/* `pieces`, `name` (for messages) and the open file `fd` are borrowed until mx_hasher_stop. `done(user)` is called by
 * the thread when it has the hash or failed. */
mx_status mx_hasher_start(const mx_pieces *pieces, int fd, const char *name, void (*done)(void *user), void *user,
                          mx_hasher **out, mx_error *error);
/* More bytes are there. */
void mx_hasher_wake(mx_hasher *h);
/* Has it ended? Then *status is MX_OK and `out` the hash, or *status what went wrong. */
bool mx_hasher_ended(mx_hasher *h, char out[MX_SHA256_TEXT], mx_status *status, mx_error *error);
int64_t mx_hasher_bytes(mx_hasher *h); /* hashed so far */
/* Ends the thread within moments and frees h; NULL allowed. */
void mx_hasher_stop(mx_hasher *h);

/* pthread_create for a thread that gets no signals: they go to the program's own threads. */
int mx_hub_thread(pthread_t *thread, void *(*run)(void *user), void *user);

#endif
