#ifndef TESTS_FUZZ_INPUT_H
#define TESTS_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>

/* libFuzzer calls this with every input; what it finds is whatever the sanitizers find. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Puts an input into a file in memory; returns its path, the same at every call. Ends the program where that cannot
 * be. */
const char *fuzz_file(const uint8_t *data, size_t size);

/* Reads the first and the last byte of data[0 .. size), size > 0. */
void fuzz_touch(const uint8_t *data, uint64_t size);

#endif
