/* A whole model in one file, GGUF or model.bin: configuration, tensors, and what is made of them. */
#include <stdlib.h>

#include "input.h"
#include "model/model.h"

enum { MOST = 1 << 20 };

static void make_tensors(const mx_checkpoint *ck) {
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        uint64_t slice = mx_tensor_slice_bytes(t);
        if (!t->bytes || !slice || slice > MOST) continue;
        uint8_t *out = malloc(slice);
        if (!out) abort();
        mx_tensor_slices(t, 0, 1, out);
        if (t->bytes / slice > 1) mx_tensor_slices(t, (int64_t)(t->bytes / slice) - 1, 1, out);
        free(out);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = fuzz_file(data, size);
    bool opened = false;
    mx_error error;
    for (int quantize = 0; quantize < 2; quantize++) {
        /* without the loading itself, which starts threads: what it makes is made here */
        const mx_load_options options = {.way = MX_LOAD_LOOK, .quantize_experts = quantize};
        mx_weights *w;
        if (mx_weights_load(path, &options, NULL, &w, &error) != MX_OK) continue;
        opened = true;
        make_tensors(w->checkpoint);
        mx_weights_close(w);
    }
    mx_checkpoint *ck;
    if (!opened && mx_checkpoint_open(path, &ck, &error) == MX_OK) {
        make_tensors(ck);
        mx_checkpoint_close(ck);
    }
    return 0;
}
