#include "commands/terminal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Ctrl-C ------------------------------------------------------------------------------------------------------ */
volatile sig_atomic_t mx_interrupted;

static void on_interrupt(int signal) {
    (void)signal;
    mx_interrupted = 1;
}

/* A program that was started with a signal ignored, in the background or by nohup, leaves it so. */
static void handle(int number, void (*handler)(int), int flags) {
    struct sigaction old, action = {.sa_handler = handler, .sa_flags = flags};
    sigemptyset(&action.sa_mask);
    if (sigaction(number, NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(number, &action, NULL);
}

void mx_interrupt_catch(bool second_ends) {
    mx_interrupted = 0;
    handle(SIGINT, on_interrupt, SA_RESTART | (second_ends ? (int)SA_RESETHAND : 0));
}

void mx_interrupt_catch_all(void) {
    mx_interrupt_catch(true);
    handle(SIGTERM, on_interrupt, SA_RESTART | (int)SA_RESETHAND);
    handle(SIGHUP, on_interrupt, SA_RESTART | (int)SA_RESETHAND);
}

void mx_interrupt_release(void) {
    handle(SIGINT, SIG_DFL, 0);
    handle(SIGTERM, SIG_DFL, 0);
    handle(SIGHUP, SIG_DFL, 0);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */
bool mx_show_parse(const char *text, mx_show *out) {
    static const char *const names[] = {"auto", "on", "off"};
    *out = MX_SHOW_AUTO;
    if (!text) return true;
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (mx_show)i;
            return true;
        }
    }
    return false;
}

void mx_printer_start(mx_printer *p, mx_show thinking) {
    *p = (mx_printer){.newline = true};
    p->stdout_is_terminal = isatty(STDOUT_FILENO);
    p->stderr_is_terminal = isatty(STDERR_FILENO);
    p->show_thinking = thinking == MX_SHOW_ON || (thinking == MX_SHOW_AUTO && p->stderr_is_terminal);
    p->dim = p->stderr_is_terminal && !getenv("NO_COLOR");
}

void mx_printer_free(mx_printer *p) {
    mx_bytes_free(&p->arguments);
    mx_bytes_free(&p->scratch);
}

/* Replaces C0 and C1 controls but newline and tab by the Unicode pictures of them (C1: U+FFFD). */
static bool add_printable(mx_bytes *out, const char *text, size_t size) {
    for (size_t i = 0; i < size;) {
        unsigned char c = (unsigned char)text[i];
        if (c == 0xC2 && i + 1 < size && (unsigned char)text[i + 1] < 0xA0) {
            if (!mx_bytes_add_utf8(out, 0xFFFD)) return false;
            i += 2;
            continue;
        }
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7F;
        if (control ? !mx_bytes_add_utf8(out, c == 0x7F ? 0x2421 : 0x2400 + c) : !mx_bytes_add(out, text + i, 1)) {
            return false;
        }
        i++;
    }
    return true;
}

static void write_out(mx_printer *p, const char *text, size_t size) {
    if (size == 0 || p->failed) return;
    p->wrote = true;
    p->newline = text[size - 1] == '\n';
    if (p->stdout_is_terminal) {
        mx_bytes_clear(&p->scratch);
        if (add_printable(&p->scratch, text, size)) {
            text = p->scratch.data;
            size = p->scratch.size;
        }
    }
    if (fwrite(text, 1, size, stdout) != size || fflush(stdout) != 0) p->failed = errno ? errno : EIO;
}

static void write_thinking(mx_printer *p, const mx_piece *piece) {
    if (!p->show_thinking) return;
    if (piece->first && p->dim) fputs("\033[2m", stderr);
    mx_bytes_clear(&p->scratch);
    const char *text = piece->text;
    size_t size = piece->size;
    if (p->stderr_is_terminal && size && add_printable(&p->scratch, text, size)) {
        text = p->scratch.data;
        size = p->scratch.size;
    }
    fwrite(text, 1, size, stderr);
    if (piece->last) fputs(p->dim ? "\033[0m\n\n" : "\n\n", stderr);
}

bool mx_write_tool_call(mx_bytes *out, int number, const char *name, const mx_bytes *arguments, bool incomplete) {
    return mx_bytes_addf(out, "{\"id\":\"call_%d\",\"type\":\"function\",\"function\":{\"name\":", number) &&
           mx_bytes_add_json(out, name, strlen(name)) && mx_bytes_add_string(out, ",\"arguments\":") &&
           mx_bytes_add_json(out, arguments->data, arguments->size) && mx_bytes_add_string(out, "}") &&
           (!incomplete || mx_bytes_add_string(out, ",\"incomplete\":true")) && mx_bytes_add_string(out, "}");
}

/* A call that was cut is none: whoever reads stdout must not make it. */
static void say_cut_call(mx_printer *p, const char *name) {
    mx_bytes line = {0};
    if (mx_bytes_addf(&line, "[a call of %s was cut: ", name) &&
        add_printable(&line, p->arguments.data, p->arguments.size)) {
        fprintf(stderr, "%s]\n", line.data);
    }
    mx_bytes_free(&line);
}

static void write_tool_call(mx_printer *p, const mx_piece *piece) {
    if (piece->first) mx_bytes_clear(&p->arguments);
    if (!mx_bytes_add(&p->arguments, piece->text, piece->size)) p->failed = ENOMEM;
    if (!piece->last) return;
    if (piece->cut) {
        say_cut_call(p, piece->name);
        return;
    }
    mx_bytes line = {0};
    if (!p->newline) write_out(p, "\n", 1);
    if (mx_write_tool_call(&line, ++p->calls, piece->name, &p->arguments, false) && mx_bytes_add_string(&line, "\n")) {
        write_out(p, line.data, line.size);
    } else {
        p->failed = ENOMEM;
    }
    mx_bytes_free(&line);
}

bool mx_printer_piece(void *printer, const mx_piece *piece) {
    mx_printer *p = printer;
    switch (piece->kind) {
    case MX_PIECE_THINKING:
        write_thinking(p, piece);
        break;
    case MX_PIECE_TOOL_CALL:
        write_tool_call(p, piece);
        break;
    case MX_PIECE_TEXT:
        if (piece->first && p->wrote) write_out(p, p->newline ? "\n" : "\n\n", p->newline ? 1 : 2);
        write_out(p, piece->text, piece->size);
        break;
    }
    return !p->failed;
}

bool mx_printer_end(mx_printer *p) {
    if (!p->newline) write_out(p, "\n", 1);
    return !p->failed;
}

void mx_warn_invalid_utf8(const mx_command *command, const char *what, const mx_bytes *text) {
    for (size_t i = 0; i < text->size;) {
        int length = mx_utf8_length(text->data + i, text->size - i);
        if (length <= 0) {
            fprintf(stderr, "mxrun %s: warning: %s is not UTF-8 throughout (byte %zu); wrong bytes become U+FFFD\n",
                    command->name, what, i);
            return;
        }
        i += (size_t)length;
    }
}
