#ifndef MX_EDITOR_H
#define MX_EDITOR_H

#include <stdbool.h>

#include "base/bytes.h"

/* Reads what the user types. On a terminal with editing and a history that is kept between runs
 * ($XDG_STATE_HOME/mxrun/history, by default ~/.local/state/mxrun/history); pasted text may have many lines, Alt-Enter
 * begins a new one. Otherwise line by line from stdin. */
typedef struct mx_editor mx_editor;

typedef enum mx_line {
    MX_LINE_TEXT,
    MX_LINE_INTERRUPTED, /* Ctrl-C */
    MX_LINE_END,         /* Ctrl-D, or the end of stdin */
    MX_LINE_FAILED,      /* errno */
} mx_line;

mx_editor *mx_editor_open(void);    /* NULL: no memory */
void mx_editor_close(mx_editor *e); /* NULL allowed */
bool mx_editor_is_terminal(const mx_editor *e);

/* `out` gets the line without its newline. `prompt` is shown on terminals only. `remember`: it goes to the history. */
mx_line mx_editor_read(mx_editor *e, const char *prompt, bool remember, mx_bytes *out);

#endif
