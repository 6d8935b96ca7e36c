#ifndef MX_CHAT_H
#define MX_CHAT_H

#include "commands/terminal.h"

/* A conversation on stdin and stdout, with the options that were parsed before; returns the exit code. */
int mx_chat(const mx_command *command, mx_show thinking, bool quiet);

#endif
