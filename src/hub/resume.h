#ifndef MX_HUB_RESUME_H
#define MX_HUB_RESUME_H

#include "base/status.h"
#include "hub/download.h"
#include "hub/pieces.h"

/* clang-format off */
/* The state file beside an incomplete one: which of its bytes are there, so that a later run goes on from them. Lines,
 * each with a hash of itself, that are only ever appended:
 *
 *     mxrun-download 1 SIZE PIECE ETAG SOURCE    the file they belong to; SOURCE is the etag of the host that sends them
 *     boot ID                                    until the next such line the machine runs since the same start
 *     has PIECE:BYTES ...                        written: kept when the program is killed, lost when the power fails
 *     safe PIECE:BYTES ...                       on the disk
 *
 * Of "has" only the lines of the running boot count. A last line that is torn does not count; damage before it makes
 * the whole file worthless. */
/* clang-format on */
typedef struct mx_resume {
    char *path;
    int fd; /* -1: not open */
    int64_t bytes;
    bool settled;        /* its name is on the disk */
    int64_t *has, *safe; /* as told so far; [pieces.count] */
} mx_resume;

/* What the state file at `path` says. *pieces: what is there in any case or by this boot; `safe` (malloc'ed by it,
 * [pieces->count]): what is there in any case. false: there is none, or it is damaged; then nothing is made. */
bool mx_resume_read(const char *path, mx_pieces *pieces, int64_t **safe, char etag[MX_ETAG_TEXT],
                    char source[MX_ETAG_TEXT]);

/* Writes a new one, replacing the old one, that says the same as *pieces and r->safe (NULL: nothing), and keeps
 * it open. r is all zeros with fd -1, or an open one, which is replaced. `path` is copied. */
mx_status mx_resume_write(mx_resume *r, const char *path, const mx_pieces *pieces, const char *etag, const char *source,
                          mx_error *error);

/* Tells of bytes that came. `have` [count] is a copy of the pieces' that was made before; `safe`: after the copy was
 * made the data were brought to the disk. */
mx_status mx_resume_tell(mx_resume *r, const int64_t *have, int64_t count, bool safe, mx_error *error);

/* `remove`: the file too. */
void mx_resume_close(mx_resume *r, bool remove);

#endif
