#ifndef MX_TESTS_CONVERT_SUPPORT_H
#define MX_TESTS_CONVERT_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "convert/convert.h"

/* A temporary folder for a whole program of tests, a pool of two threads, and files and folders in it. */
int convert_set_up(void **state);
int convert_tear_down(void **state);
extern mx_pool *pool;
extern mx_error error; /* of the last call */

/* Paths, valid until the next call but thirty: in the temporary folder, the checkout, ../shared (NULL: not there). */
const char *temporary(const char *name);
const char *checkout(const char *name);
const char *shared(const char *name);

/* As mxrun convert does it; fails the test unless it ends so. "" as `part`: any message. */
mx_converted convert(const char *in, const char *out, mx_layout to);
mx_converted convert_anyway(const char *in, const char *out, mx_layout to); /* --allow-loss --force */
void refuse(const char *in, const char *out, mx_layout to, mx_status status, const char *part);
/* Lines of the log since the last convert, refuse or clear. */
void expect_logged(const char *part);
void expect_nothing_logged(void);

bool exists(const char *path);
mx_bytes content(const char *path); /* fails the test where it is not there */
void write_file(const char *path, const void *data, size_t size);
void copy_file(const char *from, const char *to);
/* The files of a folder into a new one. */
void copy_folder(const char *from, const char *to);
/* Both hold the same files with the same bytes; folders in them do not count. */
void expect_same_folder(const char *a, const char *b);
/* Both have the same tensors: names, types, shapes, values. */
void expect_same_tensors(const char *a, const char *b);

#endif
