#ifndef MX_BASE_STATUS_H
#define MX_BASE_STATUS_H

#ifdef __cplusplus /* kernels/cuda is C++ */
extern "C" {
#endif

/* What every function that can fail returns. The message that goes with it names the thing (file, field, byte),
 * what was found, what was expected and what to do about it. */
typedef enum mx_status {
    MX_OK = 0,
    MX_INVALID_ARGUMENT, /* the caller's value is wrong */
    MX_INVALID_FILE,     /* a file's content is wrong: truncated, wrong shape, not JSON ... */
    MX_IO,               /* the operating system refused: open, read, map, write */
    MX_NO_MEMORY,
    MX_UNSUPPORTED,   /* understood, but not something this build or machine can do */
    MX_CONTEXT_FULL,  /* more tokens than the context or the KV memory holds */
    MX_INVALID_STATE, /* the call does not fit what happened before it */
    MX_CANCELLED,
    MX_NOT_FOUND, /* a server has no such thing */
    MX_DENIED,    /* a server wants a token, another one, or a licence accepted */
    MX_NO_SPACE,  /* the disk is full, or would be */
} mx_status;

/* Filled by the function that fails; callers may pass NULL where they do not want the text. */
typedef struct mx_error {
    mx_status status;
    char text[1000];
} mx_error;

/* Writes the message (printf-style, one line, no trailing newline) and returns `status`, so that a failing function
 * ends in `return mx_fail(error, MX_IO, "...")`. `error` may be NULL. Messages that do not fit are cut. */
mx_status mx_fail(mx_error *error, mx_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message already in `error` and returns its status. `error` may be NULL (then `status`
 * is returned unchanged). */
mx_status mx_fail_within(mx_error *error, mx_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

const char *mx_status_name(mx_status status);

#ifdef __cplusplus
}
#endif

#endif
