#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

mx_status mx_fail(mx_error *error, mx_status status, const char *format, ...) {
    if (error) {
        va_list args;
        va_start(args, format);
        vsnprintf(error->text, sizeof error->text, format, args);
        va_end(args);
        error->status = status;
    }
    return status;
}

mx_status mx_fail_within(mx_error *error, mx_status status, const char *format, ...) {
    if (!error) return status;
    mx_error inner = *error;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    size_t room = n < 0 || (size_t)n + 2 >= sizeof error->text ? 0 : sizeof error->text - (size_t)n;
    if (room) {
        memcpy(error->text + n, ": ", 2);
        memcpy(error->text + n + 2, inner.text, room - 2);
        error->text[sizeof error->text - 1] = 0;
    }
    return error->status;
}

const char *mx_status_name(mx_status status) {
    switch (status) {
    case MX_OK:
        return "ok";
    case MX_INVALID_ARGUMENT:
        return "invalid argument";
    case MX_INVALID_FILE:
        return "invalid file";
    case MX_IO:
        return "input or output failed";
    case MX_NO_MEMORY:
        return "out of memory";
    case MX_UNSUPPORTED:
        return "unsupported";
    case MX_CONTEXT_FULL:
        return "context full";
    case MX_INVALID_STATE:
        return "invalid state";
    case MX_CANCELLED:
        return "cancelled";
    case MX_NOT_FOUND:
        return "not found";
    case MX_DENIED:
        return "denied";
    case MX_NO_SPACE:
        return "no space on the disk";
    }
    return "unknown status";
}
