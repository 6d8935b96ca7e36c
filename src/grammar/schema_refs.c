#include <stdlib.h>
#include <string.h>

#include "grammar/schema_parts.h"

/* Where schemas are: base URIs ($id), names ($anchor), references, and places for messages. Only what the schema holds
 * itself is found: nothing is fetched. */

typedef struct target {
    char *uri; /* owned; without a fragment, or with an anchor as its fragment */
    const mx_json *node;
} target;

/* A schema that has "$ref", with its base. */
typedef struct referrer {
    const mx_json *node;
    int base; /* index of targets; -1: the root's without $id */
} referrer;

struct mx_schema_refs {
    target *targets;
    int target_count, target_room;
    referrer *referrers;
    int referrer_count, referrer_room;
};

static void *grown(void *list, int count, int *room, size_t size) {
    if (count < *room) return list;
    int more = *room ? 2 * *room : 16;
    void *p = realloc(list, (size_t)more * size);
    if (p) *room = more;
    return p;
}

/* ---- URIs -------------------------------------------------------------------------------------------------------- */
static size_t scheme_size(const char *s) {
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+.-");
    return n && s[n] == ':' ? n + 1 : 0;
}

/* Removes "." and ".." from the path that begins at `from`. */
static void remove_dots(mx_bytes *uri, size_t from) {
    char *path = uri->data + from;
    size_t size = uri->size - from, out = 0;
    for (size_t i = 0; i < size;) {
        size_t end = i + 1;
        while (end < size && path[end] != '/') end++;
        if (end - i == 2 && path[i] == '/' && path[i + 1] == '.') {
            if (end == size) path[out++] = '/';
        } else if (end - i == 3 && !memcmp(path + i, "/..", 3)) {
            while (out && path[--out] != '/') {
            }
            if (end == size) path[out++] = '/';
        } else {
            memmove(path + out, path + i, end - i);
            out += end - i;
        }
        i = end;
    }
    uri->size = from + out;
    uri->data[uri->size] = 0;
}

/* RFC 3986, 5.2, as far as schemas need it. `out` is without a fragment; `reference` ends where one begins. */
static bool resolve_uri(mx_bytes *out, const char *base, const char *reference, size_t size) {
    mx_bytes text = {0};
    if (!mx_bytes_add(&text, reference, size)) return false;
    const size_t scheme = scheme_size(base);
    size_t authority = scheme; /* its end */
    if (!strncmp(base + scheme, "//", 2)) authority = scheme + 2 + strcspn(base + scheme + 2, "/?");
    const size_t path_end = authority + strcspn(base + authority, "?");
    bool ok, path = true;
    if (scheme_size(text.data)) {
        ok = mx_bytes_add(out, text.data, text.size);
        path = false;
    } else if (!text.size) {
        ok = mx_bytes_add_string(out, base);
        path = false;
    } else if (!strncmp(text.data, "//", 2)) {
        ok = mx_bytes_add(out, base, scheme) && mx_bytes_add(out, text.data, text.size);
        path = false;
    } else if (*text.data == '/') {
        ok = mx_bytes_add(out, base, authority) && mx_bytes_add(out, text.data, text.size);
    } else {
        size_t folder = path_end;
        while (folder > authority && base[folder - 1] != '/') folder--;
        ok = mx_bytes_add(out, base, folder) && mx_bytes_add(out, text.data, text.size);
    }
    if (ok && path && authority <= out->size) remove_dots(out, authority);
    if (ok && !out->data) ok = mx_bytes_add_string(out, "");
    mx_bytes_free(&text);
    return ok;
}

/* ---- the index --------------------------------------------------------------------------------------------------- */
static bool add_target(struct mx_schema_refs *r, char *uri, const mx_json *node) {
    target *t = uri ? grown(r->targets, r->target_count, &r->target_room, sizeof *t) : NULL;
    if (!t) {
        free(uri);
        return false;
    }
    r->targets = t;
    t[r->target_count++] = (target){uri, node};
    return true;
}

static const char *base_uri(const struct mx_schema_refs *r, int base) {
    return base < 0 ? "" : r->targets[base].uri;
}

static const char *const in_objects[] = {
    "$defs", "definitions", "properties", "patternProperties", "dependentSchemas", "dependencies"};
static const char *const in_arrays[] = {"allOf", "anyOf", "oneOf", "prefixItems"};
static const char *const single[] = {
    "additionalProperties", "propertyNames",         "items",        "contains", "not", "if", "then", "else",
    "unevaluatedItems",     "unevaluatedProperties", "contentSchema"};
#define COUNT(list) (sizeof(list) / sizeof *(list))

static bool is_one_of(const mx_json *member, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strlen(names[i]) == member->key_size && !memcmp(names[i], member->key, member->key_size)) return true;
    return false;
}

static bool index_names(mx_schema_compiler *c, const mx_json *node, int *base) {
    struct mx_schema_refs *r = c->refs;
    const mx_json *id = mx_json_get(node, "$id");
    if (id && id->type == MX_JSON_STRING) {
        mx_bytes uri = {0};
        const char *hash = memchr(id->text, '#', id->size);
        if (!resolve_uri(&uri, base_uri(r, *base), id->text, hash ? (size_t)(hash - id->text) : id->size) ||
            !add_target(r, uri.data, node))
            return false;
        *base = r->target_count - 1;
    }
    static const char *const anchors[] = {"$anchor", "$dynamicAnchor"};
    for (size_t i = 0; i < COUNT(anchors); i++) {
        const mx_json *anchor = mx_json_get(node, anchors[i]);
        if (!anchor || anchor->type != MX_JSON_STRING) continue;
        mx_bytes uri = {0};
        if (!mx_bytes_addf(&uri, "%s#%s", base_uri(r, *base), anchor->text) || !add_target(r, uri.data, node))
            return false;
    }
    if (mx_json_get(node, "$ref")) {
        referrer *more = grown(r->referrers, r->referrer_count, &r->referrer_room, sizeof *more);
        if (!more) return false;
        r->referrers = more;
        more[r->referrer_count++] = (referrer){node, *base};
    }
    return true;
}

static bool index_schema(mx_schema_compiler *c, const mx_json *node, int base) {
    if (node->type != MX_JSON_OBJECT) return true; /* JSON is at most 512 levels deep, and so is this */
    if (!index_names(c, node, &base)) return false;
    for (const mx_json *m = node->child; m; m = m->next) {
        if (is_one_of(m, single, COUNT(single))) {
            if (!strncmp(m->key, "unevaluated", 11)) c->unevaluated = true;
            if (!index_schema(c, m, base)) return false;
        } else if ((m->type == MX_JSON_OBJECT && is_one_of(m, in_objects, COUNT(in_objects))) ||
                   (m->type == MX_JSON_ARRAY && is_one_of(m, in_arrays, COUNT(in_arrays)))) {
            for (const mx_json *s = m->child; s; s = s->next)
                if (!index_schema(c, s, base)) return false;
        }
    }
    return true;
}

static int by_node(const void *a, const void *b) {
    const uintptr_t x = (uintptr_t)((const referrer *)a)->node, y = (uintptr_t)((const referrer *)b)->node;
    return (x > y) - (x < y);
}

void mx_schema_index(mx_schema_compiler *c) {
    c->refs = calloc(1, sizeof *c->refs);
    if (!c->refs || !index_schema(c, c->root, -1)) {
        mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
        return;
    }
    if (c->refs->referrer_count)
        qsort(c->refs->referrers, (size_t)c->refs->referrer_count, sizeof *c->refs->referrers, by_node);
}

void mx_schema_refs_free(struct mx_schema_refs *refs) {
    if (!refs) return;
    for (int i = 0; i < refs->target_count; i++) free(refs->targets[i].uri);
    free(refs->targets);
    free(refs->referrers);
    free(refs);
}

/* ---- references -------------------------------------------------------------------------------------------------- */
static int hex(char x) {
    return x >= '0' && x <= '9'   ? x - '0'
           : x >= 'a' && x <= 'f' ? x - 'a' + 10
           : x >= 'A' && x <= 'F' ? x - 'A' + 10
                                  : -1;
}

static bool add_unescaped(mx_bytes *out, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        char byte = text[i];
        if (byte == '%' && i + 2 < size && hex(text[i + 1]) >= 0 && hex(text[i + 2]) >= 0) {
            byte = (char)(hex(text[i + 1]) * 16 + hex(text[i + 2]));
            i += 2;
        }
        if (!mx_bytes_add(out, &byte, 1)) return false;
    }
    return out->data || mx_bytes_add_string(out, "");
}

/* The step of a JSON pointer (RFC 6901) without its "/". */
static const mx_json *pointer_step(const mx_json *node, const char *token, size_t size) {
    if (node->type == MX_JSON_ARRAY) {
        if (!size || size > 9 || (size > 1 && *token == '0')) return NULL;
        long index = 0;
        for (size_t i = 0; i < size; i++) {
            if (token[i] < '0' || token[i] > '9') return NULL;
            index = 10 * index + (token[i] - '0');
        }
        const mx_json *v = node->child;
        while (v && index--) v = v->next;
        return v;
    }
    if (node->type != MX_JSON_OBJECT) return NULL;
    const mx_json *found = NULL;
    for (const mx_json *v = node->child; v; v = v->next) {
        size_t i = 0, j = 0;
        for (; i < size && j < v->key_size; i++, j++) {
            char byte = token[i];
            if (byte == '~' && i + 1 < size && (token[i + 1] == '0' || token[i + 1] == '1'))
                byte = token[++i] == '0' ? '~' : '/';
            if (byte != v->key[j]) break;
        }
        if (i == size && j == v->key_size) found = v;
    }
    return found;
}

static const mx_json *follow(const mx_json *node, const char *pointer, size_t size) {
    for (size_t i = 0; node && i < size;) {
        size_t end = i + 1;
        while (end < size && pointer[end] != '/') end++;
        node = pointer_step(node, pointer + i + 1, end - i - 1);
        i = end;
    }
    return node;
}

static const mx_json *find(const mx_schema_compiler *c, const char *uri) {
    for (int i = 0; i < c->refs->target_count; i++)
        if (!strcmp(c->refs->targets[i].uri, uri)) return c->refs->targets[i].node;
    return *uri ? NULL : c->root;
}

const mx_json *mx_schema_resolve(mx_schema_compiler *c, const mx_json *node, const mx_json *ref) {
    if (ref->type != MX_JSON_STRING) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"$ref\" must be a string");
        return NULL;
    }
    const struct mx_schema_refs *r = c->refs;
    const referrer key = {.node = node};
    const referrer *from =
        r->referrer_count ? bsearch(&key, r->referrers, (size_t)r->referrer_count, sizeof key, by_node) : NULL;
    /* A schema where none was looked for (behind a pointer into something else): the root's base. */
    const char *base = from ? base_uri(r, from->base) : base_uri(r, mx_json_get(c->root, "$id") ? 0 : -1);
    const char *hash = memchr(ref->text, '#', ref->size);
    mx_bytes uri = {0}, fragment = {0};
    const mx_json *found = NULL;
    if (!resolve_uri(&uri, base, ref->text, hash ? (size_t)(hash - ref->text) : ref->size) ||
        !add_unescaped(&fragment, hash ? hash + 1 : "", hash ? ref->size - (size_t)(hash + 1 - ref->text) : 0)) {
        mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
    } else if (!fragment.size || *fragment.data == '/') {
        found = find(c, uri.data);
        if (found) found = follow(found, fragment.data, fragment.size);
    } else if (mx_bytes_addf(&uri, "#%s", fragment.data)) {
        found = find(c, uri.data);
    }
    if (!found)
        mx_schema_fail(c, hash == ref->text ? MX_INVALID_ARGUMENT : MX_UNSUPPORTED, node,
                       "\"$ref\": nothing in this schema is \"%.200s\"; other documents are not fetched", ref->text);
    mx_bytes_free(&uri);
    mx_bytes_free(&fragment);
    return found;
}

/* ---- places ------------------------------------------------------------------------------------------------------ */
static bool place_below(mx_bytes *out, const mx_json *at, const mx_json *node) {
    if (at == node) return true;
    if (at->type != MX_JSON_OBJECT && at->type != MX_JSON_ARRAY) return false;
    const size_t size = out->size;
    int index = 0;
    for (const mx_json *v = at->child; v; v = v->next, index++) {
        mx_bytes_add_string(out, "/");
        if (at->type == MX_JSON_ARRAY) mx_bytes_addf(out, "%d", index);
        for (size_t i = 0; at->type == MX_JSON_OBJECT && i < v->key_size; i++) {
            const char byte = v->key[i];
            if (byte == '~' || byte == '/')
                mx_bytes_add_string(out, byte == '~' ? "~0" : "~1");
            else if ((unsigned char)byte < ' ')
                mx_bytes_addf(out, "%%%02X", (unsigned char)byte);
            else
                mx_bytes_add(out, &byte, 1);
        }
        if (place_below(out, v, node)) return true;
        out->size = size;
        if (out->data) out->data[size] = 0;
    }
    return false;
}

void mx_schema_place(mx_bytes *out, const mx_json *root, const mx_json *node) {
    mx_bytes_add_string(out, "#");
    if (!place_below(out, root, node)) mx_bytes_clear(out);
}
