#ifndef MX_EVALUATE_BASE_FILE_H
#define MX_EVALUATE_BASE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "evaluate/distribution.h"

/* Files of distributions (docs/base_distributions.md): a header, a record for each scored token, a hash. */
typedef struct mx_base_header {
    char model[200];    /* of whom they are; "": not known */
    char identity[100]; /* hash of its weights; "": not known */
    char protocol[200]; /* of mx_windows_describe */
    uint64_t tokenizer; /* mx_tokenizer_vocabulary_hash */
    uint64_t text;      /* mx_windows.hash */
    int64_t tokens;     /* records */
    int32_t vocab;
    int32_t top; /* tokens that a record keeps */
} mx_base_header;

/* A record in memory. */
typedef struct mx_base_record {
    mx_distribution distribution;
    float logit;               /* of the text's own token */
    const mx_kept_logit *kept; /* [top] in ascending tokens; into the bytes it was taken from */
} mx_base_record;

/* Bytes of one: little-endian log_sum f64, rest f64, logit f32, best u32, then top times token u32, logit f32. */
static inline int64_t mx_base_record_bytes(int32_t top) {
    return 24 + 8 * (int64_t)top;
}
/* Where the kept ones go in the bytes of a record, which must lie at a multiple of 8. */
static inline mx_kept_logit *mx_base_record_kept(uint8_t *record) {
    return (mx_kept_logit *)(void *)(record + 24);
}
/* Writes all but the kept ones, and reads all. */
void mx_base_record_put(uint8_t *record, const mx_distribution *distribution, float logit);
/* false: they are no distribution over `vocab` tokens. */
bool mx_base_record_get(const uint8_t *record, int32_t vocab, int32_t top, mx_base_record *out);

typedef struct mx_base_writer mx_base_writer;
/* Writes beside `path`, where nothing is before finish. MX_INVALID_ARGUMENT: there is something that is no file. */
mx_status mx_base_writer_open(const char *path, const mx_base_header *header, mx_base_writer **out, mx_error *error);
/* Could that be done? Leaves nothing. */
mx_status mx_base_writer_check(const char *path, mx_error *error);
mx_status mx_base_writer_add(mx_base_writer *w, const uint8_t *records, int64_t count, mx_error *error);
/* All records are there: gives the file its name, once it is on the disk where it is to outlive a power failure. */
mx_status mx_base_writer_finish(mx_base_writer *w, bool durable, mx_error *error);
/* Without finish nothing is left. NULL allowed. */
void mx_base_writer_close(mx_base_writer *w);

typedef struct mx_base_reader mx_base_reader;
/* MX_INVALID_FILE: another kind of file, another version, or not all of one. */
mx_status mx_base_reader_open(const char *path, mx_base_reader **out, mx_error *error);
const mx_base_header *mx_base_reader_header(const mx_base_reader *r);
/* The next `count` records. */
mx_status mx_base_reader_next(mx_base_reader *r, uint8_t *records, int64_t count, mx_error *error);
/* All were read: is what was read what was written? */
mx_status mx_base_reader_finish(mx_base_reader *r, mx_error *error);
void mx_base_reader_close(mx_base_reader *r); /* NULL allowed */

#endif
