/* The lenient mode: what users get. Every token is either part of the format and understood as such, or its text is
 * delivered as content; nothing fails.
 *
 * A header is a role, then in any order <|channel|> NAME, to=NAME, <|constrain|>NAME and at most one bare word. Once
 * it holds something else it is content whose <|message|> was left out: it begins at the first word that is no header,
 * and is delivered at once, so that malformed answers stream like others. Text outside every header is an assistant's
 * on the channel "final": it must not be hidden. Inside content, <|start|> and <|channel|> end the message (its own
 * end token was left out); other special tokens are spelled out. */
#include <string.h>

#include "tokenizer/harmony_parser.h"

static const char assistant[] = "assistant";

typedef struct scan {
    const char *role;                               /* a constant, or NULL: not said */
    mx_span name, channel, recipient, content_type; /* where size() > 0 */
    bool has_channel, has_recipient, has_type;
    bool wants_recipient; /* "to=" stands at the end of its word, which begins at `to` */
    size_t to;
} scan;

/* A header's text taken apart. */
typedef struct header {
    scan fields;
    mx_span bare;      /* the first word that is no header part; empty: there is none */
    int bare_count;    /* 0, 1 or 2 for more */
    bool bare_is_type; /* it could be a content type, a recipient or a channel */
    scan before_bare;  /* the fields in front of it */
    mx_span repeated;  /* the role, where it stands in the text though the hint told it */
    bool malformed;    /* whatever follows */
} header;

static size_t length(mx_span s) {
    return s.end - s.begin;
}

static bool span_is(const mx_harmony_parser *p, mx_span s, const char *text) {
    return length(s) == strlen(text) && memcmp(p->header.bytes.data + s.begin, text, length(s)) == 0;
}

static bool span_begins(const mx_harmony_parser *p, mx_span s, const char *text) {
    return length(s) >= strlen(text) && memcmp(p->header.bytes.data + s.begin, text, strlen(text)) == 0;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("_-.:/+", c));
}

/* The run of name characters at `begin`, within `end`. */
static mx_span name_at(const mx_harmony_parser *p, size_t begin, size_t end) {
    mx_span s = {begin, begin};
    while (s.end < end && is_name_char(p->header.bytes.data[s.end])) s.end++;
    return s;
}

static bool is_name(const mx_harmony_parser *p, mx_span s) {
    return length(s) && length(s) <= 64 && name_at(p, s.begin, s.end).end == s.end;
}

static const char *const channels[] = {"analysis", "commentary", "final"};

static bool known_channel(const mx_harmony_parser *p, mx_span s) {
    for (int i = 0; i < 3; i++)
        if (span_is(p, s, channels[i])) return true;
    return false;
}

static bool is_tool_name(const mx_harmony_parser *p, mx_span s) {
    return is_name(p, s) && (memchr(p->header.bytes.data + s.begin, '.', length(s)) || span_is(p, s, "python") ||
                             span_is(p, s, "browser"));
}

/* ---- reading a header -------------------------------------------------------------------------------------------- */
static void add_bare(const mx_harmony_parser *p, header *h, mx_span word, bool may_be_type) {
    if (h->bare_count++ == 0) {
        h->bare = word;
        h->bare_is_type = may_be_type && is_name(p, word);
        h->before_bare = h->fields;
        if (is_name(p, word)) return;
    }
    h->malformed = true;
}

/* The first word where no hint tells the role. False: it is no role. */
static bool read_role(const mx_harmony_parser *p, header *h, mx_span word, bool to_follows) {
    const char *text = p->header.bytes.data + word.begin;
    scan *f = &h->fields;
    const char *colon = memchr(text, ':', length(word));
    size_t size = colon ? (size_t)(colon - text) : length(word);
    f->role = mx_harmony_role(text, size, true);
    if (colon) f->name = (mx_span){word.begin + size + 1, word.end};
    if (f->role && (!colon || is_name(p, f->name))) return true;
    f->role = NULL;
    f->name = (mx_span){0, 0};
    mx_span rest = {word.begin + strlen(assistant), word.end};
    if (span_begins(p, word, assistant) && known_channel(p, rest)) { /* <|channel|> left out */
        f->role = assistant;
        f->channel = rest;
        f->has_channel = true;
        return true;
    }
    if (!is_tool_name(p, word) && !(to_follows && is_name(p, word))) return false;
    f->role = "tool";
    f->name = word;
    return true;
}

static bool to_follows(const mx_harmony_parser *p, size_t pos) {
    const mx_bytes *b = &p->header.bytes;
    while (pos < b->size && is_space(b->data[pos])) pos++;
    return b->size - pos >= 3 && memcmp(b->data + pos, "to=", 3) == 0;
}

/* One word of a text run; returns where reading goes on. */
static size_t read_word(const mx_harmony_parser *p, header *h, mx_span word, bool first, bool more) {
    scan *f = &h->fields;
    if (first && !p->hint && read_role(p, h, word, to_follows(p, word.end))) return word.end;
    if (first && p->hint && span_is(p, word, p->hint)) {
        h->repeated = word;
        return word.end;
    }
    if (span_is(p, word, "to=") && !f->has_recipient && !f->wants_recipient) {
        f->wants_recipient = true;
        f->to = word.begin;
        return word.end;
    }
    if (f->wants_recipient || (span_begins(p, word, "to=") && !f->has_recipient)) {
        mx_span name = name_at(p, word.begin + (f->wants_recipient ? 0 : 3), word.end);
        if (f->wants_recipient) word.begin = f->to;
        f->wants_recipient = false;
        if (length(name) && length(name) <= 256) {
            f->recipient = name;
            f->has_recipient = true;
            return name.end;
        }
    }
    if (more && word.end == p->header.bytes.size && (span_is(p, word, "t") || span_is(p, word, "to")))
        return word.end; /* perhaps the beginning of to= */
    add_bare(p, h, word, !(first && !p->hint));
    return word.end;
}

/* The words of a text run from `pos` on. */
static void read_words(const mx_harmony_parser *p, header *h, size_t pos, size_t end, bool first, bool more) {
    while (pos < end && !h->malformed) {
        if (is_space(p->header.bytes.data[pos])) {
            pos++;
            continue;
        }
        mx_span word = {pos, pos};
        while (word.end < end && !is_space(p->header.bytes.data[word.end])) word.end++;
        pos = read_word(p, h, word, first, more);
        first = false;
    }
}

/* <|channel|> or <|constrain|> and the name behind it, which ends before `end`; returns the end of the name. */
static size_t read_marked(const mx_harmony_parser *p, header *h, const mx_header_item *mark, size_t end) {
    size_t pos = mark->span.end;
    if (mark->kind == MX_ITEM_CONSTRAIN) {
        mx_span name = name_at(p, pos, end);
        h->fields.content_type = (mx_span){mark->span.begin, name.end};
        h->fields.has_type = true;
        return name.end;
    }
    while (pos < end && is_space(p->header.bytes.data[pos])) pos++;
    h->fields.channel = name_at(p, pos, end);
    h->fields.has_channel = true;
    return h->fields.channel.end;
}

/* `more`: the header may go on. */
static void read_header(const mx_harmony_parser *p, bool more, header *h) {
    *h = (header){.fields = {.role = p->hint}};
    for (int i = 0; i < p->item_count && !h->malformed; i++) {
        const mx_header_item *item = &p->items[i];
        if (item->kind == MX_ITEM_TEXT) {
            read_words(p, h, item->span.begin, item->span.end, i == 0, more);
        } else if (item->kind == MX_ITEM_CONSTRAIN && h->fields.has_type) {
            add_bare(p, h, item->span, false);
        } else {
            bool text_follows = i + 1 < p->item_count && item[1].kind == MX_ITEM_TEXT;
            size_t end = text_follows ? item[1].span.end : item->span.end;
            read_words(p, h, read_marked(p, h, item, end), end, false, more);
            i += text_follows;
        }
    }
    if (p->header.bytes.size > 512 || p->item_count == MX_HEADER_ITEMS) h->malformed = true;
}

/* json or code at the start of text that lacks <|message|>: the type of a tool call. */
static mx_span call_type(const mx_harmony_parser *p, mx_span text) {
    mx_span s = name_at(p, text.begin, text.end);
    if (!span_is(p, s, "json") && !span_is(p, s, "code")) s.end = s.begin;
    return s;
}

/* Decides what is header and where content begins; `complete`: <|message|> came. Returns the offset in the header's
 * text from which on it is content. */
static size_t settle(const mx_harmony_parser *p, header *h, bool complete) {
    size_t size = p->header.bytes.size, content = size;
    scan *f = &h->fields;
    if (complete && h->bare_count == 1 && h->bare_is_type) {
        if (!f->has_channel && known_channel(p, h->bare)) {
            f->channel = h->bare;
            f->has_channel = true;
            return size;
        }
        if (!f->has_recipient && is_tool_name(p, h->bare)) {
            f->recipient = h->bare;
            f->has_recipient = true;
            return size;
        }
        if (!f->has_type) {
            f->content_type = h->bare;
            f->has_type = true;
            return size;
        }
    }
    if (h->bare_count) {
        *f = h->before_bare;
        content = h->bare.begin;
        if (length(h->repeated) && !f->has_channel && !f->has_recipient && !f->has_type) content = h->repeated.begin;
    } else if (complete && length(f->channel) <= 64) {
        return size;
    }
    static const char constrain[] = "<|constrain|>";
    if (f->has_type && span_begins(p, f->content_type, constrain)) {
        mx_span name = {f->content_type.begin + strlen(constrain), f->content_type.end};
        if (length(name) && !length(call_type(p, name))) {
            f->content_type.end = content = name.begin;
        }
    } else if (f->has_recipient && !f->has_type && content < size) {
        mx_span type = call_type(p, (mx_span){content, size});
        if (length(type)) {
            f->content_type = type;
            f->has_type = true;
            content = type.end;
            while (content < size && is_space(p->header.bytes.data[content])) content++;
        }
    }
    if (f->has_channel && length(f->channel) && !known_channel(p, f->channel)) {
        mx_span own = {f->channel.begin, f->channel.begin};
        for (int i = 0; i < 3; i++)
            if (span_begins(p, f->channel, channels[i])) own.end = own.begin + strlen(channels[i]);
        if (f->has_recipient && f->recipient.begin > own.end) f->has_recipient = false;
        if (f->has_type && f->content_type.begin > own.end) f->has_type = false;
        f->channel = own;
        if (own.end < content) content = own.end;
    }
    return content;
}

/* ---- delivering -------------------------------------------------------------------------------------------------- */
/* Adds to the content of the message being read and to the delta. */
static bool deliver(mx_harmony_parser *p, const char *text, size_t size, bool at_end) {
    size_t before = p->delta.size;
    if (size && !mx_utf8_stream_add(&p->utf8, text, size, &p->delta)) return false;
    if (at_end && !mx_utf8_stream_end(&p->utf8, &p->delta)) return false;
    p->delta_owner = (mx_harmony_delta){p->current.role, p->current.channel, p->current.recipient, NULL, 0};
    return p->delta.size == before || mx_bytes_add(&p->current.content, p->delta.data + before, p->delta.size - before);
}

static bool set_span(const mx_harmony_parser *p, const char **field, bool present, mx_span s) {
    return !present || mx_parser_set(field, length(s) ? p->header.bytes.data + s.begin : "", length(s));
}

/* Opens the message of which the header tells and delivers the content that the header already held. */
static mx_status open_content(mx_harmony_parser *p, header *h, bool complete, mx_error *error) {
    size_t content = settle(p, h, complete), left = p->header.bytes.size - content;
    const scan *f = &h->fields;
    mx_harmony_message *m = &p->current;
    const char *role = f->role && strcmp(f->role, assistant) != 0 ? f->role : assistant;
    bool named = f->has_channel && length(f->channel);
    bool ok = mx_parser_set(&m->role, role, strlen(role)) && set_span(p, &m->name, length(f->name) > 0, f->name) &&
              set_span(p, &m->channel, named, f->channel) &&
              set_span(p, &m->recipient, f->has_recipient, f->recipient) &&
              set_span(p, &m->content_type, f->has_type, f->content_type);
    if (ok && !named && (left || !complete) && role == assistant) ok = mx_parser_set(&m->channel, "final", 5);
    p->utf8 = (mx_utf8_stream){0};
    p->state = MX_CONTENT;
    p->guessing = false;
    p->late_message = !complete;
    p->hint = NULL;
    if (ok) ok = deliver(p, left ? p->header.bytes.data + content : "", left, false);
    return ok ? MX_OK : mx_parser_no_memory(error);
}

static mx_status close_content(mx_harmony_parser *p, int64_t last, mx_error *error) {
    if (!deliver(p, "", 0, true)) return mx_parser_no_memory(error);
    return mx_parser_finish(p, last, error);
}

static void begin_header(mx_harmony_parser *p, const char *hint) {
    p->state = MX_HEADER;
    p->hint = hint;
    p->guessing = false;
    p->item_count = 0;
    mx_bytes_clear(&p->header.bytes);
}

/* The header ended without <|message|>: a message if there is anything to tell, else nothing. */
static mx_status close_header(mx_harmony_parser *p, int64_t last, mx_error *error) {
    header h;
    read_header(p, false, &h);
    p->state = MX_BETWEEN;
    const scan *f = &h.fields;
    bool said = f->has_channel || f->has_recipient || f->has_type || length(f->name);
    if (!h.bare_count && !said && length(h.repeated)) add_bare(p, &h, h.repeated, false);
    if (!h.bare_count && !said) {
        p->hint = NULL;
        return MX_OK;
    }
    mx_status s = open_content(p, &h, false, error);
    return s == MX_OK ? close_content(p, last, error) : s;
}

/* ---- text outside every message ---------------------------------------------------------------------------------- */
/* What the text behind an end token is while it may still be the header "assistant" without its <|start|>. */
typedef enum guess { NOTHING, BEGUN_ROLE, ROLE, TEXT } guess;

static guess guess_header(const mx_harmony_parser *p) {
    const mx_bytes *b = &p->header.bytes;
    size_t skip = 0;
    while (skip < b->size && is_space(b->data[skip])) skip++;
    size_t left = b->size - skip;
    if (!left) return b->size > 512 ? TEXT : NOTHING;
    if (left > strlen(assistant) || memcmp(b->data + skip, assistant, left) != 0) return TEXT;
    return left == strlen(assistant) ? ROLE : BEGUN_ROLE;
}

/* All that was held back is content. */
static mx_status open_guessed(mx_harmony_parser *p, mx_error *error) {
    header h = {.bare = {0, p->header.bytes.size}, .bare_count = 1};
    return open_content(p, &h, false, error);
}

static mx_status close_guess(mx_harmony_parser *p, int64_t last, mx_error *error) {
    if (guess_header(p) == NOTHING) {
        p->state = MX_BETWEEN;
        p->guessing = false;
        return MX_OK;
    }
    mx_status s = open_guessed(p, error);
    return s == MX_OK ? close_content(p, last, error) : s;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */
static mx_status add_item(mx_harmony_parser *p, int kind, const char *text, size_t size, mx_error *error) {
    size_t begin = p->header.bytes.size;
    mx_text_add(&p->header, text, size);
    if (p->header.failed) return mx_parser_no_memory(error);
    mx_header_item *last = p->item_count ? &p->items[p->item_count - 1] : NULL;
    if (kind == MX_ITEM_TEXT && last && last->kind == MX_ITEM_TEXT) {
        last->span.end = p->header.bytes.size;
    } else {
        p->items[p->item_count++] = (mx_header_item){kind, {begin, p->header.bytes.size}};
    }
    return MX_OK;
}

/* Adds to the header; content that shows in it begins at once. */
static mx_status add_to_header(mx_harmony_parser *p, int kind, const char *text, size_t size, mx_error *error) {
    header h;
    mx_status s = add_item(p, kind, text, size, error);
    if (s != MX_OK) return s;
    if (p->guessing) return guess_header(p) == TEXT ? open_guessed(p, error) : MX_OK;
    read_header(p, true, &h);
    return h.malformed ? open_content(p, &h, false, error) : MX_OK;
}

/* <|start|>, <|channel|> or an end token at position - 1 ends whatever was being read. */
static mx_status close_any(mx_harmony_parser *p, int64_t last, mx_error *error) {
    switch (p->state) {
    case MX_CONTENT:
        return close_content(p, last, error);
    case MX_HEADER:
        return p->guessing ? close_guess(p, last, error) : close_header(p, last, error);
    case MX_BETWEEN:
        break;
    }
    return MX_OK;
}

static mx_status push_start(mx_harmony_parser *p, mx_error *error) {
    mx_status s = close_any(p, p->position - 1, error);
    begin_header(p, NULL);
    return s;
}

static mx_status push_channel(mx_harmony_parser *p, const char *text, size_t size, mx_error *error) {
    mx_status s = MX_OK;
    header h;
    if (p->state == MX_HEADER && p->guessing) {
        if (guess_header(p) == BEGUN_ROLE) s = close_guess(p, p->position - 1, error);
        begin_header(p, assistant);
    } else if (p->state == MX_HEADER) {
        read_header(p, false, &h);
        bool words = h.bare_count && (h.bare_count > 1 || !is_tool_name(p, h.bare));
        bool other = h.fields.has_channel && length(h.fields.channel) && !known_channel(p, h.fields.channel);
        if (words || other) {
            const char *role = h.fields.role ? h.fields.role : assistant;
            s = close_header(p, p->position - 1, error);
            begin_header(p, role);
        }
    } else {
        const char *role =
            p->state == MX_CONTENT ? mx_harmony_role(p->current.role, strlen(p->current.role), false) : assistant;
        s = close_any(p, p->position - 1, error);
        begin_header(p, role);
    }
    return s == MX_OK ? add_to_header(p, MX_ITEM_CHANNEL, text, size, error) : s;
}

static mx_status push_message(mx_harmony_parser *p, mx_error *error) {
    header h;
    if (p->state == MX_BETWEEN || (p->guessing && guess_header(p) != BEGUN_ROLE)) begin_header(p, assistant);
    if (p->guessing) {
        mx_status s = open_guessed(p, error);
        p->late_message = false;
        return s;
    }
    read_header(p, false, &h);
    return open_content(p, &h, true, error);
}

static mx_status push_text(mx_harmony_parser *p, int kind, const char *text, size_t size, mx_error *error) {
    if (p->state == MX_CONTENT) return deliver(p, text, size, false) ? MX_OK : mx_parser_no_memory(error);
    if (p->state == MX_BETWEEN) {
        begin_header(p, NULL);
        p->guessing = true;
    }
    return add_to_header(p, kind, text, size, error);
}

mx_status mx_lenient_push(mx_harmony_parser *p, int32_t id, mx_error *error) {
    size_t size = 0;
    const char *text = id < 0 ? NULL : mx_token_bytes(p->tokenizer, id, &size);
    if (!text) return push_text(p, MX_ITEM_TEXT, "\xEF\xBF\xBD", 3, error); /* U+FFFD */
    if (id == p->format.start) return push_start(p, error);
    if (id == p->format.channel) return push_channel(p, text, size, error);
    if (mx_parser_is_stop(p, id) || id == p->format.endoftext) return close_any(p, p->position, error);
    if (id == p->format.message && (p->state != MX_CONTENT || p->late_message)) {
        if (p->state != MX_CONTENT) return push_message(p, error);
        p->late_message = false;
        return MX_OK;
    }
    if (id == p->format.startoftext && p->state != MX_CONTENT) return MX_OK;
    return push_text(p, id == p->format.constrain ? MX_ITEM_CONSTRAIN : MX_ITEM_TEXT, text, size, error);
}

mx_status mx_lenient_end(mx_harmony_parser *p, mx_error *error) {
    return close_any(p, p->position, error);
}
