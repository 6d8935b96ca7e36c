/* The tokenizer in OpenAI's metal model.bin. Behind the model's header, little endian: tokenizer UUID, u32 special
 * tokens, u32 text tokens, u32 bytes of the pattern with its zero, u32 bytes of the text tokens; a UUID for each
 * special token (zeros: none); the pattern; the text tokens as u16 size and bytes, in the order of their ranks, which
 * are their ids. (openai/gpt-oss, gpt_oss/metal/scripts/create-local-model.py) */
#include <stdio.h>

#include "tokenizer/source.h"

enum { UUID = 16, TOKENIZER_AT = 16 + UUID + 17 * 4 + UUID, FIXED = TOKENIZER_AT + UUID + 4 * 4 };
enum { MOST_TOKEN_BYTES = 16 << 20, LONGEST_TOKEN = 512, MOST_PATTERN = 1 << 16 };

static const uint8_t tiktoken_uuid[UUID] = {0x74, 0x01, 0xAD, 0xED, 0x2A, 0x95, 0x40, 0xCB,
                                            0xB7, 0x82, 0x9C, 0xCE, 0xBA, 0xAF, 0xE7, 0x2B};

/* NULL: harmony keeps its place in reserve, and so it is named after it, as in the other layouts. */
static const struct {
    uint8_t uuid[UUID];
    const char *name;
} specials[] = {
    {{0x55, 0xA7, 0x7C, 0x2F, 0x8A, 0x01, 0x4C, 0x54, 0x8A, 0xC2, 0x31, 0x3B, 0xFC, 0x7E, 0x20, 0x8D}, "<|start|>"},
    {{0x16, 0xE4, 0x04, 0x31, 0xF4, 0x7F, 0x4B, 0x22, 0xB5, 0x9B, 0x8B, 0x27, 0x8F, 0xC3, 0x0A, 0x54}, "<|message|>"},
    {{0xFC, 0xAC, 0x2F, 0x6D, 0x47, 0x05, 0x4F, 0x6B, 0xB2, 0x28, 0x64, 0x2A, 0xCC, 0xAC, 0x72, 0x38}, "<|end|>"},
    {{0xF7, 0x99, 0xFF, 0x69, 0x19, 0x92, 0x43, 0xC4, 0xA3, 0xD8, 0xD8, 0x31, 0xF4, 0x75, 0xDC, 0x75}, "<|return|>"},
    {{0xE1, 0x5B, 0xA7, 0x02, 0x28, 0xC4, 0x42, 0x92, 0xAB, 0x8F, 0xFF, 0xA4, 0x34, 0x70, 0x91, 0x28},
     NULL}, /* refusal */
    {{0xC0, 0xBB, 0x14, 0xC7, 0x60, 0x22, 0x49, 0xDA, 0xAD, 0x08, 0x79, 0x2D, 0x67, 0xE8, 0xB4, 0x70}, "<|constrain|>"},
    {{0xFD, 0x3D, 0xDA, 0x11, 0xC8, 0xAB, 0x40, 0x33, 0x87, 0x6E, 0xD9, 0x3D, 0xEB, 0x17, 0x2C, 0x93}, "<|channel|>"},
    {{0x12, 0x20, 0xF7, 0x96, 0xE3, 0x88, 0x4D, 0xE5, 0xB4, 0x87, 0xFE, 0x2E, 0xB5, 0xFE, 0x03, 0xC0}, "<|call|>"},
    {{0x07, 0xD7, 0xDA, 0x55, 0xB3, 0x46, 0x4C, 0xFF, 0x8B, 0x37, 0x7C, 0xEF, 0xAC, 0xF8, 0xA3, 0xE8},
     NULL}, /* untrusted */
    {{0xF2, 0x65, 0xBD, 0x9C, 0xC7, 0x17, 0x46, 0x9E, 0xA4, 0x47, 0x92, 0x06, 0x87, 0xD6, 0x5D, 0x90},
     NULL}, /* end_untrusted */
    {{0}, NULL},
};

typedef struct metal {
    uint32_t specials, texts, pattern_size, text_size;
    const uint8_t *uuid, *pattern, *text;
    size_t end; /* of the tokenizer, in the file */
} metal;

static mx_status read_sizes(const char *path, const uint8_t *data, size_t size, metal *out, mx_error *error) {
    if (size < FIXED)
        return mx_fail(error, MX_INVALID_FILE, "%s: %zu bytes, too short for a model.bin; download it again", path,
                       size);
    const uint8_t *p = data + TOKENIZER_AT;
    if (memcmp(p, tiktoken_uuid, UUID) != 0)
        return mx_fail(error, MX_UNSUPPORTED,
                       "%s: the tokenizer's UUID at byte %d is not tiktoken's 7401aded-2a95-40cb-b782-9ccebaafe72b",
                       path, TOKENIZER_AT);
    p += UUID;
    *out = (metal){.specials = mx_load_u32(p),
                   .texts = mx_load_u32(p + 4),
                   .pattern_size = mx_load_u32(p + 8),
                   .text_size = mx_load_u32(p + 12)};
    if (out->specials > MX_HIGHEST_ID || out->texts > MX_HIGHEST_ID - out->specials ||
        out->pattern_size > MOST_PATTERN || out->text_size > MOST_TOKEN_BYTES)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: a tokenizer of %u special tokens, %u text tokens, a pattern of %u bytes and texts of %u; "
                       "expected at most %d tokens, %d and %d bytes",
                       path, out->specials, out->texts, out->pattern_size, out->text_size, MX_HIGHEST_ID, MOST_PATTERN,
                       MOST_TOKEN_BYTES);
    size_t end = FIXED + (size_t)out->specials * UUID + out->pattern_size + out->text_size;
    if (end > size)
        return mx_fail(error, MX_INVALID_FILE, "%s: the tokenizer ends at byte %zu, the file at %zu; download it again",
                       path, end, size);
    out->uuid = data + FIXED;
    out->pattern = out->uuid + (size_t)out->specials * UUID;
    out->text = out->pattern + out->pattern_size;
    out->end = end;
    return MX_OK;
}

/* By harmony's names, whatever the vocabulary. */
static mx_status add_reserved(mx_source *s, uint32_t id) {
    char name[40];
    snprintf(name, sizeof name, id == 200018 ? "<|endofprompt|>" : "<|reserved_%u|>", id);
    return mx_source_add_special(s, id, name, strlen(name), MX_TOKEN_SPECIAL);
}

/* Those without a UUID have names of their own only at the start: o200k's vocabulary is followed by these two. */
static mx_status add_special(mx_source *s, const metal *m, uint32_t index) {
    static const char *const first[] = {"<|startoftext|>", "<|endoftext|>"};
    const uint8_t *uuid = m->uuid + (size_t)index * UUID;
    uint32_t id = m->texts + index;
    size_t i = 0, count = sizeof specials / sizeof *specials;
    while (i < count && memcmp(specials[i].uuid, uuid, UUID) != 0) i++;
    if (i == count)
        return mx_fail(s->error, MX_UNSUPPORTED,
                       "%s: special token %u has the UUID %02x%02x%02x%02x-..., which is none of gpt-oss", s->path, id,
                       uuid[0], uuid[1], uuid[2], uuid[3]);
    const char *name = i == count - 1 && index < 2 ? first[index] : specials[i].name;
    return name ? mx_source_add_special(s, id, name, strlen(name), MX_TOKEN_SPECIAL) : add_reserved(s, id);
}

/* A model.bin has no rows for the last of gpt-oss's ids, but harmony decodes them. */
static mx_status add_specials(mx_source *s, const metal *m) {
    mx_status status = MX_OK;
    for (uint32_t i = 0; i < m->specials && status == MX_OK; i++) status = add_special(s, m, i);
    if (m->texts > MX_HARMONY_START) return status;
    for (uint32_t id = m->texts + m->specials; id > MX_HARMONY_START && id < MX_RESERVED_FIRST && status == MX_OK; id++)
        status = add_reserved(s, id);
    return status;
}

static mx_status add_texts(mx_source *s, const metal *m) {
    mx_status status = MX_OK;
    size_t at = 0;
    for (uint32_t id = 0; id < m->texts && status == MX_OK; id++) {
        size_t size = m->text_size - at >= 2 ? mx_load_u16(m->text + at) : 0, offset = s->text.size;
        if (size < 1 || size > LONGEST_TOKEN || size > m->text_size - at - 2)
            return mx_fail(s->error, MX_INVALID_FILE,
                           "%s: text token %u has %zu bytes, expected 1 to %d and no more than the %zu that are left",
                           s->path, id, size, LONGEST_TOKEN, m->text_size - at);
        if (!mx_bytes_add(&s->text, m->text + at + 2, size))
            return mx_fail(s->error, MX_NO_MEMORY, "%s: no memory for the vocabulary", s->path);
        status = mx_source_add_token(s, id, offset, true);
        at += 2 + size;
    }
    if (status != MX_OK || at == m->text_size) return status;
    return mx_fail(s->error, MX_INVALID_FILE, "%s: %u text tokens have %zu bytes, expected %u", s->path, m->texts, at,
                   m->text_size);
}

mx_status mx_vocabulary_from_metal(const char *path, const uint8_t *data, size_t size, mx_vocabulary *out,
                                   mx_error *error) {
    *out = (mx_vocabulary){0};
    metal m = {0};
    mx_source s;
    mx_status status = read_sizes(path, data, size, &m, error);
    if (status != MX_OK) return status;
    mx_source_begin(&s, path, "text tokens", NULL, error);
    s.ignore_merges = true;
    size_t pattern = m.pattern_size ? strnlen((const char *)m.pattern, m.pattern_size) : 0;
    if (!pattern || pattern + 1 != m.pattern_size)
        status = mx_fail(error, MX_INVALID_FILE, "%s: the split pattern is not %u bytes and a zero", path,
                         m.pattern_size ? m.pattern_size - 1 : 0);
    else if (!mx_bytes_add(&s.pattern, m.pattern, pattern))
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for the split pattern", path);
    if (status == MX_OK) status = add_texts(&s, &m);
    if (status == MX_OK) status = add_specials(&s, &m);
    if (status == MX_OK) status = mx_vocabulary_build(&s, out);
    mx_source_free(&s);
    return status;
}

size_t mx_metal_tokenizer(const uint8_t *data, size_t size, const uint8_t **out) {
    metal m = {0};
    if (read_sizes("", data, size, &m, NULL) != MX_OK) return 0;
    *out = data + TOKENIZER_AT;
    return m.end - TOKENIZER_AT;
}
