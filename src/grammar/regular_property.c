/* Unicode's properties, as PCRE2 knows them. */
#include "grammar/regular_private.h"

mx_status mx_property_add(const char *name, size_t size, mx_ranges *out, mx_error *error) {
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "\\p{%.*s} is not built yet", (int)size, name);
}
