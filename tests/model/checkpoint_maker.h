#ifndef MX_TESTS_CHECKPOINT_MAKER_H
#define MX_TESTS_CHECKPOINT_MAKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Makes small gpt-oss checkpoint folders for tests: right ones, and wrong ones in every detail. */

enum { MAKER_FIELDS = 48, MAKER_TENSORS = 500, MAKER_FILES = 4 };

typedef struct maker_tensor {
    char name[100], dtype[16];
    int dims;
    int64_t shape[10];
    uint8_t *data; /* owned */
    uint64_t bytes;
    int file;             /* of maker.files */
    bool absent;          /* not written */
    int64_t begin, end;   /* data_offsets in the header; -1: the truth */
    const char *index_as; /* file in the index; NULL: the truth */
    const char *name_as;  /* JSON of its name in the header; NULL: the truth */
} maker_tensor;

typedef struct maker {
    char folder[200];
    struct {
        char key[64], value[600]; /* value: JSON; "rope.x" goes into rope_name; "" is left out */
    } field[MAKER_FIELDS];
    int fields;
    const char *rope_name; /* "rope_scaling" or "rope_parameters" */
    maker_tensor tensor[MAKER_TENSORS];
    int tensors;
    int files;         /* 1: model.safetensors; more: model-0000N-of-..., numbered from 0 */
    bool index;        /* write model.safetensors.index.json */
    const char *extra; /* more JSON into each file's header, such as "\"__metadata__\":{}," */
} maker;

/* Two layers, hidden 64, 2 heads of 32 with one KV head, 2 experts of width 32, 16 tokens; in a new temporary folder.
 */
void maker_open(maker *m);
/* Sets, or with value NULL removes, a config field. */
void maker_set(maker *m, const char *key, const char *value);
maker_tensor *maker_find(maker *m, const char *name); /* fails the test when there is none */
/* Another tensor, filled with ones (BF16, F16, F32), 127 (scales) or 0x12. */
maker_tensor *maker_add(maker *m, const char *name, const char *dtype, int dims, const int64_t *shape);
/* Gives the tensor a new type and shape, filled as above. */
void maker_retype(maker_tensor *t, const char *dtype, int dims, const int64_t *shape);
void maker_write(const maker *m);
void maker_close(maker *m); /* removes the folder */

/* Writes FOLDER/NAME, or opens it for changes. */
void maker_file(const maker *m, const char *name, const void *data, size_t size);
const char *maker_path(const maker *m, const char *name); /* valid until the next call but three */
void maker_remove(const char *folder);                    /* a folder with all that is in it */

#endif
