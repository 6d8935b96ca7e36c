/* Files of other layouts that are wrong, or are another's: each is refused with a line that says what and why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "checkpoint_maker.h"
#include "layout_maker.h"
#include "model/model.h"

static source base, mqa;
static char folder[200]; /* of the case */

static const gguf_form as_published = {.dense = MADE_BF16, .experts = MADE_MXFP4};

static int set_up(void **state) {
    (void)state;
    source_open(&base, "base");
    source_open(&mqa, "mqa");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    source_close(&base);
    source_close(&mqa);
    return 0;
}

static bool one_line(const char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20) return false;
    return true;
}

/* Opening FOLDER/NAME fails with `status` and a line that holds the folder's path and `expect`. false: it does not. */
static bool refuses(const char *what, const char *name, mx_status status, const char *expect) {
    mx_error error = {.text = ""};
    mx_weights *w = NULL;
    const mx_status found = mx_weights_open(*name ? made_path(folder, name) : folder, NULL, &w, &error);
    const bool right =
        found == status && !w && strstr(error.text, folder) && strstr(error.text, expect) && one_line(error.text);
    if (!right)
        print_error("%s: \"%s\" (%s), expected \"%s\" (%s)\n", what, error.text, mx_status_name(found), expect,
                    mx_status_name(status));
    if (!right) print_error("\n");
    assert_int_equal(mx_weights_open(*name ? made_path(folder, name) : folder, NULL, &w, NULL), found);
    mx_weights_close(w);
    return right;
}

/* ---- one GGUF file ------------------------------------------------------------------------------------------------
 */

static void make_ollama(gguf *g) {
    gguf_text(g, "general.architecture", "gptoss");
}

static void make_llama(gguf *g) {
    gguf_text(g, "general.architecture", "llama");
}

static void make_other_kind(gguf *g) {
    gguf_u32(g, "general.architecture", 1);
}

static void no_architecture(gguf *g) {
    gguf_remove(g, "general.architecture");
}

static void type_4(gguf *g) {
    pile_find(&g->pile, "blk.1.ffn_gate_exps.weight")->type = 4;
    pile_find(&g->pile, "blk.1.ffn_up_exps.weight")->type = 4;
}

static void q4_k(gguf *g) {
    pile_find(&g->pile, "blk.2.attn_q.weight")->type = MADE_Q4_K;
}

static void q4_k_experts(gguf *g) {
    pile_find(&g->pile, "blk.0.ffn_down_exps.weight")->type = MADE_Q4_K;
}

/* A type that has no size here may claim any. */
static void huge_rows(gguf *g) {
    piece *gate = pile_find(&g->pile, "blk.0.ffn_gate_exps.weight"),
          *up = pile_find(&g->pile, "blk.0.ffn_up_exps.weight");
    gate->type = up->type = MADE_Q4_K;
    for (int i = 0; i < 3; i++) gate->shape[i] = up->shape[i] = i == 1 ? INT64_MAX : 1;
}

static void bias_in_q8_0(gguf *g) {
    pile_find(&g->pile, "blk.0.ffn_gate_exps.bias")->type = MADE_Q8_0;
    pile_find(&g->pile, "blk.0.ffn_up_exps.bias")->type = MADE_Q8_0;
}

static void no_up(gguf *g) {
    pile_remove(&g->pile, "blk.3.ffn_up_exps.weight");
}

static void no_up_bias(gguf *g) {
    pile_remove(&g->pile, "blk.3.ffn_up_exps.bias");
}

static void no_gate(gguf *g) {
    pile_remove(&g->pile, "blk.3.ffn_gate_exps.weight");
}

static void no_sinks(gguf *g) {
    pile_remove(&g->pile, "blk.2.attn_sinks.weight");
}

static void no_norm(gguf *g) {
    pile_remove(&g->pile, "output_norm.weight");
}

static void other_up(gguf *g) {
    piece *p = pile_find(&g->pile, "blk.1.ffn_up_exps.weight");
    p->shape[1] /= 2;
    p->bytes /= 2;
}

static void up_in_another_type(gguf *g) {
    piece *p = pile_find(&g->pile, "blk.1.ffn_up_exps.weight");
    p->type = MADE_Q8_0;
    p->shape[1] /= 2;
}

static void flat_experts(gguf *g) {
    piece *p = pile_find(&g->pile, "blk.1.ffn_down_exps.weight");
    p->dims = 2;
    p->shape[0] *= p->shape[1];
    p->shape[1] = p->shape[2];
}

static void short_down(gguf *g) {
    piece *p = pile_find(&g->pile, "blk.1.ffn_down_exps.weight");
    p->shape[0] /= 2;
    p->bytes /= 2;
}

static void pattern_0(gguf *g) {
    gguf_u32(g, "gpt-oss.attention.sliding_window_pattern", 0);
}

static void attention_factor(gguf *g) {
    gguf_f32(g, "gpt-oss.rope.scaling.attn_factor", 3);
}

static void clamp(gguf *g) {
    gguf_u32(g, "gpt-oss.swiglu_clamp_exp", 7);
}

static void q8_0_infinite(gguf *g) {
    piece *p = pile_find(&g->pile, "blk.1.attn_q.weight");
    const uint64_t n = (uint64_t)p->shape[0] * (uint64_t)p->shape[1];
    float *values = made_decode(p->type, p->data, n);
    free(p->data);
    p->type = MADE_Q8_0;
    p->data = made_encode(MADE_Q8_0, values, n);
    p->bytes = made_bytes(MADE_Q8_0, n);
    memcpy(p->data, "\x00\x7c", 2);
    free(values);
}

static void turned_q(gguf *g) {
    piece *p = pile_find(&g->pile, "blk.0.attn_q.weight");
    const int64_t rows = p->shape[0];
    p->shape[0] = p->shape[1];
    p->shape[1] = rows;
}

static void more_experts(gguf *g) {
    gguf_u32(g, "gpt-oss.expert_count", 9);
}

static void wide_heads(gguf *g) {
    gguf_u32(g, "gpt-oss.attention.key_length", 128);
    gguf_u32(g, "gpt-oss.attention.value_length", 128);
}

static void other_values(gguf *g) {
    gguf_u32(g, "gpt-oss.attention.value_length", 32);
}

static void no_tensors(gguf *g) {
    pile_free(&g->pile);
    g->pile.count = 0;
}

static void no_layers(gguf *g) {
    gguf_u32(g, "gpt-oss.block_count", 0);
}

static void many_layers(gguf *g) {
    gguf_u32(g, "gpt-oss.block_count", 4000000000u);
}

static void more_layers(gguf *g) {
    gguf_u32(g, "gpt-oss.block_count", 5);
}

static void text_for_a_number(gguf *g) {
    gguf_text(g, "gpt-oss.embedding_length", "192");
}

static void many_active(gguf *g) {
    gguf_u32(g, "gpt-oss.expert_used_count", 9);
}

static void odd_heads(gguf *g) {
    gguf_u32(g, "gpt-oss.attention.head_count_kv", 3);
}

static void no_theta(gguf *g) {
    gguf_remove(g, "gpt-oss.rope.freq_base");
}

static void theta_1(gguf *g) {
    gguf_f32(g, "gpt-oss.rope.freq_base", 1);
}

static void theta_nan(gguf *g) {
    gguf_f32(g, "gpt-oss.rope.freq_base", __builtin_nanf(""));
}

static void linear_rope(gguf *g) {
    gguf_text(g, "gpt-oss.rope.scaling.type", "linear");
}

static void no_factor(gguf *g) {
    gguf_remove(g, "gpt-oss.rope.scaling.factor");
}

static void factor_0(gguf *g) {
    gguf_f32(g, "gpt-oss.rope.scaling.factor", 0);
}

static void no_original_length(gguf *g) {
    gguf_remove(g, "gpt-oss.rope.scaling.original_context_length");
}

static void no_context(gguf *g) {
    gguf_remove(g, "gpt-oss.context_length");
}

static void no_width(gguf *g) {
    gguf_remove(g, "gpt-oss.expert_feed_forward_length");
    gguf_remove(g, "gpt-oss.feed_forward_length");
}

static void window_0(gguf *g) {
    gguf_u32(g, "gpt-oss.attention.sliding_window", 0);
}

static void great_eps(gguf *g) {
    gguf_f32(g, "gpt-oss.attention.layer_norm_rms_epsilon", 2);
}

static void eos_beyond(gguf *g) {
    gguf_u32(g, "tokenizer.ggml.eos_token_id", 512);
}

static const struct {
    const char *what;
    void (*change)(gguf *g);
    mx_status status;
    const char *expect;
    const char *turned; /* of a reader that turns experts into Hugging Face's form; NULL: nothing else */
} ggufs[] = {
    {"Ollama's architecture", make_ollama, MX_UNSUPPORTED,
     "general.architecture is \"gptoss\": Ollama's own dialect of GGUF, which mxrun does not read", NULL},
    {"another architecture", make_llama, MX_UNSUPPORTED, "general.architecture is \"llama\": mxrun runs \"gpt-oss\"",
     NULL},
    {"architecture a number", make_other_kind, MX_INVALID_FILE, "general.architecture is no text", NULL},
    {"no architecture", no_architecture, MX_INVALID_FILE, "general.architecture is missing", NULL},
    {"type 4", type_4, MX_UNSUPPORTED,
     "has the type number 4, which mxrun does not read: it reads MXFP4 experts, and F32, F16, BF16 and Q8_0; take the "
     "model's MXFP4 file, as ggml-org publishes it (type 4 is the MXFP4 of Ollama's own dialect)",
     NULL},
    {"Q4_K", q4_k, MX_UNSUPPORTED, "blk.2.attn_q.weight: has the type Q4_K, which mxrun does not read", NULL},
    {"Q4_K experts", q4_k_experts, MX_UNSUPPORTED, "blk.0.ffn_down_exps.weight: has the type Q4_K", NULL},
    {"rows beyond all numbers", huge_rows, MX_UNSUPPORTED, "blk.0.ffn_gate_exps.weight: has the type Q4_K", NULL},
    {"biases in Q8_0", bias_in_q8_0, MX_INVALID_FILE, "gate_proj_bias: is Q8_0 [8, 96], expected BF16 or F32 [8, 96]",
     "blk.0.ffn_gate_exps.bias: has the type Q8_0"},
    {"no up", no_up, MX_INVALID_FILE,
     "tensor model.layers.3.mlp.experts.up_proj.weight is missing: is the download complete?",
     "tensor blk.3.ffn_up_exps.weight is missing: is the download complete?"},
    {"no bias of up", no_up_bias, MX_INVALID_FILE, "tensor model.layers.3.mlp.experts.up_proj_bias is missing",
     "tensor blk.3.ffn_up_exps.bias is missing"},
    {"no gate", no_gate, MX_INVALID_FILE, "tensor model.layers.3.mlp.experts.gate_up_proj_blocks is missing", NULL},
    {"no sinks", no_sinks, MX_INVALID_FILE, "tensor model.layers.2.self_attn.sinks is missing", NULL},
    {"no norm", no_norm, MX_INVALID_FILE, "tensor model.norm.weight is missing", NULL},
    {"up of other sizes", other_up, MX_INVALID_FILE,
     "up_proj.weight: is MXFP4 [8, 48, 192], expected MXFP4, BF16, F16, F32 or Q8_0 [8, 96, 192]",
     "ffn_up_exps of the same type and sizes"},
    {"up of another type", up_in_another_type, MX_INVALID_FILE, "up_proj.weight: is Q8_0 [8, 48, 192], expected",
     "ffn_up_exps of the same type and sizes"},
    {"experts in two dimensions", flat_experts, MX_INVALID_FILE,
     "down_proj.weight: is MXFP4 [1536, 96], expected MXFP4, BF16, F16, F32 or Q8_0 [8, 192, 96]",
     "blk.1.ffn_down_exps.weight: has 2 dimensions, expected 3"},
    {"fewer experts in one tensor", short_down, MX_INVALID_FILE,
     "is MXFP4 [4, 192, 96], expected MXFP4, BF16, F16, F32 or Q8_0 [8, 192, 96]", NULL},
    {"q turned", turned_q, MX_INVALID_FILE,
     "q_proj.weight: is BF16 [192, 512], expected BF16, F16, F32 or Q8_0 [512, 192]", NULL},
    {"more experts said than there are", more_experts, MX_INVALID_FILE, "expected BF16, F16, F32 or Q8_0 [9, 192]",
     NULL},
    {"wider heads", wide_heads, MX_INVALID_FILE, "q_proj.weight: is BF16 [512, 192], expected", NULL},
    {"other length of values", other_values, MX_INVALID_FILE,
     "gpt-oss.attention.value_length is 32, expected what gpt-oss.attention.key_length says", NULL},
    {"no tensors", no_tensors, MX_INVALID_FILE, "gpt-oss.vocab_size is missing", NULL},
    {"no layers", no_layers, MX_INVALID_FILE, "gpt-oss.block_count is 0, expected a whole number from 1 to 512", NULL},
    {"too many layers", many_layers, MX_INVALID_FILE, "gpt-oss.block_count is 4000000000", NULL},
    {"a layer too many", more_layers, MX_INVALID_FILE, "tensor model.layers.4.input_layernorm.weight is missing", NULL},
    {"text for a number", text_for_a_number, MX_INVALID_FILE, "gpt-oss.embedding_length is \"192\"", NULL},
    {"more experts a token than there are", many_active, MX_INVALID_FILE, "9 experts a token are more than there are",
     NULL},
    {"heads and KV heads", odd_heads, MX_INVALID_FILE, "8 attention heads are no multiple of 3 key and value heads",
     NULL},
    {"pattern of no layers", pattern_0, MX_INVALID_FILE, "sliding_window_pattern is 0, expected a whole number", NULL},
    {"attention factor", attention_factor, MX_UNSUPPORTED, "attn_factor is 3, expected 1, as in gpt-oss", NULL},
    {"clamp", clamp, MX_UNSUPPORTED, "gpt-oss.swiglu_clamp_exp is 7, expected no such key", NULL},
    {"Q8_0 without numbers", q8_0_infinite, MX_INVALID_FILE, "row 0, block 0 is 0x7C00 (no number)", NULL},
    {"no theta", no_theta, MX_INVALID_FILE, "gpt-oss.rope.freq_base is missing, expected a number from", NULL},
    {"theta 1", theta_1, MX_INVALID_FILE, "gpt-oss.rope.freq_base is 1, expected a number from 1.001", NULL},
    {"theta not a number", theta_nan, MX_INVALID_FILE, "gpt-oss.rope.freq_base is no number", NULL},
    {"another RoPE", linear_rope, MX_UNSUPPORTED,
     "gpt-oss.rope.scaling.type is \"linear\", expected \"yarn\" or \"none\"", NULL},
    {"no factor", no_factor, MX_INVALID_FILE, "gpt-oss.rope.scaling.factor is missing", NULL},
    {"factor 0", factor_0, MX_INVALID_FILE, "gpt-oss.rope.scaling.factor is 0", NULL},
    {"no original length", no_original_length, MX_INVALID_FILE,
     "gpt-oss.rope.scaling.original_context_length is missing", NULL},
    {"no context", no_context, MX_INVALID_FILE, "gpt-oss.context_length is missing", NULL},
    {"no width", no_width, MX_INVALID_FILE, "gpt-oss.feed_forward_length is missing", NULL},
    {"window 0", window_0, MX_INVALID_FILE, "gpt-oss.attention.sliding_window is 0", NULL},
    {"eps 2", great_eps, MX_INVALID_FILE, "gpt-oss.attention.layer_norm_rms_epsilon is 2", NULL},
    {"end of text outside", eos_beyond, MX_INVALID_FILE,
     "tokenizer.ggml.eos_token_id is 512, expected a whole number from 0 to 511", NULL},
};

static void gguf_files(void **state) {
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < sizeof ggufs / sizeof *ggufs; i++) {
        gguf *g = calloc(1, sizeof *g);
        assert_non_null(g);
        made_folder(folder);
        gguf_from(g, &base, &as_published);
        ggufs[i].change(g);
        gguf_write(g, made_path(folder, "model.gguf"));
        wrong += !refuses(ggufs[i].what, "model.gguf", ggufs[i].status, ggufs[i].expect);
        wrong += !refuses(ggufs[i].what, "", ggufs[i].status, ggufs[i].expect); /* found in its folder */
        mx_checkpoint *ck;
        mx_error error;
        if (ggufs[i].turned && (!mx_checkpoint_open(folder, &ck, &error) || !strstr(error.text, ggufs[i].turned)))
            fail_msg("%s: \"%s\", expected \"%s\"", ggufs[i].what, error.text, ggufs[i].turned);
        gguf_free(g);
        free(g);
        maker_remove(folder);
    }
    assert_int_equal(wrong, 0);
}

/* What a GGUF may lack, and what is taken for it. */
static void gguf_defaults(void **state) {
    (void)state;
    static const char *const optional[] = {"gpt-oss.attention.layer_norm_rms_epsilon",
                                           "gpt-oss.attention.sliding_window",
                                           "gpt-oss.expert_feed_forward_length",
                                           "gpt-oss.attention.value_length",
                                           "gpt-oss.rope.scaling.type",
                                           "gpt-oss.rope.scaling.factor",
                                           "gpt-oss.rope.scaling.original_context_length",
                                           "tokenizer.ggml.eos_token_id"};
    static gguf g;
    mx_config c;
    mx_error error;
    made_folder(folder);
    gguf_from(&g, &mqa, &as_published);
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++) gguf_remove(&g, optional[i]);
    gguf_write(&g, made_path(folder, "model.gguf"));
    if (mx_config_read(made_path(folder, "model.gguf"), &c, &error)) fail_msg("%s", error.text);
    assert_true(c.rms_eps >= 1e-5f && c.rms_eps <= 1e-5f);
    assert_int_equal(c.window, 128);
    assert_int_equal(c.intermediate, 32);
    assert_false(c.yarn);
    assert_int_equal(c.eos_count, 0);
    assert_true(c.swiglu_limit >= 7 && c.swiglu_limit <= 7 && c.swiglu_alpha >= 1.702f && c.swiglu_alpha <= 1.702f);
    assert_true(c.sliding[0] && !c.sliding[1]);
    gguf_remove(&g, "gpt-oss.attention.key_length");
    gguf_remove(&g, "gpt-oss.attention.head_count_kv");
    gguf_text(&g, "gpt-oss.rope.scaling.type", "yarn");
    gguf_f32(&g, "gpt-oss.rope.scaling.factor", 32);
    gguf_u32(&g, "gpt-oss.rope.scaling.original_context_length", 4096);
    gguf_f32(&g, "gpt-oss.rope.scaling.yarn_beta_fast", 16);
    gguf_write(&g, made_path(folder, "model.gguf"));
    if (mx_config_read(made_path(folder, "model.gguf"), &c, &error)) fail_msg("%s", error.text);
    assert_int_equal(c.head_dim, 64 / 16);
    assert_int_equal(c.kv_heads, 16);
    assert_true(c.yarn && !c.yarn_truncate);
    assert_true(c.yarn_beta_fast >= 16 && c.yarn_beta_fast <= 16 && c.yarn_beta_slow >= 1 && c.yarn_beta_slow <= 1);
    gguf_free(&g);
    maker_remove(folder);
}

/* ---- split GGUF ---------------------------------------------------------------------------------------------------
 */

static void write_split(const source *s, const char *stem, int64_t total) {
    static gguf g;
    gguf_from(&g, s, &as_published);
    gguf_split(&g, made_path(folder, stem), 3, total);
    gguf_free(&g);
}

static void move(const char *from, const char *to) {
    assert_int_equal(rename(made_path(folder, from), made_path(folder, to)), 0);
}

static void split_files(void **state) {
    (void)state;
    static const char first[] = "m-00001-of-00003.gguf", second[] = "m-00002-of-00003.gguf",
                      third[] = "m-00003-of-00003.gguf";
    int wrong = 0;
    made_folder(folder);
    write_split(&base, "m", -1);
    wrong += !refuses("part 2 given", second, MX_INVALID_ARGUMENT,
                      "is part 2 of 3: give the first one, -00001-of-00003.gguf");
    move(third, "gone");
    wrong += !refuses("missing part", first, MX_IO, "m-00003-of-00003.gguf: No such file");
    wrong += !refuses("missing part, folder", "", MX_IO, "m-00003-of-00003.gguf: No such file");
    move(second, third);
    move("gone", second);
    wrong += !refuses("parts changed over", first, MX_INVALID_FILE,
                      "m-00002-of-00003.gguf: split.no is 2, expected 1: the file is a part of another model");
    move(second, "gone");
    move(third, second);
    move("gone", third);
    move(first, "renamed.gguf");
    wrong += !refuses("renamed", "renamed.gguf", MX_INVALID_FILE,
                      "is the first of 3 files, but its name does not end in -00001-of-00003.gguf, by which the others "
                      "are found");
    move("renamed.gguf", first);
    write_split(&mqa, "other", -1);
    move("other-00003-of-00003.gguf", third);
    wrong += !refuses("third part of another model", first, MX_INVALID_FILE, "split.tensors.count");
    write_split(&base, "m", 78);
    wrong +=
        !refuses("tensors.count", first, MX_INVALID_FILE, "split.tensors.count is 78, but the 3 files hold 79 tensors");
    write_split(&base, "m", -1);
    write_split(&base, "n", -1);
    remove(made_path(folder, "other-00001-of-00003.gguf"));
    remove(made_path(folder, "other-00002-of-00003.gguf"));
    wrong += !refuses("two models", "", MX_INVALID_ARGUMENT, "holds 2 models as .gguf files, ");
    remove(made_path(folder, first));
    remove(made_path(folder, "n-00001-of-00003.gguf"));
    wrong += !refuses("no first part", "", MX_INVALID_FILE, "but not the first (-00001-of-...)");
    maker_remove(folder);
    assert_int_equal(wrong, 0);
}

/* ---- model.bin ----------------------------------------------------------------------------------------------------
 */

static void metal_files(void **state) {
    (void)state;
    size_t scale;
    mx_bytes right = {0};
    const float zero = 0;
    metal_from(&right, &base, &scale);
    const struct {
        const char *what;
        size_t at; /* 0: nothing is changed */
        uint32_t value;
        int bytes;
        int64_t more; /* bytes of the file */
        mx_status status;
        const char *expect;
    } cases[] = {
        {"model identifier", METAL_UUID, 1, 1, 0, MX_UNSUPPORTED, "its model identifier is none that mxrun knows"},
        {"layout identifier", METAL_NUMBERS + 68, 1, 1, 0, MX_UNSUPPORTED, "its layout identifier is none"},
        {"tokenizer identifier", METAL_NUMBERS + 84, 1, 1, 0, MX_UNSUPPORTED, "its tokenizer identifier is none"},
        {"head_dim", METAL_HEAD_DIM, 128, 4, 0, MX_UNSUPPORTED,
         "header: head_dim is 128; the format is only defined for 64"},
        {"no layers", METAL_NUMBERS + 4, 0, 4, 0, MX_INVALID_FILE, "header: num_blocks is 0, expected"},
        {"more layers", METAL_NUMBERS + 4, 5, 4, 0, MX_INVALID_FILE, "but a model of its header's sizes has"},
        {"more layers than any", METAL_NUMBERS + 4, UINT32_MAX, 4, 0, MX_INVALID_FILE, "header: num_blocks is"},
        {"more experts", METAL_NUMBERS + 8, 1 << 14, 4, 0, MX_INVALID_FILE, "but a model of its header's sizes has"},
        {"width", METAL_NUMBERS + 16, 193, 4, 0, MX_UNSUPPORTED, "hidden_size is 193, which is no multiple of 32"},
        {"limit", METAL_NUMBERS + 24, 0x7FC00000, 4, 0, MX_INVALID_FILE, "header: swiglu_limit is nan"},
        {"yarn_scale", METAL_NUMBERS + 56, 0, 4, 0, MX_INVALID_FILE, "header: yarn_scale is 0"},
        {"long vocabulary", METAL_NUMBERS + 112, UINT32_MAX, 4, 0, MX_INVALID_FILE, "but a model of its header's"},
        {"tokens", METAL_NUMBERS + 104, UINT32_MAX, 4, 0, MX_INVALID_FILE, "tokens, expected 1 to 16777216"},
        {"scale", scale, 13, 1, 0, MX_INVALID_FILE,
         "gate_up_proj_scales: the scale of expert 0, row 0, block 0 is 0xFF (NaN): the file is damaged"},
        {"one byte less", 0, 0, 0, -1, MX_INVALID_FILE, "bytes, but a model of its header's sizes has"},
        {"one byte more", 0, 0, 0, 1, MX_INVALID_FILE, "bytes, but a model of its header's sizes has"},
        {"cut off", 0, 0, 0, -(int64_t)right.size / 2, MX_INVALID_FILE, "download it again"},
        {"header cut off", 0, 0, 0, 100 - (int64_t)right.size, MX_INVALID_FILE, "too short"},
    };
    int wrong = 0;
    made_folder(folder);
    assert_int_equal(mkdir(made_path(folder, "metal"), 0777), 0);
    assert_true(mx_bytes_add(&right, &zero, 4)); /* for the byte more */
    right.size -= 4;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t keep[4];
        char *at = right.data + cases[i].at;
        memcpy(keep, at, 4);
        if (cases[i].at) memcpy(at, &cases[i].value, (size_t)cases[i].bytes);
        made_file(folder, "metal/model.bin", right.data, (size_t)((int64_t)right.size + cases[i].more));
        memcpy(at, keep, 4);
        wrong += !refuses(cases[i].what, "metal/model.bin", cases[i].status, cases[i].expect);
        wrong += !refuses(cases[i].what, "", cases[i].status, cases[i].expect); /* found in its folder */
    }
    mx_bytes_free(&right);
    maker_remove(folder);
    assert_int_equal(wrong, 0);
}

/* ---- folders ------------------------------------------------------------------------------------------------------
 */

/* `text` with the member "key": value changed to `value`; NULL: it goes. */
static void change_member(mx_bytes *text, const char *key, const char *value) {
    char name[80];
    mx_bytes out = {0};
    snprintf(name, sizeof name, "\"%s\": ", key);
    const char *begin = strstr(text->data, name), *end;
    assert_non_null(begin);
    end = begin + strcspn(begin, ",}");
    assert_true(mx_bytes_add(&out, text->data, (size_t)(begin - text->data)));
    assert_true(mx_bytes_addf(&out, "\"%s\": %s", value ? key : "unknown", value ? value : "0"));
    assert_true(mx_bytes_add_string(&out, end));
    mx_bytes_free(text);
    *text = out;
}

static void original_folders(void **state) {
    (void)state;
    static const struct {
        const char *what, *key, *value, *expect;
        mx_status status;
    } cases[] = {
        {"fewer heads", "num_attention_heads", "6",
         "block.3.attn.qkv.weight: is BF16 [768, 192], expected 640 rows: those of q, k and v", MX_INVALID_FILE},
        {"no layers", "num_hidden_layers", NULL, "num_hidden_layers is missing", MX_INVALID_FILE},
        {"no experts", "num_experts", NULL, "num_experts is missing, expected a whole number", MX_INVALID_FILE},
        {"no active experts", "experts_per_token", NULL, "experts_per_token is missing", MX_INVALID_FILE},
        {"no theta", "rope_theta", NULL, "rope_theta is missing", MX_INVALID_FILE},
        {"no initial length", "initial_context_length", NULL, "initial_context_length is missing", MX_INVALID_FILE},
        {"no window", "sliding_window", NULL, "sliding_window is missing", MX_INVALID_FILE},
        {"width", "hidden_size", "190", "hidden_size is 190, which is no multiple of 32", MX_UNSUPPORTED},
        {"betas", "rope_ntk_beta", "0.5", "rope_ntk_beta is 0.5, expected at least rope_ntk_alpha", MX_INVALID_FILE},
        {"factor", "rope_scaling_factor", "0.5", "rope_scaling_factor is 0.5, expected", MX_INVALID_FILE},
        {"a text", "head_dim", "\"64\"", "head_dim is \"64\", expected a whole number", MX_INVALID_FILE},
        {"more layers", "num_hidden_layers", "5", "tensor model.layers.4.input_layernorm.weight is missing",
         MX_INVALID_FILE},
    };
    int wrong = 0;
    made_folder(folder);
    original_write(made_path(folder, "original"), &base);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_bytes config = {0};
        original_config(&config, &base);
        change_member(&config, cases[i].key, cases[i].value);
        made_file(folder, "original/config.json", config.data, config.size);
        wrong += !refuses(cases[i].what, "original", cases[i].status, cases[i].expect);
        wrong += !refuses(cases[i].what, "", cases[i].status, cases[i].expect);
        mx_bytes_free(&config);
    }
    remove(made_path(folder, "original/config.json"));
    wrong += !refuses("no config.json", "original", MX_IO, "config.json");

    static pile p;
    mx_bytes config = {0};
    original_from(&p, &base);
    original_config(&config, &base);
    piece *qkv = pile_find(&p, "block.1.attn.qkv.weight");
    qkv->shape[0] -= 64;
    qkv->bytes -= 64 * (uint64_t)qkv->shape[1] * 2;
    folder_write(made_path(folder, "original"), &p, config.data);
    wrong += !refuses("height of qkv", "original", MX_INVALID_FILE,
                      "block.1.attn.qkv.weight: is BF16 [704, 192], expected 768 rows: those of q, k and v");
    qkv->shape[0] += 64;
    qkv->bytes += 64 * (uint64_t)qkv->shape[1] * 2;
    pile_remove(&p, "block.2.attn.qkv.bias");
    folder_write(made_path(folder, "original"), &p, config.data);
    wrong += !refuses("no bias of qkv", "original", MX_INVALID_FILE,
                      "tensor model.layers.2.self_attn.q_proj.bias is missing");
    mx_bytes_free(&config);
    pile_free(&p);
    maker_remove(folder);
    assert_int_equal(wrong, 0);
}

static void bf16_experts_folders(void **state) {
    (void)state;
    static const char down[] = "model.layers.1.mlp.experts.down_proj";
    static pile p;
    int wrong = 0;
    mx_bytes config = {0};
    made_folder(folder);
    bf16_experts_config(&config, &base);
    bf16_experts_from(&p, &base);
    piece *d = pile_find(&p, down);
    d->shape[1] *= 2; /* [8, 192, 96]: not transposed */
    d->shape[2] /= 2;
    folder_write(folder, &p, config.data);
    wrong += !refuses("not transposed", "", MX_INVALID_FILE, "down_proj.weight: is BF16 [8, 96, 192], expected");
    d->shape[1] = 16;
    d->shape[2] = 96 * 192 / 16;
    folder_write(folder, &p, config.data);
    wrong += !refuses("half a block", "", MX_INVALID_FILE, "with in a multiple of 32");
    pile_remove(&p, down);
    folder_write(folder, &p, config.data);
    wrong += !refuses("none", "", MX_INVALID_FILE, "tensor model.layers.1.mlp.experts.down_proj_blocks is missing");
    mx_bytes_free(&config);
    pile_free(&p);
    maker_remove(folder);
    assert_int_equal(wrong, 0);
}

/* ---- which layout -------------------------------------------------------------------------------------------------
 */

static void expect_layout(const char *name, mx_layout layout, const char *end) {
    mx_location place;
    mx_error error;
    const char *path = *name ? made_path(folder, name) : folder;
    if (mx_location_find(path, &place, &error)) fail_msg("%s", error.text);
    if (place.layout != layout || strcmp(place.path, *end ? made_path(folder, end) : folder))
        fail_msg("%s: %s at %s", path, mx_layout_name(place.layout), place.path);
}

static void open_as(const char *name, mx_layout layout) {
    mx_checkpoint *ck;
    mx_error error;
    if (mx_checkpoint_open(*name ? made_path(folder, name) : folder, &ck, &error)) fail_msg("%s", error.text);
    assert_int_equal(mx_checkpoint_layout(ck), layout);
    mx_checkpoint_close(ck);
}

/* A folder as the hub has it: from the best layout down to what is left. */
static void what_a_folder_holds(void **state) {
    (void)state;
    static gguf g;
    mx_bytes file = {0};
    made_folder(folder);
    metal_from(&file, &base, NULL);
    assert_int_equal(mkdir(made_path(folder, "metal"), 0777), 0);
    made_file(folder, "metal/model.bin", file.data, file.size);
    gguf_from(&g, &base, &as_published);
    gguf_write(&g, made_path(folder, "gpt-oss.gguf"));
    gguf_write(&g, made_path(folder, "no-ending"));
    original_write(made_path(folder, "original"), &base);
    bf16_experts_write(folder, &base);
    expect_layout("", MX_LAYOUT_HF, "");
    open_as("", MX_LAYOUT_HF);
    remove(made_path(folder, "model.safetensors"));
    expect_layout("", MX_LAYOUT_ORIGINAL, "original");
    open_as("", MX_LAYOUT_ORIGINAL);
    expect_layout("original", MX_LAYOUT_ORIGINAL, "original");
    remove(made_path(folder, "original/dtypes.json")); /* told by its config.json */
    expect_layout("original", MX_LAYOUT_ORIGINAL, "original");
    open_as("original", MX_LAYOUT_ORIGINAL);
    remove(made_path(folder, "original/model.safetensors"));
    expect_layout("", MX_LAYOUT_GGUF, "gpt-oss.gguf");
    open_as("", MX_LAYOUT_GGUF);
    expect_layout("no-ending", MX_LAYOUT_GGUF, "no-ending");
    open_as("no-ending", MX_LAYOUT_GGUF);
    gguf_split(&g, made_path(folder, "more"), 2, -1);
    assert_int_equal(mx_location_find(folder, &(mx_location){0}, NULL), MX_INVALID_ARGUMENT);
    remove(made_path(folder, "gpt-oss.gguf"));
    expect_layout("", MX_LAYOUT_GGUF, "more-00001-of-00002.gguf");
    open_as("", MX_LAYOUT_GGUF);
    remove(made_path(folder, "more-00001-of-00002.gguf"));
    remove(made_path(folder, "more-00002-of-00002.gguf"));
    expect_layout("", MX_LAYOUT_METAL, "metal/model.bin");
    open_as("", MX_LAYOUT_METAL);
    expect_layout("metal", MX_LAYOUT_METAL, "metal/model.bin");
    remove(made_path(folder, "metal/model.bin"));
    expect_layout("", MX_LAYOUT_HF, "");
    mx_bytes_free(&file);
    gguf_free(&g);
    maker_remove(folder);
}

/* ---- random damage ------------------------------------------------------------------------------------------------
 */

static uint32_t random_state = 1;
static uint32_t any(void) {
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 8;
}

static void ignore_line(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)level;
    (void)line;
}

/* Makes every tensor of what still opens, whatever its sizes: a wrong pointer shows under ASan. */
static unsigned make_everything(const char *name) {
    unsigned sum = 0;
    mx_checkpoint *ck = NULL;
    mx_error error = {.text = ""};
    if (mx_checkpoint_open(made_path(folder, name), &ck, &error)) {
        if (!*error.text || !one_line(error.text)) fail_msg("no clean line: \"%s\"", error.text);
        return 0;
    }
    for (int i = 0; i < mx_checkpoint_count(ck); i++) {
        const mx_tensor *t = mx_checkpoint_at(ck, i);
        uint8_t *made = malloc(t->bytes + 1);
        assert_non_null(made);
        mx_tensor_slices(t, 0, t->shape[0], made);
        sum += made[0] + made[t->bytes / 2];
        free(made);
    }
    mx_checkpoint_close(ck);
    return sum;
}

/* The first `size` bytes of FOLDER/NAME with some changed: it opens, or is refused in one line. */
static void damage(const char *name, const uint8_t *right, size_t size, int rounds) {
    int opened = 0;
    unsigned sum = 0;
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    for (int round = 0; round < rounds; round++) {
        mx_weights *w = NULL;
        mx_error error = {.text = ""};
        memcpy(bytes, right, size);
        for (uint32_t n = 1 + any() % 3; n > 0; n--) {
            const uint32_t at = any() % (uint32_t)size;
            bytes[at] = (uint8_t)(any() % 2 ? bytes[at] ^ 1u << any() % 8 : any());
        }
        FILE *f = fopen(made_path(folder, name), "r+b");
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, size, f), size);
        assert_int_equal(fclose(f), 0);
        sum += make_everything(name);
        const mx_status status = mx_weights_open(made_path(folder, name), NULL, &w, &error);
        if (status && (!*error.text || !one_line(error.text))) fail_msg("no clean line: \"%s\"", error.text);
        opened += !status;
        mx_weights_close(w);
    }
    free(bytes);
    print_message("%s: of %d damaged headers %d opened (%u)\n", name, rounds, opened, sum);
    assert_true(opened < rounds);
}

static void damaged_headers(void **state) {
    (void)state;
    static gguf g;
    mx_bytes metal = {0}, file = {0};
    made_folder(folder);
    gguf_from(&g, &mqa, &as_published);
    gguf_write(&g, made_path(folder, "model.gguf"));
    gguf_free(&g);
    assert_int_equal(mx_read_file(made_path(folder, "model.gguf"), 1 << 24, &file, NULL), MX_OK);
    metal_from(&metal, &base, NULL);
    made_file(folder, "model.bin", metal.data, metal.size);
    mx_log_set_sink(ignore_line, NULL);
    damage("model.gguf", (const uint8_t *)file.data, 4000, 200);
    damage("model.bin", (const uint8_t *)metal.data, METAL_REGEX, 100);
    mx_log_set_sink(NULL, NULL);
    mx_bytes_free(&file);
    mx_bytes_free(&metal);
    maker_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_files),          cmocka_unit_test(gguf_defaults),
        cmocka_unit_test(split_files),         cmocka_unit_test(metal_files),
        cmocka_unit_test(original_folders),    cmocka_unit_test(bf16_experts_folders),
        cmocka_unit_test(what_a_folder_holds), cmocka_unit_test(damaged_headers),
    };
    return cmocka_run_group_tests_name("layouts that are wrong", tests, set_up, tear_down);
}
