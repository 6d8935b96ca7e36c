#include "grammar/rules.h"

mx_rules *mx_rules_create(void) {
    return NULL;
}

mx_rules *mx_rules_keep(mx_rules *rules) {
    (void)rules;
    return NULL;
}

void mx_rules_free(mx_rules *rules) {
    (void)rules;
}

bool mx_rules_bind(const mx_rules *rules) {
    (void)rules;
    return 0;
}

mx_status mx_rules_constraint(mx_rules *rules, const mx_tokenizer *tokenizer, mx_vocabulary *vocabulary,
                              const mx_ids *stop, mx_constraint *out, mx_error *error) {
    (void)rules;
    (void)tokenizer;
    (void)vocabulary;
    (void)stop;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}
