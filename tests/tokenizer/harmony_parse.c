/* The three parser modes with the small tokenizer, and random token streams. `harmony_parse full` fuzzes longer. */
#include "harmony_support.h"

static int fuzz_streams = 20000;

typedef struct result {
    mx_status status;
    int64_t error_at;
    mx_bytes messages; /* as describe() tells them */
    mx_bytes deltas;   /* all texts, one behind the other */
} result;

static void free_result(result *r) {
    mx_bytes_free(&r->messages);
    mx_bytes_free(&r->deltas);
}

/* Pushes everything, checks what holds for every stream, and tells the messages. */
static result run(mx_harmony_mode mode, const char *hint, const mx_ids *ids) {
    result r = {0};
    mx_harmony_parser *p;
    mx_harmony_delta d;
    mx_error error = {0};
    must(mx_harmony_parser_create(stories(), mode, hint, &p, &error), &error);
    for (; r.error_at < ids->count; r.error_at++) {
        r.status = mx_harmony_push(p, ids->data[r.error_at], &d, &error);
        if (r.status != MX_OK) break;
        assert_true((d.text == NULL) == (d.text_size == 0));
        assert_true(mx_bytes_add(&r.deltas, d.text ? d.text : "", d.text_size));
    }
    if (r.status == MX_OK) {
        r.status = mx_harmony_end(p, &d, &error);
        if (r.status == MX_OK) assert_true(mx_bytes_add(&r.deltas, d.text ? d.text : "", d.text_size));
    }
    if (r.status != MX_OK) {
        assert_true(error.text[0]);
        assert_int_equal(mx_harmony_push(p, 0, &d, &error), MX_INVALID_STATE);
    }
    int64_t last = 0;
    for (int i = 0; i < mx_harmony_message_count(p); i++) { /* ranges follow each other without a gap */
        const mx_harmony_message *m = mx_harmony_message_at(p, i);
        assert_non_null(m->role);
        assert_true(m->first_id == last && m->last_id >= m->first_id && m->last_id <= ids->count);
        last = m->last_id;
    }
    assert_null(mx_harmony_message_at(p, mx_harmony_message_count(p)));
    assert_null(mx_harmony_message_at(p, -1));
    r.messages = describe(p);
    mx_harmony_parser_free(p);
    return r;
}

/* All content, one message behind the other. */
static mx_bytes contents(mx_harmony_mode mode, const char *hint, const mx_ids *ids) {
    mx_harmony_parser *p;
    mx_harmony_delta d;
    mx_error error = {0};
    mx_bytes all = {0};
    must(mx_harmony_parser_create(stories(), mode, hint, &p, &error), &error);
    for (int64_t i = 0; i < ids->count; i++) must(mx_harmony_push(p, ids->data[i], &d, &error), &error);
    must(mx_harmony_end(p, &d, &error), &error);
    for (int i = 0; i < mx_harmony_message_count(p); i++) {
        const mx_bytes *c = &mx_harmony_message_at(p, i)->content;
        assert_true(mx_bytes_add(&all, c->data ? c->data : "", c->size));
    }
    mx_harmony_parser_free(p);
    return all;
}

static void expect(mx_harmony_mode mode, const char *hint, const char *text, const char *messages) {
    mx_ids ids = encode_special(stories(), text);
    result r = run(mode, hint, &ids);
    if (r.status != MX_OK) fail_msg("%s fails at token %d", text, (int)r.error_at);
    if (strcmp(r.messages.data, messages) != 0)
        fail_msg("%s\n(hint %s, mode %d) gives\n%sexpected\n%s", text, hint ? hint : "none", (int)mode, r.messages.data,
                 messages);
    free_result(&r);
    mx_ids_free(&ids);
}

/* `at` below zero counts from behind the last token. */
static void expect_failure(mx_harmony_mode mode, const char *hint, const char *text, int64_t at) {
    mx_ids ids = encode_special(stories(), text);
    result r = run(mode, hint, &ids);
    assert_int_not_equal(r.status, MX_OK);
    assert_int_equal(r.error_at, at < 0 ? ids.count + 1 + at : at);
    free_result(&r);
    mx_ids_free(&ids);
}

#define A "<|start|>assistant"

/* ---- what all modes agree on ------------------------------------------------------------------------------------- */
static void test_well_formed(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"assistant", "<|channel|>final<|message|>Hi.<|return|>", "assistant|final|||Hi.\n"},
        {NULL, A "<|channel|>analysis<|message|>Hm<|end|>" A "<|channel|>final<|message|>Hi<|return|>",
         "assistant|analysis|||Hm\nassistant|final|||Hi\n"},
        {"assistant", "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
         "assistant|commentary|functions.f|<|constrain|>json|{}\n"},
        {"assistant", " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
         "assistant|commentary|functions.f|<|constrain|>json|{}\n"},
        {"assistant", "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
         "assistant|commentary|functions.f|<|constrain|>json|{}\n"},
        {"assistant", "<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
         "assistant|commentary|functions.f|json|{}\n"},
        {"assistant",
         "<|channel|>commentary<|message|>I will look.<|end|>" A
         " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
         "assistant|commentary|||I will look.\nassistant|commentary|functions.f|json|{}\n"},
        {NULL, "<|start|>functions.f to=assistant<|channel|>commentary<|message|>ok<|end|>",
         "tool:functions.f|commentary|assistant||ok\n"},
        {NULL, "<|start|>user<|message|>Hi<|end|>" A "<|message|>Ho<|end|>", "user||||Hi\nassistant||||Ho\n"},
        {"assistant", "<|message|>x", "assistant||||x\n"},
        {"assistant", "<|channel|>final<|message|>", "assistant|final|||\n"},
        {NULL, "", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int mode = MX_HARMONY_STRICT; mode <= MX_HARMONY_LENIENT; mode++)
            expect((mx_harmony_mode)mode, cases[i][0], cases[i][1], cases[i][2]);
}

/* ---- the library's own ways -------------------------------------------------------------------------------------- */
static void test_library_modes(void **state) {
    (void)state;
    expect(MX_HARMONY_STRICT, "assistant", "<|channel|>commentary json<|message|>x", "assistant|commentary|json||x\n");
    expect(MX_HARMONY_STRICT, "assistant", "<|start|>assistant<|channel|>final<|message|>x",
           "assistant|final|<|start|>assistant||x\n");
    expect(MX_HARMONY_STRICT, NULL, A "<|channel|>final<|message|>a<|start|>b<|message|>c<|end|>",
           "assistant|final|||a<|start|>b<|message|>c\n");
    expect(MX_HARMONY_NOT_STRICT, "assistant", "<|channel|>analysis I  must<|end|>" A "<|channel|>final<|message|>No",
           "assistant|analysis|||I must\nassistant|final|||No\n");
    expect(MX_HARMONY_NOT_STRICT, NULL, A "<|channel|>analysis I<|end|>" A "<|message|>No", "assistant||||No\n");
    expect_failure(MX_HARMONY_STRICT, NULL, "Hello", 0);
    expect_failure(MX_HARMONY_STRICT, "assistant", "", 0);
    expect_failure(MX_HARMONY_STRICT, "assistant", "<|channel|>final", -1);
    expect_failure(MX_HARMONY_STRICT, NULL, "<|start|>robot<|message|>", -2);
}

/* ---- lenient ----------------------------------------------------------------------------------------------------- */
static void test_lenient(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        /* <|message|> left out */
        {"assistant", "<|channel|>analysis I must refuse.<|end|>" A "<|channel|>final<|message|>Sorry.<|return|>",
         "assistant|analysis|||I must refuse.\nassistant|final|||Sorry.\n"},
        {"assistant", "<|channel|>final Hello<|return|>", "assistant|final|||Hello\n"},
        {"assistant", "<|channel|>finalHello there<|return|>", "assistant|final|||Hello there\n"},
        {"assistant", "<|channel|>analysis one two<|message|> three<|end|>", "assistant|analysis|||one two three\n"},
        {"assistant", "<|channel|>commentary to=functions.f <|constrain|>json{\"a\": 1}<|call|>",
         "assistant|commentary|functions.f|<|constrain|>json|{\"a\": 1}\n"},
        {"assistant", "<|channel|>commentary to=functions.f json {\"a\": 1}<|call|>",
         "assistant|commentary|functions.f|json|{\"a\": 1}\n"},
        {"assistant", "<|channel|>commentary to=functions.f{\"a\": 1}<|call|>",
         "assistant|commentary|functions.f||{\"a\": 1}\n"},
        {"assistant", "<|channel|>commentary to=functions.f<|call|>", "assistant|commentary|functions.f||\n"},
        {"assistant", "<|channel|>commentary to=functions.f <|constrain|>We need more<|end|>",
         "assistant|commentary|functions.f|<|constrain|>|We need more\n"},
        {"assistant", "<|channel|>Sure, here it is<|end|>", "assistant|final|||Sure, here it is\n"},
        /* no format at all */
        {"assistant", "Hello, how are you?", "assistant|final|||Hello, how are you?\n"},
        {"assistant", "Hello<|return|>", "assistant|final|||Hello\n"},
        {"assistant", "assistant is here to help", "assistant|final|||assistant is here to help\n"},
        {"assistant", "assistant", "assistant|final|||assistant\n"},
        {NULL, "Hello, how are you?", "assistant|final|||Hello, how are you?\n"},
        {"assistant", "<|return|>", ""},
        {"assistant", "", ""},
        /* behind an end token */
        {"assistant", "<|channel|>analysis<|message|>a<|end|>The answer.<|return|>",
         "assistant|analysis|||a\nassistant|final|||The answer.\n"},
        {"assistant", "<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>",
         "assistant|analysis|||a\nassistant|final|||b\n"},
        {"assistant", "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>",
         "assistant|analysis|||a\nassistant|final|||b\n"},
        {"assistant", "<|channel|>analysis<|message|>a<|end|>\n\n" A "<|channel|>final<|message|>b<|return|>",
         "assistant|analysis|||a\nassistant|final|||b\n"},
        {"assistant", "<|channel|>final<|message|>a<|end|><|end|><|return|>", "assistant|final|||a\n"},
        {"assistant", "<|channel|>final<|message|>a<|end|><|message|>b", "assistant|final|||a\nassistant||||b\n"},
        {"assistant", "<|channel|>final<|message|>a<|end|>assist<|start|>",
         "assistant|final|||a\nassistant|final|||assist\n"},
        /* an end token left out */
        {"assistant", "<|channel|>analysis<|message|>a" A "<|channel|>final<|message|>b<|return|>",
         "assistant|analysis|||a\nassistant|final|||b\n"},
        {"assistant", "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
         "assistant|analysis|||a\nassistant|final|||b\n"},
        {"assistant", "<|channel|>final<|message|>a<|endoftext|>", "assistant|final|||a\n"},
        /* the header said twice, or half */
        {"assistant", A "<|channel|>final<|message|>x<|end|>", "assistant|final|||x\n"},
        {NULL, "<|start|>" A "<|channel|>final<|message|>x<|end|>", "assistant|final|||x\n"},
        {"assistant", "<|channel|>commentary<|channel|>analysis<|message|>x<|end|>", "assistant|analysis|||x\n"},
        {"assistant", "<|channel|>commentary to=functions.f<|channel|>commentary<|message|>{}<|call|>",
         "assistant|commentary|functions.f||{}\n"},
        {"assistant", "<|channel|>analysis Well<|channel|>final<|message|>x<|end|>",
         "assistant|analysis|||Well\nassistant|final|||x\n"},
        {NULL, "<|start|>assistantfinal<|message|>x", "assistant|final|||x\n"},
        {NULL, "<|start|>Assistant<|channel|>final<|message|>x", "assistant|final|||x\n"},
        {NULL, "<|start|><|channel|>final<|message|>x", "assistant|final|||x\n"},
        {NULL, "<|start|>assistant:bob<|channel|>final<|message|>x", "assistant:bob|final|||x\n"},
        {NULL, "<|start|>robot<|message|>x", "assistant|final|||robotx\n"},
        {NULL, A "<|channel|><|message|>x", "assistant||||x\n"},
        {NULL, A "<|channel|>final", "assistant|final|||\n"},
        {NULL, A, ""},
        {NULL, A "<|channel|>thoughts<|message|>x", "assistant|thoughts|||x\n"},
        /* recipients and types */
        {"assistant", "<|channel|>commentary to= functions.f<|message|>{}", "assistant|commentary|functions.f||{}\n"},
        {"assistant", "<|channel|>commentary functions.f<|message|>{}", "assistant|commentary|functions.f||{}\n"},
        {"assistant", "<|channel|>commentary json to=functions.f<|message|>{}",
         "assistant|commentary|functions.f|json|{}\n"},
        {"assistant", "<|channel|>analysis code<|message|>1+1", "assistant|analysis||code|1+1\n"},
        {"assistant", "<|constrain|>json<|message|>{}", "assistant|||<|constrain|>json|{}\n"},
        /* special tokens in content */
        {"assistant", "<|channel|>final<|message|>a<|message|>b<|constrain|>c<|startoftext|>",
         "assistant|final|||a<|message|>b<|constrain|>c<|startoftext|>\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect(MX_HARMONY_LENIENT, cases[i][0], cases[i][1], cases[i][2]);
}

/* A missing <|message|> must not hold the answer back until its end. */
static void test_lenient_streams(void **state) {
    (void)state;
    mx_ids ids = encode_special(stories(), "<|channel|>analysis I think that this is right");
    mx_harmony_parser *p;
    mx_harmony_delta d;
    mx_error error = {0};
    size_t shown = 0, seen = 0;
    must(mx_harmony_parser_create(stories(), MX_HARMONY_LENIENT, "assistant", &p, &error), &error);
    for (int64_t i = 0; i < ids.count; i++) {
        must(mx_harmony_push(p, ids.data[i], &d, &error), &error);
        size_t size;
        mx_token_bytes(stories(), ids.data[i], &size);
        seen += size;
        shown += d.text_size;
        if (d.text) assert_string_equal(d.channel, "analysis");
        if (d.text) assert_string_equal(d.role, "assistant");
        if (seen > strlen("<|channel|>analysis I think")) assert_true(seen - shown == strlen("<|channel|>analysis "));
    }
    mx_harmony_parser_free(p);
    mx_ids_free(&ids);
}

/* A character cut in two by tokens comes whole; one that never ends comes as U+FFFD with the end. */
static void test_utf8(void **state) {
    (void)state;
    mx_ids ids = encode_special(stories(), "<|channel|>final<|message|>\xF0\x9F\x98\x80\xF0\x9F\x98\x80");
    for (int mode = MX_HARMONY_STRICT; mode <= MX_HARMONY_LENIENT; mode++) {
        result r = run((mx_harmony_mode)mode, "assistant", &ids);
        assert_string_equal(r.messages.data, "assistant|final|||\xF0\x9F\x98\x80\xF0\x9F\x98\x80\n");
        assert_string_equal(r.deltas.data, "\xF0\x9F\x98\x80\xF0\x9F\x98\x80");
        free_result(&r);
    }
    ids.count--;
    result r = run(MX_HARMONY_LENIENT, "assistant", &ids);
    assert_string_equal(r.deltas.data, "\xF0\x9F\x98\x80\xEF\xBF\xBD");
    assert_string_equal(r.messages.data, "assistant|final|||\xF0\x9F\x98\x80\xEF\xBF\xBD\n");
    free_result(&r);
    mx_ids_free(&ids);
}

/* An id that no token has: U+FFFD. The library loses the rest of the message behind it. */
static void test_unknown_id(void **state) {
    (void)state;
    mx_ids ids = encode_special(stories(), "<|channel|>final<|message|>a"),
           more = encode_special(stories(), "b<|end|>");
    assert_true(mx_ids_add(&ids, INT32_MAX) && mx_ids_add_all(&ids, more.data, more.count));
    for (int mode = MX_HARMONY_STRICT; mode <= MX_HARMONY_LENIENT; mode++) {
        result r = run((mx_harmony_mode)mode, "assistant", &ids);
        assert_int_equal(r.status, MX_OK);
        assert_string_equal(r.messages.data, mode == MX_HARMONY_LENIENT ? "assistant|final|||a\xEF\xBF\xBD"
                                                                          "b\n"
                                                                        : "assistant|final|||a\xEF\xBF\xBD\n");
        free_result(&r);
    }
    mx_ids_free(&ids);
    mx_ids_free(&more);
}

static void test_create(void **state) {
    (void)state;
    mx_harmony_parser *p;
    mx_error error = {0};
    assert_int_equal(mx_harmony_parser_create(stories(), MX_HARMONY_STRICT, "robot", &p, &error), MX_INVALID_ARGUMENT);
    assert_null(p);
    mx_harmony_parser_free(NULL);
}

/* ---- round trips: what is rendered is read back ------------------------------------------------------------------ */
static void test_round_trip(void **state) {
    (void)state;
    mx_json_document *d =
        json("{\"messages\":[{\"role\":\"system\",\"content\":\"You tell stories.\"},{\"role\":\"user\",\"content\":"
             "\"Hi <|end|>\"},{\"role\":\"assistant\",\"channel\":\"analysis\",\"content\":\"I look.\"},{\"role\":"
             "\"assistant\",\"channel\":\"commentary\",\"recipient\":\"functions.get_weather\",\"content_type\":"
             "\"<|constrain|>json\",\"content\":\"{\\\"place\\\":\\\"Oslo\\\"}\"},{\"role\":\"tool\",\"name\":"
             "\"functions.get_weather\",\"recipient\":\"assistant\",\"channel\":\"commentary\",\"content\":\"4 "
             "\\u00b0C\"},{\"role\":\"assistant\",\"channel\":\"final\",\"content\":\"Cold.\\n\"}]}");
    mx_render_options options = {0};
    mx_ids ids = {0};
    mx_error error = {0};
    must(mx_harmony_render(stories(), mx_json_root(d), &options, &ids, &error), &error);
    for (int mode = MX_HARMONY_STRICT; mode <= MX_HARMONY_LENIENT; mode++) {
        result r = run((mx_harmony_mode)mode, NULL, &ids);
        assert_int_equal(r.status, MX_OK);
        assert_string_equal(r.messages.data,
                            "system||||You tell stories.\nuser||||Hi <|end|>\nassistant|analysis|||I look.\n"
                            "assistant|commentary|functions.get_weather|<|constrain|>json|{\"place\":\"Oslo\"}\n"
                            "tool:functions.get_weather|commentary|assistant||4 \xC2\xB0"
                            "C\nassistant|final|||Cold.\n\n");
        free_result(&r);
    }
    mx_ids_free(&ids);
    mx_json_free(d);
}

/* ---- random streams ---------------------------------------------------------------------------------------------- */
static uint64_t random_state;
static uint32_t below(uint32_t n) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717u) >> 33) % n;
}

static int occurrences(const mx_bytes *text, const char *word) {
    int n = 0;
    for (const char *p = text->data; p && (p = strstr(p, word)); p += strlen(word)) n++;
    return n;
}

static const char *const pieces[] = {"<|start|>",
                                     "<|start|>",
                                     "<|channel|>",
                                     "<|channel|>",
                                     "<|message|>",
                                     "<|message|>",
                                     "<|end|>",
                                     "<|end|>",
                                     "<|return|>",
                                     "<|call|>",
                                     "<|constrain|>",
                                     "<|constrain|>",
                                     "<|endoftext|>",
                                     "<|startoftext|>",
                                     "assistant",
                                     "assistant",
                                     "user",
                                     "analysis",
                                     "final",
                                     "commentary",
                                     " to=",
                                     "to=",
                                     "functions.f",
                                     "json",
                                     "code",
                                     " ",
                                     "\n",
                                     "  ",
                                     ":",
                                     ".",
                                     "t",
                                     "to",
                                     "=",
                                     "assist",
                                     "ant",
                                     "tool",
                                     "python",
                                     "\xF0\x9F",
                                     "\xE2\x82\xAC"};
static const char *const words[] = {"zebra", " quark", "xylo ", "{wombat", "\"okapi\"", "llama.", "  yak\n"};
enum { PIECES = sizeof pieces / sizeof *pieces, WORDS = sizeof words / sizeof *words };

/* No word that is no part of the format may be lost, nothing may fail, and what was streamed is what is kept. */
static void test_fuzz_lenient(void **state) {
    (void)state;
    mx_ids piece[PIECES], word[WORDS];
    for (int i = 0; i < PIECES; i++) piece[i] = encode_special(stories(), pieces[i]);
    for (int i = 0; i < WORDS; i++) word[i] = encode_special(stories(), words[i]);
    random_state = 1;
    for (int n = 0; n < fuzz_streams; n++) {
        mx_ids ids = {0};
        int pushed[WORDS] = {0};
        const char *hint = below(2) ? "assistant" : NULL;
        int length = 1 + (int)below(below(20) ? 16 : 200), words_of_10 = (int)below(8);
        for (int i = 0; i < length; i++) {
            bool is_word = (int)below(10) < words_of_10;
            int k = (int)below(is_word ? WORDS : PIECES);
            pushed[k % WORDS] += is_word;
            const mx_ids *more = is_word ? &word[k] : &piece[k];
            assert_true(mx_ids_add_all(&ids, more->data, more->count));
        }
        result r = run(MX_HARMONY_LENIENT, hint, &ids);
        mx_bytes all = contents(MX_HARMONY_LENIENT, hint, &ids), text = decode(stories(), &ids);
        if (r.status != MX_OK) fail_msg("stream %d fails: %s", n, text.data);
        if (all.size != r.deltas.size || (all.size && memcmp(all.data, r.deltas.data, all.size) != 0))
            fail_msg("stream %d: deltas and contents differ: %s", n, text.data);
        for (int k = 0; k < WORDS; k++) {
            char core[16];
            sscanf(words[k], " %*[{\"]%15[a-z]", core);
            sscanf(words[k], " %15[a-z]", core);
            if (occurrences(&r.messages, core) < pushed[k])
                fail_msg("stream %d (hint %s) loses \"%s\": %s\ngives\n%s", n, hint ? hint : "none", core, text.data,
                         r.messages.data);
        }
        mx_bytes_free(&text);
        mx_bytes_free(&all);
        free_result(&r);
        mx_ids_free(&ids);
    }
    for (int i = 0; i < PIECES; i++) mx_ids_free(&piece[i]);
    for (int i = 0; i < WORDS; i++) mx_ids_free(&word[i]);
}

/* Any ids at all, also such as no token has. */
static void test_fuzz_ids(void **state) {
    (void)state;
    mx_harmony_ids f = mx_tokenizer_harmony_ids(stories());
    const int32_t special[] = {f.start, f.channel, f.message, f.end, f.call, f.return_, f.constrain, -1, INT32_MAX};
    int32_t size = mx_tokenizer_size(stories());
    random_state = 2;
    for (int n = 0; n < fuzz_streams; n++) {
        mx_ids ids = {0};
        for (int i = (int)below(12); i >= 0; i--) {
            int32_t id = below(3) ? (int32_t)below((uint32_t)size) : special[below(9)];
            if (below(40) == 0) id = (int32_t)below(INT32_MAX);
            if (below(4) == 0) id = (int32_t)below(300); /* single bytes */
            assert_true(mx_ids_add(&ids, id));
        }
        for (int mode = MX_HARMONY_STRICT; mode <= MX_HARMONY_LENIENT; mode++) {
            result r = run((mx_harmony_mode)mode, n & 1 ? "assistant" : NULL, &ids);
            if (mode == MX_HARMONY_LENIENT) assert_int_equal(r.status, MX_OK);
            free_result(&r);
        }
        mx_ids_free(&ids);
    }
}

/* One header of a megabyte, one content of invalid bytes: time and memory stay in proportion. */
static void test_long_streams(void **state) {
    (void)state;
    mx_ids header = {0}, word = encode_special(stories(), " word"), mark = encode_special(stories(), "<|channel|>");
    for (int i = 0; i < 200000; i++) assert_true(mx_ids_add_all(&header, i % 7 ? word.data : mark.data, 1));
    for (int mode = MX_HARMONY_STRICT; mode <= MX_HARMONY_LENIENT; mode++) {
        result r = run((mx_harmony_mode)mode, "assistant", &header);
        free_result(&r);
    }
    mx_ids_free(&header);
    mx_ids_free(&word);
    mx_ids_free(&mark);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "full") == 0) fuzz_streams = 400000;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_well_formed),  cmocka_unit_test(test_library_modes),
        cmocka_unit_test(test_lenient),      cmocka_unit_test(test_lenient_streams),
        cmocka_unit_test(test_utf8),         cmocka_unit_test(test_unknown_id),
        cmocka_unit_test(test_create),       cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_fuzz_lenient), cmocka_unit_test(test_fuzz_ids),
        cmocka_unit_test(test_long_streams),
    };
    return cmocka_run_group_tests_name("harmony parse", tests, NULL, NULL);
}
