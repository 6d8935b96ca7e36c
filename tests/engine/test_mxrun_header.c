/* engine/mxrun.h by itself, as a program that uses the library would include it: a request with everything set. */
#include "engine/mxrun.h"

static mx_verdict accept_all(void *user, int32_t token) {
    (void)user;
    (void)token;
    return MX_CONTINUE;
}

int main(void) {
    const int32_t prompt[] = {1, 2, 3}, stop[] = {4};
    const mx_logit_bias bias[] = {{5, -100}};
    mx_request request = {.prompt = prompt,
                          .prompt_count = 3,
                          .max_tokens = 10,
                          .sampling = MX_SAMPLING_DEFAULT,
                          .stop = stop,
                          .stop_count = 1,
                          .constraint = {.accept = accept_all}};
    request.sampling.bias = bias;
    request.sampling.bias_count = 1;
    mx_model *model;
    mx_error error;
    mx_status status = mx_model_open("/nowhere/at/all", &(mx_load_options){.threads = 1}, &model, &error);
    return status == MX_OK || request.sampling.top_p != 1;
}
