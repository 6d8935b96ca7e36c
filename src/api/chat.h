#ifndef MX_API_CHAT_H
#define MX_API_CHAT_H

#include "api/replay.h"
#include "api/request.h"

/* A chat on its way to a prompt, whichever protocol it came in: readers add its messages in order, then ask for the
 * ids. Instructions (system, developer) at the beginning are harmony's developer message, in the middle such a message
 * of their own. Texts may hold anything but instructions U+0000; invalid UTF-8 is replaced. Names of functions that
 * harmony could not say are sanitised in one way everywhere: what is no letter, digit, _ - or . becomes _. */
typedef struct mx_api_chat mx_api_chat;

enum { MX_API_MOST_TOOLS = 1024 }; /* of a request; OpenAI allows 128 */

/* A function's name as harmony says it, one _ for each character that it could not say; false: that is empty or longer
 * than 64. */
bool mx_api_tool_name(const char *name, size_t size, char out[static 65]);

/* With the settings of settings->conversation, which is only read (any number of threads may): system message,
 * reasoning, date, and, where the chat brings none, developer message and tools. `replay` may be NULL. `dated`: the
 * chat gets the day it was first seen. MX_UNSUPPORTED: no chat format. */
mx_status mx_api_chat_create(const mx_api_settings *settings, mx_replay *replay, bool dated, mx_api_chat **out,
                             mx_error *error);
void mx_api_chat_free(mx_api_chat *chat); /* NULL allowed */

mx_status mx_api_chat_set_reasoning(mx_api_chat *chat, const char *effort, mx_error *error); /* low, medium, high */
/* An array of functions as mx_conversation_set_tools takes them, with any names; tools that are no functions are left
 * out with a warning. Two that are one to the model are refused, and more than MX_API_MOST_TOOLS. `name`: the field,
 * for messages. NULL: none, nor those of the settings. */
mx_status mx_api_chat_set_tools(mx_api_chat *chat, const char *name, const mx_json *tools, mx_error *error);

mx_status mx_api_chat_add_instructions(mx_api_chat *chat, const char *text, size_t size, mx_error *error);
mx_status mx_api_chat_add_user(mx_api_chat *chat, const char *text, size_t size, mx_error *error);

/* What the assistant said in one message of the client's. Where the model itself said it here, its own tokens stand in
 * the prompt, with the thinking that belongs to them even if the client lost it: found by the ids of calls, by `id`,
 * or by the text. */
typedef struct mx_api_call {
    const char *id, *name; /* id NULL: none */
    const char *arguments; /* JSON text; a JSON string that holds an object is taken out of its string */
    size_t size;
} mx_api_call;
typedef struct mx_api_said {
    const char *id; /* of the answer, "chatcmpl-..." or as mx_exchange_id; NULL: not known */
    const char *thinking, *text;
    size_t thinking_size, text_size;
    bool has_text; /* false: there was no content at all */
    const mx_api_call *calls;
    int call_count;
} mx_api_said;
mx_status mx_api_chat_add_said(mx_api_chat *chat, const mx_api_said *said, mx_error *error);

/* What a tool returned. `tool` may be NULL where `call_id` is that of a call before; both may be, for the first call
 * that has no result yet. MX_NOT_FOUND: there is no such call. */
mx_status mx_api_chat_add_result(mx_api_chat *chat, const char *call_id, const char *tool, const char *text,
                                 size_t size, mx_error *error);

/* Appends the ids, ending in <|start|>assistant. */
mx_status mx_api_chat_prompt(mx_api_chat *chat, mx_ids *out, mx_error *error);
/* The same into a request, which has no prompts yet: chat, prompts, and the names of functions. One that is
 * longer than the context may be made as far only as that is sure: request->beyond. */
mx_status mx_api_chat_finish(mx_api_chat *chat, mx_api_request *request, mx_error *error);

/* ---- OpenAI's form (messages.c) ---------------------------------------------------------------------------------- */
/* OpenAI's efforts as harmony's: "minimal" and "none" are "low", "xhigh" is "high". NULL: it is none. */
const char *mx_api_effort(const mx_json *effort);

/* An empty chat with what the fields of a request say: tools, tool_choice, reasoning_effort. What is wrong with them is
 * in `problem`, and *out NULL then. */
mx_status mx_api_begin_chat(const mx_api_reader *reader, const mx_json *fields, mx_api_chat **out,
                            mx_api_problem *problem, mx_error *error);
/* Adds the array of a chat completion. */
mx_status mx_api_add_messages(mx_api_chat *chat, const mx_json *messages, mx_api_problem *problem, mx_error *error);

/* All of it, to ids. */
mx_status mx_api_read_chat(const mx_api_reader *reader, const mx_json *fields, const mx_json *messages, mx_ids *out,
                           mx_api_problem *problem, mx_error *error);
/* A chat of one message of the user, with the settings. */
mx_status mx_api_read_user(const mx_api_reader *reader, const char *text, size_t size, mx_ids *out,
                           mx_api_problem *problem, mx_error *error);

#endif
