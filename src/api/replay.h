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

/* The day ("2026-11-27") on which the conversation began that begins with what hashes to `key`: today where it begins
 * now, or is not known. */
void mx_replay_date(mx_replay *r, uint64_t key, bool begins, char out[static 11]);

#endif
