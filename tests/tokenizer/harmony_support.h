#ifndef HARMONY_SUPPORT_H
#define HARMONY_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/harmony.h"

/* The tokenizer of the model in the repository; opened once, closed at exit. */
const mx_tokenizer *stories(void);

/* Fails the test when `s` is no success. */
void must(mx_status s, const mx_error *error);

mx_json_document *json(const char *text);
mx_ids encode_special(const mx_tokenizer *t, const char *text);
/* The text of ids, special tokens by name. */
mx_bytes decode(const mx_tokenizer *t, const mx_ids *ids);

/* One line for each finished message: role:name|channel|recipient|content type|content; absent parts are empty. */
mx_bytes describe(const mx_harmony_parser *p);

#endif
