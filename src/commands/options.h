#ifndef MX_OPTIONS_H
#define MX_OPTIONS_H

#include "api/request.h"
#include "commands/command.h"
#include "engine/mxrun.h"
#include "grammar/grammar.h"
#include "turn/conversation.h"

/* The options that the commands which generate text have in common: which model and engine, how tokens are chosen,
 * what the prompt says. Include the tables with POPT_ARG_INCLUDE_TABLE, parse, then open a session. */
extern const struct poptOption mx_model_options[];    /* -m --ctx --kv-memory ... --threads */
extern const struct poptOption mx_sampling_options[]; /* -n --temperature ... --stop --greedy --seed */
extern const struct poptOption mx_prompt_options[];   /* --system --developer --reasoning --date --tools */

/* A model that is loaded and an engine on it, with what the options said. */
typedef struct mx_session {
    const mx_command *command;
    const char *name; /* of the model, as given */
    char path[4096];
    mx_model *model;
    mx_engine *engine;
    mx_engine_info info;
    mx_tokenizer *tokenizer;
    mx_vocabulary *vocabulary;     /* for grammars; NULL: made by nobody so far */
    mx_conversation *conversation; /* with --system, --developer, --reasoning, --date and --tools; NULL: raw */
    mx_ids stop_tokens;
    mx_sampling sampling; /* .seed is set, .bias owned here */
    mx_logit_bias *bias;
    bool random_seed;    /* nobody gave one */
    bool today;          /* nobody gave a date */
    bool default_memory; /* nobody gave --kv-memory */
    int64_t max_tokens;
    char **stop; /* stop strings */
    int stop_count;
    double load_seconds;
} mx_session;

/* Checks the values of all options. `raw`: those about the chat format must not be there. false: *exit_code is set and
 * the user has been told. */
bool mx_options_check(const mx_command *command, bool raw, int *exit_code);

/* Checks, then loads. The session must be closed in any case. */
bool mx_session_open(const mx_command *command, bool raw, mx_session *out, int *exit_code);
/* The same in two parts: first what is quick (path, tokenizer, conversation, limits and stop strings), then model,
 * engine and sampling. `engine`: what holds where no option of the user says otherwise; NULL: all defaults. */
bool mx_session_prepare(const mx_command *command, bool raw, mx_session *out, int *exit_code);
bool mx_session_load(mx_session *s, const mx_engine_options *engine, int *exit_code);
/* A hash of the model by its content (mx_checkpoint_identity, its configuration and its tokenizer) and of all options
 * that answers depend on, but for the context and the precision: what is in force is in the engine's info. Prepared is
 * enough. */
mx_status mx_session_fingerprint(const mx_session *s, uint64_t *out, mx_error *error);
void mx_session_close(mx_session *s);

/* What people call the model: "stories", or the last part of its path. */
const char *mx_session_model(const mx_session *s);
/* What holds for requests that say nothing of it; borrows from the session. The context and the kernels are known once
 * it is loaded. */
mx_api_settings mx_session_settings(const mx_session *s);

/* Runs one turn with the session's sampling and limits; *interrupted as mx_turn_run. Fails with the numbers when the
 * prompt leaves no room in the context. */
mx_status mx_session_turn(mx_session *s, const mx_ids *prompt, mx_turn *turn, const volatile sig_atomic_t *interrupted,
                          mx_error *error);

/* "134.9 MB": KV memory at most, of a loaded session. */
void mx_session_kv_memory(const mx_session *s, char out[static 40]);
/* One line of it and of the context to stderr. */
void mx_session_show_memory(const mx_session *s);

/* "75 prompt + 143 new tokens | first token 0.05 s | ..." for stderr. */
bool mx_session_statistics(const mx_session *s, const mx_turn_result *result, mx_bytes *out);

#endif
