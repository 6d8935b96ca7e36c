#ifndef MX_HUB_DOWNLOAD_H
#define MX_HUB_DOWNLOAD_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

/* Files from a model hub to disk, by libcurl: several files and several ranges of each at once, taken up again where
 * they were broken off at any byte, checked by SHA-256, published whole or not at all. Knows no models. */

enum { MX_SHA256_TEXT = 65, MX_ETAG_TEXT = 256, MX_COMMIT_TEXT = 65 };

/* What a hub says of a file before any redirect. */
typedef struct mx_remote {
    int64_t size;                /* X-Linked-Size, else Content-Length; -1: not said */
    char etag[MX_ETAG_TEXT];     /* X-Linked-ETag, else ETag, without quotes and W/; "": none */
    char sha256[MX_SHA256_TEXT]; /* the etag where it is 64 hexadecimal digits (a file in large file storage); "" */
    char commit[MX_COMMIT_TEXT]; /* X-Repo-Commit; "": none */
} mx_remote;

typedef struct mx_http_options {
    const char *token; /* sent as "Authorization: Bearer" to the host of the URL asked for, and to no other that a
                          redirect leads to; NULL: none */
    int connections;   /* ranges at once, of all files together; 0: 8 */
    int retries;       /* of one range without any progress between, before it fails; 0: 8 */
    double patience;   /* seconds without a byte after which a connection is given up; 0: 30 */
    double backoff;    /* seconds before the first retry, twice as many before the next ...; 0: 0.5 */
    int64_t piece;     /* bytes of a range; 0: 32 MiB */
    const volatile sig_atomic_t *stop; /* not 0: end with MX_CANCELLED, what has come is kept; NULL: never */
} mx_http_options;

/* One file of a download. */
typedef struct mx_download {
    const char *url;
    const char *name;            /* for messages and progress: "model-00000-of-00002.safetensors" */
    const char *incomplete;      /* path while it is coming in; a state file lies beside it */
    const char *complete;        /* path of the finished file, on the same file system; replaced atomically */
    int64_t size;                /* expected; -1: what the server says */
    char sha256[MX_SHA256_TEXT]; /* expected, lower case; "": not known: computed, and left here */
    char etag[MX_ETAG_TEXT];     /* what ranges must belong to; "": taken from the server's first answer */
    /* Told while it runs. */
    int64_t had;  /* bytes that were there from an earlier run; mx_download_look tells it before */
    int64_t done; /* bytes that are on the disk */
    bool finished;
} mx_download;

typedef enum mx_download_event_type {
    MX_DOWNLOAD_PROGRESS, /* a few times a second; `file` is NULL */
    MX_DOWNLOAD_RETRY,    /* `text` says why and what is done */
    MX_DOWNLOAD_FINISHED  /* of one file */
} mx_download_event_type;

typedef struct mx_download_event {
    mx_download_event_type type;
    const mx_download *file; /* NULL: all of them */
    const char *text;        /* one line; NULL: nothing to say */
    double seconds;          /* since the beginning */
} mx_download_event;

/* Asks for the file at `url` with HEAD, without following a redirect to another host. MX_NOT_FOUND where there is none,
 * MX_DENIED where the hub wants a token or another one. */
mx_status mx_remote_stat(const char *url, const mx_http_options *options, mx_remote *out, mx_error *error);

/* A small answer (JSON) of at most `limit` bytes. */
mx_status mx_remote_get(const char *url, const mx_http_options *options, int64_t limit, mx_bytes *out, mx_error *error);

/* What an earlier run left of the file and the next one would go on from: *had of it. Changes nothing on the disk. */
void mx_download_look(mx_download *file);

/* MX_NO_SPACE, with both numbers, unless the disks hold what is missing of all files whose size is known. */
mx_status mx_download_room(const mx_download *file, int count, mx_error *error);

/* Brings in all of the files. Checks first that there is room (mx_download_room). Files that are at `complete` already
 * with the right size are taken as they are. What does not have the right SHA-256 is never put at `complete`: it is
 * thrown away and fetched once more, then an error. `event` (may be NULL) is called by this thread. After an error or a
 * stop what has come lies at `incomplete` for the next call. */
mx_status mx_download_files(mx_download *file, int count, const mx_http_options *options,
                            void (*event)(void *user, const mx_download_event *event), void *user, mx_error *error);

/* SHA-256 of a file, in lower-case hexadecimal. `progress` (may be NULL) gets bytes; `stop` as above. */
mx_status mx_sha256_file(const char *path, char out[MX_SHA256_TEXT],
                         void (*progress)(void *user, int64_t done, int64_t total), void *user,
                         const volatile sig_atomic_t *stop, mx_error *error);

#endif
