/* The streaming parser: what all modes share, and the two modes that answer as the library does, token by token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tokenizer/harmony_parser.h"

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/* ---- shared ------------------------------------------------------------------------------------------------------ */
const char *mx_harmony_role(const char *text, size_t size, bool any_case) {
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        if (strlen(roles[i]) != size) continue;
        if ((any_case ? strncasecmp(roles[i], text, size) : memcmp(roles[i], text, size)) == 0) return roles[i];
    }
    return NULL;
}

mx_status mx_harmony_check_ids(const mx_harmony_ids *ids, mx_error *error) {
    const struct {
        const char *name;
        int32_t id;
    } needed[] = {{"<|start|>", ids->start},        {"<|message|>", ids->message},
                  {"<|channel|>", ids->channel},    {"<|end|>", ids->end},
                  {"<|return|>", ids->return_},     {"<|call|>", ids->call},
                  {"<|constrain|>", ids->constrain}};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (needed[i].id < 0)
            return mx_fail(error, MX_UNSUPPORTED, "the tokenizer has no token %s, so it is none of the harmony format",
                           needed[i].name);
    return MX_OK;
}

mx_status mx_parser_no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "harmony: out of memory");
}

bool mx_parser_set(const char **field, const char *text, size_t size) {
    char *copy = malloc(size + 1);
    if (!copy) return false;
    if (size) memcpy(copy, text, size);
    copy[size] = 0;
    free((char *)*field);
    *field = copy;
    return true;
}

static void free_message(mx_harmony_message *m) {
    free((char *)m->role);
    free((char *)m->name);
    free((char *)m->channel);
    free((char *)m->recipient);
    free((char *)m->content_type);
    mx_bytes_free(&m->content);
    *m = (mx_harmony_message){0};
}

mx_status mx_parser_finish(mx_harmony_parser *p, int64_t last, mx_error *error) {
    if (p->count == p->capacity) {
        int capacity = p->capacity ? p->capacity * 2 : 8;
        mx_harmony_message *more = realloc(p->messages, (size_t)capacity * sizeof *more);
        if (!more) return mx_parser_no_memory(error);
        p->messages = more;
        p->capacity = capacity;
    }
    p->current.first_id = p->first;
    p->current.last_id = p->first = last;
    p->messages[p->count++] = p->current;
    p->current = (mx_harmony_message){0};
    p->state = MX_BETWEEN;
    p->hint = NULL;
    return MX_OK;
}

/* ---- the library's header grammar -------------------------------------------------------------------------------- */
static const char channel_mark[] = "<|channel|>", constrain_mark[] = "<|constrain|>";

static bool is_ascii_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\f' || c == '\r';
}

/* Bytes of the character with the White_Space property at the start of valid UTF-8, 0 where there is none. */
static size_t space_length(const char *text, size_t size) {
    const unsigned char *p = (const unsigned char *)text;
    if (!size) return 0;
    if (p[0] == ' ' || (p[0] >= 9 && p[0] <= 13)) return 1;
    if (p[0] == 0xC2 && size >= 2) return p[1] == 0x85 || p[1] == 0xA0 ? 2 : 0;
    if (size < 3) return 0;
    uint32_t c = (uint32_t)(p[0] & 15) << 12 | (uint32_t)(p[1] & 63) << 6 | (p[2] & 63);
    if (p[0] < 0xE1 || p[0] > 0xE3) return 0;
    return c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
                   c == 0x3000
               ? 3
               : 0;
}

typedef struct word {
    const char *text;
    size_t size;
} word;

typedef struct header_words {
    mx_text text; /* the header without its channel */
    word *list;
    size_t count, next;
} header_words;

static bool word_is(word w, const char *text) {
    return w.size == strlen(text) && !memcmp(w.text, text, w.size);
}
static bool has_prefix(word w, const char *text) {
    return w.size >= strlen(text) && !memcmp(w.text, text, strlen(text));
}

static bool all_valid_utf8(const char *text, size_t size) {
    while (size) {
        int n = mx_utf8_length(text, size);
        if (n <= 0) return false;
        text += n;
        size -= (size_t)n;
    }
    return true;
}

/* Cuts the first <|channel|> and its value out of the header; what remains goes to `out`. */
static mx_status cut_channel(mx_harmony_parser *p, const mx_bytes *header, mx_text *out, mx_error *error) {
    if (!header->size) return MX_OK;
    const char *end = header->data + header->size;
    const char *mark = memmem(header->data, header->size, channel_mark, strlen(channel_mark));
    if (!mark) {
        mx_text_add(out, header->data, header->size);
        return out->failed ? mx_parser_no_memory(error) : MX_OK;
    }
    const char *value = mark + strlen(channel_mark), *stop = value;
    while (stop < end && *stop != '<' && !space_length(stop, (size_t)(end - stop))) stop++;
    if (stop == value) return mx_fail(error, MX_INVALID_FILE, "the header has <|channel|> without a channel name");
    mx_text_add(out, header->data, (size_t)(mark - header->data));
    mx_text_add(out, stop, (size_t)(end - stop));
    if (out->failed || !mx_parser_set(&p->current.channel, value, (size_t)(stop - value)))
        return mx_parser_no_memory(error);
    return MX_OK;
}

/* Words between ASCII white space; <|constrain|> always begins a word. White space of any kind at both ends goes. */
static mx_status split_words(header_words *w, mx_error *error) {
    if (!w->text.bytes.size) return MX_OK;
    const char *p = w->text.bytes.data, *end = p + w->text.bytes.size;
    for (size_t n; (n = space_length(p, (size_t)(end - p)));) p += n;
    for (bool more = true; more;) {
        more = false;
        for (size_t n = 1; n <= 3 && (size_t)(end - p) >= n; n++)
            if (space_length(end - n, n) == n) {
                end -= n;
                more = true;
                break;
            }
    }
    w->list = malloc(((size_t)(end - p) + 1) * sizeof *w->list);
    if (!w->list) return mx_parser_no_memory(error);
    while (p < end) {
        if (is_ascii_space(*p)) {
            p++;
            continue;
        }
        const char *begin = p++;
        while (p < end && !is_ascii_space(*p) && !has_prefix((word){p, (size_t)(end - p)}, constrain_mark)) p++;
        w->list[w->count++] = (word){begin, (size_t)(p - begin)};
    }
    return MX_OK;
}

/* The role of the message, from the hint or the first word; a tool's name. Words that are used up are skipped. */
static mx_status read_role(mx_harmony_parser *p, header_words *w, mx_error *error) {
    const char *role = p->hint;
    word name = {0};
    if (!role) {
        if (!w->count) return mx_fail(error, MX_INVALID_FILE, "the header has no role");
        name = w->list[0];
        role = mx_harmony_role(name.text, name.size, false);
        if (!role && w->count == 1 && !has_prefix(name, "to="))
            return mx_fail(error, MX_INVALID_FILE, "unknown role \"%.*s\"", name.size < 80 ? (int)name.size : 80,
                           name.text);
        if (!role) {
            role = "tool";
            w->next = 1;
        }
    }
    if (w->next < w->count && word_is(w->list[w->next], role)) w->next++;
    if (!mx_parser_set(&p->current.role, role, strlen(role))) return mx_parser_no_memory(error);
    if (name.text && strcmp(role, "tool") == 0 && !mx_parser_set(&p->current.name, name.text, name.size))
        return mx_parser_no_memory(error);
    return MX_OK;
}

static mx_status set_recipient(mx_harmony_parser *p, word w, mx_error *error) {
    size_t skip = has_prefix(w, "to=") ? 3 : 0;
    return mx_parser_set(&p->current.recipient, w.text + skip, w.size - skip) ? MX_OK : mx_parser_no_memory(error);
}

/* The words behind the role: one is the recipient; of two the last is the content type unless it begins with to=. */
static mx_status read_recipient_and_type(mx_harmony_parser *p, header_words *w, mx_error *error) {
    size_t left = w->count - w->next;
    if (!left) return MX_OK;
    word last = w->list[w->count - 1];
    size_t used = 1;
    mx_status s;
    if (left == 1 || has_prefix(last, "to=")) {
        s = set_recipient(p, last, error);
    } else {
        if (!mx_parser_set(&p->current.content_type, last.text, last.size)) return mx_parser_no_memory(error);
        s = set_recipient(p, w->list[w->count - 2], error);
        used = 2;
    }
    if (s != MX_OK || used == left) return s;
    word extra = w->list[w->next];
    return mx_fail(error, MX_INVALID_FILE,
                   "the header has more than a role, a recipient, a channel and a type: \"%.*s\"",
                   extra.size < 80 ? (int)extra.size : 80, extra.text);
}

/* The words behind the role become the content, one space between them. */
static mx_status read_words_as_content(mx_harmony_parser *p, header_words *w, mx_error *error) {
    for (size_t i = w->next; i < w->count; i++) {
        if (i > w->next && !mx_bytes_add(&p->current.content, " ", 1)) return mx_parser_no_memory(error);
        if (!mx_bytes_add(&p->current.content, w->list[i].text, w->list[i].size)) return mx_parser_no_memory(error);
    }
    return MX_OK;
}

static mx_status read_header(mx_harmony_parser *p, bool as_content, mx_error *error) {
    header_words w = {0};
    if (p->header.failed) return mx_parser_no_memory(error);
    if (p->header_unknown || !all_valid_utf8(p->header.bytes.data, p->header.bytes.size))
        return mx_fail(error, MX_INVALID_FILE, "the header is no valid text");
    mx_status s = cut_channel(p, &p->header.bytes, &w.text, error);
    if (s == MX_OK) s = split_words(&w, error);
    if (s == MX_OK) s = read_role(p, &w, error);
    if (s == MX_OK) s = as_content ? read_words_as_content(p, &w, error) : read_recipient_and_type(p, &w, error);
    free(w.list);
    mx_bytes_free(&w.text.bytes);
    return s;
}

/* The bytes of a token as the library spells them. It names nine special tokens and calls all others reserved, whatever
 * tokenizer.json says (<|endofprompt|>). */
static const char *library_bytes(mx_harmony_parser *p, int32_t id, size_t *size) {
    const mx_harmony_ids *f = &p->format;
    const int32_t named[] = {f->startoftext, f->endoftext, f->return_, f->constrain, f->channel,
                             f->start,       f->end,       f->message, f->call};
    if (!mx_is_special(p->tokenizer, id)) return mx_token_bytes(p->tokenizer, id, size);
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (id == named[i]) return mx_token_bytes(p->tokenizer, id, size);
    *size = (size_t)snprintf(p->reserved, sizeof p->reserved, "<|reserved_%d|>", (int)id);
    return p->reserved;
}

/* ---- the library's steps ----------------------------------------------------------------------------------------- */
static mx_status push_between(mx_harmony_parser *p, int32_t id, mx_error *error) {
    if (id != p->format.start)
        return mx_fail(error, MX_INVALID_FILE, "token %d where a message should begin with <|start|> (%d)", id,
                       p->format.start);
    p->state = MX_HEADER;
    mx_bytes_clear(&p->header.bytes);
    p->header_unknown = false;
    return MX_OK;
}

static mx_status push_header(mx_harmony_parser *p, int32_t id, mx_error *error) {
    mx_status s = MX_OK;
    size_t size;
    if (id == p->format.message) {
        s = read_header(p, false, error);
        p->state = MX_CONTENT;
    } else if (p->mode == MX_HARMONY_NOT_STRICT && mx_parser_is_stop(p, id)) {
        /* A message without <|message|>. Only the prompt's own header says enough to make one. */
        p->state = MX_BETWEEN;
        if (p->hint && p->position - 1 > p->first) {
            s = read_header(p, true, error);
            if (s == MX_OK) s = mx_parser_finish(p, p->position, error);
        }
        p->hint = NULL;
    } else {
        const char *bytes = library_bytes(p, id, &size);
        if (bytes)
            mx_text_add(&p->header, bytes, size);
        else
            p->header_unknown = true;
        if (p->header.failed) s = mx_parser_no_memory(error);
    }
    return s;
}

/* The content's text so far: all whole characters, and at most one U+FFFD; what stands behind that waits for the next
 * token. */
static bool decode(mx_harmony_parser *p) {
    mx_bytes *in = &p->undecoded;
    size_t good = 0, bad = 0;
    int n = 0;
    while (good < in->size && (n = mx_utf8_length(in->data + good, in->size - good)) > 0) good += (size_t)n;
    if (!mx_bytes_add(&p->delta, in->data, good)) return false;
    if (good < in->size && n == 0) {
        bad = 1;
        while (good + bad < in->size && mx_utf8_length(in->data + good, bad + 1) < 0) bad++;
        if (!mx_bytes_add_string(&p->delta, replacement)) return false;
    }
    in->size -= good + bad;
    memmove(in->data, in->data + good + bad, in->size);
    return mx_bytes_add(&p->current.content, p->delta.data, p->delta.size);
}

static mx_status finish_content(mx_harmony_parser *p, mx_error *error) {
    mx_bytes *content = &p->current.content;
    if ((p->swallowing && !mx_bytes_add_string(content, replacement)) ||
        !mx_bytes_add_lossy(content, p->undecoded.data, p->undecoded.size))
        return mx_parser_no_memory(error);
    mx_bytes_clear(&p->undecoded);
    p->swallowing = false;
    return mx_parser_finish(p, p->position, error);
}

static mx_status push_content(mx_harmony_parser *p, int32_t id, mx_error *error) {
    size_t size;
    if (mx_parser_is_stop(p, id)) return finish_content(p, error);
    const char *bytes = library_bytes(p, id, &size);
    if (!bytes) p->swallowing = true;
    if (p->swallowing) return MX_OK;
    if (!mx_bytes_add(&p->undecoded, bytes, size) || !decode(p)) return mx_parser_no_memory(error);
    return MX_OK;
}

static mx_status library_push(mx_harmony_parser *p, int32_t id, mx_error *error) {
    switch (p->state) {
    case MX_BETWEEN:
        return push_between(p, id, error);
    case MX_HEADER:
        return push_header(p, id, error);
    case MX_CONTENT:
        break;
    }
    return push_content(p, id, error);
}

static mx_status library_end(mx_harmony_parser *p, mx_error *error) {
    if (p->state == MX_HEADER)
        return mx_fail(error, MX_INVALID_FILE, "the text ends in a message header, before <|message|>");
    return p->state == MX_CONTENT ? finish_content(p, error) : MX_OK;
}

/* ---- public ------------------------------------------------------------------------------------------------------ */
mx_status mx_harmony_parser_create(const mx_tokenizer *t, mx_harmony_mode mode, const char *role,
                                   mx_harmony_parser **out, mx_error *error) {
    *out = NULL;
    mx_harmony_ids format = mx_tokenizer_harmony_ids(t);
    mx_status s = mx_harmony_check_ids(&format, error);
    if (s != MX_OK) return s;
    const char *hint = role ? mx_harmony_role(role, strlen(role), false) : NULL;
    if (role && !hint)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "the role is \"%.40s\", expected system, developer, user, assistant or tool", role);
    mx_harmony_parser *p = calloc(1, sizeof *p);
    if (!p) return mx_parser_no_memory(error);
    p->tokenizer = t;
    p->format = format;
    p->mode = mode;
    p->hint = hint;
    p->state = hint ? MX_HEADER : MX_BETWEEN;
    *out = p;
    return MX_OK;
}

void mx_harmony_parser_free(mx_harmony_parser *p) {
    if (!p) return;
    for (int i = 0; i < p->count; i++) free_message(&p->messages[i]);
    free(p->messages);
    free_message(&p->current);
    mx_bytes_free(&p->header.bytes);
    mx_bytes_free(&p->undecoded);
    mx_bytes_free(&p->delta);
    free(p);
}

/* Common frame of push and end: the delta of what the step did. */
static mx_status step(mx_harmony_parser *p, bool end, int32_t id, mx_harmony_delta *delta, mx_error *error) {
    *delta = (mx_harmony_delta){0};
    if (p->failed) return mx_fail(error, MX_INVALID_STATE, "harmony: the parser has failed before");
    mx_bytes_clear(&p->delta);
    p->position += !end;
    bool lenient = p->mode == MX_HARMONY_LENIENT;
    mx_status s = end       ? lenient ? mx_lenient_end(p, error) : library_end(p, error)
                        : lenient ? mx_lenient_push(p, id, error)
                            : library_push(p, id, error);
    if (s != MX_OK) {
        p->failed = true;
        return s;
    }
    if (lenient && p->delta.size) {
        *delta = p->delta_owner;
    } else if (p->state == MX_CONTENT) {
        *delta = (mx_harmony_delta){p->current.role, p->current.channel, p->current.recipient, NULL, 0};
    } else {
        delta->role = p->hint;
    }
    if (p->delta.size) {
        delta->text = p->delta.data;
        delta->text_size = p->delta.size;
    }
    return MX_OK;
}

mx_status mx_harmony_push(mx_harmony_parser *p, int32_t id, mx_harmony_delta *delta, mx_error *error) {
    return step(p, false, id, delta, error);
}

mx_status mx_harmony_end(mx_harmony_parser *p, mx_harmony_delta *delta, mx_error *error) {
    return step(p, true, -1, delta, error);
}

int mx_harmony_message_count(const mx_harmony_parser *p) {
    return p->count;
}

const mx_harmony_message *mx_harmony_message_at(const mx_harmony_parser *p, int index) {
    return index >= 0 && index < p->count ? &p->messages[index] : NULL;
}
