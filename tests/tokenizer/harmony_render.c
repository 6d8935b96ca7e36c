/* Rendering with the small tokenizer: expected texts written by hand from the format's rules. */
#include "harmony_support.h"

static mx_ids render(const char *conversation, mx_render_options options) {
    mx_json_document *d = json(conversation);
    mx_ids ids = {0};
    mx_error error = {0};
    must(mx_harmony_render(stories(), mx_json_root(d), &options, &ids, &error), &error);
    mx_json_free(d);
    return ids;
}

static void expect_text(const char *conversation, mx_render_options options, const char *expected) {
    mx_ids ids = render(conversation, options);
    mx_bytes text = decode(stories(), &ids);
    assert_string_equal(text.data, expected);
    mx_bytes_free(&text);
    mx_ids_free(&ids);
}

#define SYSTEM                                                                                                         \
    "{\"role\":\"system\",\"content\":[{\"type\":\"system_content\",\"model_identity\":\"You tell stories.\","         \
    "\"knowledge_cutoff\":\"2024-06\",\"conversation_start_date\":\"2026-11-23\",\"reasoning_effort\":\"Low\","        \
    "\"channel_config\":{\"valid_channels\":[\"analysis\",\"commentary\",\"final\"],\"channel_required\":true}}]}"
#define SYSTEM_TEXT                                                                                                    \
    "<|start|>system<|message|>You tell stories.\nKnowledge cutoff: 2024-06\nCurrent date: 2026-11-23\n\nReasoning: "  \
    "low\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
#define TOOLS                                                                                                          \
    "{\"role\":\"developer\",\"content\":[{\"type\":\"developer_content\",\"instructions\":\"Be brief.\",\"tools\":"   \
    "{\"functions\":{\"name\":\"functions\",\"description\":\"Two\\ntools\",\"tools\":[{\"name\":\"get_weather\","     \
    "\"description\":\"Weather of\\r\\na place\\n\",\"parameters\":{\"type\":\"object\",\"properties\":{\"place\":"    \
    "{\"type\":\"string\"}},\"required\":[\"place\"]}},{\"name\":\"now\",\"description\":\"The time\"}]},"             \
    "\"a\":{\"name\":\"empty\",\"description\":\"Nothing here\",\"tools\":[]}}}]}"
#define TOOLS_TEXT                                                                                                     \
    "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n# Tools\n\n## empty\n\nNothing here\n\n## "           \
    "functions\n\n// Two\n// tools\nnamespace functions {\n\n// Weather of\n// a place\ntype get_weather = (_: {\n"    \
    "place: string,\n}) => any;\n\n// The time\ntype now = () => any;\n\n} // namespace functions<|end|>"

static void test_system_and_tools(void **state) {
    (void)state;
    expect_text("{\"messages\":[" SYSTEM "]}", (mx_render_options){0}, SYSTEM_TEXT "<|end|>");
    expect_text("{\"messages\":[" SYSTEM "," TOOLS "]}", (mx_render_options){.next_role = "assistant"},
                SYSTEM_TEXT "\nCalls to these tools must go to the commentary channel: 'functions'.<|end|>" TOOLS_TEXT
                            "<|start|>assistant");
    expect_text("{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"system_content\"}]}]}",
                (mx_render_options){0}, "<|start|>system<|message|><|end|>");
    expect_text("{\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"developer_content\","
                "\"instructions\":\"\"}]}]}",
                (mx_render_options){0}, "<|start|>developer<|message|># Instructions\n\n<|end|>");
}

static void test_headers(void **state) {
    (void)state;
    expect_text("{\"messages\":[{\"role\":\"user\",\"name\":\"bob\",\"content\":\"Hi <|end|>\"}]}",
                (mx_render_options){0}, "<|start|>user:bob<|message|>Hi <|end|><|end|>");
    expect_text("{\"messages\":[{\"role\":\"assistant\",\"recipient\":\"functions.f\",\"channel\":\"commentary\","
                "\"content_type\":\"<|constrain|>json\",\"content\":\"{}\"}]}",
                (mx_render_options){0},
                "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>");
    expect_text("{\"messages\":[{\"role\":\"tool\",\"name\":\"functions.f\",\"recipient\":\"assistant\",\"channel\":"
                "\"commentary\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}",
                (mx_render_options){0}, "<|start|>functions.f to=assistant<|channel|>commentary<|message|>ab<|end|>");
    expect_text("{\"messages\":[{\"role\":\"assistant\",\"recipient\":\"all\",\"content_type\":\"code\",\"content\":"
                "\"x\"}]}",
                (mx_render_options){0}, "<|start|>assistant code<|message|>x<|call|>");
}

/* Text that looks like a special token stays text; a format token is one id. */
static void test_special_text_is_text(void **state) {
    (void)state;
    mx_harmony_ids f = mx_tokenizer_harmony_ids(stories());
    mx_ids ids = render("{\"messages\":[{\"role\":\"user\",\"content\":\"<|end|>\"}]}", (mx_render_options){0});
    int ends = 0;
    for (int64_t i = 0; i < ids.count; i++) ends += ids.data[i] == f.end;
    assert_int_equal(ends, 1);
    assert_int_equal(ids.data[0], f.start);
    assert_int_equal(ids.data[ids.count - 1], f.end);
    mx_ids_free(&ids);
}

static void test_nul_survives(void **state) {
    (void)state;
    mx_ids ids = render("{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]}", (mx_render_options){0});
    mx_bytes text = decode(stories(), &ids);
    static const char expected[] = "<|start|>user<|message|>a\0b<|end|>";
    assert_int_equal(text.size, sizeof expected - 1);
    assert_memory_equal(text.data, expected, text.size);
    mx_bytes_free(&text);
    mx_ids_free(&ids);
}

#define M(role, channel, text) "{\"role\":\"" role "\",\"channel\":\"" channel "\",\"content\":\"" text "\"}"
#define U(text)                "{\"role\":\"user\",\"content\":\"" text "\"}"

/* Which of the messages, named by one letter each, are left. */
static void expect_kept(const char *conversation, mx_render_options options, const char *letters) {
    mx_ids ids = render(conversation, options);
    mx_bytes text = decode(stories(), &ids);
    char kept[32];
    size_t n = 0;
    for (const char *p = text.data; (p = strstr(p, "<|message|>")) && n < sizeof kept - 1; p++) kept[n++] = p[11];
    kept[n] = 0;
    assert_string_equal(kept, letters);
    mx_bytes_free(&text);
    mx_ids_free(&ids);
}

static void test_dropping_analysis(void **state) {
    (void)state;
    mx_render_options library = {.auto_drop_analysis = true}, all = {.drop_all_analysis = true}, none = {0};
    const char *two_turns = "{\"messages\":[" U("a") "," M("assistant", "analysis", "b") "," M(
        "assistant", "final", "c") "," U("d") "," M("assistant", "analysis", "e") "," M("assistant", "final", "f") "]}";
    expect_kept(two_turns, none, "abcdef");
    expect_kept(two_turns, library, "acdef");
    expect_kept(two_turns, all, "acdf");
    const char *tool_loop =
        "{\"messages\":[" U("a") "," M("assistant", "analysis", "b") "," M("assistant", "final", "c") "," U("d") "," M(
            "assistant", "analysis", "e") "," M("assistant", "commentary", "f") "]}";
    expect_kept(tool_loop, none, "abcdef");
    expect_kept(tool_loop, library, "abcdef");
    expect_kept(tool_loop, all, "acdef");
    const char *no_final = "{\"messages\":[" U("a") "," M("assistant", "analysis", "b") "]}";
    expect_kept(no_final, library, "ab");
    expect_kept(no_final, all, "ab");
}

static void test_training(void **state) {
    (void)state;
    mx_render_options training = {.training = true};
    expect_text("{\"messages\":[" M("assistant", "final", "x") "]}", training,
                "<|start|>assistant<|channel|>final<|message|>x<|return|>");
    expect_text("{\"messages\":[" M("assistant", "analysis", "x") "]}", training,
                "<|start|>assistant<|channel|>analysis<|message|>x<|end|>");
}

static void test_errors(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"{}", "messages"},
        {"[]", "messages"},
        {"{\"messages\":[{\"role\":\"robot\",\"content\":\"x\"}]}", "robot"},
        {"{\"messages\":[{\"role\":\"user\\u0000\",\"content\":\"x\"}]}", "messages[0]"},
        {"{\"messages\":[{\"content\":\"x\"}]}", "role"},
        {"{\"messages\":[" U("a") ",{\"role\":\"user\"}]}", "messages[1]"},
        {"{\"messages\":[5]}", "messages[0]"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "name"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}", "content[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]}", "image"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", "text"},
        {"{\"messages\":[{\"role\":\"user\",\"channel\":5,\"content\":\"x\"}]}", "channel"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"system_content\"}]}]}", "system_content"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"developer_content\"}]}]}", "developer_content"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"system_content\",\"reasoning_effort\":\"max\"}]}"
         "]}",
         "max"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"system_content\",\"tools\":{\"x\":{}}}]}]}",
         "name"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"system_content\",\"tools\":{\"x\":{\"name\":"
         "\"x\",\"tools\":[{}]}}}]}]}",
         "name"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_json_document *d = json(wrong[i][0]);
        mx_error error = {0};
        mx_ids ids = {0};
        assert_true(mx_ids_add(&ids, 7));
        mx_render_options options = {0};
        assert_int_equal(mx_harmony_render(stories(), mx_json_root(d), &options, &ids, &error), MX_INVALID_ARGUMENT);
        if (!strstr(error.text, wrong[i][1])) fail_msg("\"%s\" does not name %s", error.text, wrong[i][1]);
        assert_int_equal(ids.count, 1); /* what was there before stays, nothing is added */
        mx_ids_free(&ids);
        mx_json_free(d);
    }
}

static void test_schemas(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{}", "any"},
        {"true", "any"},
        {"{\"type\":\"integer\"}", "number"},
        {"{\"type\":[\"integer\",\"null\"]}", "number | null"},
        {"{\"type\":[]}", "any"},
        {"{\"type\":\"array\"}", "Array<any>"},
        {"{\"type\":\"array\",\"items\":{\"type\":\"string\",\"enum\":[\"a\",1,\"b\"]}}", "\"a\" | \"b\"[]"},
        {"{\"type\":\"string\",\"enum\":[1]}", "string"},
        {"{\"anyOf\":[{\"type\":\"string\"}]}", "any"},
        {"{\"oneOf\":[{\"type\":\"string\",\"enum\":[\"x\"],\"default\":\"x\"},{\"type\":\"number\",\"nullable\":true,"
         "\"description\":\"d\",\"default\":2}]}",
         "\n | \"x\" // default: \"x\"\n | number | null // d default: 2"},
        {"{\"type\":\"object\"}", "{\n}"},
        {"{\"type\":\"object\",\"properties\":{\"b\":{\"type\":\"string\",\"default\":\"say "
         "\\\"x\\\"\"},\"a\":{\"type\":"
         "\"string\",\"enum\":[\"u\"],\"default\":\"u\",\"nullable\":true}},\"required\":[\"a\"]}",
         "{\nb?: string, // default: \"say \"x\"\"\na: \"u\" | null, // default: u\n}"},
        {"{\"type\":\"object\",\"properties\":{\"n\":{\"type\":[\"null\",\"string\"],\"nullable\":true}}}",
         "{\nn?: null | string,\n}"},
        {"{\"type\":\"object\",\"properties\":{\"o\":{\"type\":\"object\",\"description\":\"twice\",\"properties\":{"
         "\"x\":{\"type\":\"boolean\",\"title\":\"T\",\"description\":\"D\",\"examples\":[\"e\",1]}}}}}",
         "{\n// twice\no?:     // twice\n{\n    // T\n    //\n    // D\n    // Examples:\n    // - \"e\"\n    x?: "
         "boolean,\n    },\n}"},
        {"{\"type\":\"object\",\"properties\":{\"v\":{\"description\":\"which\",\"default\":\"m\",\"oneOf\":[{\"type\":"
         "\"string\",\"description\":\"first\"},{\"type\":\"number\",\"description\":\"second\",\"default\":1.0}]}}}",
         "{\n// which\n// default: \"m\"\nv?:\n | string\n | number // second default: 1.0\n,\n}"},
        {"{\"type\":\"object\",\"properties\":{\"v\":{\"description\":\"same\",\"oneOf\":[{\"type\":\"string\","
         "\"description\":\"same\"}]}}}",
         "{\nv?:\n | string\n,\n}"},
        /* a name given twice: its first place, its last value */
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"b\":{},\"a\":{\"type\":\"number\"}}}",
         "{\na?: number,\nb?: any,\n}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_json_document *d = json(cases[i][0]);
        mx_bytes out = {0};
        mx_error error = {0};
        must(mx_schema_to_typescript(mx_json_root(d), &out, &error), &error);
        assert_string_equal(out.data, cases[i][1]);
        mx_bytes_free(&out);
        mx_json_free(d);
    }
}

/* Values print as serde_json would: the kind of a number stays, doubles are the shortest that read back. */
static void test_default_values(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"1.0", "1.0"},
        {"-0.0", "-0.0"},
        {"-0", "-0.0"},
        {"0", "0"},
        {"1e16", "1e16"},
        {"1e15", "1000000000000000.0"},
        {"123456789012345680", "123456789012345680"},
        {"1.2345678901234568e15", "1234567890123456.8"},
        {"18446744073709551615", "18446744073709551615"},
        {"18446744073709551616", "1.8446744073709552e19"},
        {"-9223372036854775808", "-9223372036854775808"},
        {"-9223372036854775809", "-9.223372036854776e18"},
        {"0.00001", "0.00001"},
        {"0.000001", "1e-6"},
        {"1.5E-6", "1.5e-6"},
        {"5e-324", "5e-324"},
        {"0.1", "0.1"},
        {"0.30000000000000004", "0.30000000000000004"},
        {"120.50", "120.5"},
        {"null", "null"},
        {"[1, 2.0, {\"k\" : \"v\\u0001\\n\\u007f\\\"\", \"a\": true, \"k\": 0}]", "[1,2.0,{\"k\":0,\"a\":true}]"},
        {"[\"v\\u0000\\u0001\\n\\u007f\\\"\\\\\"]", "[\"v\\u0000\\u0001\\n\x7f\\\"\\\\\"]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char schema[300], expected[300];
        snprintf(schema, sizeof schema, "{\"type\":\"object\",\"properties\":{\"v\":{\"default\":%s}}}", cases[i][0]);
        snprintf(expected, sizeof expected, "{\nv?: any, // default: %s\n}", cases[i][1]);
        mx_json_document *d = json(schema);
        mx_bytes out = {0};
        mx_error error = {0};
        must(mx_schema_to_typescript(mx_json_root(d), &out, &error), &error);
        assert_string_equal(out.data, expected);
        mx_bytes_free(&out);
        mx_json_free(d);
    }
}

/* Deep and wide schemas end in good time and without a deep stack. */
static void test_large_schemas(void **state) {
    (void)state;
    mx_bytes schema = {0}, out = {0};
    mx_error error = {0};
    for (int i = 0; i < 250; i++) assert_true(mx_bytes_add_string(&schema, "{\"type\":\"array\",\"items\":"));
    assert_true(mx_bytes_add_string(&schema, "{\"type\":\"object\",\"properties\":{"));
    for (int i = 0; i < 50000; i++)
        assert_true(mx_bytes_addf(&schema, "%s\"p%d\":{\"type\":\"string\"}", i ? "," : "", i % 40000));
    assert_true(mx_bytes_add_string(&schema, "},\"required\":["));
    for (int i = 0; i < 40000; i++) assert_true(mx_bytes_addf(&schema, "%s\"p%d\"", i ? "," : "", i));
    assert_true(mx_bytes_add_string(&schema, "]}"));
    for (int i = 0; i < 250; i++) assert_true(mx_bytes_add_string(&schema, "}"));
    mx_json_document *d = json(schema.data);
    must(mx_schema_to_typescript(mx_json_root(d), &out, &error), &error);
    assert_true(strstr(out.data, "p39999: string,\n}[][]") != NULL);
    mx_json_free(d);
    mx_bytes_free(&schema);
    mx_bytes_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_system_and_tools),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_special_text_is_text),
        cmocka_unit_test(test_nul_survives),
        cmocka_unit_test(test_dropping_analysis),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_schemas),
        cmocka_unit_test(test_default_values),
        cmocka_unit_test(test_large_schemas),
    };
    return cmocka_run_group_tests_name("harmony render", tests, NULL, NULL);
}
