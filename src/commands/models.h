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
/* The work of a command on models by name: parses argv, opens list and hub, and calls `one` for each name until one
 * fails, of which `failed` (may be NULL) is told. Ctrl-C sets mx_interrupted meanwhile where `interruptible`. Returns
 * the exit code. */
typedef mx_status mx_model_work(const mx_hub *hub, const mx_models *models, const char *name, mx_error *error);
int mx_command_on_models(const mx_command *self, const struct poptOption *options, int argc, const char **argv,
                         bool interruptible, mx_model_work *one, void (*failed)(const char *name, const mx_error *));
/* Does it come with mxrun? */
bool mx_comes_along(const mx_target *target);

/* Asks on the terminal: "QUESTION [Y/n] ", or [y/N]. Only Enter is `otherwise`; no answer is no. */
bool mx_ask(const char *question, bool otherwise);
bool mx_can_ask(void); /* stdin and stderr are a terminal */

#endif
