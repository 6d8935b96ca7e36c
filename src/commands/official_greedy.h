#ifndef MX_OFFICIAL_GREEDY_H
#define MX_OFFICIAL_GREEDY_H

#include <stdint.h>

/* What the published gpt-oss-20b answers, greedily, by OpenAI's own implementation. */
enum { MX_OFFICIAL_GREEDY_COUNT = 7, MX_OFFICIAL_GREEDY_TOKENS = 8 };
/* That model, against others with the same tokenizer. */
enum { MX_OFFICIAL_GREEDY_LAYERS = 24, MX_OFFICIAL_GREEDY_EXPERTS = 32, MX_OFFICIAL_GREEDY_VOCAB = 201088 };

typedef struct mx_official_greedy {
    const char *name;
    const int32_t *prompt;
    int prompt_count;
    int32_t answer[MX_OFFICIAL_GREEDY_TOKENS];
} mx_official_greedy;

extern const mx_official_greedy mx_official_greedy_20b[MX_OFFICIAL_GREEDY_COUNT];

#endif
