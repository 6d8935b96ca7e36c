#ifndef MX_MODELS_H
#define MX_MODELS_H

#include "commands/command.h"
#include "hub/hub.h"

/* Models by name, as commands use them. */

extern const struct poptOption mx_hub_options[];    /* --offline --yes, for commands that may download */
extern const struct poptOption mx_offline_option[]; /* --offline alone */

/* The list that comes with mxrun and the user's own. */
mx_status mx_open_models(mx_models *out, mx_error *error);
/* What the environment and --offline say. */
mx_status mx_open_hub(mx_hub *out, mx_error *error);
/* The folder of the model that comes with mxrun. */
mx_status mx_find_stories(char *out, size_t size, mx_error *error);
/* Does it come with mxrun? */
bool mx_comes_along(const mx_target *target);

/* Asks on the terminal: "QUESTION [Y/n] ", or [y/N]. Only Enter is `otherwise`; no answer is no. */
bool mx_ask(const char *question, bool otherwise);
bool mx_can_ask(void); /* stdin and stderr are a terminal */

#endif
