#ifndef TESTS_COMMANDS_BATCH_SUPPORT_H
#define TESTS_COMMANDS_BATCH_SUPPORT_H

#include "support.h"

/* What the tests of `mxrun batch` share. Names of files are those in the test's folder. */
#define BATCH "batch", "-m", "stories", "-q"

const char *path_of(const char *name); /* valid for the next seven calls */
mx_bytes read_file(const char *name);
void write_file(const char *name, const void *data, size_t size);

typedef struct records {
    mx_json_document **item; /* [count] */
    int count;
} records;
records parse_records(const mx_bytes *text);
void free_records(records *r);
/* The record whose custom_id or id it is. */
const mx_json *record_of(const records *r, const char *id);

/* What is at "response.body.choices.0.text"; a path to nothing fails the test. */
const mx_json *value_at(const mx_json *v, const char *path);
const char *string_at(const mx_json *v, const char *path);
int64_t number_at(const mx_json *v, const char *path);
double double_at(const mx_json *v, const char *path);

long line_of(const char *record); /* the number in "req_12_..." or "batch_req_12_..." */
/* Records in the order of their lines, without what tells of the run. */
mx_bytes sorted_records(const mx_bytes *text);
void expect_same_records(const mx_bytes *a, const mx_bytes *b);

void write_prompts(const char *name, int count); /* of every kind, one a line */
void run_whole(const char *in, const char *out); /* mxrun batch, to the end */

#endif
