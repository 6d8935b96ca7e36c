#ifndef MX_PROMPT_HASH_H
#define MX_PROMPT_HASH_H

#include "turn/conversation.h"

/* XXH3_64bits of the ids that mx_conversation_prompt gives, as a conversation grows: all calls together hash each
 * message at most twice. Between them messages are only added, and settings stay. */
typedef struct mx_prompt_hash mx_prompt_hash;
mx_status mx_prompt_hash_create(mx_conversation *c, mx_prompt_hash **out, mx_error *error);
void mx_prompt_hash_free(mx_prompt_hash *h);                                           /* NULL allowed */
uint64_t mx_prompt_hash_of(mx_prompt_hash *h, const mx_conversation *c, int64_t *ids); /* *ids: so many they are */

#endif
