/* mxrun batch: requests from a file to answers in a file. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/progress.h"
#include "batch/batch.h"
#include "commands/common.h"
#include "commands/options.h"
#include "commands/terminal.h"

static char *input, *output, *shard;
static int ordered, dry_run, raw, quiet;
static mx_number in_flight = {"--max-in-flight", NULL, 64, 1, 4096, true, false};

static const struct poptOption batch_options[] = {
    {"input", 'i', POPT_ARG_STRING, &input, 0, "JSON lines with the requests; - is stdin", "FILE"},
    {"output", 'o', POPT_ARG_STRING, &output, 0,
     "JSON lines with the answers; what is there already is not done again; - is stdout", "FILE"},
    {"ordered", '\0', POPT_ARG_NONE, &ordered, 0, "Answers in the order of the requests (default: as they get done)",
     NULL},
    {"max-in-flight", '\0', POPT_ARG_STRING, &in_flight.text, 0, "Answers at work at once (default 64)", "N"},
    {"shard", '\0', POPT_ARG_STRING, &shard, 0, "Only line I of every N, from 1; each shard with an output of its own",
     "I/N"},
    {"raw", '\0', POPT_ARG_NONE, &raw, 0,
     "A \"prompt\" of the short form is continued as it stands, without the chat format", NULL},
    {"dry-run", '\0', POPT_ARG_NONE, &dry_run, 0,
     "Answer nothing: count tokens, try the first requests, estimate the time", NULL},
    {"quiet", 'q', POPT_ARG_NONE, &quiet, 0, "No progress and no statistics on stderr", NULL},
    POPT_TABLEEND,
};

static const struct poptOption options[] = {
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)batch_options, 0, "Batch:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_model_options, 0, "Model:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_prompt_options, 0,
     "Chat format, where a line does not say it:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_sampling_options, 0,
     "Choosing tokens, where a line does not say it:", NULL},
    POPT_TABLEEND,
};

static bool parse_shard(const mx_command *self, mx_batch_files *files) {
    int end = 0;
    long long i = 0, n = 0;
    if (!shard) return true;
    const bool read = strspn(shard, "0123456789/") == strlen(shard) && strlen(shard) < 30 &&
                      sscanf(shard, "%lld/%lld%n", &i, &n, &end) == 2 && !shard[end];
    files->shard = i;
    files->shards = n;
    if (read && i >= 1 && i <= n) return true;
    mx_command_usage(self, "--shard %s: expected I/N, such as 1/8 to 8/8", shard);
    return false;
}

/* ---- progress ---------------------------------------------------------------------------------------------------- */
typedef struct display {
    mx_progress bar;
    bool started, told, resumable;
    char label[160];
    double printed; /* mx_seconds() of the last plain line */
} display;

static const double PLAIN_SECONDS = 30;

static double per_second(int64_t count, double seconds) {
    return seconds > 0 ? (double)count / seconds : 0;
}

/* "412 of 1000  830 tokens/s  72 % reused": of the prompts' tokens */
static void describe(const mx_batch_state *s, char *out, size_t size) {
    int n = snprintf(out, size, "%lld", (long long)(s->before + s->done));
    if (s->total >= 0) n += snprintf(out + n, size - (size_t)n, " of %lld", (long long)s->total);
    if (s->wrong) n += snprintf(out + n, size - (size_t)n, " (%lld wrong)", (long long)s->wrong);
    n += snprintf(out + n, size - (size_t)n, "  %.0f tokens/s", per_second(s->generated_tokens, s->seconds));
    if (s->prompt_tokens)
        snprintf(out + n, size - (size_t)n, "  %.0f %% reused",
                 100.0 * (double)s->cached_tokens / (double)s->prompt_tokens);
}

static void tell_ending(display *d, const mx_batch_state *s) {
    if (!s->ending || d->told || !s->running) return;
    d->told = true;
    mx_progress_clear(&d->bar);
    fprintf(stderr, "mxrun batch: finishing the %lld request%s at work; Ctrl-C ends at once%s\n", (long long)s->running,
            s->running == 1 ? "" : "s", d->resumable ? ", the same command goes on later" : "");
}

static void show(void *user, const mx_batch_state *s) {
    display *d = user;
    if (!d->started) {
        mx_progress_start(&d->bar, d->label, (double)(s->total - s->before), false);
        d->started = true;
        d->printed = mx_seconds();
    }
    tell_ending(d, s);
    if (d->bar.terminal && s->total >= 0) {
        describe(s, d->label, sizeof d->label);
        d->bar.total = (double)(s->total - s->before);
        mx_progress_update(&d->bar, (double)s->done);
    } else if (mx_seconds() - d->printed > PLAIN_SECONDS) {
        describe(s, d->label, sizeof d->label);
        fprintf(stderr, "mxrun batch: %s\n", d->label);
        d->printed = mx_seconds();
    }
}

static void show_end(display *d, const mx_batch_state *s) {
    mx_progress_clear(&d->bar);
    if (quiet) return;
    fprintf(stderr, "mxrun: %lld request%s in %.1f s", (long long)s->done, s->done == 1 ? "" : "s", s->seconds);
    if (s->before) fprintf(stderr, ", %lld were done before", (long long)s->before);
    if (s->wrong) fprintf(stderr, ", %lld wrong", (long long)s->wrong);
    if (s->failed && d->resumable)
        fprintf(stderr, " (%lld of them failed in the engine: %s)", (long long)s->failed,
                ordered ? "deleted, with what follows, they are done again" : "the same command tries them again");
    fprintf(stderr, " | %lld prompt tokens", (long long)s->prompt_tokens);
    if (s->cached_tokens)
        fprintf(stderr, " (%.1f %% reused)", 100.0 * (double)s->cached_tokens / (double)s->prompt_tokens);
    fprintf(stderr, " + %lld new | %.1f tokens/s", (long long)s->generated_tokens,
            per_second(s->generated_tokens, s->seconds));
    if (s->drafted_tokens)
        fprintf(stderr, " | %lld of %lld guessed tokens right", (long long)s->accepted_tokens,
                (long long)s->drafted_tokens);
    fprintf(stderr, " | memory %.0f MB\n", (double)mx_memory_peak() / 1e6);
}

/* ---- dry run ----------------------------------------------------------------------------------------------------- */
static void print_time(const char *what, double tokens, double rate) {
    if (!rate) {
        printf("%s too little was computed to say\n", what);
        return;
    }
    const double seconds = tokens / rate;
    if (seconds < 120)
        printf("%s %.1f s\n", what, seconds);
    else if (seconds < 7200)
        printf("%s %.1f min\n", what, seconds / 60);
    else
        printf("%s %.1f h\n", what, seconds / 3600);
}

static void print_count(const mx_batch_total *t) {
    printf("requests: %lld, of them %lld answered already and %lld wrong\n", (long long)t->lines,
           (long long)t->answered, (long long)t->wrong);
    printf("prompts:  %lld tokens, of them %lld as the prompt before begins\n", (long long)t->prompt_tokens,
           (long long)t->shared_tokens);
    printf("answers:  %lld", (long long)t->answers);
    if (t->limited)
        printf(", %lld limited by max_tokens to %lld tokens", (long long)t->limited, (long long)t->most_tokens);
    if (t->limited < t->answers) printf(", %lld without a limit", (long long)(t->answers - t->limited));
    printf("\n");
}

static void print_estimate(const mx_batch_total *t, const mx_batch_speed *v) {
    const int64_t unlimited = t->answers - t->limited;
    printf("measured: prompts %.0f tokens/s, answers %.0f tokens/s (the first %lld requests at once, in %.1f s)\n",
           v->prompt_tokens_second, v->generated_tokens_second, (long long)v->prompts, v->seconds);
    print_time("prompts take about", (double)(t->prompt_tokens - t->shared_tokens), v->prompt_tokens_second);
    if (t->limited) print_time("answers take at most about", (double)t->most_tokens, v->generated_tokens_second);
    if (unlimited)
        print_time(t->limited ? "and for every 100 tokens of those without a limit"
                              : "answers take, for every 100 tokens they have, about",
                   100 * (double)unlimited, v->generated_tokens_second);
}

/* ---- command ----------------------------------------------------------------------------------------------------- */
static int failed(const mx_command *self, const mx_error *error) {
    if (error->status == MX_CANCELLED) return MX_EXIT_INTERRUPTED;
    return mx_command_fail(self, error);
}

static mx_api_settings settings_of(mx_session *s) {
    mx_api_settings settings = mx_session_settings(s);
    settings.raw = raw;
    settings.later = &s->vocabulary;
    if (s->random_seed) settings.sampling.seed = 0;
    return settings;
}

/* A run that goes on has the context that it was begun with, whatever fits by now. */
static bool load(mx_session *s, const mx_batch *batch, int *exit_code) {
    const mx_api_setup *begun = mx_batch_begun(batch);
    const mx_engine_options engine = {.max_running = (int)in_flight.value,
                                      .step_seconds = 1e6, /* nobody waits for single tokens */
                                      .context = begun ? begun->context : 0};
    if (mx_session_load(s, &engine, exit_code)) return true;
    if (begun && s->model && !s->engine)
        fprintf(stderr,
                "mxrun batch: %s was begun with a context of %lld tokens, which this run must have, too: it may need "
                "more --kv-memory, or another output\n",
                output, (long long)begun->context);
    return false;
}

static int estimate(mx_session *s, mx_batch *batch) {
    mx_error error = {0};
    mx_batch_total total;
    mx_batch_speed speed;
    int exit_code = MX_EXIT_OK;
    mx_api_settings settings = settings_of(s);
    if (mx_batch_count(batch, &settings, &total, &error)) return failed(s->command, &error);
    print_count(&total);
    if (total.lines == total.answered + total.wrong) return fflush(stdout) ? MX_EXIT_FAILED : MX_EXIT_OK;
    fflush(stdout);
    if (!load(s, batch, &exit_code)) return exit_code;
    settings = settings_of(s);
    if (mx_batch_check(batch, &settings.setup, &error)) return failed(s->command, &error);
    const mx_batch_work work = {.engine = s->engine, .max_in_flight = (int)in_flight.value};
    if (mx_batch_measure(batch, &settings, &work, &speed, &error)) return failed(s->command, &error);
    if (speed.prompts)
        print_estimate(&total, &speed);
    else
        printf("measured: nothing, for a pipe is read only once\n");
    const mx_bytes nothing = {0};
    return mx_write_stdout(&nothing, &error) ? failed(s->command, &error) : MX_EXIT_OK;
}

static int answer(mx_session *s, mx_batch *batch) {
    mx_error error = {0};
    mx_batch_state state = {0};
    int exit_code;
    display d = {0};
    if (mx_batch_complete(batch)) {
        if (!quiet) fprintf(stderr, "mxrun: everything is answered already\n");
        return MX_EXIT_OK;
    }
    if (!load(s, batch, &exit_code)) return exit_code;
    const mx_api_settings settings = settings_of(s);
    if (mx_batch_check(batch, &settings.setup, &error)) return failed(s->command, &error);
    if (!quiet) mx_session_show_memory(s);
    const mx_batch_work work = {.engine = s->engine,
                                .max_in_flight = (int)in_flight.value,
                                .interrupted = &mx_interrupted,
                                .progress = quiet ? NULL : show,
                                .user = &d};
    d.resumable = mx_batch_resumable(batch);
    mx_interrupt_catch(true);
    const mx_status status = mx_batch_run(batch, &settings, &work, &state, &error);
    mx_interrupt_release();
    show_end(&d, &state);
    if (!status) return MX_EXIT_OK;
    exit_code = failed(s->command, &error);
    if (d.resumable)
        fprintf(stderr, "mxrun batch: what is answered is in %s; the same command goes on with the rest\n", output);
    return exit_code;
}

static int work(const mx_command *self, mx_batch_files *files) {
    mx_error error = {0};
    mx_batch *batch = NULL;
    mx_session session;
    int exit_code;
    if (mx_session_prepare(self, raw, &session, &exit_code)) {
        mx_status status = MX_OK;
        /* Answers must not depend on the day on which a batch is begun, or goes on. */
        if (session.conversation && session.today)
            status = mx_conversation_set(session.conversation, MX_SETTING_DATE, "", &error);
        if (!status) status = mx_session_fingerprint(&session, &files->fingerprint, &error);
        if (!status) status = mx_batch_open(files, &batch, &error);
        exit_code = status ? failed(self, &error) : dry_run ? estimate(&session, batch) : answer(&session, batch);
    }
    mx_session_close(&session);
    mx_batch_close(batch);
    return exit_code;
}

static int run(const mx_command *self, int argc, const char **argv) {
    const char *const *positional;
    int exit_code;
    if (!mx_command_parse(self, options, argc, argv, &positional, &exit_code)) return exit_code;
    if (positional) return mx_command_usage(self, "unexpected argument \"%s\"; the input follows -i", *positional);
    if (!input) return mx_command_usage(self, "no input given: -i takes a file of JSON lines, or - for stdin");
    if (!output && !dry_run) return mx_command_usage(self, "no output given: -o takes a file, or - for stdout");
    if (!mx_number_check(self, &in_flight)) return MX_EXIT_USAGE;
    mx_batch_files files = {.input = input, .output = output ? output : "-", .look = dry_run, .ordered = ordered};
    if (!parse_shard(self, &files)) return MX_EXIT_USAGE;
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is a failed write */
    return work(self, &files);
}

const mx_command mx_command_batch = {
    .name = "batch",
    .arguments = "-m MODEL -i FILE -o FILE [OPTION]...",
    .summary = "Answer many requests from a file, many at once",
    .description =
        "Reads requests, one JSON object a line, answers many of them at once, and writes\n"
        "one JSON object a line for each. Lines are of two forms, which may be mixed:\n"
        "\n"
        "  OpenAI's: {\"custom_id\": \"a\", \"method\": \"POST\", \"url\": U, \"body\": {...}} with U\n"
        "  /v1/chat/completions or /v1/completions. The record is that of OpenAI's batches:\n"
        "  {\"id\", \"custom_id\", \"response\": {\"status_code\", \"request_id\", \"body\"}, \"error\"}.\n"
        "\n"
        "  Short: {\"id\": \"a\", \"prompt\": \"...\"} or {\"id\": \"a\", \"messages\": [...]}, other fields\n"
        "  beside them. The record is {\"request_id\", \"id\", \"text\", \"thinking\", \"tool_calls\",\n"
        "  \"finish_reason\", \"seed\", \"usage\"}, or \"choices\" where there are several. \"prompt\" is\n"
        "  what run -p takes; with --raw, or \"raw\": true, it is continued as it stands. A line\n"
        "  without \"id\" has its number for one.\n"
        "\n"
        "Fields of both: messages, tools, tool_choice, response_format, reasoning_effort,\n"
        "max_tokens or max_completion_tokens, temperature, top_p, top_k, min_p, seed, stop,\n"
        "presence_penalty, frequency_penalty, repetition_penalty, logit_bias, n, logprobs,\n"
        "top_logprobs; best_of and echo (of completions); min_tokens, priority (the higher\n"
        "go first), deadline (seconds until it ends with what it has; finish_reason is then\n"
        "\"deadline\", in OpenAI's form \"length\"). response_format is json_object, json_schema,\n"
        "or {\"type\": \"grammar\", \"grammar\": {\"syntax\": \"regex\", \"definition\": \"...\"}}: the\n"
        "final message can be nothing else, nor can the arguments of tools with \"strict\": true.\n"
        "tool_choice is auto, none, required or {\"type\": \"function\", \"function\": {\"name\"}}. What\n"
        "a line does not say, the options say.\n"
        "Unknown fields are ignored. A line that is wrong gets a record with OpenAI's error\n"
        "object and stops nothing; an empty one gets none.\n"
        "\n"
        "Killed at any moment and started again with the same command, it goes on: the\n"
        "output is read, a torn last line is cut off, lines that have a record are left out.\n"
        "A record counts once its newline is there, which no kill undoes; what a power\n"
        "failure takes, the last two seconds or, where one lasts longer, the last step of the\n"
        "engine, is computed again. Between two runs lines may be added to the input, and a\n"
        "record may be deleted to get it anew. A record whose error has the type\n"
        "\"server_error\" (in OpenAI's form the status code is 500) says that the engine failed,\n"
        "not the line: the next run takes it out, by writing the file anew beside it, and tries\n"
        "again, but with --ordered or where that cannot be done, where it stays. An output of\n"
        "other lines, another model or other options is refused. Threads, --max-in-flight,\n"
        "--batch-tokens and the memory may differ: the context is the one it was begun with.\n"
        "Another machine must have the same kernels (MXRUN_CPU, see info) and precision, for\n"
        "others round differently; they are in every record's id, and a run with others is\n"
        "refused. One process at a time writes to an output.\n"
        "\n"
        "A line's answer depends on nothing but the line, its number, the options, and what\n"
        "the id says: context, kernels and precision. Without -c the context is what fits into\n"
        "the memory; for the same answers anywhere give -c and --precision. What runs beside a\n"
        "line and when does not matter, but for a deadline. A line without a seed gets one\n"
        "made from --seed (0 where it is not given) and its number; the second of n answers\n"
        "one made from the first's. There is no date in the prompts unless --date says one.\n"
        "Only \"created\" and \"cached_tokens\" tell of the run.\n"
        "\n"
        "--shard I/N answers lines I, I+N, I+2N ...: N such commands, here or on other\n"
        "machines, do the whole, each with an output of its own (cat puts them together).\n"
        "\n"
        "The first Ctrl-C (SIGINT) finishes what is at work, the second ends at once; the\n"
        "exit code is 130. It is 0 also where single lines were wrong.\n"
        "\n"
        "Examples:\n"
        "  $ echo '{\"prompt\": \"Tell me a story about a fox.\"}' | mxrun batch -m stories -i - -o -\n"
        "  $ mxrun batch -m DIR -i in.jsonl -o out.jsonl --dry-run\n"
        "  $ mxrun batch -m DIR -i in.jsonl -o out.jsonl\n"
        "  $ mxrun batch -m DIR -i in.jsonl -o out.$TASK.jsonl --shard $TASK/8",
    .run = run,
};
