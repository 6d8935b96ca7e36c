#include "api/rules.h"

mx_status mx_api_rules_schema(mx_rules *rules, const mx_json *schema, bool strict, const char *param,
                              mx_api_problem *problem, mx_error *error) {
    (void)rules;
    (void)schema;
    (void)strict;
    (void)param;
    (void)problem;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_rules_json(mx_rules *rules, mx_error *error) {
    (void)rules;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_rules_regex(mx_rules *rules, const char *pattern, size_t size, const char *param,
                             mx_api_problem *problem, mx_error *error) {
    (void)rules;
    (void)pattern;
    (void)size;
    (void)param;
    (void)problem;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_rules_tool(mx_rules *rules, const char *tool, const mx_json *parameters, bool strict,
                            const char *param, mx_api_problem *problem, mx_error *error) {
    (void)rules;
    (void)tool;
    (void)parameters;
    (void)strict;
    (void)param;
    (void)problem;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_rules_choose(mx_rules *rules, mx_tool_choice choice, const char *named, const char *param,
                              mx_api_problem *problem, mx_error *error) {
    (void)rules;
    (void)choice;
    (void)named;
    (void)param;
    (void)problem;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_read_rules(const mx_json *fields, mx_rules **out, mx_api_problem *problem, mx_error *error) {
    (void)fields;
    (void)out;
    (void)problem;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}
