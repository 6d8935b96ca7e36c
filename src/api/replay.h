#ifndef MX_API_REPLAY_H
#define MX_API_REPLAY_H

#include "turn/conversation.h"

/* What the model said lately, as its own tokens, so that a conversation that comes back has the very ids it had: its
 * prefix is found in the cache, and nothing is rendered differently. And the day on which conversations began. In
 * bounded memory, the oldest go first; used by any number of threads. */
typedef struct mx_replay mx_replay;
mx_status mx_replay_create(uint64_t bytes, mx_replay **out, mx_error *error);
void mx_replay_free(mx_replay *r); /* NULL allowed */

/* Keeps the messages of a turn that ended. `id`: mx_exchange_id; `answer`: its index (n > 1), which calls' ids have,
 * too (mx_api_call_id); `prompt`: what it answers. A failure (no memory) keeps nothing. */
void mx_replay_keep(mx_replay *r, const char *id, int answer, const mx_ids *prompt, const mx_turn *turn);

/* What a client says that the model said. */
typedef struct mx_replay_key {
    const char *const *ids; /* [id_count]: of the answer ("chatcmpl-ID", "resp_ID" ...) and of calls */
    int id_count;
    uint64_t prompt;  /* mx_replay_hash of the prompt that it answers */
    const char *text; /* all of its text, parts joined by an empty line; white space around it does not matter */
    size_t text_size;
    const mx_bytes *calls; /* made by mx_replay_add_call, in order */
} mx_replay_key;
uint64_t mx_replay_hash(const mx_ids *prompt);
/* `name` as harmony has it. How the arguments are spaced does not matter. false: no memory. */
bool mx_replay_add_call(mx_bytes *calls, const char *name, const char *arguments, size_t size);
/* Appends the messages of an answer that says just this, thinking included: one with such an id (there the text may be
 * missing beside calls), or one to the same prompt, so that nobody gets the thinking of somebody else's conversation.
 * *found: there was one. */
mx_status mx_replay_find(mx_replay *r, const mx_replay_key *key, mx_conversation *into, bool *found, mx_error *error);

/* The day ("2026-11-27") on which the conversation began that begins with what hashes to `key`: today where it begins
 * now, or is not known. */
void mx_replay_date(mx_replay *r, uint64_t key, bool begins, char out[static 11]);

#endif
