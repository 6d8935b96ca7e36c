/* Tokens in any order, as a model might write them: pieces of an answer, its messages back into a conversation, and
 * that into a prompt. Nothing is lost, nothing fails. */
#include <stdlib.h>
#include <string.h>

#include "input.h"
#include "turn/conversation.h"
#include "turn/turn.h"

typedef struct heard {
    mx_bytes text[3]; /* by mx_piece_kind */
    int open;
} heard;

static void check(bool right) {
    if (!right) abort();
}

static bool hear(void *user, const mx_piece *piece) {
    heard *h = user;
    check(mx_is_utf8(piece->text, piece->size));
    h->open += piece->first - piece->last;
    check(h->open == 0 || h->open == 1);
    check((piece->kind == MX_PIECE_TOOL_CALL) == (piece->name != NULL));
    return mx_bytes_add(&h->text[piece->kind], piece->text, piece->size);
}

static int64_t without_breaks(const mx_bytes *b) {
    int64_t count = 0;
    for (size_t i = 0; i < b->size; i++) count += b->data[i] != '\n';
    return count;
}

static void answer_again(const mx_tokenizer *t, const mx_turn *turn) {
    mx_conversation *c;
    mx_error error;
    mx_ids first = {0}, second = {0};
    check(mx_conversation_create(t, &c, &error) == MX_OK && mx_conversation_add_user(c, "Hi", 2, &error) == MX_OK);
    check(mx_conversation_prompt(c, &first, &error) == MX_OK);
    check(mx_conversation_add_answer(c, turn, &error) == MX_OK);
    check(mx_conversation_prompt(c, &second, &error) == MX_OK);
    check(second.count >= first.count &&
          !memcmp(first.data, second.data, sizeof *first.data * (size_t)(first.count - 2)));
    mx_ids_free(&first);
    mx_ids_free(&second);
    mx_conversation_free(c);
}

/* Bytes 0 to 8 are the format's tokens, the others go in pairs. */
static int32_t next_token(const uint8_t *data, size_t size, size_t *at, const mx_harmony_ids *special, int32_t count) {
    const int32_t named[] = {special->start,   special->end,         special->message,
                             special->channel, special->constrain,   special->return_,
                             special->call,    special->startoftext, special->endoftext};
    const uint8_t byte = data[(*at)++];
    if (byte < 9 && named[byte] >= 0) return named[byte];
    const uint8_t low = *at < size ? data[(*at)++] : 0;
    return (byte * 256 + low) % count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static mx_tokenizer *t;
    static mx_ids stop;
    mx_error error;
    if (!t) {
        check(mx_tokenizer_open(getenv("MXRUN_FUZZ_TOKENIZER"), &t, &error) == MX_OK);
        const mx_harmony_ids special = mx_tokenizer_harmony_ids(t);
        check(mx_ids_add(&stop, special.return_) && mx_ids_add(&stop, special.call));
    }
    if (size < 1 || size > 4000) return 0;
    static const char *const strings[] = {"fox", "\n\n"};
    heard h = {0};
    const mx_turn_options options = {.tokenizer = t,
                                     .raw = data[0] & 1,
                                     .stop_tokens = data[0] & 2 ? &stop : NULL,
                                     .stop = strings,
                                     .stop_count = data[0] >> 2 & 1 ? 2 : 0,
                                     .piece = hear,
                                     .user = &h};
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(t);
    mx_turn *turn;
    check(mx_turn_create(&options, &turn, &error) == MX_OK);
    for (size_t at = 1; at < size && !mx_turn_over(turn);)
        check(mx_turn_push(turn, next_token(data, size, &at, &special, mx_tokenizer_size(t)), &error) == MX_OK);
    check(mx_turn_end(turn, (mx_finish)(data[0] >> 4) % 6, &error) == MX_OK);
    const mx_turn_result *r = mx_turn_get_result(turn);
    check(h.open == 0 && without_breaks(&h.text[MX_PIECE_TEXT]) == without_breaks(&r->text));
    check(without_breaks(&h.text[MX_PIECE_THINKING]) == without_breaks(&r->thinking));
    if (!options.raw) answer_again(t, turn);
    mx_turn_free(turn);
    for (int i = 0; i < 3; i++) mx_bytes_free(&h.text[i]);
    return 0;
}
