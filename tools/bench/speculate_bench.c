/* What guessing ahead gains on a real text: a model of any weights, random ones too, is made to write it.
 *
 *     speculate_bench MODEL TOKENIZER PROMPT ANSWER [TOKENS [REPETITIONS [DRAFT]]]
 *
 * PROMPT and ANSWER are text files. A constraint leaves the answer's next token alone to be drawn, so that steps and
 * checked guesses cost what they cost, and what is guessed right is up to the text. Tokens a second of the first TOKENS
 * (100), without guessing, where it pays and always, in turn; medians of REPETITIONS (3). DRAFT: tokens guessed at
 * once, at most; 0, the default, is that of mxrun. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "bench/measure.h"
#include "engine/mxrun.h"
#include "tokenizer/tokenizer.h"

enum { MOST_REPETITIONS = 100 };

static const struct {
    mx_speculation speculation;
    const char *name;
} ways[] = {{MX_SPECULATE_OFF, "off"}, {MX_SPECULATE_AUTO, "auto"}, {MX_SPECULATE_ON, "on"}};
enum { WAYS = 3 };

typedef struct script {
    mx_ids prompt, answer;
    int64_t said;
} script;

static bool only_next(void *user, uint32_t *bits, int32_t vocab) {
    const script *s = user;
    const int32_t token = s->answer.data[s->said];
    memset(bits, 0, ((size_t)vocab + 31) / 32 * sizeof *bits);
    bits[token >> 5] = 1u << (token & 31);
    return true;
}

static mx_verdict said(void *user, int32_t token) {
    (void)token;
    ((script *)user)->said++;
    return MX_CONTINUE;
}

static mx_status read_tokens(const mx_tokenizer *t, const char *path, mx_ids *out, mx_error *error) {
    mx_bytes text = {0};
    mx_status status = mx_read_file(path, (size_t)1 << 24, &text, error);
    if (!status) status = mx_encode(t, text.data, text.size, out, error);
    mx_bytes_free(&text);
    return status;
}

/* One answer; *usage tells how it went. */
static mx_status write_answer(mx_engine *e, script *s, int64_t tokens, struct mx_usage *usage, mx_error *error) {
    const mx_request r = {.prompt = s->prompt.data,
                          .prompt_count = s->prompt.count,
                          .max_tokens = tokens,
                          .sampling = {.top_p = 1, .repetition_penalty = 1},
                          .constraint = {.user = s, .mask = only_next, .accept = said}};
    mx_handle handle;
    s->said = 0;
    mx_status status = mx_submit(e, &r, &handle, error);
    while (!status && !mx_engine_idle(e)) {
        mx_event event;
        status = mx_step(e, error);
        while (!status && mx_poll(e, &event, 1) > 0) {
            if (event.type == MX_EVENT_FINISHED) *usage = event.usage;
            if (event.type == MX_EVENT_FAILED) status = mx_fail(error, event.error.status, "%s", event.error.text);
        }
    }
    return status;
}

static mx_status measure(mx_model *model, script *s, int64_t tokens, int repetitions, int draft, mx_error *error) {
    static double speed[WAYS][MOST_REPETITIONS];
    mx_engine *engine[WAYS] = {0};
    struct mx_usage usage[WAYS] = {0};
    mx_status status = MX_OK;
    for (int w = 0; w < WAYS && !status; w++) {
        const mx_engine_options o = {
            .context = s->prompt.count + tokens + 1, .speculation = ways[w].speculation, .draft_tokens = draft};
        status = mx_engine_create(model, &o, &engine[w], error);
    }
    for (int i = 0; i < repetitions && !status; i++)
        for (int w = 0; w < WAYS && !status; w++) {
            status = write_answer(engine[w], s, tokens, &usage[w], error);
            speed[w][i] = (double)(tokens - 1) / usage[w].generate_seconds;
        }
    for (int w = 0; w < WAYS && !status; w++) {
        const double median = mx_median(speed[w], repetitions);
        printf("%-5s %6.2f tokens/s (%.2f to %.2f)  × %.2f  guessed %lld, right %lld of %lld tokens\n", ways[w].name,
               median, speed[w][0], speed[w][repetitions - 1], median / mx_median(speed[0], repetitions),
               (long long)usage[w].drafted_tokens, (long long)usage[w].accepted_tokens, (long long)tokens);
    }
    for (int w = 0; w < WAYS; w++) mx_engine_destroy(engine[w]);
    return status;
}

int main(int argc, char **argv) {
    int64_t tokens = argc > 5 ? atoi(argv[5]) : 100;
    const int repetitions = argc > 6 ? atoi(argv[6]) : 3;
    mx_error error;
    mx_model *model = NULL;
    mx_tokenizer *tokenizer = NULL;
    script s = {0};
    if (argc < 5 || tokens < 2 || repetitions < 1 || repetitions > MOST_REPETITIONS) {
        fprintf(stderr, "speculate_bench MODEL TOKENIZER PROMPT ANSWER [TOKENS [REPETITIONS [DRAFT]]]\n");
        return 2;
    }
    mx_status status = mx_model_open(argv[1], &(mx_load_options){.way = MX_LOAD_MAP}, &model, &error);
    if (!status) status = mx_tokenizer_open(argv[2], &tokenizer, &error);
    if (!status) status = read_tokens(tokenizer, argv[3], &s.prompt, &error);
    if (!status) status = read_tokens(tokenizer, argv[4], &s.answer, &error);
    if (!status && s.answer.count < tokens) tokens = s.answer.count;
    if (!status) status = measure(model, &s, tokens, repetitions, argc > 7 ? atoi(argv[7]) : 0, &error);
    if (status) fprintf(stderr, "%s\n", error.text);
    mx_ids_free(&s.prompt);
    mx_ids_free(&s.answer);
    mx_tokenizer_close(tokenizer);
    mx_model_close(model);
    return status ? 1 : 0;
}
