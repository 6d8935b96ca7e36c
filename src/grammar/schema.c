#include "grammar/schema.h"

mx_status mx_schema_compile(const mx_json *schema, const char *name, const mx_schema_options *options, mx_grammar **out,
                            mx_error *error) {
    (void)schema;
    (void)name;
    (void)options;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_schema_any_object(const mx_schema_options *options, mx_grammar **out, mx_error *error) {
    (void)options;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}
