/* Two stories at once, in two columns: cc two_stories.c -o two_stories $(pkg-config --cflags --libs mxrun) */
#include <mxrun/mxrun.h>
#include <mxrun/tokenizer.h>
#include <stdio.h>
#include <string.h>

#define CHECK(call)                                                                                                    \
    if (call) return fprintf(stderr, "%s\n", error.text), 1

int main(int argc, char **argv) {
    const char *folder = argc > 1 ? argv[1] : "gpt-oss-20b";
    const char *prompt[] = {"Once upon a time there was a fox", "Once upon a time there was a lamp"};
    mx_handle story[2];
    mx_model *model;
    mx_tokenizer *tokenizer;
    mx_engine *engine;
    mx_error error;
    CHECK(mx_model_open(folder, NULL, &model, &error));
    CHECK(mx_tokenizer_open(folder, &tokenizer, &error));
    CHECK(mx_engine_create(model, NULL, &engine, &error));
    for (int i = 0; i < 2; i++) {
        mx_ids ids = {0};
        CHECK(mx_encode(tokenizer, prompt[i], strlen(prompt[i]), &ids, &error));
        mx_request request = {ids.data, ids.count, .max_tokens = 60, .sampling = mx_model_sampling(model)};
        CHECK(mx_submit(engine, &request, &story[i], &error));
        mx_ids_free(&ids);
    }
    while (!mx_engine_idle(engine)) {
        CHECK(mx_step(engine, &error));
        for (mx_event event; mx_poll(engine, &event, 1) > 0;) {
            size_t size = 0;
            CHECK(event.type == MX_EVENT_FAILED && (error = event.error).status);
            const char *text = event.type == MX_EVENT_TOKEN ? mx_token_bytes(tokenizer, event.token, &size) : "";
            printf("%*s%.*s\n", event.request == story[0] ? 0 : 40, "", (int)size, text);
        }
    }
    mx_engine_destroy(engine);
    mx_tokenizer_close(tokenizer);
    mx_model_close(model);
}
