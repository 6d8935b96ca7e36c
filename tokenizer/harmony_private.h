#ifndef MX_HARMONY_PRIVATE_H
#define MX_HARMONY_PRIVATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

/* Text that grows by many small pieces. When memory runs out `failed` is set and every later call does nothing, so
 * that only the end has to look. */
typedef struct mx_text {
    mx_bytes bytes;
    bool failed;
} mx_text;

static inline void mx_text_add(mx_text *t, const void *data, size_t size) {
    if (!t->failed && size && !mx_bytes_add(&t->bytes, data, size)) t->failed = true;
}
static inline void mx_text_puts(mx_text *t, const char *text) {
    mx_text_add(t, text, strlen(text));
}
/* The bytes of a JSON string. */
static inline void mx_text_add_string(mx_text *t, const mx_json *v) {
    mx_text_add(t, v->text, v->size);
}

static inline const mx_json *mx_json_string(const mx_json *object, const char *key) {
    const mx_json *v = mx_json_get(object, key);
    return v && v->type == MX_JSON_STRING ? v : NULL;
}
static inline const mx_json *mx_json_array(const mx_json *object, const char *key) {
    const mx_json *v = mx_json_get(object, key);
    return v && v->type == MX_JSON_ARRAY ? v : NULL;
}

/* The members of an object as a dictionary that keeps insertion order sees them: where a key is given several times
 * the first place and the last value count. */
typedef enum mx_member_order { MX_SOURCE_ORDER, MX_KEY_ORDER } mx_member_order;
typedef struct mx_member {
    const mx_json *value; /* its key is the member's name */
    uint32_t position;
} mx_member;
/* The caller frees `*members`; false when memory is out. `object` that is NULL or no object has no members. */
bool mx_json_members(const mx_json *object, mx_member_order order, mx_member **members, uint32_t *count);

void mx_text_add_typescript(mx_text *t, const mx_json *schema);

/* The constant "system", "developer", "user", "assistant" or "tool" that equals the bytes (letters compared without
 * case where told), or NULL. */
const char *mx_harmony_role(const char *text, size_t size, bool any_case);
/* MX_UNSUPPORTED, naming the token, when the vocabulary lacks one of the format tokens. */
mx_status mx_harmony_check_ids(const mx_harmony_ids *ids, mx_error *error);

#endif
