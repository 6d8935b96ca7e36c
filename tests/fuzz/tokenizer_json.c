/* tokenizer.json and model.bin, and a text through what they say. */
#include "input.h"
#include "tokenizer/tokenizer.h"

static void use(const mx_tokenizer *t) {
    static const char text[] = "ab abc <|start|>'S 12345\n\n <tool>\xC3\xBC\xF0\x9F\x98\x80\xFF";
    mx_ids ids = {0};
    mx_error error;
    mx_encode(t, text, sizeof text - 1, &ids, &error);
    mx_encode_special(t, text, sizeof text - 1, &ids, &error);
    for (int64_t i = 0; i < ids.count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(t, ids.data[i], &size);
        if (size) fuzz_touch((const uint8_t *)bytes, size);
    }
    mx_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mx_tokenizer *t;
    mx_error error;
    if (mx_tokenizer_open(fuzz_file(data, size), &t, &error) == MX_OK) {
        use(t);
        mx_tokenizer_close(t);
    }
    return 0;
}
