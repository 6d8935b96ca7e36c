#include "grammar/regular.h"

mx_regular_view mx_regular_look(const mx_regular *r) {
    (void)r;
    return (mx_regular_view){0};
}

mx_regular *mx_regular_keep(mx_regular *r) {
    (void)r;
    return NULL;
}

void mx_regular_free(mx_regular *r) {
    (void)r;
}

mx_status mx_regular_parse(const char *pattern, size_t size, bool whole, mx_regular **out, mx_error *error) {
    (void)pattern;
    (void)size;
    (void)whole;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_text(const void *text, size_t size, mx_regular **out, mx_error *error) {
    (void)text;
    (void)size;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_length(int64_t least, int64_t most, mx_regular **out, mx_error *error) {
    (void)least;
    (void)most;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_union(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error) {
    (void)a;
    (void)b;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_intersect(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error) {
    (void)a;
    (void)b;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_complement(const mx_regular *a, mx_regular **out, mx_error *error) {
    (void)a;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_concat(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error) {
    (void)a;
    (void)b;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_repeat(const mx_regular *a, int64_t least, int64_t most, mx_regular **out, mx_error *error) {
    (void)a;
    (void)least;
    (void)most;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_regular_quote(const mx_regular *a, mx_regular **out, mx_error *error) {
    (void)a;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

bool mx_regular_is_empty(const mx_regular *r) {
    (void)r;
    return 0;
}

bool mx_regular_match(const mx_regular *r, const void *text, size_t size) {
    (void)r;
    (void)text;
    (void)size;
    return 0;
}

uint64_t mx_regular_hash(const mx_regular *r) {
    (void)r;
    return 0;
}
