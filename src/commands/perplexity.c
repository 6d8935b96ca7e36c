/* mxrun perplexity: how well a model predicts text, and how far it is from another. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/json.h"
#include "base/progress.h"
#include "commands/common.h"
#include "commands/options.h"
#include "commands/scoring.h"
#include "commands/terminal.h"
#include "engine/model_parts.h"
#include "evaluate/evaluate.h"

static char *save_base, *base;
static int json, quiet;

static const struct poptOption perplexity_options[] = {
    {"save-base", '\0', POPT_ARG_STRING, &save_base, 0, "Keep this run's distributions in a file, for --base", "FILE"},
    {"base", 'b', POPT_ARG_STRING, &base, 0, "Compare with the distributions of another run on the same text", "FILE"},
    {"json", '\0', POPT_ARG_NONE, &json, 0, "One JSON object instead of the table", NULL},
    {"quiet", 'q', POPT_ARG_NONE, &quiet, 0, "No progress on stderr", NULL},
    POPT_TABLEEND,
};

static const struct poptOption options[] = {
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_scoring_options, 0, "Perplexity:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)perplexity_options, 0, "Distributions and output:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_model_options, 0, "Model:", NULL},
    POPT_TABLEEND,
};

/* ---- results ----------------------------------------------------------------------------------------------------- */
static bool add_number(mx_bytes *out, const char *key, double value) {
    return isfinite(value) ? mx_bytes_addf(out, ",\"%s\":%.12g", key, value) : mx_bytes_addf(out, ",\"%s\":null", key);
}

static bool add_text_field(mx_bytes *out, const char *key, const char *text) {
    return mx_bytes_addf(out, ",\"%s\":", key) && mx_bytes_add_json(out, text, strlen(text));
}

static bool print_json(const mx_evaluation *v, const mx_session *s, mx_bytes *out) {
    bool ok = add_number(out, "perplexity", v->perplexity) && add_number(out, "stderr", v->standard_error) &&
              add_number(out, "bits_per_byte", v->bits_per_byte) &&
              mx_bytes_addf(out, ",\"tokens\":%lld", (long long)v->tokens) &&
              add_text_field(out, "protocol", v->protocol) && add_number(out, "nats", v->nats) &&
              mx_bytes_addf(out, ",\"bytes\":%lld", (long long)v->bytes) && add_text_field(out, "model", s->name) &&
              add_text_field(out, "precision", s->info.precision) && add_number(out, "seconds", v->seconds);
    if (ok && v->has_base)
        ok = add_number(out, "kl_mean", v->kl_mean) && add_number(out, "kl_median", v->kl_median) &&
             add_number(out, "kl_p99", v->kl_p99) && add_number(out, "kl_max", v->kl_max) &&
             add_number(out, "top1", v->top1) && add_number(out, "kl_stderr", v->kl_stderr) &&
             add_number(out, "delta_perplexity", v->delta_perplexity) &&
             add_number(out, "delta_stderr", v->delta_stderr) &&
             add_number(out, "base_perplexity", v->base_perplexity) &&
             add_text_field(out, "base_model", v->base_model) && mx_bytes_addf(out, ",\"base_top\":%d", v->base_top);
    if (!ok || !mx_bytes_add_string(out, "}\n")) return false;
    out->data[0] = '{'; /* was the first comma */
    return true;
}

/* "12.3456 ± 0.0123"; of one token nobody knows the error. */
static bool add_with_error(mx_bytes *out, const char *format, double value, double error) {
    char text[2][40];
    snprintf(text[0], sizeof text[0], format, value);
    snprintf(text[1], sizeof text[1], format, error);
    return mx_bytes_addf(out, "%s ± %s", text[0], isfinite(error) ? text[1] + (*text[1] == '+') : "unknown");
}

static bool print_base(const mx_evaluation *v, mx_bytes *out) {
    char kept[32];
    return mx_bytes_addf(out, "\nagainst %s%s (%s), perplexity %.4f\n",
                         *v->base_model ? v->base_model : "a model without a name",
                         v->same_model ? ", the same weights" : "", base, v->base_perplexity) &&
           mx_bytes_add_string(out, "  KL divergence   mean ") &&
           add_with_error(out, "%.4g", v->kl_mean, v->kl_stderr) &&
           mx_bytes_addf(out, "  median %.4g  99 %% %.4g  max %.4g nats a token\n", v->kl_median, v->kl_p99,
                         v->kl_max) &&
           (v->base_whole ||
            mx_bytes_addf(out,
                          "                  (a lower bound: the %s likeliest tokens one by one, all others "
                          "together)\n",
                          mx_with_commas(v->base_top, kept))) &&
           mx_bytes_addf(out, "  same top token  %.2f %%\n  Δ perplexity    ", 100 * v->top1) &&
           add_with_error(out, "%+.4f", v->delta_perplexity, v->delta_stderr) &&
           mx_bytes_add_string(out, " (paired)\n");
}

static bool print_table(const mx_evaluation *v, const mx_session *s, mx_bytes *out) {
    char tokens[32], bytes[32];
    bool ok = mx_bytes_addf(out, "%s: %s token%s (%s byte%s) scored: %s\n", s->name, mx_with_commas(v->tokens, tokens),
                            v->tokens == 1 ? "" : "s", mx_with_commas(v->bytes, bytes), v->bytes == 1 ? "" : "s",
                            v->protocol) &&
              mx_bytes_add_string(out, "  perplexity      ") &&
              add_with_error(out, "%.4f", v->perplexity, v->standard_error) &&
              mx_bytes_add_string(out, " (standard error of the mean over tokens)\n") &&
              mx_bytes_addf(out, "  bits per byte   %.4f\n", v->bits_per_byte);
    return ok && (!v->has_base || print_base(v, out));
}

/* ---- command ----------------------------------------------------------------------------------------------------- */
static void show(void *user, int64_t done, int64_t total) {
    mx_progress *bar = user;
    if (!bar->label) mx_progress_start(bar, "scoring", (double)total, false);
    mx_progress_update(bar, (double)done);
}

static mx_status load(mx_session *s, const mx_evaluate_options *o, bool *loaded, int *exit_code, mx_error *error) {
    mx_engine_options engine = {0};
    const mx_status status = mx_scoring_engine(s->path, o, &engine, error);
    if (!status) *loaded = mx_session_load(s, &engine, exit_code);
    return status;
}

static mx_status identify(const mx_session *s, char out[MX_IDENTITY], mx_error *error) {
    mx_pool *pool;
    mx_loading hashing = {.label = "looking at the model"};
    mx_status status = mx_pool_create(s->info.threads, &pool, error);
    if (status) return status;
    const mx_identity_options o = {.pool = pool, .progress = quiet ? NULL : mx_loading_shown, .user = &hashing};
    status = mx_weights_identity(mx_model_weights(s->model), &o, out, error);
    mx_loading_end(&hashing);
    mx_pool_destroy(pool);
    return status;
}

static mx_status evaluate(mx_session *s, const mx_evaluate_options *scoring, const mx_corpus *c, mx_evaluation *out,
                          mx_error *error) {
    char identity[MX_IDENTITY] = "";
    mx_progress bar = {0};
    if (save_base || base) {
        const mx_status status = identify(s, identity, error);
        if (status) return status;
    }
    mx_evaluate_options o = *scoring;
    o.save_base = save_base;
    o.base = base;
    o.model = s->name;
    o.identity = identity;
    o.progress = quiet ? NULL : show;
    o.user = &bar;
    o.stop = &mx_interrupted;
    mx_interrupt_catch_all();
    const mx_status status = mx_evaluate(s->engine, s->tokenizer, c->texts, c->count, &o, out, error);
    mx_interrupt_release();
    if (bar.label) mx_progress_clear(&bar);
    return status;
}

static int work(const mx_command *self, const mx_evaluate_options *o, const char *const *paths) {
    mx_error error = {0};
    mx_session session;
    mx_corpus texts = {0};
    mx_evaluation found;
    mx_bytes text = {0};
    int exit_code = MX_EXIT_OK;
    bool loaded = false;
    if (mx_session_prepare(self, true, &session, &exit_code)) {
        mx_status status = mx_evaluate_check_files(save_base, base, &error);
        if (!status) status = mx_corpus_read(self, paths, o->protocol, &texts, &error);
        if (!status) status = load(&session, o, &loaded, &exit_code, &error);
        if (!status && loaded) {
            status = evaluate(&session, o, &texts, &found, &error);
            if (!status && !(json ? print_json : print_table)(&found, &session, &text))
                status = mx_out_of_memory(&error);
            if (!status) status = mx_write_stdout(&text, &error);
            if (!status && !json && !quiet)
                fprintf(stderr, "mxrun: %.1f s, %.1f scored tokens/s | memory %.0f MB\n", found.seconds,
                        found.seconds > 0 ? (double)found.tokens / found.seconds : 0, (double)mx_memory_peak() / 1e6);
        }
        if (status) exit_code = status == MX_CANCELLED ? MX_EXIT_INTERRUPTED : mx_command_fail(self, &error);
    }
    mx_bytes_free(&text);
    mx_corpus_free(&texts);
    mx_session_close(&session);
    return exit_code;
}

static int run(const mx_command *self, int argc, const char **argv) {
    const char *const *positional;
    int exit_code;
    mx_evaluate_options o = {0};
    if (!mx_command_parse(self, options, argc, argv, &positional, &exit_code)) return exit_code;
    if (!positional || !*positional) return mx_command_usage(self, "no text given: name files, or - for stdin");
    if (!mx_scoring_check(self, &o)) return MX_EXIT_USAGE;
    if (o.base_top && !save_base) return mx_command_usage(self, "--base-top is for --save-base");
    return work(self, &o, positional);
}

const mx_command mx_command_perplexity = {
    .name = "perplexity",
    .arguments = "-m MODEL FILE... [OPTION]...",
    .summary = "Measure how well a model predicts text, and how far it is from another",
    .description = "Computes the probability that the model gives each token of the files (- is\n"
                   "stdin) and prints perplexity, exp of the mean of -log p, and bits per byte, which\n"
                   "can be compared between vocabularies. Bytes are those of the scored tokens; what is\n"
                   "not UTF-8 in a file is read as U+FFFD. In a .jsonl file each line is a text of its\n"
                   "own: a string, {\"text\": \"...\"} or, for harmony, {\"messages\": [...]}.\n"
                   "\n"
                   "Perplexities compare only with the same text, vocabulary and protocol:\n"
                   "\n"
                   "  strided    windows of --window tokens, each --stride further. A token is scored\n"
                   "             once, in the first window that has it: with a past of at least\n"
                   "             window - stride tokens, but for the first window. A file's first token\n"
                   "             has no past and is not scored.\n"
                   "  llama.cpp  as llama-perplexity: windows of 512 side by side, what lies behind the\n"
                   "             middle of each is scored, a rest is left out, no BOS. (It wants two\n"
                   "             windows of text; here one will do.)\n"
                   "  documents  each document apart: a file, a line of a .jsonl, or what lies between\n"
                   "             two --separator. Its first token is scored, too, behind\n"
                   "             <|startoftext|> (or <|endoftext|>, where the vocabulary has that alone),\n"
                   "             as lm-evaluation-harness does. Long ones in windows, as strided.\n"
                   "  harmony    each document as the assistant's final answer in the chat format, of\n"
                   "             which only the answer's text is scored. {\"messages\": [...]} of OpenAI's\n"
                   "             API ends with the answer; any other document answers \"" MX_HARMONY_PROMPT "\"\n"
                   "\n"
                   "gpt-oss is tuned for chats: on raw text its perplexity is far higher than that of\n"
                   "models half its size, as if it were broken. It is not. Measure what it says in its\n"
                   "own format (harmony), or compare it with itself, in another format or precision, by\n"
                   "KL divergence.\n"
                   "\n"
                   "The error after ± is the standard error of the mean over tokens, as llama.cpp has\n"
                   "it. Tokens of one text are not independent: it is rather too small.\n"
                   "\n"
                   "--save-base keeps, of each distribution, the likeliest tokens and the probability of\n"
                   "all others: 8 bytes for each that is kept and 24 more, so 8 KB a token of gpt-oss\n"
                   "(docs/base_distributions.md). --base compares with such a file, which must be of the\n"
                   "same text, protocol and vocabulary: KL divergence (base || model) in nats, the share\n"
                   "of tokens whose likeliest successor is the same, and the difference of the\n"
                   "perplexities with its error, paired by tokens. The tokens that are not kept count as\n"
                   "one, which makes it a lower bound: of a small model in MXFP4 it was 2 % too low with\n"
                   "1024 kept, 21 % with 64. --base-top all makes it exact.\n"
                   "\n"
                   "--json prints {\"perplexity\", \"stderr\", \"bits_per_byte\", \"tokens\", \"protocol\", ...},\n"
                   "with --base also {\"kl_mean\", \"kl_median\", \"kl_p99\", \"kl_max\", \"top1\", ...}; null is\n"
                   "what is not known.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun perplexity -m stories book.txt\n"
                   "  $ mxrun perplexity -m gpt-oss-20b --protocol llama.cpp wiki.test.raw\n"
                   "  $ mxrun perplexity -m DIR-bf16 --save-base ref.base book.txt\n"
                   "  $ mxrun perplexity -m DIR-mxfp4 --base ref.base book.txt",
    .run = run,
};
