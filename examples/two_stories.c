/* Two stories at once, in two columns: cc two_stories.c -o two_stories $(pkg-config --cflags --libs mxrun) */
#include <mxrun/mxrun.h>
#include <mxrun/tokenizer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(mx_status status, const mx_error *error) {
    if (status == MX_OK) return;
    fprintf(stderr, "%s\n", error->text);
    exit(1);
}

int main(int argc, char **argv) {
    const char *folder = argc > 1 ? argv[1] : "gpt-oss-20b";
    const char *prompt[] = {"Once upon a time there was a fox", "Once upon a time there was a lamp"};
    mx_handle story[2];
    mx_model *model;
    mx_tokenizer *tokenizer;
    mx_engine *engine;
    mx_error error;
    check(mx_model_open(folder, NULL, &model, &error), &error);
    check(mx_tokenizer_open(folder, &tokenizer, &error), &error);
    check(mx_engine_create(model, NULL, &engine, &error), &error);
    for (int i = 0; i < 2; i++) {
        mx_ids ids = {0};
        check(mx_encode(tokenizer, prompt[i], strlen(prompt[i]), &ids, &error), &error);
        mx_request request = {.prompt = ids.data, .prompt_count = ids.count, .max_tokens = 60};
        request.sampling = mx_model_sampling(model);
        check(mx_submit(engine, &request, &story[i], &error), &error);
        mx_ids_free(&ids);
    }
    while (!mx_engine_idle(engine)) {
        check(mx_step(engine, &error), &error);
        for (mx_event event; mx_poll(engine, &event, 1) > 0;) {
            size_t size = 0;
            if (event.type == MX_EVENT_FAILED) check(event.error.status, &event.error);
            if (event.type != MX_EVENT_TOKEN) continue;
            const char *text = mx_token_bytes(tokenizer, event.token, &size);
            printf("%*s%.*s\n", event.request == story[0] ? 0 : 40, "", (int)size, text);
        }
    }
    mx_engine_destroy(engine);
    mx_tokenizer_close(tokenizer);
    mx_model_close(model);
}
