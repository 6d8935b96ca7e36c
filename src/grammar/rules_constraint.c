/* The rules of an answer as a constraint: it follows the tokens of one answer from behind <|start|>assistant, header by
 * header and message by message, and says which may come next.
 *
 *     thinking             any text, then <|end|>; where the answer must come to its point, once
 *     before a call        any text, then <|end|>
 *     a call               text of the tool's grammar, then <|call|>
 *     the final message    text of the grammar, then a token that ends answers
 *
 * Headers are harmony's: [" to=" functions.NAME] <|channel|> NAME [" to=" functions.NAME] [type] <|message|>, with
 * type: " json", or <|constrain|> json with or without a space before it. */
#include <stdlib.h>
#include <string.h>

#include "grammar/rules_private.h"

typedef enum part {
    HEADER_ROLE, /* words of a header, in the order of mx_header_place */
    HEADER_TO,
    HEADER_FIRST,
    HEADER_LATER,
    HEADER_CALL,
    HEADER_CONSTRAIN,
    BETWEEN, /* behind <|end|>: only <|start|> */
    THINKING,
    PREAMBLE,
    CALL,
    FINAL,
    OVER
} part;

enum { ENDERS = 64 };  /* a checkpoint names two or three */
enum { WORDS = 1024 }; /* bytes between two format tokens of a header; names are far shorter */

/* Where an answer is; everything but its matcher. */
typedef struct state {
    part part;
    bool thought;   /* a message of thinking has ended */
    bool recipient; /* of the header's message: `tool` */
    int tool;
    char words[WORDS]; /* of this part of the header */
    size_t size;
} state;

typedef struct follower {
    mx_rules *rules;
    const mx_tokenizer *tokenizer;
    mx_vocabulary *vocabulary;
    const mx_ids *stop;
    mx_harmony_ids special;
    state at;
    mx_matcher *matcher; /* of this part's text; NULL: free text, or none */
    mx_ids tokens;       /* accepted ones */
    int64_t begun;       /* so many of them before this part */
} follower;

static bool is_header(part p) {
    return p <= HEADER_CONSTRAIN;
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */
static mx_grammar *grammar_of(const follower *f, part p) {
    if (is_header(p)) return f->rules->headers->at[p];
    if (p == CALL) return f->rules->tools[f->at.tool].arguments;
    return p == FINAL ? f->rules->text : NULL;
}

/* false: no memory, and nothing changed. */
static bool enter(follower *f, part p) {
    mx_matcher *matcher = NULL;
    mx_grammar *grammar = grammar_of(f, p);
    if (grammar && mx_matcher_create(grammar, f->vocabulary, &matcher, NULL)) return false;
    mx_matcher_free(f->matcher);
    f->matcher = matcher;
    f->at.part = p;
    f->at.size = 0;
    f->begun = f->tokens.count + 1; /* the token that led here is counted next */
    return true;
}

static bool is_stop(const follower *f, int32_t token) {
    for (int64_t i = 0; i < f->stop->count; i++)
        if (f->stop->data[i] == token) return true;
    return false;
}

/* The tokens that end this answer. Of a text all stop tokens but that of calls; without any, <|end|>. Of a call
 * <|call|>, where the vocabulary has it, else what ends a text. */
static int enders(const follower *f, int32_t out[static ENDERS]) {
    int n = 0;
    const bool call = f->at.part == CALL;
    if (call && f->special.call >= 0) {
        out[n++] = f->special.call;
        return n;
    }
    for (int64_t i = 0; i < f->stop->count && n < ENDERS; i++)
        if (f->stop->data[i] >= 0 && f->stop->data[i] != f->special.call) out[n++] = f->stop->data[i];
    if (!n && f->special.end >= 0) out[n++] = f->special.end;
    return n;
}

static bool ends_answer(const follower *f, int32_t token) {
    int32_t end[ENDERS];
    for (int n = enders(f, end); n > 0; n--)
        if (end[n - 1] == token) return true;
    return false;
}

/* Is the text whole as it stands? */
static bool is_whole(const follower *f) {
    return !f->matcher || mx_matcher_can_end(f->matcher);
}

/* ---- headers ----------------------------------------------------------------------------------------------------- */
static bool begins(const state *s, const char *word) {
    return s->size >= strlen(word) && !memcmp(s->words, word, strlen(word));
}

/* The tool that the words are to, or -1. */
static int find_tool(const follower *f) {
    const state *s = &f->at;
    const char *to = memmem(s->words, s->size, MX_RECIPIENT, sizeof MX_RECIPIENT - 1);
    if (!to) return -1;
    const char *name = to + sizeof MX_RECIPIENT - 1, *end = s->words + s->size;
    size_t size = 0;
    while (name + size < end && name[size] != ' ') size++;
    for (int i = 0; i < f->rules->tool_count; i++) {
        const char *have = f->rules->tools[i].name;
        if (strlen(have) == size && !memcmp(have, name, size)) return i;
    }
    return -1;
}

/* Of whole words behind <|channel|>: is a type said already? */
static bool has_type(const state *s) {
    return s->size > 5 && (!memcmp(s->words + s->size - 5, " json", 5) || !memcmp(s->words + s->size - 5, " code", 5));
}

/* Is it thinking, or what is said before a call? Neither has a type. */
static bool is_plain(const follower *f) {
    if (begins(&f->at, "analysis")) return true;
    return begins(&f->at, "commentary") && !f->at.recipient && find_tool(f) < 0;
}

static bool may_open_message(const follower *f) {
    const state *s = &f->at;
    if (s->part == HEADER_CONSTRAIN) return is_whole(f);
    if (s->part < HEADER_FIRST || s->part > HEADER_CALL) return false;
    return f->matcher && is_whole(f) && s->words[s->size - 1] != ' ';
}

static bool may_constrain(const follower *f) {
    const state *s = &f->at;
    if (s->part < HEADER_FIRST || s->part > HEADER_CALL) return false;
    return f->matcher && is_whole(f) && !has_type(s) && !is_plain(f);
}

static bool may_open_channel(const follower *f) {
    if (f->at.part == HEADER_ROLE) return is_whole(f);
    return f->at.part == HEADER_TO && (f->at.size == 0 || is_whole(f));
}

static bool open_channel(follower *f) {
    state *s = &f->at;
    s->recipient = s->size > 0 && (s->tool = find_tool(f)) >= 0;
    return enter(f, s->recipient ? HEADER_CALL : s->thought ? HEADER_LATER : HEADER_FIRST);
}

/* What the words behind <|channel|> say: the recipient, and which part comes when the message opens. */
static part message_part(follower *f) {
    state *s = &f->at;
    if (begins(s, "analysis")) return THINKING;
    if (begins(s, "final")) return FINAL;
    if (!s->recipient) s->recipient = (s->tool = find_tool(f)) >= 0;
    return s->recipient ? CALL : PREAMBLE;
}

/* <|constrain|> stands in the messages that have a type: calls, and the final one. */
static bool constrain(follower *f) {
    const part next = message_part(f);
    const bool final = next == FINAL;
    if (!enter(f, HEADER_CONSTRAIN)) return false;
    if (final) f->at.tool = -1;
    return true;
}

static bool open_message(follower *f) {
    const part next = f->at.part != HEADER_CONSTRAIN ? message_part(f) : f->at.tool < 0 ? FINAL : CALL;
    return enter(f, next);
}

/* ---- accepting --------------------------------------------------------------------------------------------------- */
static bool end_message(follower *f) {
    f->at.thought |= f->at.part == THINKING;
    f->at.recipient = false;
    return enter(f, BETWEEN);
}

/* A token that is no text, within a header or behind a message that the answer goes on from. */
static bool take_special(follower *f, int32_t token) {
    const mx_harmony_ids *h = &f->special;
    const part p = f->at.part;
    if (p == THINKING || p == PREAMBLE) return token == h->end && end_message(f);
    if (p == BETWEEN) return token == h->start && enter(f, HEADER_ROLE);
    if (!is_header(p)) return false;
    if (token == h->channel) return may_open_channel(f) && open_channel(f);
    if (token == h->message) return may_open_message(f) && open_message(f);
    return token == h->constrain && may_constrain(f) && constrain(f);
}

static bool take_words(follower *f, int32_t token, const char *bytes, size_t size) {
    state *s = &f->at;
    if (!f->matcher || s->size + size > sizeof s->words || !mx_matcher_accept_token(f->matcher, token)) return false;
    memcpy(s->words + s->size, bytes, size);
    s->size += size;
    return true;
}

static mx_verdict take_text(follower *f, int32_t token) {
    int32_t end[ENDERS];
    if (is_stop(f, token)) return MX_REJECTED;
    if (!f->matcher) return MX_CONTINUE;
    if (!mx_matcher_accept_token(f->matcher, token)) return MX_REJECTED;
    return mx_matcher_must_end(f->matcher) && !enders(f, end) ? MX_FINISHED : MX_CONTINUE;
}

static mx_verdict take(follower *f, int32_t token) {
    size_t size;
    const char *bytes = mx_token_bytes(f->tokenizer, token, &size);
    const part p = f->at.part;
    if (!bytes || p == OVER) return MX_REJECTED;
    if ((p == CALL || p == FINAL) && ends_answer(f, token))
        return is_whole(f) && enter(f, OVER) ? MX_FINISHED : MX_REJECTED;
    if (mx_is_special(f->tokenizer, token)) return take_special(f, token) ? MX_CONTINUE : MX_REJECTED;
    if (!is_header(p)) return p == BETWEEN ? MX_REJECTED : take_text(f, token);
    return take_words(f, token, bytes, size) ? MX_CONTINUE : MX_REJECTED;
}

static mx_verdict accept(void *user, int32_t token) {
    follower *f = user;
    /* Its place in `tokens` is made first, so that what is accepted can be forgotten again. */
    if (!mx_ids_add(&f->tokens, token)) return MX_REJECTED;
    f->tokens.count--;
    const mx_verdict verdict = take(f, token);
    f->tokens.count += verdict != MX_REJECTED;
    return verdict;
}

/* ---- masks ------------------------------------------------------------------------------------------------------- */
static void allow(uint32_t *bits, int32_t vocab, int32_t token, bool allowed) {
    if (token < 0 || token >= vocab) return;
    bits[token >> 5] &= ~(1u << (token & 31));
    bits[token >> 5] |= (uint32_t)allowed << (token & 31);
}

static void allow_format(const follower *f, uint32_t *bits, int32_t vocab) {
    const mx_harmony_ids *h = &f->special;
    const part p = f->at.part;
    int32_t end[ENDERS];
    if (p == THINKING || p == PREAMBLE) allow(bits, vocab, h->end, true);
    if (p == BETWEEN) allow(bits, vocab, h->start, true);
    if (is_header(p)) {
        if (may_open_channel(f)) allow(bits, vocab, h->channel, true);
        if (may_open_message(f)) allow(bits, vocab, h->message, true);
        if (may_constrain(f)) allow(bits, vocab, h->constrain, true);
    } else if ((p == CALL || p == FINAL) && is_whole(f)) {
        for (int n = enders(f, end); n > 0; n--) allow(bits, vocab, end[n - 1], true);
    }
}

static bool mask(void *user, uint32_t *bits, int32_t vocab) {
    follower *f = user;
    const part p = f->at.part;
    int32_t known;
    const uint32_t *tokens = mx_vocabulary_tokens(f->vocabulary, &known);
    const size_t size = ((size_t)vocab + 31) / 32 * sizeof *bits;
    if (vocab != known || (!f->matcher && (is_header(p) || p == BETWEEN || p == OVER)))
        memset(bits, 0, size); /* with another vocabulary nothing may come: the request fails */
    else if (f->matcher)
        mx_matcher_mask(f->matcher, bits);
    else
        memcpy(bits, tokens, size); /* not what the format is made of, nor ids without a token */
    if (vocab != known) return true;
    for (int64_t i = 0; i < f->stop->count; i++) allow(bits, vocab, f->stop->data[i], false);
    allow_format(f, bits, vocab);
    return true;
}

/* ---- forgetting -------------------------------------------------------------------------------------------------- */
static bool begin(follower *f) {
    f->at = (state){.part = OVER, .tool = -1};
    f->tokens.count = 0;
    const bool begun = enter(f, f->rules->raw ? FINAL : HEADER_TO);
    f->begun = 0;
    return begun;
}

/* Within a part the matcher can do it; else all that is left is followed anew. */
static void rollback(void *user, int count) {
    follower *f = user;
    const int64_t left = count < f->tokens.count ? f->tokens.count - count : 0;
    if (left >= f->begun && (!f->matcher || mx_matcher_rollback(f->matcher, (int)(f->tokens.count - left)))) {
        for (size_t size; f->tokens.count > left;) {
            mx_token_bytes(f->tokenizer, f->tokens.data[--f->tokens.count], &size);
            if (is_header(f->at.part)) f->at.size -= size;
        }
        return;
    }
    if (!begin(f)) return; /* without memory: it stays over, and the request fails */
    for (int64_t i = 0; i < left; i++)
        if (accept(f, f->tokens.data[i]) == MX_REJECTED) return;
}

static void destroy(void *user) {
    follower *f = user;
    mx_matcher_free(f->matcher);
    mx_rules_free(f->rules);
    mx_ids_free(&f->tokens);
    free(f);
}

static void *clone(void *user) {
    const follower *f = user;
    follower *copy = malloc(sizeof *copy);
    if (!copy) return NULL;
    *copy = *f;
    copy->rules = mx_rules_keep(f->rules);
    copy->tokens = (mx_ids){0};
    copy->matcher = f->matcher ? mx_matcher_clone(f->matcher) : NULL;
    if ((copy->matcher || !f->matcher) && mx_ids_add_all(&copy->tokens, f->tokens.data, f->tokens.count)) return copy;
    destroy(copy);
    return NULL;
}

/* ---- beginning --------------------------------------------------------------------------------------------------- */
static mx_status check(const mx_rules *rules, const mx_harmony_ids *h, mx_error *error) {
    if (rules->raw) return MX_OK;
    if (h->channel < 0 || h->start < 0 || h->message < 0 || h->end < 0)
        return mx_fail(error, MX_UNSUPPORTED,
                       "the rules of an answer are harmony's, and the vocabulary has no token \"%s\"",
                       h->channel < 0   ? "<|channel|>"
                       : h->start < 0   ? "<|start|>"
                       : h->message < 0 ? "<|message|>"
                                        : "<|end|>");
    if (rules->choice == MX_TOOLS_AUTO || rules->choice == MX_TOOLS_NONE) return MX_OK;
    for (int i = 0; i < rules->tool_count; i++)
        if (mx_rules_may_call(rules, &rules->tools[i])) return MX_OK;
    return mx_fail(error, MX_INVALID_ARGUMENT, "a tool is to be called, but %s%s",
                   rules->named ? "there is none of the name " : "there is none", rules->named ? rules->named : "");
}

mx_status mx_rules_constraint(mx_rules *rules, const mx_tokenizer *tokenizer, mx_vocabulary *vocabulary,
                              const mx_ids *stop, mx_constraint *out, mx_error *error) {
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    *out = (mx_constraint){0};
    mx_status status = check(rules, &special, error);
    if (!status && !rules->raw) status = mx_rules_make_headers(rules, special.constrain >= 0, error);
    if (status) return status;
    follower *f = calloc(1, sizeof *f);
    if (!f) return mx_fail(error, MX_NO_MEMORY, "no memory for the rules of an answer");
    *f = (follower){.rules = mx_rules_keep(rules),
                    .tokenizer = tokenizer,
                    .vocabulary = vocabulary,
                    .stop = stop,
                    .special = special};
    if (!begin(f)) {
        destroy(f);
        return mx_fail(error, MX_NO_MEMORY, "no memory for the rules of an answer");
    }
    *out = (mx_constraint){
        .user = f, .mask = mask, .accept = accept, .rollback = rollback, .clone = clone, .destroy = destroy};
    return MX_OK;
}
