#ifndef TESTS_KERNELS_GUARD_H
#define TESTS_KERNELS_GUARD_H

#include <stddef.h>
#include <stdint.h>

/* Memory in which a read or write one byte too far ends the program, and which case was at work is told.
 *
 * Every buffer lies between two pages that may not be touched: mostly it ends where the second one begins, sometimes it
 * begins where the first one ends. Buffers whose start must be aligned to 64 bytes may end up to 63 bytes before the
 * second page; what lies between is checked for writes when the case ends. */

/* Begins a case: every buffer that an earlier one left (it failed) is given back. The name is for messages,
 * check_close's too; it may change while the case goes on. */
void case_begin(const char *format, ...) __attribute__((format(printf, 1, 2)));
void case_rename(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *case_name(void); /* "" outside any case */

/* Fails the test when something was written just outside a buffer; gives all buffers of the case back. */
void case_end(void);

/* The same for the buffers made since case_mark(). */
int case_mark(void);
void case_release(int mark);

/* `bytes` may be 0: then nothing may be touched at all. Every byte is 0xff, a NaN in every format. `alignment` of the
 * start: 1 (what lies in a file), 4 or 8 (arrays), 64 (activations, outputs, scratch). `what` names it in messages and
 * is not copied. Belongs to the case. */
void *guarded(int64_t bytes, int alignment, const char *what);

/* n floats: of activations, outputs and scratch, which begin at a multiple of 64 bytes; of a row of them or a vector of
 * the model, which may begin anywhere. */
float *guarded_floats(int64_t n, const char *what);
float *guarded_row(int64_t n, const char *what);

#endif
