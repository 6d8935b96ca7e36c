#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "commands/chat.h"
#include "commands/options.h"
#include "commands/terminal.h"

static char *prompt_text, *prompt_file, *show_thinking;
static int raw, json, quiet;

static const struct poptOption output_options[] = {
    {"prompt", 'p', POPT_ARG_STRING, &prompt_text, 0, "What to say to the model; - reads stdin", "TEXT"},
    {"file", 'f', POPT_ARG_STRING, &prompt_file, 0, "Read the prompt from a file", "FILE"},
    {"raw", '\0', POPT_ARG_NONE, &raw, 0,
     "Continue the prompt as it stands, without the chat format; special tokens spelled out in it are recognised",
     NULL},
    {"json", '\0', POPT_ARG_NONE, &json, 0, "One JSON object on stdout instead of streamed text", NULL},
    {"show-thinking", '\0', POPT_ARG_STRING, &show_thinking, 0,
     "Thinking goes to stderr: on, off, auto (default: when stderr is a terminal)", "WHEN"},
    {"quiet", 'q', POPT_ARG_NONE, &quiet, 0, "No statistics and no sizes of memory on stderr", NULL},
    POPT_TABLEEND,
};

static const struct poptOption options[] = {
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_model_options, 0, "Model:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)output_options, 0, "Prompt and answer:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_prompt_options, 0, "Chat format:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_sampling_options, 0, "Choosing tokens:", NULL},
    POPT_TABLEEND,
};

/* ---- prompt ------------------------------------------------------------------------------------------------------ */
static mx_status read_prompt(bool from_stdin, mx_bytes *out, mx_error *error) {
    enum { LIMIT = 256 << 20 };
    mx_status status = MX_OK;
    if (from_stdin || prompt_file) {
        status = mx_read_file(from_stdin ? "-" : prompt_file, LIMIT, out, error);
        if (status) return status;
        /* The newline that ends a file's last line is seldom meant. Raw text is taken as it is. */
        if (!raw && out->size && out->data[out->size - 1] == '\n') out->data[--out->size] = 0;
    } else if (!mx_bytes_add_string(out, prompt_text)) {
        return mx_fail(error, MX_NO_MEMORY, "no memory for the prompt");
    }
    if (out->size == 0) {
        return mx_fail(error, MX_INVALID_ARGUMENT, "the prompt %sis empty",
                       from_stdin    ? "on stdin "
                       : prompt_file ? "in the file "
                                     : "");
    }
    mx_warn_invalid_utf8(&mx_command_run, "the prompt", out);
    return MX_OK;
}

static mx_status encode_prompt(mx_session *s, const mx_bytes *text, mx_ids *out, mx_error *error) {
    if (raw) return mx_encode_special(s->tokenizer, text->data, text->size, out, error);
    mx_status status = mx_conversation_add_user(s->conversation, text->data, text->size, error);
    return status ? status : mx_conversation_prompt(s->conversation, out, error);
}

/* ---- answer ------------------------------------------------------------------------------------------------------ */
static bool write_number(mx_bytes *out, const char *name, double value) {
    return mx_bytes_addf(out, "\"%s\":%.6g", name, value);
}

static bool write_json(const mx_session *s, const mx_turn_result *r, mx_bytes *out) {
    const struct mx_usage *u = &r->usage;
    double computed = (double)(u->prompt_tokens - u->cached_tokens);
    double decoded = u->generated_tokens > 1 ? (double)(u->generated_tokens - 1) : 0;
    bool ok = mx_bytes_add_string(out, "{\"text\":") && mx_bytes_add_json(out, r->text.data, r->text.size) &&
              mx_bytes_add_string(out, ",\"thinking\":") &&
              mx_bytes_add_json(out, r->thinking.data, r->thinking.size) &&
              mx_bytes_add_string(out, ",\"tool_calls\":[");
    for (int i = 0; i < r->tool_call_count && ok; i++) {
        const mx_tool_call *call = &r->tool_calls[i];
        ok = (i == 0 || mx_bytes_add_string(out, ",")) &&
             mx_write_tool_call(out, i + 1, call->name, &call->arguments, call->incomplete);
    }
    return ok &&
           mx_bytes_addf(out,
                         "],\"finish_reason\":\"%s\",\"usage\":{\"prompt_tokens\":%lld,\"cached_tokens\":%lld,"
                         "\"completion_tokens\":%lld,\"total_tokens\":%lld},\"timings\":{",
                         mx_turn_finish_name(r->finish), (long long)u->prompt_tokens, (long long)u->cached_tokens,
                         (long long)u->generated_tokens, (long long)(u->prompt_tokens + u->generated_tokens)) &&
           write_number(out, "load_seconds", s->load_seconds) && mx_bytes_add_string(out, ",") &&
           write_number(out, "first_token_seconds", r->seconds_to_first) && mx_bytes_add_string(out, ",") &&
           write_number(out, "prompt_seconds", u->prompt_seconds) && mx_bytes_add_string(out, ",") &&
           write_number(out, "decode_seconds", u->generate_seconds) && mx_bytes_add_string(out, ",") &&
           write_number(out, "prompt_tokens_per_second", u->prompt_seconds > 0 ? computed / u->prompt_seconds : 0) &&
           mx_bytes_add_string(out, ",") &&
           write_number(out, "decode_tokens_per_second", u->generate_seconds > 0 ? decoded / u->generate_seconds : 0) &&
           mx_bytes_addf(out, "},\"memory_bytes\":%llu,\"seed\":%llu}\n", mx_memory_peak(),
                         (unsigned long long)s->sampling.seed);
}

static mx_status print_json(const mx_session *s, const mx_turn_result *result, mx_error *error) {
    mx_bytes out = {0};
    mx_status status = MX_OK;
    if (!write_json(s, result, &out)) {
        status = mx_fail(error, MX_NO_MEMORY, "no memory for the answer");
    } else if (fwrite(out.data, 1, out.size, stdout) != out.size || fflush(stdout) != 0) {
        status = mx_fail(error, MX_IO, "cannot write to stdout: %s", strerror(errno));
    }
    mx_bytes_free(&out);
    return status;
}

/* What stderr gets behind the answer: why it is not whole, and the statistics. */
static void report(const mx_session *s, const mx_turn_result *result) {
    if (result->finish == MX_TURN_LENGTH) {
        fprintf(stderr, "mxrun run: cut after %lld tokens (-n)\n", (long long)result->usage.generated_tokens);
    }
    if (result->finish == MX_TURN_CONTEXT) {
        fprintf(stderr, "mxrun run: the context of %lld tokens is full, the answer is cut (see --ctx)\n",
                (long long)s->info.context);
    }
    mx_bytes line = {0};
    if (!quiet && mx_session_statistics(s, result, &line)) fprintf(stderr, "mxrun: %s\n", line.data);
    mx_bytes_free(&line);
}

static mx_status answer(mx_session *s, const mx_ids *prompt, mx_show thinking, bool *interrupted, mx_error *error) {
    mx_printer printer;
    mx_printer_start(&printer, thinking);
    const mx_turn_options turn_options = {
        .tokenizer = s->tokenizer,
        .raw = raw,
        .stop_tokens = &s->stop_tokens,
        .stop = (const char *const *)s->stop,
        .stop_count = s->stop_count,
        .piece = json ? NULL : mx_printer_piece,
        .user = &printer,
    };
    mx_turn *turn;
    mx_status status = mx_turn_create(&turn_options, &turn, error);
    if (!status) {
        mx_interrupt_catch(true);
        status = mx_session_turn(s, prompt, turn, &mx_interrupted, error);
        mx_interrupt_release();
        *interrupted = mx_interrupted;
        if (!mx_printer_end(&printer) && !status) {
            status = mx_fail(error, MX_IO, "cannot write to stdout: %s", strerror(printer.failed));
        }
        if (!status && json) status = print_json(s, mx_turn_get_result(turn), error);
        if (!status) report(s, mx_turn_get_result(turn));
    }
    mx_turn_free(turn);
    mx_printer_free(&printer);
    return status;
}

/* ---- command ----------------------------------------------------------------------------------------------------- */
static int run_prompt(mx_show thinking, bool from_stdin) {
    mx_error error = {0};
    mx_bytes text = {0};
    mx_ids prompt = {0};
    mx_session session;
    int exit_code;
    bool interrupted = false;
    if (!mx_options_check(&mx_command_run, raw, &exit_code)) return exit_code;
    if (read_prompt(from_stdin, &text, &error)) {
        mx_bytes_free(&text);
        return mx_command_fail(&mx_command_run, &error);
    }
    if (mx_session_open(&mx_command_run, raw, &session, &exit_code)) {
        if (!quiet && !json && session.default_memory) mx_session_show_memory(&session);
        mx_status status = encode_prompt(&session, &text, &prompt, &error);
        if (!status) status = answer(&session, &prompt, thinking, &interrupted, &error);
        exit_code = status ? mx_command_fail(&mx_command_run, &error) : interrupted ? MX_EXIT_INTERRUPTED : MX_EXIT_OK;
    }
    mx_session_close(&session);
    mx_ids_free(&prompt);
    mx_bytes_free(&text);
    return exit_code;
}

static int run(const mx_command *self, int argc, const char **argv) {
    const char *const *positional;
    int exit_code;
    mx_show thinking;
    if (!mx_command_parse(self, options, argc, argv, &positional, &exit_code)) return exit_code;
    if (positional) return mx_command_usage(self, "unexpected argument \"%s\"; the prompt follows -p", *positional);
    if (!mx_show_parse(show_thinking, &thinking)) {
        return mx_command_usage(self, "--show-thinking %s: expected on, off or auto", show_thinking);
    }
    if (prompt_text && prompt_file) return mx_command_usage(self, "-p and -f contradict each other");
    bool is_prompt = prompt_text || prompt_file;
    if (!is_prompt && isatty(STDIN_FILENO)) {
        if (raw || json) return mx_command_usage(self, "%s needs a prompt: -p or -f", raw ? "--raw" : "--json");
        return mx_chat(self, thinking, quiet);
    }
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is a failed write */
    return run_prompt(thinking, !is_prompt || (prompt_text && strcmp(prompt_text, "-") == 0));
}

const mx_command mx_command_run = {
    .name = "run",
    .arguments = "-m MODEL [OPTION]... [-p TEXT | -f FILE]",
    .summary = "Answer one prompt (also without the word \"run\")",
    .description = "Answers one prompt and ends. The answer is streamed to stdout; what the model\n"
                   "thinks before it goes to stderr; one line of statistics follows on stderr. Where\n"
                   "--kv-memory is not given, a line says first how much was taken (not with\n"
                   "--json, nor either line with --quiet).\n"
                   "Without -p and -f the prompt comes from stdin, or, when that is a terminal, a\n"
                   "chat begins (see mxrun chat --help). The newline that ends a file or stdin is\n"
                   "no part of the prompt, except with --raw.\n"
                   "\n"
                   "A tool call (see --tools) is printed as one line of JSON on stdout:\n"
                   "  {\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}\n"
                   "A call that -n cut goes to stderr instead: it is not one to make.\n"
                   "\n"
                   "With --json stdout gets one object: text, thinking, tool_calls, finish_reason\n"
                   "(stop, tool_calls, length, context, cancelled), usage, timings, memory_bytes,\n"
                   "seed. A call that was cut has \"incomplete\": true.\n"
                   "\n"
                   "The same prompt, options and seed give the same answer on the same machine,\n"
                   "whatever --threads.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun -m stories -p \"Tell me a story about a fox and a lamp.\"\n"
                   "  $ mxrun -m stories --greedy --json -p \"Repeat after me: golden whistle\"\n"
                   "  $ mxrun -m stories --raw -n 50 -p \"Once upon a time\"\n"
                   "  $ git diff | mxrun -m DIR --developer \"Review this change.\" -p -",
    .run = run,
};
