#ifndef TESTS_API_SUPPORT_H
#define TESTS_API_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/chat.h"
#include "api/replay.h"
#include "api/request.h"
#include "api/write.h"

/* What the tests of src/api share: the tokenizer of stories, settings, and turns whose answers are written here. */
extern mx_tokenizer *stories;
extern mx_conversation *template; /* date 2026-11-23 */
extern mx_ids stop_tokens;
extern mx_api_settings settings;
int api_set_up(void **unused);
int api_tear_down(void **unused);

/* Parsed for as long as the program runs. */
const mx_json *json(const char *text);

/* Tokens to text, special ones by their name. */
mx_bytes text_of(const mx_tokenizer *tokenizer, const mx_ids *ids);

/* A turn that ended, the model having written `text` behind <|start|>assistant. */
mx_turn *turn_of(const char *text, mx_finish why);

#define HEAD                                                                                                           \
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"                           \
    "Knowledge cutoff: 2024-06\nCurrent date: 2026-11-23\n\nReasoning: medium\n\n"                                     \
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
#define DEVELOPER(text) "<|start|>developer<|message|># Instructions\n\n" text "<|end|>"
#define USER(text)      "<|start|>user<|message|>" text "<|end|>"
#define THINK(text)     "<|start|>assistant<|channel|>analysis<|message|>" text "<|end|>"
#define FINAL(text)     "<|start|>assistant<|channel|>final<|message|>" text "<|end|>"
#define CALL(name, arguments)                                                                                          \
    "<|start|>assistant to=functions." name "<|channel|>commentary <|constrain|>json<|message|>" arguments "<|call|>"
#define RESULT(name, text) "<|start|>functions." name " to=assistant<|channel|>commentary<|message|>" text "<|end|>"
#define NEXT               "<|start|>assistant"

/* The prompt of a chat's body in OpenAI's form, as text. */
mx_bytes prompt_of(mx_replay *replay, const char *body);
void expect_prompt(mx_replay *replay, const char *body, const char *expected);

#endif
