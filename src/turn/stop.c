#include "turn/stop.h"

#include <stdlib.h>

static void free_string(mx_stop_string *w) {
    mx_bytes_free(&w->text);
    free(w->border);
}

/* With the borders of its beginnings (Knuth, Morris, Pratt 1977), by which each byte of a text is looked at once.
 * false: no memory. */
static bool fill(mx_stop_string *w, const char *string) {
    if (!mx_bytes_add_string(&w->text, string) || !(w->border = calloc(w->text.size, sizeof *w->border))) return false;
    for (size_t i = 1, k = 0; i < w->text.size; i++) {
        while (k && string[i] != string[k]) k = w->border[k - 1];
        k += string[i] == string[k];
        w->border[i] = k;
    }
    return true;
}

mx_status mx_stop_create(const char *const *strings, int count, mx_stop *out, mx_error *error) {
    *out = (mx_stop){0};
    if (count == 0) return MX_OK;
    out->strings = calloc((size_t)count, sizeof *out->strings);
    if (!out->strings) return mx_fail(error, MX_NO_MEMORY, "no memory for %d stop strings", count);
    for (; out->count < count; out->count++) {
        const char *string = strings[out->count];
        mx_status status = MX_OK;
        if (!*string) {
            status = mx_fail(error, MX_INVALID_ARGUMENT, "a stop string is empty");
        } else if (!fill(&out->strings[out->count], string)) {
            status = mx_fail(error, MX_NO_MEMORY, "no memory for %d stop strings", count);
        }
        if (status) {
            free_string(&out->strings[out->count]);
            mx_stop_free(out);
            return status;
        }
    }
    return MX_OK;
}

void mx_stop_free(mx_stop *s) {
    for (int i = 0; i < s->count; i++) free_string(&s->strings[i]);
    free(s->strings);
    mx_bytes_free(&s->held);
    *s = (mx_stop){0};
}

/* One more byte. Length of the longest string that ends with it, 0: none does. */
static size_t follow(mx_stop *s, char byte) {
    size_t longest = 0;
    for (int i = 0; i < s->count; i++) {
        mx_stop_string *w = &s->strings[i];
        while (w->matched && w->text.data[w->matched] != byte) w->matched = w->border[w->matched - 1];
        w->matched += w->text.data[w->matched] == byte;
        if (w->matched < w->text.size || w->matched <= longest) continue;
        longest = w->matched;
        s->found = i;
    }
    return longest;
}

/* Length of the longest end of the text that begins some stop string. */
static size_t undecided(const mx_stop *s) {
    size_t longest = 0;
    for (int i = 0; i < s->count; i++)
        if (s->strings[i].matched > longest) longest = s->strings[i].matched;
    return longest;
}

static void forget(mx_stop *s) {
    mx_bytes_clear(&s->held);
    for (int i = 0; i < s->count; i++) s->strings[i].matched = 0;
}

bool mx_stop_add(mx_stop *s, const char *text, size_t size, mx_bytes *out, bool *found) {
    *found = false;
    if (s->count == 0) return mx_bytes_add(out, text, size);
    const size_t known = s->held.size; /* no stop string ends in here */
    if (!mx_bytes_add(&s->held, text, size)) return false;
    for (size_t i = known; i < s->held.size; i++) {
        const size_t length = follow(s, s->held.data[i]);
        if (!length) continue;
        const bool added = mx_bytes_add(out, s->held.data, i + 1 - length);
        *found = added;
        forget(s);
        return added;
    }
    const size_t shown = s->held.size - undecided(s);
    if (!mx_bytes_add(out, s->held.data, shown)) return false;
    memmove(s->held.data, s->held.data + shown, s->held.size - shown + 1);
    s->held.size -= shown;
    return true;
}

bool mx_stop_end(mx_stop *s, mx_bytes *out) {
    bool added = mx_bytes_add(out, s->held.data, s->held.size);
    forget(s);
    return added;
}
