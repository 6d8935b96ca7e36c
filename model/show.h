#ifndef MX_MODEL_SHOW_H
#define MX_MODEL_SHOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"

/* Private to model/: pieces of files in one-line messages. */

/* The value as compact JSON in `out`, cut with "..." when it is long; returns `out`. */
const char *mx_show_json(char *out, size_t size, const mx_json *v);

/* A shape as "[2, 3]"; returns `out`. */
const char *mx_show_shape(char *out, size_t size, const int64_t *shape, int dims);

/* Text without control characters (NUL among them), which would break a one-line message. */
bool mx_is_one_line(const char *text, size_t size);

#endif
