#include "commands/chat.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "commands/editor.h"
#include "commands/options.h"

typedef struct chat {
    const mx_command *command;
    mx_session *session;
    mx_conversation *conversation; /* of the session */
    mx_editor *editor;
    mx_show thinking;
    uint64_t seed; /* of the next answer */
    int answers;
    mx_bytes statistics; /* of the last answer */
    bool quit, failed;
    int exit_code;
} chat;

/* What is not an answer goes to stderr, so that stdout holds answers only. */
static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
}

static void say_error(chat *c, const mx_error *error) {
    say("%s", error->text);
    c->failed = true;
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */
static mx_status prompt_length(chat *c, int64_t *out, mx_error *error) {
    mx_ids ids = {0};
    mx_status status = mx_conversation_prompt(c->conversation, &ids, error);
    *out = ids.count;
    mx_ids_free(&ids);
    return status;
}

static mx_status run_turn(chat *c, mx_turn *turn, mx_error *error) {
    mx_ids prompt = {0};
    mx_status status = mx_conversation_prompt(c->conversation, &prompt, error);
    if (!status) {
        c->session->sampling.seed = c->seed++;
        mx_interrupt_catch(false);
        status = mx_session_turn(c->session, &prompt, turn, &mx_interrupted, error);
        if (!mx_editor_is_terminal(c->editor)) mx_interrupt_release();
    }
    mx_ids_free(&prompt);
    return status;
}

/* One answer, printed as it comes, and put into the conversation. */
static mx_status answer(chat *c, mx_turn **out, mx_error *error) {
    mx_session *s = c->session;
    mx_printer printer;
    mx_printer_start(&printer, c->thinking);
    const mx_turn_options options = {
        .tokenizer = s->tokenizer,
        .stop_tokens = &s->stop_tokens,
        .stop = (const char *const *)s->stop,
        .stop_count = s->stop_count,
        .piece = mx_printer_piece,
        .user = &printer,
    };
    mx_status status = mx_turn_create(&options, out, error);
    if (!status) status = run_turn(c, *out, error);
    if (!mx_printer_end(&printer)) {
        status = mx_fail(error, MX_IO, "cannot write to stdout: %s", strerror(printer.failed));
        c->quit = true;
    }
    mx_printer_free(&printer);
    if (!status) status = mx_conversation_add_answer(c->conversation, *out, error);
    if (status) return status;
    const mx_turn_result *result = mx_turn_get_result(*out);
    c->answers++;
    mx_bytes_clear(&c->statistics);
    mx_session_statistics(s, result, &c->statistics);
    if (result->finish == MX_TURN_CANCELLED) say("[stopped]");
    if (result->finish == MX_TURN_LENGTH) say("[cut after %lld tokens, see -n]", (long long)s->max_tokens);
    if (result->finish == MX_TURN_CONTEXT) {
        say("[the context of %lld tokens is full: /compact forgets the oldest turns, /reset all]",
            (long long)s->info.context);
    }
    return MX_OK;
}

/* Asks for what the called functions return. false: the user does not want to say. */
static bool ask_results(chat *c, const mx_turn_result *result, mx_error *error) {
    mx_bytes line = {0};
    bool complete = true;
    for (int i = 0; i < result->tool_call_count && complete; i++) {
        const char *name = result->tool_calls[i].name;
        char prompt[100];
        snprintf(prompt, sizeof prompt, "result of %s> ", name);
        complete = mx_editor_read(c->editor, prompt, false, &line) == MX_LINE_TEXT;
        if (!complete) {
            mx_fail(error, MX_CANCELLED, "[no result of %s: your message is taken back]", name);
        } else {
            complete = !mx_conversation_add_tool_result(c->conversation, name, line.data, line.size, error);
        }
    }
    mx_bytes_free(&line);
    return complete;
}

/* A message of the user and all that follows from it. When it fails the conversation is as before. */
static void send_message(chat *c, const char *text, size_t size) {
    mx_error error = {0};
    int before = mx_conversation_count(c->conversation);
    mx_status status = mx_conversation_add_user(c->conversation, text, size, &error);
    bool more = true;
    while (!status && more) {
        mx_turn *turn = NULL;
        status = answer(c, &turn, &error);
        more = !status && mx_turn_get_result(turn)->finish == MX_TURN_TOOL_CALLS;
        if (more && !ask_results(c, mx_turn_get_result(turn), &error)) status = error.status;
        if (!status && mx_turn_get_result(turn)->finish == MX_TURN_CANCELLED && !mx_editor_is_terminal(c->editor)) {
            c->quit = true;
            c->exit_code = MX_EXIT_INTERRUPTED;
        }
        mx_turn_free(turn);
    }
    if (!status) return;
    mx_conversation_truncate(c->conversation, before);
    say_error(c, &error);
    if (status == MX_CONTEXT_FULL) {
        say("your message was not sent; /compact forgets the oldest turns, /reset all, --ctx sets the size");
    }
}

/* ---- commands of the chat ---------------------------------------------------------------------------------------- */
static void set(chat *c, mx_setting setting, const char *name, const char *argument) {
    mx_error error;
    if (!*argument) {
        say("%s: %s", name, mx_conversation_get(c->conversation, setting));
        return;
    }
    if (strcmp(argument, "\"\"") == 0) argument = "";
    if (mx_conversation_set(c->conversation, setting, argument, &error)) {
        say_error(c, &error);
    } else {
        say("[%s is set; it holds from the next message on]", name);
    }
}

static void do_system(chat *c, const char *argument) {
    set(c, MX_SETTING_SYSTEM, "system", argument);
}

static void do_developer(chat *c, const char *argument) {
    set(c, MX_SETTING_DEVELOPER, "developer", argument);
}

static void do_reasoning(chat *c, const char *argument) {
    set(c, MX_SETTING_REASONING, "reasoning", argument);
}

static void do_reset(chat *c, const char *argument) {
    (void)argument;
    mx_conversation_truncate(c->conversation, 0);
    say("[a new conversation]");
}

/* "-" would be the terminal, or whatever the messages come from. */
static bool is_file_name(chat *c, const char *command, const char *argument) {
    if (*argument && strcmp(argument, "-") != 0) return true;
    say("%s needs a file name%s", command, *argument ? " (a file called - is ./-)" : "");
    c->failed = true;
    return false;
}

static void do_save(chat *c, const char *argument) {
    mx_error error;
    if (!is_file_name(c, "/save", argument)) return;
    if (mx_conversation_save(c->conversation, argument, &error)) {
        say_error(c, &error);
    } else {
        say("[%d messages saved in %s]", mx_conversation_count(c->conversation), argument);
    }
}

static void do_load(chat *c, const char *argument) {
    mx_error error;
    if (!is_file_name(c, "/load", argument)) return;
    if (mx_conversation_load(c->conversation, argument, &error)) {
        say_error(c, &error);
    } else {
        say("[%d messages loaded from %s]", mx_conversation_count(c->conversation), argument);
    }
}

static void do_compact(chat *c, const char *argument) {
    (void)argument;
    mx_error error;
    int64_t before, after;
    if (prompt_length(c, &before, &error)) {
        say_error(c, &error);
        return;
    }
    int64_t goal = c->session->info.context / 2;
    int dropped = before > goal ? mx_conversation_compact(c->conversation, goal, &error) : 0;
    if (dropped < 0 || prompt_length(c, &after, &error)) {
        say_error(c, &error);
    } else if (dropped == 0) {
        say("[nothing to forget: %lld of %lld tokens%s]", (long long)before, (long long)c->session->info.context,
            before > goal ? " in a single turn" : "");
    } else {
        say("[the oldest %d turn%s forgotten: %lld of %lld tokens remain]", dropped, dropped == 1 ? " is" : "s are",
            (long long)after, (long long)c->session->info.context);
    }
}

static void do_stats(chat *c, const char *argument) {
    (void)argument;
    mx_error error;
    int64_t length = 0;
    mx_engine_info info = mx_engine_get_info(c->session->engine);
    if (prompt_length(c, &length, &error)) say_error(c, &error);
    say("conversation: %d messages, %lld of %lld tokens", mx_conversation_count(c->conversation), (long long)length,
        (long long)info.context);
    say("engine: %d threads, %s, %s, weights %.1f MB, KV cache %.1f of %.1f MB", info.threads, info.tier,
        info.precision, (double)info.weight_bytes / 1e6, (double)info.kv_bytes_used / 1e6, (double)info.kv_bytes / 1e6);
    if (c->statistics.size) say("last answer: %s", c->statistics.data);
}

static void do_quit(chat *c, const char *argument) {
    (void)argument;
    c->quit = true;
}

static void do_help(chat *c, const char *argument);

static const struct {
    const char *name, *argument, *help;
    void (*run)(chat *c, const char *argument);
} chat_commands[] = {
    {"/help", "", "this list", do_help},
    {"/reset", "", "begin a new conversation", do_reset},
    {"/system", "[TEXT]", "who the model is (without TEXT: show it; \"\": nothing)", do_system},
    {"/developer", "[TEXT]", "instructions for the model (the same)", do_developer},
    {"/reasoning", "[EFFORT]", "how long to think: low, medium or high", do_reasoning},
    {"/save", "FILE", "write the conversation to a file", do_save},
    {"/load", "FILE", "go on with a saved conversation", do_load},
    {"/compact", "", "forget the oldest turns, until half of the context is free", do_compact},
    {"/stats", "", "tokens, speed and memory", do_stats},
    {"/quit", "", "end (also Ctrl-D)", do_quit},
};
enum { CHAT_COMMANDS = sizeof chat_commands / sizeof *chat_commands };

static void do_help(chat *c, const char *argument) {
    (void)c;
    (void)argument;
    for (int i = 0; i < CHAT_COMMANDS; i++) {
        say("  %-10s %-8s  %s", chat_commands[i].name, chat_commands[i].argument, chat_commands[i].help);
    }
    say("Ctrl-C stops an answer, Alt-Enter begins a new line, // sends a line that begins with /");
}

static void run_command(chat *c, const char *line) {
    size_t length = strcspn(line, " \t");
    const char *argument = line + length + strspn(line + length, " \t");
    for (int i = 0; i < CHAT_COMMANDS; i++) {
        if (strlen(chat_commands[i].name) == length && strncmp(line, chat_commands[i].name, length) == 0) {
            chat_commands[i].run(c, argument);
            return;
        }
    }
    say("there is no command %.*s (see /help; // sends a line that begins with /)", (int)length, line);
    c->failed = true;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */
static bool is_blank(const mx_bytes *line) {
    for (size_t i = 0; i < line->size; i++) {
        if (!isspace((unsigned char)line->data[i])) return false;
    }
    return true;
}

static void handle_line(chat *c, mx_bytes *line) {
    if (is_blank(line)) return;
    if (line->data[0] == '/' && line->data[1] != '/') {
        while (isspace((unsigned char)line->data[line->size - 1])) line->data[--line->size] = 0;
        run_command(c, line->data);
        return;
    }
    size_t skip = line->data[0] == '/'; /* one of the two */
    mx_warn_invalid_utf8(c->command, "the message", line);
    send_message(c, line->data + skip, line->size - skip);
    if (mx_editor_is_terminal(c->editor) && !c->quit) fputc('\n', stderr);
}

static void talk(chat *c) {
    mx_bytes line = {0};
    /* On a terminal no Ctrl-C may end the chat, not even one between an answer and the next prompt. */
    if (mx_editor_is_terminal(c->editor)) mx_interrupt_catch(false);
    while (!c->quit) {
        switch (mx_editor_read(c->editor, "> ", true, &line)) {
        case MX_LINE_TEXT:
            handle_line(c, &line);
            break;
        case MX_LINE_INTERRUPTED:
            say("(Ctrl-D or /quit ends the chat)");
            break;
        case MX_LINE_END:
            c->quit = true;
            break;
        case MX_LINE_FAILED:
            say("cannot read stdin: %s", strerror(errno));
            c->quit = c->failed = true;
            break;
        }
    }
    mx_bytes_free(&line);
}

int mx_chat(const mx_command *command, mx_show thinking, bool quiet) {
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is a failed write */
    mx_session session;
    chat c = {.command = command, .session = &session, .thinking = thinking};
    if (mx_session_open(command, false, &session, &c.exit_code)) {
        c.conversation = session.conversation;
        c.seed = session.sampling.seed;
        c.editor = mx_editor_open();
        if (!c.editor) {
            say("mxrun %s: no memory for the line editor", command->name);
            c.failed = true;
        } else {
            if (!quiet) {
                char memory[40];
                mx_session_kv_memory(&session, memory);
                say("mxrun " MX_VERSION ": %s, context %lld tokens, KV memory %s, seed %llu; /help lists the commands",
                    session.name, (long long)session.info.context, memory, (unsigned long long)c.seed);
            }
            talk(&c);
        }
        /* In a pipe nobody saw what went wrong on the way. */
        if (c.exit_code == MX_EXIT_OK && c.failed && (!c.editor || !mx_editor_is_terminal(c.editor))) {
            c.exit_code = MX_EXIT_FAILED;
        }
        mx_editor_close(c.editor);
    }
    mx_bytes_free(&c.statistics);
    mx_session_close(&session);
    return c.exit_code;
}

/* ---- command ----------------------------------------------------------------------------------------------------- */
static char *show_thinking;
static int be_quiet;

static const struct poptOption output_options[] = {
    {"show-thinking", '\0', POPT_ARG_STRING, &show_thinking, 0,
     "Thinking goes to stderr: on, off, auto (default: when stderr is a terminal)", "WHEN"},
    {"quiet", 'q', POPT_ARG_NONE, &be_quiet, 0, "No greeting on stderr", NULL},
    POPT_TABLEEND,
};

static const struct poptOption options[] = {
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_model_options, 0, "Model:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)output_options, 0, "Output:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_prompt_options, 0, "Chat format:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_sampling_options, 0, "Choosing tokens:", NULL},
    POPT_TABLEEND,
};

static int run(const mx_command *self, int argc, const char **argv) {
    const char *const *positional;
    int exit_code;
    mx_show thinking;
    if (!mx_command_parse(self, options, argc, argv, &positional, &exit_code)) return exit_code;
    if (positional) return mx_command_usage(self, "unexpected argument \"%s\"", *positional);
    if (!mx_show_parse(show_thinking, &thinking)) {
        return mx_command_usage(self, "--show-thinking %s: expected on, off or auto", show_thinking);
    }
    return mx_chat(self, thinking, be_quiet);
}

const mx_command mx_command_chat = {
    .name = "chat",
    .arguments = "-m MODEL [OPTION]...",
    .summary = "Talk with a model",
    .description = "A conversation. On a terminal with a line editor: the arrow keys reach what was\n"
                   "typed before, pasted text may have many lines, Alt-Enter begins a new line,\n"
                   "Ctrl-C stops an answer, Ctrl-D ends the chat. Lines that begin with / are\n"
                   "commands, /help lists them. Where stdin is no terminal every line of it is a\n"
                   "message or a command; the exit code is then 1 when one of them failed.\n"
                   "\n"
                   "Answers go to stdout, everything else to stderr. Thinking is left out of later\n"
                   "prompts as soon as the final answer is there (but see --keep-thinking). Nothing\n"
                   "is ever dropped silently: when the context is full the chat says so, and\n"
                   "/compact forgets the oldest turns. When the model calls a function of --tools,\n"
                   "the call is printed and you are asked for its result (where stdin is no\n"
                   "terminal: its next line).\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun -m stories\n"
                   "  $ mxrun chat -m DIR --developer \"Answer in one sentence.\" --reasoning low",
    .run = run,
};
