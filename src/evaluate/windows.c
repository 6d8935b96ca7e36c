#include "evaluate/windows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "evaluate/conversation.h"

enum { WINDOW = 2048, LLAMA_CPP_WINDOW = 512 };

/* ---- protocols ----------------------------------------------------------------------------------------------------
 */
static const char *const names[] = {[MX_PROTOCOL_STRIDED] = "strided",
                                    [MX_PROTOCOL_LLAMA_CPP] = "llama.cpp",
                                    [MX_PROTOCOL_DOCUMENTS] = "documents",
                                    [MX_PROTOCOL_HARMONY] = "harmony"};
enum { PROTOCOLS = sizeof names / sizeof *names };

const char *mx_protocol_name(mx_protocol p) {
    return (unsigned)p < PROTOCOLS ? names[p] : "unknown";
}

bool mx_protocol_parse(const char *name, mx_protocol *out) {
    for (int i = 0; i < PROTOCOLS; i++)
        if (!strcmp(name, names[i])) {
            *out = (mx_protocol)i;
            return true;
        }
    return false;
}

void mx_windows_describe(const mx_windows *w, char *out, size_t size) {
    snprintf(out, size, "%s, window %lld, stride %lld", mx_protocol_name(w->protocol), (long long)w->window,
             (long long)w->stride);
}

mx_status mx_windows_begin(const mx_evaluate_options *o, int64_t longest, mx_windows *out, mx_error *error) {
    *out = (mx_windows){.protocol = o->protocol, .window = o->window, .stride = o->stride};
    if ((unsigned)o->protocol >= PROTOCOLS)
        return mx_fail(error, MX_INVALID_ARGUMENT, "protocol %d: expected 0 to %d", (int)o->protocol, PROTOCOLS - 1);
    const bool llama = o->protocol == MX_PROTOCOL_LLAMA_CPP;
    if (!out->window) out->window = llama ? LLAMA_CPP_WINDOW : longest < WINDOW ? longest : WINDOW;
    if (out->window < 2 || out->window > longest)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "a window of %lld tokens: expected 2 to %lld, one more than the context holds",
                       (long long)out->window, (long long)longest);
    if (!out->stride) out->stride = llama ? out->window : out->window / 2;
    if (llama && out->stride != out->window)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "a stride of %lld: the windows of protocol llama.cpp lie side by side, its stride is the window",
                       (long long)out->stride);
    if (!llama && (out->stride < 1 || out->stride >= out->window))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "a stride of %lld: expected 1 to %lld, less than the window, whose first token has no past",
                       (long long)out->stride, (long long)out->window - 1);
    return MX_OK;
}

/* ---- windows ------------------------------------------------------------------------------------------------------
 */
static mx_status add_window(mx_windows *w, int64_t begin, int64_t end, int64_t first, mx_error *error) {
    if (w->count == w->capacity) {
        const int64_t capacity = w->capacity ? 2 * w->capacity : 64;
        mx_window *more = realloc(w->window_at, sizeof *more * (size_t)capacity);
        if (!more) return mx_fail(error, MX_NO_MEMORY, "no memory for %lld windows", (long long)capacity);
        w->window_at = more;
        w->capacity = capacity;
    }
    w->window_at[w->count++] = (mx_window){begin, end, first, w->scored};
    w->scored += end - first;
    return MX_OK;
}

/* As llama-perplexity has them (tools/perplexity: n_ctx tokens side by side, what the rows from n_ctx / 2 on say is
 * scored, a rest is left out), with gpt-oss, which has no BOS. */
static mx_status add_side_by_side(mx_windows *w, int64_t begin, mx_error *error) {
    mx_status status = MX_OK;
    for (; begin + w->window <= w->ids.count && !status; begin += w->window)
        status = add_window(w, begin, begin + w->window, begin + w->window / 2 + (w->window > 2), error);
    return status;
}

mx_status mx_windows_add(mx_windows *w, int64_t begin, int64_t first, mx_error *error) {
    if (w->protocol == MX_PROTOCOL_LLAMA_CPP) return add_side_by_side(w, begin, error);
    const int64_t count = w->ids.count;
    mx_status status = MX_OK;
    if (first <= begin) first = begin + 1;
    for (int64_t end; first < count && !status; begin += w->stride, first = end) {
        end = begin + w->window < count ? begin + w->window : count;
        if (end <= first)
            end = first; /* all of it is known already */
        else
            status = add_window(w, begin, end, first, error);
    }
    return status;
}

void mx_windows_end(mx_windows *w, int64_t most) {
    if (most > 0 && w->scored > most) {
        while (w->window_at[w->count - 1].scored >= most) w->count--;
        mx_window *last = &w->window_at[w->count - 1];
        last->end = last->first + most - last->scored;
        w->scored = most;
        w->ids.count = last->end;
    }
    const size_t bytes = sizeof *w->ids.data * (size_t)w->ids.count;
    w->hash = bytes ? XXH3_64bits(w->ids.data, bytes) : 0;
    if (w->count) w->hash = XXH3_64bits_withSeed(w->window_at, sizeof *w->window_at * (size_t)w->count, w->hash);
}

/* ---- texts --------------------------------------------------------------------------------------------------------
 */
/* What stands before a document, so that its first token is scored: as lm-evaluation-harness has it, the token that
 * begins texts or, where there is none, the one that ends them. -1: there is neither. */
static int32_t document_prefix(const mx_tokenizer *t) {
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(t);
    return special.startoftext >= 0 ? special.startoftext : special.endoftext;
}

/* Tokens of a text, from its first on, of which `most` more are scored; what lies behind need not be encoded. */
static int64_t tokens_for(const mx_windows *w, int64_t most) {
    const int64_t half = w->window - w->window / 2 - (w->window > 2); /* scored in a window of llama.cpp */
    return w->protocol == MX_PROTOCOL_LLAMA_CPP ? (most / half + 1) * w->window : most + 1;
}

static mx_status add_text(mx_windows *w, const mx_tokenizer *t, const mx_evaluate_text *text,
                          const mx_evaluate_options *o, mx_error *error) {
    const int64_t begin = w->ids.count;
    const int64_t some = o->most_tokens > 0 ? tokens_for(w, o->most_tokens - w->scored) : INT64_MAX;
    if (!text->size) return MX_OK;
    if (o->stop && *o->stop) return mx_fail(error, MX_CANCELLED, "interrupted");
    if (w->protocol == MX_PROTOCOL_HARMONY) {
        int64_t answer;
        mx_status status = mx_evaluate_conversation(t, text, &w->ids, &answer, error);
        return status ? status : mx_windows_add(w, begin, answer, error);
    }
    const int32_t prefix = w->protocol == MX_PROTOCOL_DOCUMENTS ? document_prefix(t) : -1;
    if (prefix >= 0 && !mx_ids_add(&w->ids, prefix)) return mx_fail(error, MX_NO_MEMORY, "no memory for a text");
    mx_status status = mx_encode_some(t, text->text, text->size, some, o->stop, &w->ids, error);
    if (status == MX_CANCELLED) return status;
    return status ? mx_fail_within(error, status, "%s", text->name) : mx_windows_add(w, begin, begin + 1, error);
}

static mx_status check_ids(const mx_windows *w, int32_t vocab, mx_error *error) {
    for (int64_t i = 0; i < w->ids.count; i++)
        if (w->ids.data[i] < 0 || w->ids.data[i] >= vocab)
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "the text has a token %d and the model's end at %d: the tokenizer is another model's",
                           w->ids.data[i], vocab - 1);
    return MX_OK;
}

/* `longest`: tokens of the longest text. */
static mx_status nothing_scored(const mx_windows *w, int64_t longest, mx_error *error) {
    if (w->protocol == MX_PROTOCOL_LLAMA_CPP && longest)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "nothing to score: protocol llama.cpp wants whole windows of %lld tokens, and the longest text "
                       "has %lld: take a longer text, a smaller window, or another protocol",
                       (long long)w->window, (long long)longest);
    return mx_fail(error, MX_INVALID_ARGUMENT,
                   longest ? "nothing to score: no text has two tokens, and the first has no past to be predicted from"
                           : "nothing to score: the text is empty");
}

mx_status mx_windows_make(const mx_tokenizer *tokenizer, const mx_evaluate_text *texts, int count,
                          const mx_evaluate_options *options, int64_t longest, int32_t vocab, mx_windows *out,
                          mx_error *error) {
    mx_status status = mx_windows_begin(options, longest, out, error);
    const int64_t most = options->most_tokens;
    int64_t longest_text = 0;
    for (int i = 0; i < count && !status && (most <= 0 || out->scored < most); i++) {
        const int64_t before = out->ids.count;
        status = add_text(out, tokenizer, &texts[i], options, error);
        if (out->ids.count - before > longest_text) longest_text = out->ids.count - before;
    }
    if (!status) status = check_ids(out, vocab, error);
    if (!status && !out->scored) status = nothing_scored(out, longest_text, error);
    if (status) return status;
    mx_windows_end(out, most);
    for (int64_t i = 0; i < out->count; i++) {
        const mx_window *w = &out->window_at[i];
        for (int64_t t = w->first; t < w->end; t++) {
            size_t size;
            mx_token_bytes(tokenizer, out->ids.data[t], &size);
            out->bytes += (int64_t)size;
        }
    }
    return MX_OK;
}

void mx_windows_free(mx_windows *w) {
    mx_ids_free(&w->ids);
    free(w->window_at);
    *w = (mx_windows){0};
}
