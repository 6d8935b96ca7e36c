#ifndef MX_HUB_TRANSFER_H
#define MX_HUB_TRANSFER_H

#include "hub/http.h"
#include "hub/incoming.h"

/* One request for a range of a file, and what its answer means. */

typedef enum mx_verdict {
    MX_UNJUDGED, /* the headers have not all come */
    MX_TAKE,     /* its bytes are those asked for */
    MX_SKIP,     /* its bytes are of no interest: a redirect, an error */
    MX_GOT,      /* done */
    MX_HOP,      /* to be started again at once, as it is now: a redirect was followed */
    MX_ANEW,     /* the range is to be asked for again, at once: it is nobody's failure */
    MX_AGAIN,    /* the range is to be asked for again later; `error` says why, and becomes the result if it stays so */
    MX_RESTART,  /* the file has another version: all of it anew, as file->other */
    MX_FATAL     /* the download ends with `error` */
} mx_verdict;

typedef struct mx_transfer {
    CURL *easy;
    struct curl_slist *list;
    const mx_http_options *options;
    mx_incoming *file;
    int64_t piece;   /* its number */
    int64_t at, end; /* bytes of the file that are asked for */
    bool whole;      /* without a range, from byte 0 */
    bool direct;     /* began at file->direct: the hub itself was not asked */
    char *url;
    int redirects;
    mx_answer answer;
    mx_verdict verdict;
    mx_error error;
    CURLcode code;      /* why it ended */
    double retry_after; /* seconds that the server asks for; 0: it does not */
    int64_t stored, skipped;
    double last, window; /* when the last byte came; when `in_window` began to be counted */
    int64_t in_window;
    bool running;
} mx_transfer;

/* For the next missing bytes of the piece, or, `whole`, for all of the file. The handle is ready to be run then. */
mx_status mx_transfer_prepare(mx_transfer *t, mx_incoming *f, int64_t piece, bool whole, mx_error *error);
/* libcurl is done with it: one of the verdicts from MX_GOT on. */
mx_verdict mx_transfer_end(mx_transfer *t, CURLcode code);
/* Has so little come for so long that the connection is to be given up? */
bool mx_transfer_stalls(mx_transfer *t, double now);
void mx_transfer_free(mx_transfer *t);

#endif
