/* What grammars cost: to compile them, and the masks that a text under them meets.
 *
 *     grammar_bench TOKENIZER [SCHEMA TEXT]...
 *
 * TOKENIZER: a tokenizer.json or a model. SCHEMA: a JSON Schema; TEXT: a file with a text that is valid against it, or
 * several, one a line. Without them grammars and texts that are built in. Of each grammar: milliseconds to compile it,
 * its memory, and microseconds of a mask, half and 99 % of them and the longest, first with an empty cache, then again.
 * All times are those of the thread on a processor.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "grammar/schema.h"

enum { VOCAB = 201088 };

static mx_tokenizer *tokenizer;

/* Of this thread: what others do on the machine does not count. */
static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static _Noreturn void give_up(const char *what) {
    fprintf(stderr, "grammar_bench: %s\n", what);
    exit(1);
}

static double accepting; /* seconds of accepts */
static int64_t accepted;

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *what, double *us, int count) {
    qsort(us, (size_t)count, sizeof *us, compare);
    printf("    %-22s %5d masks: median %7.1f us, 99 %% %7.1f us, longest %7.1f us\n", what, count, us[count / 2],
           us[(int)(0.99 * (count - 1))], us[count - 1]);
}

/* Masks along the text's tokens; returns how many. */
static int pass(mx_grammar *g, mx_vocabulary *v, const mx_ids *ids, double *us, uint32_t *bits) {
    mx_matcher *m;
    mx_error error;
    if (mx_matcher_create(g, v, &m, &error)) give_up(error.text);
    int count = 0;
    for (int64_t i = 0; i <= ids->count; i++) {
        double start = seconds();
        mx_matcher_mask(m, bits);
        us[count++] = (seconds() - start) * 1e6;
        if (i == ids->count) break;
        const int32_t id = ids->data[i];
        start = seconds();
        const bool ok = mx_matcher_accept_token(m, id);
        accepting += seconds() - start;
        accepted++;
        if (!ok || !(bits[id / 32] >> id % 32 & 1)) {
            size_t size;
            const char *bytes = mx_token_bytes(tokenizer, id, &size);
            fprintf(stderr, "grammar_bench: the grammar does not take token %d of the text, \"%.*s\"\n", (int)i,
                    (int)size, bytes);
            break;
        }
    }
    if (!mx_matcher_can_end(m)) fprintf(stderr, "grammar_bench: the text is not whole\n");
    mx_matcher_free(m);
    return count;
}

static mx_vocabulary *fresh_vocabulary(double *took) {
    mx_vocabulary *v;
    mx_error error;
    const double start = seconds();
    if (mx_vocabulary_create(tokenizer, VOCAB, &v, &error)) give_up(error.text);
    *took = seconds() - start;
    return v;
}

/* `lines`: each line is a text. */
static void measure(const char *name, mx_grammar *g, double compiled, const char *text, size_t size) {
    double built;
    mx_vocabulary *v = fresh_vocabulary(&built);
    uint32_t *bits = malloc((VOCAB + 31) / 32 * sizeof *bits);
    double *us = malloc((size + 1000) * sizeof *us);
    printf("%s: compiled in %.2f ms, %.1f KB\n", name, compiled * 1e3, (double)mx_grammar_bytes(g) / 1e3);
    for (int again = 0; again < 3; again++) {
        int count = 0;
        if (again == 2) {
            mx_vocabulary_free(v);
            v = fresh_vocabulary(&built);
            const double start = seconds();
            mx_grammar_prepare(g, v, 10);
            printf("    prepared in %.1f ms\n", (seconds() - start) * 1e3);
        }
        for (size_t at = 0; at < size;) {
            const char *end = memchr(text + at, '\n', size - at);
            size_t length = end ? (size_t)(end - text) - at : size - at;
            mx_ids ids = {0};
            mx_error error;
            if (length > 0) {
                if (mx_encode(tokenizer, text + at, length, &ids, &error)) give_up(error.text);
                count += pass(g, v, &ids, us + count, bits);
            }
            mx_ids_free(&ids);
            at += length + 1;
        }
        if (count) report(again == 0 ? "with an empty cache" : again == 1 ? "again" : "after preparing", us, count);
    }
    free(us);
    free(bits);
    mx_vocabulary_free(v);
}

static mx_expr pattern(mx_grammar_builder *b, const char *text) {
    mx_regular *r;
    mx_error error;
    if (mx_regular_parse(text, strlen(text), true, &r, &error) != MX_OK) give_up(error.text);
    const mx_expr e = mx_expr_regular(b, r);
    mx_regular_free(r);
    return e;
}

#define CHARACTER "(?:[^\"\\\\\\x00-\\x1f]|\\\\[\"\\\\bfnrt]|\\\\u00[01][0-9a-f])"
#define SEQ(...)                                                                                                       \
    mx_expr_sequence(b, (const mx_expr[]){__VA_ARGS__}, (int)(sizeof((mx_expr[]){__VA_ARGS__}) / sizeof(mx_expr)))
#define ANY(...)                                                                                                       \
    mx_expr_choice(b, (const mx_expr[]){__VA_ARGS__}, (int)(sizeof((mx_expr[]){__VA_ARGS__}) / sizeof(mx_expr)))
#define S(text) mx_expr_string(b, text)

static mx_expr any_value(mx_grammar_builder *b) {
    const mx_rule value = mx_rule_add(b, "value");
    const mx_expr again = mx_expr_rule(b, value), space = mx_expr_repeat(b, S(" "), 0, 1);
    const mx_expr string = SEQ(S("\""), pattern(b, CHARACTER "*"), S("\""));
    const mx_expr number = pattern(b, "-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][-+]?[0-9]+)?");
    const mx_expr member = SEQ(string, S(":"), space, again);
    const mx_expr members = SEQ(member, mx_expr_repeat(b, SEQ(S(","), space, member), 0, -1));
    const mx_expr items = SEQ(again, mx_expr_repeat(b, SEQ(S(","), space, again), 0, -1));
    mx_rule_set(b, value,
                ANY(string, number, S("true"), S("false"), S("null"),
                    SEQ(S("{"), mx_expr_repeat(b, members, 0, 1), S("}")),
                    SEQ(S("["), mx_expr_repeat(b, items, 0, 1), S("]"))));
    return again;
}

static mx_expr person(mx_grammar_builder *b) {
    const mx_expr c = pattern(b, CHARACTER);
    return SEQ(S("{\"name\": \""), mx_expr_repeat(b, c, 1, 100), S("\", \"age\": "), pattern(b, "[1-9][0-9]{0,2}"),
               mx_expr_repeat(b, SEQ(S(", \"nick\": \""), mx_expr_repeat(b, c, 0, 12), S("\"")), 0, 1),
               S(", \"mood\": \""), ANY(S("happy"), S("happily married"), S("sad")), S("\", \"about\": \""),
               mx_expr_repeat(b, c, 0, 10000), S("\"}"));
}

static const char any_text[] =
    "{\"id\": 48213, \"title\": \"Fjord trip – day two\", \"tags\": [\"travel\", \"norway\", \"boats & trains\"], "
    "\"rating\": 4.75, \"draft\": false, \"author\": {\"name\": \"Ingrid Solberg\", \"email\": "
    "\"ingrid@example.org\", \"age\": 37, \"pets\": null}, \"body\": \"We left Bergen at seven in the morning, with "
    "rain on the windows and coffee in paper cups.\\nBy noon the clouds had lifted, and the captain said \\\"look "
    "up\\\""
    ": an eagle.\", \"comments\": [{\"by\": \"Tomás\", \"text\": \"¡Qué bonito! 美しい\"}, {\"by\": \"A.\", "
    "\"text\": \"When do you go again?\"}], \"counts\": [1, 22, 333, -4e10, 0.5]}";
static const char person_text[] =
    "{\"name\": \"Ingrid Marie Solberg\", \"age\": 37, \"nick\": \"Inga\", \"mood\": \"happily married\", \"about\": "
    "\"She left Bergen at seven in the morning, with rain on the windows and coffee in paper cups.\\nBy noon the "
    "clouds "
    "had lifted, and the captain said \\\"look up\\\": an eagle.\"}";

static void built_in(const char *name, mx_expr (*make)(mx_grammar_builder *b), const char *text) {
    mx_grammar_builder *b = mx_grammar_builder_create();
    mx_grammar *g;
    mx_error error;
    const double start = seconds();
    if (mx_grammar_compile(b, make(b), &g, &error)) give_up(error.text);
    const double compiled = seconds() - start;
    mx_grammar_builder_free(b);
    measure(name, g, compiled, text, strlen(text));
    mx_grammar_free(g);
}

static void schema(const char *path, const char *text_path) {
    mx_bytes file = {0}, text = {0};
    mx_json_document *document;
    mx_error error;
    mx_grammar *g;
    if (mx_read_file(path, 1 << 24, &file, &error) || mx_read_file(text_path, 1 << 28, &text, &error) ||
        mx_json_parse(path, file.data, file.size, &document, &error))
        give_up(error.text);
    const mx_schema_options options = {.spaces = MX_SPACES_FEW};
    const double start = seconds();
    if (mx_schema_compile(mx_json_root(document), path, &options, &g, &error)) give_up(error.text);
    const double compiled = seconds() - start;
    measure(path, g, compiled, text.data, text.size);
    mx_grammar_free(g);
    mx_json_free(document);
    mx_bytes_free(&file);
    mx_bytes_free(&text);
}

int main(int count, char **word) {
    mx_error error;
    double built;
    if (count < 2 || count % 2 != 0) give_up("usage: grammar_bench TOKENIZER [SCHEMA TEXT]...");
    if (mx_tokenizer_open(word[1], &tokenizer, &error)) give_up(error.text);
    mx_vocabulary *v = fresh_vocabulary(&built);
    printf("tree of the vocabulary: %.1f ms\n", built * 1e3);
    mx_vocabulary_free(v);
    for (int i = 2; i < count; i += 2) schema(word[i], word[i + 1]);
    if (count == 2) {
        built_in("any JSON value", any_value, any_text);
        built_in("a person", person, person_text);
    }
    printf("a token that is accepted: %.2f us\n", accepting / (double)accepted * 1e6);
    mx_tokenizer_close(tokenizer);
    return 0;
}
