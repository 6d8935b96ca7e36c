#include "api/fields.h"

#include <stdio.h>
#include <string.h>

const mx_json *mx_field(const mx_json *object, const char *name) {
    const mx_json *v = mx_json_get(object, name);
    return v && v->type != MX_JSON_NULL ? v : NULL;
}

const char *mx_field_word(const mx_json *object, const char *name) {
    const mx_json *v = mx_field(object, name);
    return v && v->type == MX_JSON_STRING && v->size && strlen(v->text) == v->size ? v->text : NULL;
}

mx_field_name mx_name_field(const mx_fields *f, const char *name) {
    mx_field_name n;
    snprintf(n.text, sizeof n.text, "%s%s", f->prefix, name);
    return n;
}

bool mx_read_number(const mx_fields *f, const char *name, double low, double high, double *out) {
    const mx_json *v = mx_field(f->object, name);
    const mx_field_name n = mx_name_field(f, name);
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
    const mx_field_name n = mx_name_field(f, name);
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
    const mx_field_name n = mx_name_field(f, name);
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
    const mx_field_name n = mx_name_field(f, name);
    if (!mx_read_typed(f, name, MX_JSON_STRING, &v)) return false;
    if (v && memchr(v->text, 0, v->size))
        return mx_api_wrong(f->problem, n.text, "invalid_value", "%s holds U+0000", n.text);
    if (v) *out = v->text;
    return true;
}
