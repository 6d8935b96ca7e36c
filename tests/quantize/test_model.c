/* Whole models into other formats, and back: what is written is what the reader takes it for, and what cannot be is
 * refused by name. */
#include "model_support.h"

/* ---- formats ------------------------------------------------------------------------------------------------------
 */

static void test_formats(void **state) {
    (void)state;
    static const struct {
        const char *experts, *others;
    } cases[] = {
        {"mxfp4", "nvfp4"},           {"nvfp4", "mxfp4"},        {"mxfp4:16", "int4:32:asym"}, {"amxfp4", "mxfp6_e2m3"},
        {"mxfp6_e3m2", "mxfp8_e5m2"}, {"mxfp8", "amxfp4"},       {"fp8", "fp8:channel"},       {"fp8:channel", "fp8"},
        {"int8:32", "int8:32:asym"},  {"int4:32:asym", "mxfp8"}, {"int8:32:asym", "int4:32"},  {"bf16", "mxfp4:16"},
    };
    make(TOP1, in_folder("bf16"), "bf16", "keep");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const mx_model_options o = as(cases[i].experts, cases[i].others);
        mx_model_report report = quantize(in_folder("bf16"), in_folder("made"), &o);
        expect_as_reported(in_folder("bf16"), in_folder("made"), &report);
        mx_model_report_free(&report);
    }
    mx_model_options o = as("nvfp4", "nvfp4");
    o.modelopt = true;
    mx_model_report report = quantize(in_folder("bf16"), in_folder("made"), &o);
    expect_as_reported(in_folder("bf16"), in_folder("made"), &report);
    assert_true(exists(in_folder("made/hf_quant_config.json")));
    mx_model_report_free(&report);
    o = as("nvfp4", "mxfp8");
    o.modelopt = true;
    refuse(in_folder("bf16"), in_folder("none"), &o, MX_INVALID_ARGUMENT, "ModelOpt's names are for NVFP4 alone");
    const mx_model_options large = as("int8:64", NULL), unknown = as("mxfp5", NULL);
    refuse(TOP1, in_folder("none"), &large, MX_INVALID_ARGUMENT, "has 160 columns, no multiple of 64");
    refuse(TOP1, in_folder("none"), &unknown, MX_INVALID_ARGUMENT, "mxfp5");
}

static void expect_method(const char *folder, const char *method) {
    char text[100];
    mx_bytes config = content(in_folder(folder));
    snprintf(text, sizeof text, "\"quant_method\": \"%s\"", method);
    if (!strstr(config.data, text)) fail_msg("%s: no %s", config.data, text);
    mx_bytes_free(&config);
}

/* transformers' mxfp4 is all experts and nothing else; for compressed-tensors each has tensors of its own. */
static void test_methods(void **state) {
    (void)state;
    make(TOP1, in_folder("wide"), "bf16", "keep");
    make(in_folder("wide"), in_folder("made"), "mxfp4", "keep");
    expect_method("made/config.json", "mxfp4");
    for (int i = 0; i < 2; i++) { /* made of BF16, and the bytes that were there */
        make(in_folder(i ? "made" : "wide"), in_folder("apart"), i ? "keep" : "mxfp4", "nvfp4");
        expect_method("apart/config.json", "compressed-tensors");
        mx_source s;
        mx_weights *w = NULL;
        mx_checkpoint *ck;
        if (mx_checkpoint_open(in_folder("apart"), &ck, &error)) fail_msg("%s", error.text);
        assert_null(mx_checkpoint_find(ck, "model.layers.1.mlp.experts.down_proj_blocks"));
        assert_non_null(mx_checkpoint_find(ck, "model.layers.1.mlp.experts.1.up_proj.weight_packed"));
        mx_checkpoint_close(ck);
        if (mx_source_open(TOP1, &s, &error) || mx_weights_open(in_folder("apart"), pool, &w, &error))
            fail_msg("%s", error.text);
        assert_true(w->layer[1].up.matrix.format == MX_MXFP4 && w->layer[1].down.matrix.format == MX_MXFP4);
        for (int m = 0; m < s.modules; m++) {
            if (s.module[m].expert < 0) continue;
            int64_t first, step;
            const mx_matrix x = matrix_of(w, &s.module[m], &first, &step);
            float *was = numbers(&s.module[m]), row[256];
            assert_true(step == 1 && x.cols <= 256);
            for (int64_t n = 0; n < x.rows; n++) {
                mx_matrix_widen_row(row, &x, n);
                for (int64_t k = 0; k < x.cols; k++) assert_true(row[k] == was[n * x.cols + k]);
            }
            free(was);
        }
        for (int layer = 0; layer < w->config.layers; layer++) expect_biases(&s, w, layer);
        mx_weights_close(w);
        mx_source_close(&s);
    }
    mx_model_options o = as("keep", "keep");
    o.choice.rules = rules("*.layers.1.mlp.experts.*.down_proj mxfp4\n");
    mx_model_report report = quantize(in_folder("wide"), in_folder("some"), &o);
    expect_method("some/config.json", "compressed-tensors");
    expect_as_reported(in_folder("wide"), in_folder("some"), &report);
    mx_model_report_free(&report);
    o = as("mxfp4", "mxfp8_e5m2"); /* a name of our own: only we read it */
    report = quantize(in_folder("made"), in_folder("own"), &o);
    expect_method("own/config.json", "mxrun");
    expect_as_reported(in_folder("made"), in_folder("own"), &report);
    mx_model_report_free(&report);
    o = as("keep", "keep");
    o.modelopt = true;
    refuse(in_folder("wide"), in_folder("none"), &o, MX_INVALID_ARGUMENT, "nothing is to be quantised");
}

/* A copy of the folder `from`, all of BF16, in F16 or F32. */
static void write_twin(const char *from, const char *name, bool single) {
    char path[420];
    mx_checkpoint *ck;
    mx_bytes header = {0}, data = {0};
    uint64_t at = 0;
    if (mx_checkpoint_open_as(in_folder(from), MX_EXPERTS_STORED, &ck, &error)) fail_msg("%s", error.text);
    mx_bytes_add(&header, &at, 8);
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        assert_int_equal(t->dtype, MX_DTYPE_BF16);
        mx_bytes_addf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "{", t->name,
                      single ? "F32" : "F16");
        for (int k = 0; k < t->dims; k++) mx_bytes_addf(&header, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        mx_bytes_addf(&header, "],\"data_offsets\":[%llu,", (unsigned long long)data.size);
        for (uint64_t k = 0; k < t->bytes; k += 2) {
            const float x = mx_bf16_to_f32(mx_load_u16(t->data + k));
            const uint16_t half = mx_f32_to_f16(x);
            mx_bytes_add(&data, single ? (const void *)&x : (const void *)&half, single ? 4 : 2);
        }
        mx_bytes_addf(&header, "%llu]}", (unsigned long long)data.size);
    }
    mx_bytes_add_string(&header, "}");
    const uint64_t length = header.size - 8;
    memcpy(header.data, &length, 8);
    mkdir(in_folder(name), 0777);
    snprintf(path, sizeof path, "%s/config.json", in_folder(from));
    char to[420];
    snprintf(to, sizeof to, "%s/config.json", in_folder(name));
    copy_file(path, to);
    snprintf(path, sizeof path, "%s/model.safetensors", in_folder(name));
    FILE *f = fopen(path, "wb");
    assert_int_equal(fwrite(header.data, 1, header.size, f), header.size);
    assert_int_equal(fwrite(data.data, 1, data.size, f), data.size);
    assert_int_equal(fclose(f), 0);
    mx_bytes_free(&header);
    mx_bytes_free(&data);
    mx_checkpoint_close(ck);
}

/* A copy of top1 with a block whose largest code is 0.5, which OCP's rule gives another scale. */
static void write_odd(void) {
    char from[4200], block[16];
    mkdir(in_folder("odd"), 0777);
    snprintf(from, sizeof from, "%s/config.json", TOP1);
    copy_file(from, in_folder("odd/config.json"));
    snprintf(from, sizeof from, "%s/model.safetensors", TOP1);
    copy_file(from, in_folder("odd/model.safetensors"));
    memset(block, 0x91, sizeof block);
    overwrite("odd", "model.layers.1.mlp.experts.down_proj_blocks", block, sizeof block);
}

/* MXFP4 as numbers and back, and into itself: the same values, with "keep" the same bytes. */
static void test_again(void **state) {
    (void)state;
    write_odd();
    make(in_folder("odd"), in_folder("wide"), "bf16", "keep");
    make(in_folder("wide"), in_folder("back"), "mxfp4", "keep");
    expect_same_numbers(in_folder("odd"), in_folder("wide"));
    expect_same_numbers(in_folder("odd"), in_folder("back"));
    const mx_model_options plain = as("mxfp4", NULL);
    mx_model_options keep = plain;
    keep.choice.recipe.rule = MX_RULE_KEEP;
    mx_model_report report = quantize(in_folder("odd"), in_folder("again"), &plain);
    expect_same_numbers(in_folder("odd"), in_folder("again"));
    for (int i = 0; i < report.matrices; i++)
        assert_true(report.matrix[i].kept || (report.matrix[i].was_mxfp4 && report.matrix[i].report.lossless));
    mx_model_report_free(&report);
    report = quantize(in_folder("odd"), in_folder("kept"), &keep);
    mx_model_report_free(&report);
    mx_checkpoint *x, *y;
    if (mx_checkpoint_open(in_folder("odd"), &x, &error) || mx_checkpoint_open(in_folder("kept"), &y, &error))
        fail_msg("%s", error.text);
    assert_int_equal(mx_checkpoint_count(x), mx_checkpoint_count(y));
    for (int i = 0; i < mx_checkpoint_count(x); i++) {
        const mx_tensor *t = mx_checkpoint_at(x, i), *u = mx_checkpoint_at(y, i);
        assert_string_equal(t->name, u->name);
        assert_true(t->bytes == u->bytes && !memcmp(t->data, u->data, t->bytes));
    }
    mx_checkpoint_close(y);
    if (mx_checkpoint_open(in_folder("again"), &y, &error)) fail_msg("%s", error.text);
    const char *name = "model.layers.1.mlp.experts.down_proj_scales";
    assert_true(*mx_checkpoint_find(x, name)->data == *mx_checkpoint_find(y, name)->data + 3);
    mx_checkpoint_close(x);
    mx_checkpoint_close(y);
}

/* Codes and scales; vectors may have another type. */
static void expect_same_codes(const char *a, const char *b) {
    mx_checkpoint *x, *y;
    int compared = 0;
    if (mx_checkpoint_open(a, &x, &error) || mx_checkpoint_open(b, &y, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < mx_checkpoint_count(x); i++) {
        const mx_tensor *t = mx_checkpoint_at(x, i), *u = mx_checkpoint_find(y, t->name);
        assert_non_null(u);
        if (t->dtype != MX_DTYPE_U8 && t->dtype != MX_DTYPE_I8 && !mx_ends_with(t->name, "_scale")) continue;
        assert_true(t->bytes == u->bytes && !memcmp(t->data, u->data, t->bytes));
        compared++;
    }
    assert_true(compared > 20);
    mx_checkpoint_close(x);
    mx_checkpoint_close(y);
}

static float global_scale(const mx_checkpoint *ck, const char *module) {
    char name[200];
    float value;
    snprintf(name, sizeof name, "model.layers.1.%s.weight_global_scale", module);
    const mx_tensor *t = mx_checkpoint_find(ck, name);
    assert_non_null(t);
    memcpy(&value, t->data, sizeof value);
    return value;
}

/* NVFP4's tensor scale is one for what vLLM joins, that of the largest number. */
static void test_shared_scale(void **state) {
    (void)state;
    make(TOP1, in_folder("wide"), "bf16", "keep");
    const uint16_t numbers[2] = {0x40CA, 0x4049}; /* 6.3125 and 3.140625 in row 0 of expert 0's gate and up */
    overwrite("wide", "model.layers.1.mlp.experts.gate_up_proj", numbers, sizeof numbers);
    overwrite("wide", "model.layers.1.self_attn.k_proj.weight", numbers, sizeof numbers);
    mx_model_options o = as("nvfp4", "nvfp4");
    for (int search = 0; search < 2; search++) {
        o.choice.recipe.tensor_search = search;
        mx_model_report report = quantize(in_folder("wide"), in_folder("made"), &o);
        expect_as_reported(in_folder("wide"), in_folder("made"), &report);
        mx_model_report_free(&report);
        mx_checkpoint *ck;
        if (mx_checkpoint_open(in_folder("made"), &ck, &error)) fail_msg("%s", error.text);
        const float expected = 448 * 6 / 6.3125f;
        static const char *const same[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                           "mlp.experts.0.gate_proj", "mlp.experts.0.up_proj"};
        int found = 0;
        for (size_t i = 0; i < sizeof same / sizeof *same; i++)
            found += fabsf(global_scale(ck, same[i]) - expected) < 1e-5f * expected;
        assert_true(search ? global_scale(ck, "self_attn.q_proj") > 2 * expected : found == 5);
        assert_true(global_scale(ck, "self_attn.o_proj") > 2 * expected);
        const float power = global_scale(ck, "mlp.experts.1.up_proj"); /* loses nothing */
        assert_true(exp2f(rintf(log2f(power))) == power);
        mx_checkpoint_close(ck);
    }
}

/* F16 and F32: the same result as of BF16. What rotation makes of F16 is said as it is. */
static void test_halves(void **state) {
    (void)state;
    make(TOP1, in_folder("wide"), "bf16", "keep");
    make(in_folder("wide"), in_folder("of-bf16"), "mxfp4", "int8:32");
    for (int single = 0; single < 2; single++) {
        write_twin("wide", "twin", single);
        make(in_folder("twin"), in_folder("of-twin"), "mxfp4", "int8:32");
        expect_same_codes(in_folder("of-bf16"), in_folder("of-twin"));
        mx_model_options o = as("keep", "keep");
        o.choice.recipe.hadamard = true;
        mx_model_report report = quantize(in_folder("twin"), in_folder("turned"), &o);
        for (int i = 0; i < report.classes; i++) {
            const mx_model_class *c = &report.of_class[i];
            assert_true(c->form.format == (single ? MX_F32 : MX_F16) && c->sum.square > 0);
            assert_true(c->sum.lossless == single && (c->sum.error > 0) == !single);
            assert_true(c->sum.error < 1e-6 * c->sum.square);
        }
        mx_model_report_free(&report);
        write_twin("wide", "twin", single);
        const char *name = "model.layers.1.self_attn.q_proj.weight";
        o.choice.format[MX_GROUP_EXPERTS] = "mxfp4";
        if (!single) {
            uint16_t halves[32]; /* 65504, which rotation adds up */
            for (int i = 0; i < 32; i++) halves[i] = 0x7BFF;
            overwrite("twin", name, halves, sizeof halves);
            refuse(in_folder("twin"), in_folder("none"), &o, MX_INVALID_FILE, "after rotation, more than F16 holds");
            assert_non_null(strstr(error.text, "model.layers.1.self_attn.q_proj: row 0, column 0"));
            o.choice.format[MX_GROUP_ATTENTION] = "bf16";
            report = quantize(in_folder("twin"), in_folder("turned"), &o);
            mx_model_report_free(&report);
            write_twin("wide", "twin", single);
        }
        o.choice.format[MX_GROUP_ATTENTION] = "keep";
        overwrite("twin", name, single ? (const void *)(float[]){NAN} : (const void *)(uint16_t[]){0x7E00},
                  2 + 2 * single);
        refuse(in_folder("twin"), in_folder("none"), &o, MX_INVALID_FILE, "q_proj: row 0, column 0: is NaN");
        o.allow_nonfinite = true;
        report = quantize(in_folder("twin"), in_folder("turned"), &o);
        int64_t replaced = 0; /* that one, not a block of what it was turned into */
        for (int i = 0; i < report.classes; i++) replaced += report.of_class[i].sum.nonfinite;
        assert_int_equal(replaced, 1);
        mx_model_report_free(&report);
    }
}

static void test_threads(void **state) {
    (void)state;
    mx_pool *one;
    assert_int_equal(mx_pool_create(1, &one, &error), MX_OK);
    mx_model_options o = as("nvfp4", "int4:32:asym");
    mx_model_report report = quantize(TOP1, in_folder("two"), &o);
    mx_model_report_free(&report);
    o.pool = one;
    report = quantize(TOP1, in_folder("one"), &o);
    mx_model_report_free(&report);
    assert_true(same_content(in_folder("one/model.safetensors"), in_folder("two/model.safetensors")));
    assert_true(same_content(in_folder("one/config.json"), in_folder("two/config.json")));
    mx_pool_destroy(one);
}

/* ---- rules --------------------------------------------------------------------------------------------------------
 */

static void test_rules(void **state) {
    (void)state;
    mx_model_options o = as(NULL, NULL);
    o.choice.rules = rules("# first match wins\n"
                           "*.layers.0.mlp.experts.*.down_proj  mxfp8  search\n"
                           "*.down_proj nvfp4 # others\n\n"
                           "\tmodel.layers.1.self_attn.[qk]_proj\tint4:32 \r\n"
                           "lm_head keep");
    mx_model_report report = quantize(TOP1, in_folder("mixed"), &o);
    expect_as_reported(TOP1, in_folder("mixed"), &report);
    static const struct {
        const char *name, *form;
    } expected[] = {{"model.layers.0.mlp.experts.1.down_proj", "mxfp8_e4m3"},
                    {"model.layers.2.mlp.experts.3.down_proj", "nvfp4"},
                    {"model.layers.0.mlp.experts.2.gate_proj", "mxfp4"},
                    {"model.layers.1.self_attn.k_proj", "int4:32"},
                    {"model.layers.1.self_attn.v_proj", "bf16"},
                    {"lm_head", "bf16"}};
    int found = 0;
    for (int i = 0; i < report.matrices; i++)
        for (size_t k = 0; k < sizeof expected / sizeof *expected; k++) {
            char form[MX_FORM_NAME];
            mx_form_name(form, &report.matrix[i].form);
            if (strcmp(report.matrix[i].name, expected[k].name)) continue;
            assert_string_equal(form, expected[k].form);
            found++;
        }
    assert_int_equal(found, sizeof expected / sizeof *expected);
    mx_model_report_free(&report);
    static const struct {
        const char *text, *part;
    } wrong[] = {
        {"lm_head", "rules.txt:1: expected GLOB FORMAT [RECIPE]"},
        {"\n* mxfp4 ocp more", "rules.txt:2: expected GLOB"},
        {"* mxfp5", "rules.txt:1: "},
        {"* mxfp4 best", "rules.txt:1: "},
        {"lm_head mxfp4\nlm_heat mxfp4", "rules.txt:2: lm_heat fits no matrix"},
        {"*.2.gate_proj mxfp8", "share one format for gate and up"},
        {"*.experts.2.* mxfp8", "share one format for gate and up"},
        {"*up_proj nvfp4\n*gate_proj mxfp4", "share one format for gate and up"}, /* *up_proj is not gate, too */
        {"lm_head mxfp8 search+gptq", "lm_head"},
        {"lm_head mxfp4 weighted", "need a text: --calibrate FILE"},
        {"lm_head mxfp4 hadamard+search", "give it with --recipe"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        o.choice.rules = rules(wrong[i].text);
        refuse(TOP1, in_folder("none"), &o, MX_INVALID_ARGUMENT, wrong[i].part);
    }
    o.choice.rules = rules("*.gate_up_proj mxfp8\n*.down_proj mxfp4 search\n* keep");
    o.choice.recipe.hadamard = o.dry_run = true; /* which rules inherit */
    for (int i = 0; i < 2; i++) {
        report = quantize(TOP1, in_folder("none"), &o);
        for (int c = 0; c < report.classes; c++)
            if (report.of_class[c].group == MX_GROUP_EXPERTS)
                assert_int_equal(report.of_class[c].matrices, report.of_class[c].form.format == MX_E4M3 ? 24 : 12);
        mx_model_report_free(&report);
        o.choice.rules = rules("*.gate_up_proj mxfp8\n*.down_proj mxfp4 hadamard+search\n* keep");
    }
    o.choice.rules = rules("*.experts.*.gate_up_proj mxfp4\n*.down_proj keep\n* keep");
    report = quantize(TOP1, in_folder("none"), &o);
    for (int c = 0; c < report.classes; c++)
        if (report.of_class[c].group == MX_GROUP_EXPERTS) assert_int_equal(report.of_class[c].matrices, 36);
    mx_model_report_free(&report);
    o.choice.recipe.hadamard = o.dry_run = false;
    o.choice.rules = in_folder("nothing");
    refuse(TOP1, in_folder("none"), &o, MX_IO, "nothing");
}

/* ---- other models -------------------------------------------------------------------------------------------------
 */

static void expect_tensor(const mx_checkpoint *ck, const char *name, const char *dtype, int64_t rows, int64_t cols) {
    const mx_tensor *t = mx_checkpoint_find(ck, name);
    if (!t) fail_msg("%s is not there", name);
    if (strcmp(t->dtype_name, dtype) || t->shape[0] != rows || (t->dims > 1 && t->shape[1] != cols))
        fail_msg("%s: %s [%lld, %lld]", name, t->dtype_name, (long long)t->shape[0], (long long)t->shape[1]);
}

static void test_other_models(void **state) {
    (void)state;
    const char *config = "{\"model_type\": \"llama\", \"big\": 12345678901234567890, \"x\": {\"y\": [1.50, null]}, "
                         "\"quantization_config\": null}";
    const char *in = write_llama("llama", -1, 0, 0, config);
    const mx_model_options o = as("nvfp4", "int4:32:asym");
    mx_model_report report = quantize(in, in_folder("llama.out"), &o);
    assert_int_equal(report.others, 5);
    mx_model_report_free(&report);
    mx_checkpoint *x, *y;
    if (mx_checkpoint_open_as(in, MX_EXPERTS_STORED, &x, &error) ||
        mx_checkpoint_open_as(in_folder("llama.out"), MX_EXPERTS_STORED, &y, &error))
        fail_msg("%s", error.text);
    expect_tensor(y, "model.embed_tokens.weight_packed", "I32", 40, 8);
    expect_tensor(y, "model.embed_tokens.weight_zero_point", "I32", 5, 2);
    expect_tensor(y, "model.embed_tokens.weight_scale", "BF16", 40, 2);
    expect_tensor(y, "model.embed_tokens.weight_shape", "I64", 2, 0);
    expect_tensor(y, "model.layers.0.self_attn.o_proj.weight_packed", "I32", 64, 12);
    expect_tensor(y, "model.layers.0.mlp.gate_proj.weight_packed", "U8", 33, 32);
    expect_tensor(y, "model.layers.0.mlp.gate_proj.weight_scale", "F8_E4M3", 33, 4);
    expect_tensor(y, "model.layers.0.block_sparse_moe.experts.3.w2.weight_packed", "U8", 64, 64);
    expect_tensor(y, "model.layers.0.block_sparse_moe.gate.weight_packed", "I32", 8, 8);
    static const int same[] = {1, 7, 8, 9, 10, 11};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        const mx_tensor *t = mx_checkpoint_find(x, llama[same[i]].name),
                        *u = mx_checkpoint_find(y, llama[same[i]].name);
        assert_true(u && t->dims == u->dims && t->bytes == u->bytes);
        assert_true(!t->bytes || !memcmp(t->data, u->data, t->bytes));
    }
    mx_checkpoint_close(x);
    mx_checkpoint_close(y);
    mx_bytes text = content(in_folder("llama.out/config.json"));
    assert_non_null(strstr(text.data, "\"big\": 12345678901234567890"));
    assert_non_null(strstr(text.data, "{\"y\":[1.50,null]}"));
    assert_non_null(strstr(text.data, "\"quant_method\": \"compressed-tensors\""));
    assert_null(strstr(strstr(text.data, "quantization_config") + 1, "quantization_config"));
    mx_bytes_free(&text);
    refuse(in_folder("llama.out"), in_folder("none"), &o, MX_UNSUPPORTED, "is quantised already");
    unlink(in_folder("llama.out/config.json"));
    refuse(in_folder("llama.out"), in_folder("none"), &o, MX_UNSUPPORTED, "is quantised already");
    mx_model_options all = as(NULL, NULL);
    all.choice.rules = rules("* mxfp4");
    refuse(in, in_folder("none"), &all, MX_INVALID_ARGUMENT, "vision.position: has 30 columns, no multiple of 32");
    all.choice.recipe.gptq = true;
    all.choice.rules = NULL;
    refuse(in, in_folder("none"), &all, MX_UNSUPPORTED, "mxrun runs gpt-oss alone");
    all.choice.recipe = (mx_quantize_recipe){.hadamard = true};
    refuse(in, in_folder("none"), &all, MX_UNSUPPORTED, "gpt-oss");
    make(in_folder("llama/model.safetensors"), in_folder("alone"), "mxfp4", "keep");
    assert_true(exists(in_folder("alone/model.safetensors")));
}

/* What compressed-tensors computes from the largest, to the bit, although 1 / (1 / gain) is another number; ModelOpt's
 * is what is multiplied with. */
static void test_the_tensor_s_scale(void **state) {
    (void)state;
    const float largest = 170 / 256.0f, gain = 1 / largest * 2688, post = 1 / gain, back = 1 / post;
    assert_true(back < gain || back > gain);
    const char *in = write_llama("gain", 4, 77, largest, NULL);
    for (int modelopt = 0; modelopt < 2; modelopt++) {
        mx_model_options o = as("nvfp4", "keep");
        o.modelopt = modelopt;
        mx_model_report report = quantize(in, in_folder("gain.out"), &o);
        mx_model_report_free(&report);
        mx_checkpoint *ck;
        if (mx_checkpoint_open_as(in_folder("gain.out"), MX_EXPERTS_STORED, &ck, &error)) fail_msg("%s", error.text);
        const mx_tensor *t = mx_checkpoint_find(ck, modelopt ? "model.layers.0.mlp.gate_proj.weight_scale_2"
                                                             : "model.layers.0.mlp.gate_proj.weight_global_scale");
        assert_non_null(t);
        assert_int_equal(t->bytes, 4);
        assert_memory_equal(t->data, modelopt ? &post : &gain, 4);
        mx_checkpoint_close(ck);
    }
}

static void test_bad_numbers(void **state) {
    (void)state;
    mx_model_options o = as("mxfp4", NULL);
    refuse(write_llama("nan", 4, 5 * 64 + 7, NAN, NULL), in_folder("none"), &o, MX_INVALID_FILE,
           "model.layers.0.mlp.gate_proj");
    refuse(write_llama("inf", 5, 130, INFINITY, NULL), in_folder("none"), &o, MX_INVALID_FILE, "experts.3.w2");
    o.allow_nonfinite = true;
    make(TOP1, in_folder("wide"), "bf16", "keep"); /* the way to a model that can be calibrated */
    write_nan("wide");
    mx_model_options clean = as("bf16", "keep");
    clean.allow_nonfinite = true;
    mx_model_report cleaned = quantize(in_folder("wide"), in_folder("clean"), &clean);
    mx_model_report_free(&cleaned);
    make(in_folder("clean"), in_folder("finite"), "nvfp4", "keep");
    mx_model_report report = quantize(in_folder("nan"), in_folder("finite"), &o);
    int64_t found = 0;
    for (int i = 0; i < report.classes; i++) found += report.of_class[i].sum.nonfinite;
    assert_int_equal(found, 1);
    mx_model_report_free(&report);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),      cmocka_unit_test(test_methods),
        cmocka_unit_test(test_again),        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_shared_scale), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_rules),        cmocka_unit_test(test_other_models),
        cmocka_unit_test(test_bad_numbers),  cmocka_unit_test(test_the_tensor_s_scale),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
