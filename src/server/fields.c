#include "server/fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

const mx_json *mx_field(const mx_json *object, const char *name) {
    const mx_json *v = mx_json_get(object, name);
    return v && v->type != MX_JSON_NULL ? v : NULL;
}

/* "reasoning.effort" */
typedef struct full_name {
    char text[80];
} full_name;

static full_name named(const mx_fields *f, const char *name) {
    full_name n;
    snprintf(n.text, sizeof n.text, "%s%s", f->prefix, name);
    return n;
}

bool mx_read_number(const mx_fields *f, const char *name, double low, double high, double *out) {
    const mx_json *v = mx_field(f->object, name);
    const full_name n = named(f, name);
    double value;
    if (!v) return true;
    if (!mx_json_double(v, &value))
        return mx_api_wrong(f->problem, n.text, "invalid_type", "%s: expected a number from %g to %g", n.text, low,
                            high);
    if (value < low || value > high)
        return mx_api_wrong(f->problem, n.text, "invalid_value", "%s is %g: expected a number from %g to %g", n.text,
                            value, low, high);
    *out = value;
    return true;
}

bool mx_read_float(const mx_fields *f, const char *name, double low, double high, float *out) {
    double value = *out;
    if (!mx_read_number(f, name, low, high, &value)) return false;
    *out = (float)value;
    return true;
}

bool mx_read_whole(const mx_fields *f, const char *name, int64_t low, int64_t high, int64_t *out) {
    const mx_json *v = mx_field(f->object, name);
    const full_name n = named(f, name);
    int64_t value;
    if (!v) return true;
    if (!mx_json_int64(v, &value))
        return low <= INT32_MIN
                   ? mx_api_wrong(f->problem, n.text, "invalid_type", "%s: expected a whole number", n.text)
                   : mx_api_wrong(f->problem, n.text, "invalid_type", "%s: expected a whole number of at least %lld",
                                  n.text, (long long)low);
    if (value < low || value > high)
        return mx_api_wrong(f->problem, n.text, "invalid_value",
                            "%s is %lld: expected a whole number from %lld to %lld", n.text, (long long)value,
                            (long long)low, (long long)high);
    *out = value;
    return true;
}

bool mx_read_int(const mx_fields *f, const char *name, int low, int high, int *out) {
    int64_t value = *out;
    if (!mx_read_whole(f, name, low, high, &value)) return false;
    *out = (int)value;
    return true;
}

bool mx_read_typed(const mx_fields *f, const char *name, mx_json_type type, const mx_json **out) {
    static const char *const names[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
    const full_name n = named(f, name);
    *out = mx_field(f->object, name);
    if (!*out || (*out)->type == type) return true;
    *out = NULL;
    return mx_api_wrong(f->problem, n.text, "invalid_type", "%s: expected %s", n.text, names[type]);
}

bool mx_read_bool(const mx_fields *f, const char *name, bool *out) {
    const mx_json *v;
    if (!mx_read_typed(f, name, MX_JSON_BOOL, &v)) return false;
    if (v) *out = v->boolean;
    return true;
}

bool mx_read_word(const mx_fields *f, const char *name, const char **out) {
    const mx_json *v;
    const full_name n = named(f, name);
    if (!mx_read_typed(f, name, MX_JSON_STRING, &v)) return false;
    if (v && memchr(v->text, 0, v->size))
        return mx_api_wrong(f->problem, n.text, "invalid_value", "%s holds U+0000", n.text);
    if (v) *out = v->text;
    return true;
}

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
    const full_name n = named(f, name);
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
