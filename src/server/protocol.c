#include "server/protocol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ---- requests ---------------------------------------------------------------------------------------------------- */
static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
}

static mx_status add_stop(mx_api_request *out, const char *string, mx_error *error) {
    char *copy = strdup(string);
    if (!copy) return no_memory(error);
    out->stop[out->stop_count++] = copy;
    return MX_OK;
}

mx_status mx_begin_request(const mx_server_parts *parts, const char *id, mx_api_request *out, mx_error *error) {
    enum { BITS = 53 }; /* as many as every reader of JSON keeps */
    const mx_api_settings *s = &parts->settings;
    *out = (mx_api_request){.form = MX_FORM_OPENAI,
                            .chat = true,
                            .sampling = s->sampling,
                            .max_tokens = s->max_tokens,
                            .n = 1,
                            .best_of = 1,
                            .logprobs = -1};
    out->sampling.seed = XXH64(id, strlen(id), s->sampling.seed) >> (64 - BITS);
    out->stop = calloc((size_t)s->stop_count + 1, sizeof *out->stop);
    if (!out->stop) return no_memory(error);
    mx_status status = MX_OK;
    for (int i = 0; i < s->stop_count && !status; i++) status = add_stop(out, s->stop[i], error);
    return status;
}

mx_status mx_read_stop_strings(const mx_fields *f, const char *name, mx_api_request *out, mx_error *error) {
    const mx_json *stop;
    const mx_field_name n = mx_name_field(f, name);
    if (!mx_read_typed(f, name, MX_JSON_ARRAY, &stop) || !stop || !mx_api_check_stop(f->problem, n.text, stop))
        return MX_OK;
    for (int i = 0; i < out->stop_count; i++) free(out->stop[i]);
    free(out->stop);
    out->stop_count = 0;
    out->stop = calloc((size_t)stop->count + 1, sizeof *out->stop);
    if (!out->stop) return no_memory(error);
    mx_status status = MX_OK;
    for (const mx_json *v = stop->child; v && !status; v = v->next) status = add_stop(out, v->text, error);
    return status;
}

mx_status mx_blame(mx_status status, const mx_error *found, const char *param, mx_api_problem *problem,
                   mx_error *error) {
    if (!status) return MX_OK;
    if (status != MX_INVALID_ARGUMENT && status != MX_NOT_FOUND && status != MX_UNSUPPORTED)
        return mx_fail(error, status, "%s", found->text);
    mx_api_wrong(problem, param, status == MX_UNSUPPORTED ? "unsupported_value" : "invalid_value", "%s", found->text);
    return MX_OK;
}

mx_status mx_need_rules(mx_api_request *out, mx_error *error) {
    if (!out->rules) out->rules = mx_rules_create();
    return out->rules ? MX_OK : no_memory(error);
}

mx_api_writer mx_work_writer(const mx_work *work, mx_bytes *out) {
    return (mx_api_writer){.out = out,
                           .settings = &work->parts->settings,
                           .request = &work->request,
                           .id = work->id,
                           .created = work->created};
}

/* ---- replies ----------------------------------------------------------------------------------------------------- */
void mx_reply(mx_exchange *x, bool written, mx_bytes *body) {
    mx_error error;
    if (written) {
        mx_exchange_reply(x, 200, "application/json", body);
        return;
    }
    mx_bytes_free(body);
    mx_fail(&error, MX_NO_MEMORY, "no memory for a reply");
    mx_exchange_fail(x, &error);
}
