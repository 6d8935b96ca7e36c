#ifndef MX_CONVERSATION_PRIVATE_H
#define MX_CONVERSATION_PRIVATE_H

#include "turn/conversation.h"

typedef enum mx_role { MX_ROLE_USER, MX_ROLE_ASSISTANT, MX_ROLE_TOOL, MX_ROLE_DEVELOPER, MX_ROLES } mx_role;
extern const char *const mx_role_names[MX_ROLES];

typedef struct mx_message {
    mx_role role;
    char *name;                               /* of the tool */
    char *channel, *recipient, *content_type; /* of the assistant; NULL where absent */
    mx_bytes text;                            /* UTF-8 */
    mx_ids ids;                               /* the whole message in the prompt, <|start|> to <|end|> or <|call|> */
} mx_message;

struct mx_conversation {
    const mx_tokenizer *tokenizer;
    char *setting[MX_SETTINGS];
    mx_bytes tools;     /* the array as given; empty: none */
    mx_bytes functions; /* the same as harmony's own JSON */
    bool keep_thinking;
    mx_ids opening; /* <|start|>assistant */
    mx_ids head;    /* system and developer message; empty when the settings changed */
    mx_message *messages;
    int count, capacity;
};

void mx_message_free(mx_message *m);
/* Takes the message over, in every case. An empty m->ids is filled by rendering the message. */
mx_status mx_conversation_take(mx_conversation *c, mx_message *m, mx_error *error);

/* Makes c->head where it is not there. */
mx_status mx_conversation_update_head(mx_conversation *c, mx_error *error);
/* Thinking, which later prompts do without once there is a final answer behind it. */
bool mx_message_is_thinking(const mx_message *m);
bool mx_message_is_final(const mx_message *m);

#endif
