#ifndef MX_TERMINAL_H
#define MX_TERMINAL_H

#include <signal.h>
#include <stdbool.h>

#include "commands/command.h"
#include "turn/turn.h"

/* ---- Ctrl-C ------------------------------------------------------------------------------------------------------ */
/* Non-zero once Ctrl-C was pressed while it is caught. */
extern volatile sig_atomic_t mx_interrupted;
/* Clears mx_interrupted; from now on Ctrl-C only sets it. `second_ends`: the next one but one ends the program. */
void mx_interrupt_catch(bool second_ends);
/* The same, a second one ending the program, and SIGTERM and SIGHUP likewise: of commands that would leave files. */
void mx_interrupt_catch_all(void);
void mx_interrupt_release(void); /* all of them */

/* ---- answers ----------------------------------------------------------------------------------------------------- */
typedef enum mx_show { MX_SHOW_AUTO, MX_SHOW_ON, MX_SHOW_OFF } mx_show;
bool mx_show_parse(const char *text, mx_show *out); /* "on", "off", "auto"; NULL is auto */

/* Writes an answer as it comes: text to stdout, flushed piece by piece; thinking to stderr, dimmed on a terminal; a
 * tool call as one line of JSON to stdout, one that was cut to stderr. Where the output is a terminal, control
 * characters are shown as pictures, so that no model can reprogram it. */
typedef struct mx_printer {
    bool show_thinking, dim, stdout_is_terminal, stderr_is_terminal;
    bool wrote, newline; /* something went to stdout; it ended in a newline */
    int failed;          /* errno of the first failed write to stdout */
    mx_bytes arguments;  /* of the tool call that is being written */
    mx_bytes scratch;
    int calls; /* tool calls so far */
} mx_printer;

void mx_printer_start(mx_printer *p, mx_show thinking);
bool mx_printer_piece(void *printer, const mx_piece *piece); /* for mx_turn_options.piece */
/* Ends the last line. false: stdout could not be written, p->failed tells why. */
bool mx_printer_end(mx_printer *p);
void mx_printer_free(mx_printer *p);

/* {"id":"call_1","type":"function","function":{"name":...,"arguments":"..."}}; `number` counts from 1. An incomplete
 * one has "incomplete":true behind "function". */
bool mx_write_tool_call(mx_bytes *out, int number, const char *name, const mx_bytes *arguments, bool incomplete);

/* Says once on stderr that invalid UTF-8 was replaced, when it was. */
void mx_warn_invalid_utf8(const mx_command *command, const char *what, const mx_bytes *text);

#endif
