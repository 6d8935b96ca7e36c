#ifndef MX_HARMONY_PARSER_H
#define MX_HARMONY_PARSER_H

#include "tokenizer/harmony.h"
#include "tokenizer/harmony_private.h"

/* A piece of a header's text: bytes [begin, end). */
typedef struct mx_span {
    size_t begin, end;
} mx_span;

/* What stands in a header, as the lenient mode keeps it: text runs and format tokens (their names are in the text). */
typedef struct mx_header_item {
    enum { MX_ITEM_TEXT, MX_ITEM_CHANNEL, MX_ITEM_CONSTRAIN } kind;
    mx_span span;
} mx_header_item;

enum { MX_HEADER_ITEMS = 32 };

struct mx_harmony_parser {
    const mx_tokenizer *tokenizer;
    mx_harmony_ids format;
    mx_harmony_mode mode;
    enum { MX_BETWEEN, MX_HEADER, MX_CONTENT } state;
    bool failed;
    const char *hint; /* role of the header being read when its text need not say it, else NULL; a constant */
    int64_t position; /* tokens pushed */
    int64_t first;    /* the first token that belongs to no finished message */

    mx_text header;
    bool header_unknown; /* an id without bytes is in the header (library modes) */
    mx_header_item items[MX_HEADER_ITEMS];
    int item_count;
    bool guessing;     /* text after an end token: a header that lacks <|start|>, or content (lenient) */
    bool late_message; /* content began before its <|message|>, which may still come (lenient) */

    mx_harmony_message current; /* its strings are owned; content grows here */
    mx_bytes undecoded;         /* bytes of the content that are no whole character yet (library modes) */
    char reserved[32];          /* the name of a reserved token (library modes) */
    bool swallowing;            /* after an id without bytes (library modes) */
    mx_utf8_stream utf8;        /* lenient */

    mx_bytes delta;               /* the text of the last delta */
    mx_harmony_delta delta_owner; /* role, channel and recipient of that text (lenient) */

    mx_harmony_message *messages;
    int count, capacity;
};

static inline bool mx_parser_is_stop(const mx_harmony_parser *p, int32_t id) {
    return id == p->format.end || id == p->format.return_ || id == p->format.call;
}

/* An owned copy in one of current's fields; false when memory is out. */
bool mx_parser_set(const char **field, const char *text, size_t size);

/* Moves `current` to the finished messages; it was made of the tokens before `last`. */
mx_status mx_parser_finish(mx_harmony_parser *p, int64_t last, mx_error *error);

mx_status mx_parser_no_memory(mx_error *error);

/* harmony_lenient.c */
mx_status mx_lenient_push(mx_harmony_parser *p, int32_t id, mx_error *error);
mx_status mx_lenient_end(mx_harmony_parser *p, mx_error *error);

#endif
