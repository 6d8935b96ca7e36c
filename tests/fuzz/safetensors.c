/* .safetensors files. */
#include "model/safetensors.h"
#include "input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mx_safetensors st;
    mx_error error;
    if (mx_safetensors_open(fuzz_file(data, size), &st, &error) == MX_OK)
        for (int i = 0; i < st.count; i++)
            if (st.tensor[i].bytes) fuzz_touch(st.tensor[i].data, st.tensor[i].bytes);
    mx_safetensors_close(&st);
    return 0;
}
