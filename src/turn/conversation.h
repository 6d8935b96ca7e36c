#ifndef MX_CONVERSATION_H
#define MX_CONVERSATION_H

#include "base/json.h"
#include "tokenizer/tokenizer.h"
#include "turn/turn.h"

/* A conversation: settings, messages, and the prompt they make. What the model wrote is kept as the very tokens it
 * wrote, so that a prompt begins with the same ids as the one before and little has to be computed again. */
typedef struct mx_conversation mx_conversation;

typedef enum mx_setting {
    MX_SETTING_SYSTEM,    /* the identity, first line of the system message; "" leaves it out */
    MX_SETTING_DEVELOPER, /* instructions: the developer message; "" for none */
    MX_SETTING_REASONING, /* "low", "medium", "high" */
    MX_SETTING_DATE,      /* "2026-11-23"; "" leaves it out */
    MX_SETTINGS
} mx_setting;

/* Default settings: the identity that the models were trained with, no developer message, medium, today. */
mx_status mx_conversation_create(const mx_tokenizer *tokenizer, mx_conversation **out, mx_error *error);
void mx_conversation_free(mx_conversation *c); /* NULL allowed */
/* A new conversation with the settings and tools of `from` and no messages. `from` is only read: any number of threads
 * may copy it at once. */
mx_status mx_conversation_copy_settings(const mx_conversation *from, mx_conversation **out, mx_error *error);

/* MX_INVALID_ARGUMENT when `value` cannot be this setting's. */
mx_status mx_setting_check(mx_setting setting, const char *value, mx_error *error);
/* Copies `value`; a wrong one is MX_INVALID_ARGUMENT and changes nothing. */
mx_status mx_conversation_set(mx_conversation *c, mx_setting setting, const char *value, mx_error *error);
const char *mx_conversation_get(const mx_conversation *c, mx_setting setting);

/* Functions the model may call: an array of {"type": "function", "function": {"name", "description", "parameters"}}
 * as in OpenAI's API (the members may also stand beside "type"). `name` is used in messages. NULL: none. */
mx_status mx_conversation_set_tools(mx_conversation *c, const char *name, const mx_json *tools, mx_error *error);
bool mx_conversation_has_tools(const mx_conversation *c);
const mx_bytes *mx_conversation_tools(const mx_conversation *c); /* the array as JSON; empty: none */

/* Analysis before the last final answer is left out of prompts unless this is set. */
void mx_conversation_keep_thinking(mx_conversation *c, bool keep);

/* `text` may hold anything; invalid UTF-8 is replaced. */
mx_status mx_conversation_add_user(mx_conversation *c, const char *text, size_t size, mx_error *error);
/* Instructions in the middle of a conversation; those at its beginning are MX_SETTING_DEVELOPER. */
mx_status mx_conversation_add_developer(mx_conversation *c, const char *text, size_t size, mx_error *error);
/* A message of the assistant that somebody else kept as text: thinking ("analysis"), an answer ("final"), or what is
 * said before a call ("commentary"). */
mx_status mx_conversation_add_assistant(mx_conversation *c, const char *channel, const char *text, size_t size,
                                        mx_error *error);
/* The same for a call of a tool, named without "functions.". */
mx_status mx_conversation_add_call(mx_conversation *c, const char *tool, const char *arguments, size_t size,
                                   mx_error *error);
/* What a tool that was called returned. */
mx_status mx_conversation_add_tool_result(mx_conversation *c, const char *tool, const char *text, size_t size,
                                          mx_error *error);
/* The messages of an ended turn. Of an answer that was broken off, what the user has seen of it stays (text), and
 * unfinished thinking and tool calls go. */
mx_status mx_conversation_add_answer(mx_conversation *c, const mx_turn *turn, mx_error *error);

/* Appends copies of the messages of another conversation with the same tokenizer, with their tokens. */
mx_status mx_conversation_add_copies(mx_conversation *c, const mx_conversation *from, mx_error *error);

/* Appends the ids of everything, ending in <|start|>assistant. */
mx_status mx_conversation_prompt(mx_conversation *c, mx_ids *out, mx_error *error);

int mx_conversation_count(const mx_conversation *c);          /* messages */
size_t mx_conversation_bytes(const mx_conversation *c);       /* memory that it takes, about */
int mx_conversation_turns(const mx_conversation *c);          /* messages of the user */
void mx_conversation_truncate(mx_conversation *c, int count); /* forgets the messages from `count` on */
/* Forgets whole turns from the oldest on until the prompt has at most `tokens` ids or one turn is left; returns how
 * many went, -1 with *error set when the prompt cannot be made. */
int mx_conversation_compact(mx_conversation *c, int64_t tokens, mx_error *error);

/* A JSON file with settings and messages as text. Saving replaces the file in one step or leaves it; loading a wrong
 * file leaves the conversation as it was. */
mx_status mx_conversation_save(const mx_conversation *c, const char *path, mx_error *error);
mx_status mx_conversation_load(mx_conversation *c, const char *path, mx_error *error);

#endif
