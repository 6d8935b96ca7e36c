/* Checkpoints that must not open. Each case is a small right checkpoint with one thing wrong; opening it must give the
 * right status and one line that names the file and the field, and must never crash, hang or leak. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "checkpoint_maker.h"
#include "model/model.h"

typedef struct malformed {
    const char *name;
    mx_status status;
    const char *file, *expect; /* both must stand in the message */
    const char *field, *value; /* config.json gets this field; value NULL: loses it */
    void (*change)(maker *m);  /* before the folder is written */
    void (*damage)(maker *m);  /* after it */
    const char *header;        /* model.safetensors becomes this header and 64 bytes of tensors */
} malformed;

#define CONFIG(name, status, expect, field, value)                                                                     \
    { "config: " name, status, "config.json", expect, field, value, NULL, NULL, NULL }
#define HEADER(name, expect, text)                                                                                     \
    { "header: " name, MX_INVALID_FILE, "model.safetensors", expect, NULL, NULL, NULL, NULL, text }
#define CHANGE(name, status, file, expect, function)                                                                   \
    { name, status, file, expect, NULL, NULL, function, NULL, NULL }
#define DAMAGE(name, status, file, expect, function)                                                                   \
    { name, status, file, expect, NULL, NULL, NULL, function, NULL }

/* ---- what is changed before writing ------------------------------------------------------------------------------ */

#define SCALES       "model.layers.1.mlp.experts.down_proj_scales"
#define LARGE_SCALES "model.layers.1.mlp.experts.gate_up_proj_scales"
#define BLOCKS       "model.layers.1.mlp.experts.gate_up_proj_blocks"

static void drop(maker *m, const char *name) {
    maker_find(m, name)->absent = true;
}
static void no_embedding(maker *m) {
    drop(m, "model.embed_tokens.weight");
}
static void no_lm_head(maker *m) {
    drop(m, "lm_head.weight");
}
static void no_norm(maker *m) {
    drop(m, "model.norm.weight");
}
static void no_sinks(maker *m) {
    drop(m, "model.layers.1.self_attn.sinks");
}
static void no_q_bias(maker *m) {
    drop(m, "model.layers.0.self_attn.q_proj.bias");
}
static void no_scales(maker *m) {
    drop(m, SCALES);
}
static void no_blocks(maker *m) {
    drop(m, BLOCKS);
}
static void no_expert_bias(maker *m) {
    drop(m, "model.layers.0.mlp.experts.down_proj_bias");
}
static void no_layer(maker *m) {
    for (int i = 0; i < m->tensors; i++)
        if (strstr(m->tensor[i].name, "layers.1.")) m->tensor[i].absent = true;
}
static void nothing_at_all(maker *m) {
    for (int i = 0; i < m->tensors; i++) m->tensor[i].absent = true;
}
static void nan_scale(maker *m) {
    maker_find(m, SCALES)->data[64 + 5] = 0xFF;
}
/* Expert 1, row 3, block 1 of BLOCKS: a scale, and a code among 31 small ones. */
static void large(maker *m, uint8_t scale, uint8_t code) {
    int block = (64 + 3) * 2 + 1;
    maker_find(m, LARGE_SCALES)->data[block] = scale;
    maker_find(m, BLOCKS)->data[16 * block + 9] = code;
}
static void scale_253_times_4(maker *m) {
    large(m, 253, 0x61);
}
static void scale_253_times_minus_6(maker *m) {
    large(m, 253, 0x1F);
}
static void scale_254_times_2(maker *m) {
    large(m, 254, 0x14);
}
static void set_u16(maker *m, const char *name, int i, uint16_t value) {
    memcpy(maker_find(m, name)->data + 2 * i, &value, 2);
}
static void nan_norm(maker *m) {
    set_u16(m, "model.layers.0.input_layernorm.weight", 7, 0x7FC0);
}
static void infinite_sink(maker *m) {
    set_u16(m, "model.layers.0.self_attn.sinks", 1, 0x7F80);
}
static void retype(maker *m, const char *name, const char *dtype, int dims, const int64_t *shape) {
    maker_retype(maker_find(m, name), dtype, dims, shape);
}
static void blocks_bf16(maker *m) {
    retype(m, BLOCKS, "BF16", 4, (int64_t[]){2, 64, 2, 16});
}
static void scales_f16(maker *m) {
    retype(m, SCALES, "F16", 3, (int64_t[]){2, 64, 1});
}
static void scales_short(maker *m) {
    retype(m, SCALES, "U8", 3, (int64_t[]){2, 63, 1});
}
static void blocks_flat(maker *m) {
    retype(m, BLOCKS, "U8", 3, (int64_t[]){2, 64, 32});
}
static void blocks_of_17(maker *m) {
    retype(m, BLOCKS, "U8", 4, (int64_t[]){2, 64, 2, 17});
}
static void one_expert_less(maker *m) {
    retype(m, BLOCKS, "U8", 4, (int64_t[]){1, 64, 2, 16});
}
static void expert_bias_f16(maker *m) {
    retype(m, "model.layers.0.mlp.experts.down_proj_bias", "F16", 2, (int64_t[]){2, 64});
}
static void q_transposed(maker *m) {
    retype(m, "model.layers.0.self_attn.k_proj.weight", "BF16", 2, (int64_t[]){64, 32});
}
static void o_fp8(maker *m) {
    retype(m, "model.layers.0.self_attn.o_proj.weight", "F8_E5M2", 2, (int64_t[]){64, 64});
}
static void router_int(maker *m) {
    retype(m, "model.layers.0.mlp.router.weight", "I64", 2, (int64_t[]){2, 64});
}
static void norm_int(maker *m) {
    retype(m, "model.norm.weight", "I32", 1, (int64_t[]){64});
}
static void sinks_matrix(maker *m) {
    retype(m, "model.layers.0.self_attn.sinks", "BF16", 2, (int64_t[]){1, 2});
}
static void embedding_fp8(maker *m) {
    retype(m, "model.embed_tokens.weight", "F8_E4M3", 2, (int64_t[]){16, 64});
}
static void vocabulary_short(maker *m) {
    retype(m, "lm_head.weight", "BF16", 2, (int64_t[]){15, 64});
}
static void twice_in_header(maker *m) {
    maker_add(m, "model.norm.weight", "BF16", 1, (int64_t[]){64});
}
static void overlap(maker *m) {
    maker_tensor *t = maker_find(m, "model.norm.weight");
    t->begin = 64;
    t->end = 64 + 128;
}
static void same_place(maker *m) { /* two tensors share all their bytes, the others stay right */
    maker_tensor *t = maker_find(m, "model.layers.0.self_attn.q_proj.weight"), *u = maker_find(m, "lm_head.weight");
    t->begin = 2048 + 128;
    t->end = t->begin + 8192;
    u->begin = 0;
    u->end = 2048;
}
static void name_with_nul(maker *m) {
    maker_find(m, "model.norm.weight")->name_as = "\"model.norm.weight\\u0000x\"";
}
static void name_with_newline(maker *m) {
    maker_find(m, "model.norm.weight")->name_as = "\"model\\nnorm\"";
}
static void name_empty(maker *m) {
    maker_find(m, "model.norm.weight")->name_as = "\"\"";
}
static void name_not_utf8(maker *m) {
    maker_find(m, "model.norm.weight")->name_as = "\"model.\xC3\x28.weight\"";
}
static void metadata_number(maker *m) {
    m->extra = "\"__metadata__\":{\"format\":1},";
}
static void experts16(maker *m, const char *dtype, int64_t in, int64_t out) {
    no_blocks(m);
    no_scales(m);
    maker_find(m, "model.layers.0.mlp.experts.gate_up_proj_blocks")->absent = true;
    maker_add(m, "model.layers.0.mlp.experts.gate_up_proj", dtype, 3, (int64_t[]){2, in, out});
}
static void bf16_experts(maker *m) {
    experts16(m, "BF16", 64, 64);
}
static void bf16_experts_short(maker *m) {
    experts16(m, "BF16", 96, 64);
}
static void bf16_experts_ragged(maker *m) {
    experts16(m, "BF16", 40, 64);
}
static void experts_f64(maker *m) {
    experts16(m, "F64", 64, 64);
}
static void expert_by_expert(maker *m) {
    maker_find(m, "model.layers.0.mlp.experts.gate_up_proj_blocks")->absent = true;
    maker_add(m, "model.layers.0.mlp.experts.gate_up_projs.0.weight", "BF16", 2, (int64_t[]){64, 64});
}
static void original_config(maker *m) {
    maker_set(m, "model_type", NULL);
    maker_set(m, "num_experts", "2");
    maker_set(m, "rope_scaling_factor", "32");
}
static void top_k_twice(maker *m) {
    maker_set(m, "experts_per_token", "2");
}
static void rope_parameters_array(maker *m) {
    maker_set(m, "rope_parameters", "[1]");
}
static void rope_parameters_by_layer(maker *m) {
    maker_set(m, "rope_parameters", "{\"full_attention\":{\"rope_type\":\"yarn\"}}");
}
static void theta_inside(maker *m) {
    maker_set(m, "rope.rope_theta", "1");
}
static void shards(maker *m) {
    m->files = 3;
    for (int i = 0; i < m->tensors; i++) m->tensor[i].file = i % 3;
}
static void twice_in_files(maker *m) {
    m->files = 2;
    maker_add(m, "model.norm.weight", "BF16", 1, (int64_t[]){64})->file = 1;
}
static void shard_damaged(maker *m) {
    shards(m);
    maker_find(m, "lm_head.weight")->begin = 5;
}
static void index_names_absent_file(maker *m) {
    shards(m);
    m->index = true;
    maker_find(m, "lm_head.weight")->index_as = "model-00007-of-00002.safetensors";
}
static void index_names_wrong_file(maker *m) {
    shards(m);
    m->index = true;
    maker_tensor *t = maker_find(m, "lm_head.weight");
    t->index_as = t->file == 0 ? "model-00001-of-00002.safetensors" : "model-00000-of-00002.safetensors";
}
static void index_names_absent_tensor(maker *m) {
    m->index = true;
    no_norm(m);
}
static void index_leads_away(maker *m) {
    m->index = true;
    maker_find(m, "lm_head.weight")->index_as = "../model.safetensors";
}
static void index_of_other_kind(maker *m) {
    m->index = true;
    maker_find(m, "lm_head.weight")->index_as = "pytorch_model.bin";
}

/* ---- what is damaged after writing ------------------------------------------------------------------------------- */

static long size_of(const maker *m, const char *name) {
    struct stat info;
    assert_int_equal(stat(maker_path(m, name), &info), 0);
    return (long)info.st_size;
}
static uint64_t header_length(const maker *m) {
    uint64_t length = 0;
    FILE *f = fopen(maker_path(m, "model.safetensors"), "rb");
    assert_non_null(f);
    assert_int_equal(fread(&length, 8, 1, f), 1);
    fclose(f);
    return length;
}
static void cut_to(const maker *m, const char *name, long size) {
    assert_int_equal(truncate(maker_path(m, name), size), 0);
}
static void cut_0(maker *m) {
    cut_to(m, "model.safetensors", 0);
}
static void cut_7(maker *m) {
    cut_to(m, "model.safetensors", 7);
}
static void cut_8(maker *m) {
    cut_to(m, "model.safetensors", 8);
}
static void cut_in_header(maker *m) {
    cut_to(m, "model.safetensors", 8 + (long)header_length(m) / 2);
}
static void cut_before_header_end(maker *m) {
    cut_to(m, "model.safetensors", 8 + (long)header_length(m) - 1);
}
static void cut_after_header(maker *m) {
    cut_to(m, "model.safetensors", 8 + (long)header_length(m));
}
static void cut_in_tensors(maker *m) {
    cut_to(m, "model.safetensors", (size_of(m, "model.safetensors") + 8 + (long)header_length(m)) / 2);
}
static void cut_last_byte(maker *m) {
    cut_to(m, "model.safetensors", size_of(m, "model.safetensors") - 1);
}
static void one_byte_more(maker *m) {
    cut_to(m, "model.safetensors", size_of(m, "model.safetensors") + 1);
}
static void set_header_length(maker *m, uint64_t length) {
    FILE *f = fopen(maker_path(m, "model.safetensors"), "r+b");
    assert_non_null(f);
    assert_int_equal(fwrite(&length, 8, 1, f), 1);
    fclose(f);
}
static void header_huge(maker *m) {
    set_header_length(m, UINT64_MAX);
}
static void header_wraps(maker *m) {
    set_header_length(m, UINT64_MAX - 7);
}
static void header_100_mb(maker *m) {
    set_header_length(m, 100000000);
}
static void header_beyond_file(maker *m) {
    set_header_length(m, (uint64_t)size_of(m, "model.safetensors") - 7);
}
static void header_zero(maker *m) {
    set_header_length(m, 0);
}
static void header_one_short(maker *m) {
    set_header_length(m, header_length(m) - 1);
}
static void nested_bomb(maker *m, const char *name, size_t skip) {
    size_t size = 1 << 20;
    char *text = malloc(size + 8);
    assert_non_null(text);
    uint64_t length = size;
    memcpy(text, &length, 8);
    memset(text + skip, '[', size);
    maker_file(m, name, text, size + skip);
    free(text);
}
static void header_bomb(maker *m) {
    nested_bomb(m, "model.safetensors", 8);
}
static void config_bomb(maker *m) {
    nested_bomb(m, "config.json", 0);
}
static void index_bomb(maker *m) {
    nested_bomb(m, "model.safetensors.index.json", 0);
}
static void put(maker *m, const char *name, const char *text) {
    maker_file(m, name, text, strlen(text));
}
static void config_gone(maker *m) {
    remove(maker_path(m, "config.json"));
}
static void config_empty(maker *m) {
    put(m, "config.json", "");
}
static void config_array(maker *m) {
    put(m, "config.json", "[]");
}
static void config_cut(maker *m) {
    cut_to(m, "config.json", size_of(m, "config.json") - 1);
}
static void config_trailing(maker *m) {
    put(m, "config.json", "{} {}");
}
static void config_not_utf8(maker *m) {
    put(m, "config.json", "{\"model_type\":\"gpt\xFFoss\"}");
}
static void config_nan(maker *m) {
    put(m, "config.json", "{\"model_type\":\"gpt_oss\",\"hidden_size\":NaN}");
}
static void config_folder(maker *m) {
    config_gone(m);
    assert_int_equal(mkdir(maker_path(m, "config.json"), 0700), 0);
}
static void config_huge(maker *m) {
    cut_to(m, "config.json", 20 << 20);
}
static void generation_bad(maker *m) {
    put(m, "generation_config.json", "{\"eos_token_id\":[1,16]}");
}
static void generation_top_p(maker *m) {
    put(m, "generation_config.json", "{\"top_p\": 1.5}");
}
static void generation_temperature(maker *m) {
    put(m, "generation_config.json", "{\"temperature\": -1}");
}
static void generation_top_k(maker *m) {
    put(m, "generation_config.json", "{\"top_k\": 2.5}");
}
static void generation_do_sample(maker *m) {
    put(m, "generation_config.json", "{\"do_sample\": 1}");
}
static void generation_cut(maker *m) {
    put(m, "generation_config.json", "{\"eos_token_id\":[1,");
}
static void index_empty(maker *m) {
    put(m, "model.safetensors.index.json", "");
}
static void index_without_map(maker *m) {
    put(m, "model.safetensors.index.json", "{\"metadata\":{}}");
}
static void index_map_empty(maker *m) {
    put(m, "model.safetensors.index.json", "{\"weight_map\":{}}");
}
static void index_map_number(maker *m) {
    put(m, "model.safetensors.index.json", "{\"weight_map\":{\"a\":1}}");
}
static void index_map_nul(maker *m) {
    put(m, "model.safetensors.index.json", "{\"weight_map\":{\"a\":\"model.safetensors\\u0000.safetensors\"}}");
}
static void weights_gone(maker *m) {
    remove(maker_path(m, "model.safetensors"));
}
static void weights_folder(maker *m) {
    weights_gone(m);
    assert_int_equal(mkdir(maker_path(m, "model.safetensors"), 0700), 0);
}
static void weights_pipe(maker *m) {
    weights_gone(m);
    assert_int_equal(mkfifo(maker_path(m, "model.safetensors"), 0600), 0);
}
static void weights_dangling(maker *m) {
    weights_gone(m);
    assert_int_equal(symlink("nowhere", maker_path(m, "model.safetensors")), 0);
}
static void weights_lfs(maker *m) {
    put(m, "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
}
static void weights_gguf(maker *m) {
    put(m, "model.safetensors", "GGUF, version 3, and so on");
}
static void only_gguf(maker *m) {
    weights_gone(m);
    put(m, "model.gguf", "GGUF");
}
static void only_torch(maker *m) {
    weights_gone(m);
    put(m, "pytorch_model.bin", "PK");
}
static void only_original(maker *m) {
    weights_gone(m);
    assert_int_equal(mkdir(maker_path(m, "original"), 0700), 0);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static const malformed cases[] = {
    /* config.json, field by field */
    CONFIG("another model", MX_UNSUPPORTED, "model_type is \"llama\"", "model_type", "\"llama\""),
    CONFIG("no model_type", MX_INVALID_FILE, "model_type is missing", "model_type", NULL),
    CONFIG("model_type with controls", MX_UNSUPPORTED, "model_type is \"a\\nb", "model_type", "\"a\\nb\\u0000\""),
    CONFIG("no layers", MX_INVALID_FILE, "num_hidden_layers is missing", "num_hidden_layers", NULL),
    CONFIG("0 layers", MX_INVALID_FILE, "num_hidden_layers is 0", "num_hidden_layers", "0"),
    CONFIG("513 layers", MX_INVALID_FILE, "num_hidden_layers is 513", "num_hidden_layers", "513"),
    CONFIG("2^64 layers", MX_INVALID_FILE, "num_hidden_layers is 18446744073709551618", "num_hidden_layers",
           "18446744073709551618"),
    CONFIG("layers as text", MX_INVALID_FILE, "num_hidden_layers is \"2\"", "num_hidden_layers", "\"2\""),
    CONFIG("half a layer", MX_INVALID_FILE, "num_hidden_layers is 2.5", "num_hidden_layers", "2.5"),
    CONFIG("more layers than weights", MX_INVALID_FILE, "layer_types is ", "num_hidden_layers", "3"),
    CONFIG("hidden 0", MX_INVALID_FILE, "hidden_size is 0", "hidden_size", "0"),
    CONFIG("hidden negative", MX_INVALID_FILE, "hidden_size is -64", "hidden_size", "-64"),
    CONFIG("hidden no multiple of 32", MX_UNSUPPORTED, "hidden_size is 80", "hidden_size", "80"),
    CONFIG("hidden huge", MX_INVALID_FILE, "hidden_size is 1e18", "hidden_size", "1e18"),
    CONFIG("intermediate no multiple of 32", MX_UNSUPPORTED, "intermediate_size is 48", "intermediate_size", "48"),
    CONFIG("intermediate null", MX_INVALID_FILE, "intermediate_size is missing", "intermediate_size", "null"),
    CONFIG("intermediate huge", MX_INVALID_FILE, "intermediate_size is 2147483648", "intermediate_size", "2147483648"),
    CONFIG("no heads", MX_INVALID_FILE, "num_attention_heads is 0", "num_attention_heads", "0"),
    CONFIG("heads no multiple of KV heads", MX_INVALID_FILE, "num_attention_heads is 2, expected a multiple",
           "num_key_value_heads", "4"),
    CONFIG("KV heads 0", MX_INVALID_FILE, "num_key_value_heads is 0", "num_key_value_heads", "0"),
    CONFIG("KV heads array", MX_INVALID_FILE, "num_key_value_heads is [1]", "num_key_value_heads", "[1]"),
    CONFIG("head_dim odd", MX_INVALID_FILE, "head_dim is 33", "head_dim", "33"),
    CONFIG("head_dim missing", MX_INVALID_FILE, "head_dim is missing", "head_dim", NULL),
    CONFIG("head_dim huge", MX_INVALID_FILE, "head_dim is 65536", "head_dim", "65536"),
    CONFIG("q width no multiple of 32", MX_UNSUPPORTED, "num_attention_heads * head_dim is 20", "head_dim", "10"),
    CONFIG("experts 0", MX_INVALID_FILE, "num_local_experts is 0", "num_local_experts", "0"),
    CONFIG("experts huge", MX_INVALID_FILE, "num_local_experts is 1000000", "num_local_experts", "1000000"),
    CONFIG("top-k 0", MX_INVALID_FILE, "num_experts_per_tok is 0", "num_experts_per_tok", "0"),
    CONFIG("top-k above experts", MX_INVALID_FILE, "num_experts_per_tok is 3", "num_experts_per_tok", "3"),
    CONFIG("top-k missing", MX_INVALID_FILE, "num_experts_per_tok is missing", "num_experts_per_tok", NULL),
    CHANGE("config: top-k said twice", MX_INVALID_FILE, "config.json", "experts_per_token is 2", top_k_twice),
    CONFIG("vocabulary 0", MX_INVALID_FILE, "vocab_size is 0", "vocab_size", "0"),
    CONFIG("vocabulary huge", MX_INVALID_FILE, "vocab_size is 4294967312", "vocab_size", "4294967312"),
    CONFIG("window 0", MX_INVALID_FILE, "sliding_window is 0", "sliding_window", "0"),
    CONFIG("window missing", MX_INVALID_FILE, "sliding_window is missing", "sliding_window", NULL),
    CONFIG("window true", MX_INVALID_FILE, "sliding_window is true", "sliding_window", "true"),
    CONFIG("layer_types too short", MX_INVALID_FILE, "layer_types is [\"full_attention\"]", "layer_types",
           "[\"full_attention\"]"),
    CONFIG("layer_types text", MX_INVALID_FILE, "layer_types is \"sliding\"", "layer_types", "\"sliding\""),
    CONFIG("layer_types unknown", MX_UNSUPPORTED, "layer_types[1] is \"linear_attention\"", "layer_types",
           "[\"full_attention\",\"linear_attention\"]"),
    CONFIG("layer_types number", MX_INVALID_FILE, "layer_types[0] is 1", "layer_types", "[1,2]"),
    CONFIG("positions 0", MX_INVALID_FILE, "max_position_embeddings is 0", "max_position_embeddings", "0"),
    CONFIG("positions huge", MX_INVALID_FILE, "max_position_embeddings is 1e10", "max_position_embeddings", "1e10"),
    CONFIG("eps 0", MX_INVALID_FILE, "rms_norm_eps is 0", "rms_norm_eps", "0"),
    CONFIG("eps negative", MX_INVALID_FILE, "rms_norm_eps is -1e-05", "rms_norm_eps", "-1e-05"),
    CONFIG("eps missing", MX_INVALID_FILE, "rms_norm_eps is missing", "rms_norm_eps", NULL),
    CONFIG("eps infinite", MX_INVALID_FILE, "rms_norm_eps is 1e999", "rms_norm_eps", "1e999"),
    CONFIG("swiglu_limit 0", MX_INVALID_FILE, "swiglu_limit is 0", "swiglu_limit", "0"),
    CONFIG("swiglu_limit text", MX_INVALID_FILE, "swiglu_limit is \"7\"", "swiglu_limit", "\"7\""),
    CONFIG("swiglu_alpha negative", MX_INVALID_FILE, "swiglu_alpha is -1", "swiglu_alpha", "-1"),
    CONFIG("activation gelu", MX_UNSUPPORTED, "hidden_act is \"gelu\"", "hidden_act", "\"gelu\""),
    CONFIG("quantised otherwise", MX_UNSUPPORTED, "quantization_config.quant_method is \"gptq\"", "quantization_config",
           "{\"quant_method\":\"gptq\"}"),
    CONFIG("attention_bias text", MX_INVALID_FILE, "attention_bias is \"yes\"", "attention_bias", "\"yes\""),
    CONFIG("tie number", MX_INVALID_FILE, "tie_word_embeddings is 1", "tie_word_embeddings", "1"),
    CONFIG("eos beyond vocabulary", MX_INVALID_FILE, "eos_token_id is 16", "eos_token_id", "16"),
    CONFIG("eos negative", MX_INVALID_FILE, "eos_token_id is -1", "eos_token_id", "[3,-1]"),
    CONFIG("eos nested", MX_INVALID_FILE, "eos_token_id is [3]", "eos_token_id", "[[3]]"),
    CONFIG("nine eos", MX_UNSUPPORTED, "eos_token_id is 8", "eos_token_id", "[0,1,2,3,4,5,6,7,8]"),
    CONFIG("theta missing", MX_INVALID_FILE, "rope_theta is missing", "rope_theta", NULL),
    CONFIG("theta 1", MX_INVALID_FILE, "rope_theta is 1", "rope_theta", "1"),
    CHANGE("config: theta 1 inside", MX_INVALID_FILE, "config.json", "rope_scaling.rope_theta is 1", theta_inside),
    CONFIG("rope unknown", MX_UNSUPPORTED, "rope_scaling.rope_type is \"llama3\"", "rope.rope_type", "\"llama3\""),
    CONFIG("rope without a type", MX_INVALID_FILE, "rope_scaling.rope_type is missing", "rope.rope_type", NULL),
    CHANGE("config: rope no object", MX_INVALID_FILE, "config.json", "rope_parameters is [1]", rope_parameters_array),
    CHANGE("config: rope by layer type", MX_INVALID_FILE, "config.json", "rope_parameters.rope_type is missing",
           rope_parameters_by_layer),
    CONFIG("factor missing", MX_INVALID_FILE, "rope_scaling.factor is missing", "rope.factor", NULL),
    CONFIG("factor below 1", MX_INVALID_FILE, "rope_scaling.factor is 0.5", "rope.factor", "0.5"),
    CONFIG("beta_fast 0", MX_INVALID_FILE, "rope_scaling.beta_fast is 0", "rope.beta_fast", "0"),
    CONFIG("betas swapped", MX_INVALID_FILE, "rope_scaling.beta_fast is 32.0, expected at least", "rope.beta_slow",
           "64"),
    CONFIG("original positions 0", MX_INVALID_FILE, "rope_scaling.original_max_position_embeddings is 0",
           "rope.original_max_position_embeddings", "0"),
    CONFIG("original positions missing", MX_INVALID_FILE, "rope_scaling.original_max_position_embeddings is missing",
           "rope.original_max_position_embeddings", NULL),
    CONFIG("truncate number", MX_INVALID_FILE, "rope_scaling.truncate is 0", "rope.truncate", "0"),
    CONFIG("mscale", MX_UNSUPPORTED, "rope_scaling.mscale is 1.0", "rope.mscale", "1.0"),

    /* config.json as a file */
    CHANGE("config: OpenAI's own", MX_INVALID_FILE, "config.json", "experts_per_token is missing", original_config),
    DAMAGE("config: absent", MX_IO, "config.json", "", config_gone),
    DAMAGE("config: empty", MX_INVALID_FILE, "config.json", "", config_empty),
    DAMAGE("config: an array", MX_INVALID_FILE, "config.json", "no JSON object", config_array),
    DAMAGE("config: cut", MX_INVALID_FILE, "config.json", "", config_cut),
    DAMAGE("config: two values", MX_INVALID_FILE, "config.json", "", config_trailing),
    DAMAGE("config: not UTF-8", MX_INVALID_FILE, "config.json", "", config_not_utf8),
    DAMAGE("config: NaN", MX_INVALID_FILE, "config.json", "", config_nan),
    DAMAGE("config: a folder", MX_INVALID_FILE, "config.json", "not a regular file", config_folder),
    DAMAGE("config: 20 MB", MX_INVALID_FILE, "config.json", "", config_huge),
    DAMAGE("config: nested bomb", MX_INVALID_FILE, "config.json", "512 levels", config_bomb),
    DAMAGE("generation_config: eos", MX_INVALID_FILE, "generation_config.json", "eos_token_id is 16", generation_bad),
    DAMAGE("generation_config: top_p", MX_INVALID_FILE, "generation_config.json", "top_p is 1.5", generation_top_p),
    DAMAGE("generation_config: temperature", MX_INVALID_FILE, "generation_config.json", "temperature is -1",
           generation_temperature),
    DAMAGE("generation_config: top_k", MX_INVALID_FILE, "generation_config.json", "top_k is 2.5", generation_top_k),
    DAMAGE("generation_config: do_sample", MX_INVALID_FILE, "generation_config.json", "do_sample is 1",
           generation_do_sample),
    DAMAGE("generation_config: cut", MX_INVALID_FILE, "generation_config.json", "", generation_cut),

    /* safetensors: the file */
    DAMAGE("file: empty", MX_INVALID_FILE, "model.safetensors", "0 bytes", cut_0),
    DAMAGE("file: 7 bytes", MX_INVALID_FILE, "model.safetensors", "7 bytes", cut_7),
    DAMAGE("file: header length only", MX_INVALID_FILE, "model.safetensors", "header length", cut_8),
    DAMAGE("file: cut in the header", MX_INVALID_FILE, "model.safetensors", "header length", cut_in_header),
    DAMAGE("file: cut before the header's end", MX_INVALID_FILE, "model.safetensors", "header length",
           cut_before_header_end),
    DAMAGE("file: cut after the header", MX_INVALID_FILE, "model.safetensors", "data_offsets", cut_after_header),
    DAMAGE("file: cut in the tensors", MX_INVALID_FILE, "model.safetensors", "data_offsets", cut_in_tensors),
    DAMAGE("file: last byte gone", MX_INVALID_FILE, "model.safetensors", "data_offsets", cut_last_byte),
    DAMAGE("file: a byte too many", MX_INVALID_FILE, "model.safetensors", "1 bytes follow the last tensor",
           one_byte_more),
    DAMAGE("file: header length 2^64 - 1", MX_INVALID_FILE, "model.safetensors", "header length", header_huge),
    DAMAGE("file: header length wraps", MX_INVALID_FILE, "model.safetensors", "header length", header_wraps),
    DAMAGE("file: header length 100 MB", MX_INVALID_FILE, "model.safetensors", "header length", header_100_mb),
    DAMAGE("file: header length beyond the file", MX_INVALID_FILE, "model.safetensors", "header length",
           header_beyond_file),
    DAMAGE("file: header length 0", MX_INVALID_FILE, "model.safetensors", "header", header_zero),
    DAMAGE("file: header length short by one", MX_INVALID_FILE, "model.safetensors", "header", header_one_short),
    DAMAGE("file: nested bomb", MX_INVALID_FILE, "model.safetensors", "512 levels", header_bomb),
    DAMAGE("file: a folder", MX_INVALID_FILE, "model.safetensors", "not a regular file", weights_folder),
    DAMAGE("file: a pipe", MX_INVALID_FILE, "model.safetensors", "not a regular file", weights_pipe),
    DAMAGE("file: a dangling link", MX_IO, "model.safetensors", "No such file", weights_dangling),
    DAMAGE("file: a Git LFS pointer", MX_INVALID_FILE, "model.safetensors", "Git LFS", weights_lfs),
    DAMAGE("file: GGUF inside", MX_UNSUPPORTED, "model.safetensors", "GGUF", weights_gguf),
    DAMAGE("folder: nothing", MX_INVALID_FILE, "", "no .safetensors", weights_gone),
    DAMAGE("folder: GGUF", MX_INVALID_FILE, "model.gguf", "too short", only_gguf),
    DAMAGE("folder: PyTorch", MX_UNSUPPORTED, "", "PyTorch", only_torch),
    DAMAGE("folder: original/", MX_INVALID_FILE, "", "no .safetensors", only_original),

    /* safetensors: the header */
    HEADER("not JSON", "header", "nonsense"),
    HEADER("an array", "no JSON object", "[1]"),
    HEADER("unfinished", "header", "{\"a\":{\"dtype\":\"U8\""),
    HEADER("entry is a number", "a: its entry in the header is 5", "{\"a\":5}"),
    HEADER("no dtype", "a: dtype is missing", "{\"a\":{\"shape\":[64],\"data_offsets\":[0,64]}}"),
    HEADER("unknown dtype", "a: dtype is \"Q4\"", "{\"a\":{\"dtype\":\"Q4\",\"shape\":[64],\"data_offsets\":[0,64]}}"),
    HEADER("dtype number", "a: dtype is 3", "{\"a\":{\"dtype\":3,\"shape\":[64],\"data_offsets\":[0,64]}}"),
    HEADER("no shape", "a: shape is missing", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,64]}}"),
    HEADER("shape number", "a: shape is 64", "{\"a\":{\"dtype\":\"U8\",\"shape\":64,\"data_offsets\":[0,64]}}"),
    HEADER("negative shape", "a: shape is [-64]", "{\"a\":{\"dtype\":\"U8\",\"shape\":[-64],\"data_offsets\":[0,64]}}"),
    HEADER("two negative sizes", "a: shape is [-8,-8]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[-8,-8],\"data_offsets\":[0,64]}}"),
    HEADER("fraction in shape", "a: shape is [6.5]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[6.5],\"data_offsets\":[0,64]}}"),
    HEADER("nine dimensions", "a: shape is [1,1,1,1,1,1,1,1,64]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,64],\"data_offsets\":[0,64]}}"),
    HEADER("product wraps to 0", "a: shape is [4294967296,4294967296]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}"),
    HEADER("bytes wrap to 64", "a: shape is [4611686018427387936]",
           "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387936],\"data_offsets\":[0,128]}}"),
    HEADER("shape beyond int64", "a: shape is [18446744073709551680]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551680],\"data_offsets\":[0,64]}}"),
    HEADER("no offsets", "a: data_offsets is missing", "{\"a\":{\"dtype\":\"U8\",\"shape\":[64]}}"),
    HEADER("one offset", "a: data_offsets is [64]", "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[64]}}"),
    HEADER("three offsets", "a: data_offsets is [0,64,64]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[0,64,64]}}"),
    HEADER("offsets swapped", "a: data_offsets is [64,0]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[64,0]}}"),
    HEADER("negative offset", "a: data_offsets is [-64,0]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[-64,0]}}"),
    HEADER("offsets as text", "a: data_offsets is [\"0\",\"64\"]",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[\"0\",\"64\"]}}"),
    HEADER("offset beyond the file", "a: data_offsets end at 65",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[65],\"data_offsets\":[0,65]}}"),
    HEADER("offset near 2^63", "a: data_offsets end at 9223372036854775807",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[9223372036854775743,9223372036854775807]}}"),
    HEADER("length unlike the shape", "a: data_offsets span 64 bytes, but U8 [63] takes 63",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[63],\"data_offsets\":[0,64]}}"),
    HEADER("length unlike the dtype", "a: data_offsets span 64 bytes, but F32 [64] takes 256",
           "{\"a\":{\"dtype\":\"F32\",\"shape\":[64],\"data_offsets\":[0,64]}}"),
    HEADER("half a byte", "a: data_offsets span 63 bytes",
           "{\"a\":{\"dtype\":\"F4\",\"shape\":[127],\"data_offsets\":[0,63]}}"),
    HEADER("hole at the beginning", "a: data_offsets begin at 1, leaving a hole",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[63],\"data_offsets\":[1,64]}}"),
    HEADER("hole in the middle", "b: data_offsets begin at 33, leaving a hole after a",
           "{\"b\":{\"dtype\":\"U8\",\"shape\":[31],\"data_offsets\":[33,64]},"
           "\"a\":{\"dtype\":\"U8\",\"shape\":[32],\"data_offsets\":[0,32]}}"),
    HEADER("hole at the end", "1 bytes follow the last tensor",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[63],\"data_offsets\":[0,63]}}"),
    HEADER("overlap by one byte", "b: data_offsets begin at 31, overlapping a",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[32],\"data_offsets\":[0,32]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[33],\"data_offsets\":[31,64]}}"),
    HEADER("tensor twice, same bytes", "a: data_offsets begin at 0, overlapping a",
           "{\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[0,64]},"
           "\"a\":{\"dtype\":\"U8\",\"shape\":[64],\"data_offsets\":[0,64]}}"),
    HEADER("metadata no object", "__metadata__ is 1", "{\"__metadata__\":1}"),
    CHANGE("header: tensor twice", MX_INVALID_FILE, "model.safetensors", "model.norm.weight: given twice",
           twice_in_header),
    CHANGE("header: overlap", MX_INVALID_FILE, "model.safetensors", "overlapping", overlap),
    CHANGE("header: two tensors share their bytes", MX_INVALID_FILE, "model.safetensors", "overlapping", same_place),
    CHANGE("header: NUL in a name", MX_INVALID_FILE, "model.safetensors", "control character", name_with_nul),
    CHANGE("header: newline in a name", MX_INVALID_FILE, "model.safetensors", "control character", name_with_newline),
    CHANGE("header: empty name", MX_INVALID_FILE, "model.safetensors", "name is empty", name_empty),
    CHANGE("header: name not UTF-8", MX_INVALID_FILE, "model.safetensors", "header", name_not_utf8),
    CHANGE("header: metadata with a number", MX_INVALID_FILE, "model.safetensors", "__metadata__", metadata_number),

    /* files together */
    CHANGE("files: a tensor in two", MX_INVALID_FILE, "model-0000", "model.norm.weight: also in", twice_in_files),
    CHANGE("files: one damaged", MX_INVALID_FILE, "model-0000", "data_offsets", shard_damaged),
    CHANGE("index: file absent", MX_IO, "model-00007-of-00002.safetensors", "No such file", index_names_absent_file),
    CHANGE("index: tensor in another file", MX_INVALID_FILE, "model.safetensors.index.json", "lm_head.weight is not in",
           index_names_wrong_file),
    CHANGE("index: tensor absent", MX_INVALID_FILE, "model.safetensors.index.json", "model.norm.weight is not in",
           index_names_absent_tensor),
    CHANGE("index: leads out of the folder", MX_INVALID_FILE, "model.safetensors.index.json",
           "\"../model.safetensors\"", index_leads_away),
    CHANGE("index: other files", MX_INVALID_FILE, "model.safetensors.index.json", "\"pytorch_model.bin\"",
           index_of_other_kind),
    DAMAGE("index: empty", MX_INVALID_FILE, "model.safetensors.index.json", "", index_empty),
    DAMAGE("index: no weight_map", MX_INVALID_FILE, "model.safetensors.index.json", "weight_map is missing",
           index_without_map),
    DAMAGE("index: empty weight_map", MX_INVALID_FILE, "model.safetensors.index.json", "weight_map is {}",
           index_map_empty),
    DAMAGE("index: number for a file", MX_INVALID_FILE, "model.safetensors.index.json", "file of a is 1",
           index_map_number),
    DAMAGE("index: NUL in a file's name", MX_INVALID_FILE, "model.safetensors.index.json", "file of a is",
           index_map_nul),
    DAMAGE("index: nested bomb", MX_INVALID_FILE, "model.safetensors.index.json", "512 levels", index_bomb),

    /* weights against the config */
    CHANGE("weights: none", MX_INVALID_FILE, "", "model.embed_tokens.weight is missing", nothing_at_all),
    CHANGE("weights: no embedding", MX_INVALID_FILE, "", "model.embed_tokens.weight is missing", no_embedding),
    CHANGE("weights: no lm_head, not tied", MX_INVALID_FILE, "", "lm_head.weight is missing", no_lm_head),
    CHANGE("weights: no last norm", MX_INVALID_FILE, "", "model.norm.weight is missing", no_norm),
    CHANGE("weights: no sinks", MX_INVALID_FILE, "", "model.layers.1.self_attn.sinks is missing", no_sinks),
    CHANGE("weights: no bias", MX_INVALID_FILE, "", "model.layers.0.self_attn.q_proj.bias is missing", no_q_bias),
    CHANGE("weights: no scales", MX_INVALID_FILE, "", SCALES " is missing", no_scales),
    CHANGE("weights: no blocks", MX_INVALID_FILE, "", BLOCKS " is missing", no_blocks),
    CHANGE("weights: no expert bias", MX_INVALID_FILE, "", "down_proj_bias is missing", no_expert_bias),
    CHANGE("weights: a layer less", MX_INVALID_FILE, "", "model.layers.1.input_layernorm.weight is missing", no_layer),
    CHANGE("weights: scale 0xFF", MX_INVALID_FILE, "model.safetensors",
           SCALES ": the scale of expert 1, row 5, block 0", nan_scale),
    CHANGE("weights: 4 * 2^126", MX_INVALID_FILE, "model.safetensors",
           LARGE_SCALES ": the scale of expert 1, row 3, block 1 is 0xFD", scale_253_times_4),
    CHANGE("weights: -6 * 2^126", MX_INVALID_FILE, "model.safetensors",
           LARGE_SCALES ": the scale of expert 1, row 3, block 1 is 0xFD", scale_253_times_minus_6),
    CHANGE("weights: 2 * 2^127", MX_INVALID_FILE, "model.safetensors",
           LARGE_SCALES ": the scale of expert 1, row 3, block 1 is 0xFE", scale_254_times_2),
    CHANGE("weights: NaN in a norm", MX_INVALID_FILE, "model.safetensors", "input_layernorm.weight: element 7 is NaN",
           nan_norm),
    CHANGE("weights: infinite sink", MX_INVALID_FILE, "model.safetensors", "sinks: element 1 is infinite",
           infinite_sink),
    CHANGE("weights: blocks in BF16", MX_INVALID_FILE, "model.safetensors", BLOCKS ": is BF16 [2, 64, 2, 16]",
           blocks_bf16),
    CHANGE("weights: scales in F16", MX_INVALID_FILE, "model.safetensors", SCALES ": is F16", scales_f16),
    CHANGE("weights: a row of scales less", MX_INVALID_FILE, "model.safetensors", SCALES ": is U8 [2, 63, 1]",
           scales_short),
    CHANGE("weights: blocks in three dimensions", MX_INVALID_FILE, "model.safetensors", BLOCKS ": is U8 [2, 64, 32]",
           blocks_flat),
    CHANGE("weights: blocks of 17 bytes", MX_INVALID_FILE, "model.safetensors", BLOCKS ": is U8 [2, 64, 2, 17]",
           blocks_of_17),
    CHANGE("weights: an expert less", MX_INVALID_FILE, "model.safetensors", BLOCKS ": is U8 [1, 64, 2, 16]",
           one_expert_less),
    CHANGE("weights: expert bias in F16", MX_INVALID_FILE, "model.safetensors", "down_proj_bias: is F16",
           expert_bias_f16),
    CHANGE("weights: matrix transposed", MX_INVALID_FILE, "model.safetensors",
           "k_proj.weight: is BF16 [64, 32], expected BF16, F16, F32 or Q8_0 [32, 64]", q_transposed),
    CHANGE("weights: matrix in FP8", MX_INVALID_FILE, "model.safetensors", "o_proj.weight is F8_E5M2, but", o_fp8),
    CHANGE("weights: router of integers", MX_INVALID_FILE, "model.safetensors", "router.weight: is I64", router_int),
    CHANGE("weights: norm of integers", MX_INVALID_FILE, "model.safetensors", "model.norm.weight: is I32", norm_int),
    CHANGE("weights: sinks as a matrix", MX_INVALID_FILE, "model.safetensors", "sinks: is BF16 [1, 2]", sinks_matrix),
    CHANGE("weights: embedding in FP8", MX_INVALID_FILE, "model.safetensors", "embed_tokens.weight is F8_E4M3, but",
           embedding_fp8),
    CHANGE("weights: vocabulary too short", MX_INVALID_FILE, "model.safetensors", "lm_head.weight: is BF16 [15, 64]",
           vocabulary_short),
    CHANGE("weights: BF16 experts of one layer", MX_INVALID_FILE, "", "gate_up_proj_blocks is missing", bf16_experts),
    CHANGE("weights: BF16 experts, too few", MX_INVALID_FILE, "model.safetensors",
           "gate_up_proj.weight: is BF16 [2, 64, 96], expected", bf16_experts_short),
    CHANGE("weights: BF16 experts, ragged", MX_INVALID_FILE, "model.safetensors", "in a multiple of 32",
           bf16_experts_ragged),
    CHANGE("weights: experts in F64", MX_UNSUPPORTED, "model.safetensors", "gate_up_proj: is F64", experts_f64),
    CHANGE("weights: one tensor an expert", MX_UNSUPPORTED, "", "one tensor each", expert_by_expert),
};
enum { CASES = sizeof cases / sizeof *cases };

static void write_case(maker *m, const malformed *c) {
    maker_open(m);
    if (c->field) maker_set(m, c->field, c->value);
    if (c->change) c->change(m);
    maker_write(m);
    if (c->damage) c->damage(m);
    if (c->header) {
        mx_bytes file = {0};
        uint64_t length = strlen(c->header);
        const char tensors[64] = {0};
        assert_true(mx_bytes_add(&file, &length, 8) && mx_bytes_add_string(&file, c->header) &&
                    mx_bytes_add(&file, tensors, sizeof tensors));
        maker_file(m, "model.safetensors", file.data, file.size);
        mx_bytes_free(&file);
    }
}

static bool one_line(const char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20) return false;
    return true;
}

static void test_every_case(void **state) {
    (void)state;
    int wrong = 0;
    for (int i = 0; i < CASES; i++) {
        maker m;
        write_case(&m, &cases[i]);
        mx_error error = {.text = ""};
        mx_weights *w = NULL;
        mx_status status = mx_weights_open(m.folder, NULL, &w, &error);
        const char *text = error.text;
        if (status != cases[i].status || error.status != status || w || !strstr(text, m.folder) ||
            !strstr(text, cases[i].file) || !strstr(text, cases[i].expect) || !one_line(text)) {
            print_error("%s: \"%s\" (%s), expected \"%s\" (%s)\n", cases[i].name, text, mx_status_name(status),
                        cases[i].expect, mx_status_name(cases[i].status));
            wrong++;
        }
        assert_int_equal(mx_weights_open(m.folder, NULL, &w, NULL), status); /* nobody wants the text */
        mx_weights_close(w);
        maker_close(&m);
    }
    print_message("%d malformed checkpoints\n", CASES);
    assert_int_equal(wrong, 0);
}

/* As a user meets it: exit code 1, one line on stderr, nothing on stdout. */
static void test_program(void **state) {
    (void)state;
    int wrong = 0;
    for (int i = 0; i < CASES; i++) {
        maker m;
        char command[1000], out[4000];
        write_case(&m, &cases[i]);
        snprintf(command, sizeof command, "'%s' info -m '%s' 2>&1", getenv("MXRUN_BINARY"), m.folder);
        FILE *pipe = popen(command, "r");
        assert_non_null(pipe);
        size_t size = fread(out, 1, sizeof out - 1, pipe);
        out[size] = 0;
        int code = pclose(pipe);
        char *newline = strchr(out, '\n');
        if (!WIFEXITED(code) || WEXITSTATUS(code) != 1 || strncmp(out, "mxrun info: ", 12) || !newline || newline[1] ||
            !strstr(out, cases[i].expect)) {
            print_error("%s: exit status %d, \"%s\"\n", cases[i].name, WEXITSTATUS(code), out);
            wrong++;
        }
        maker_close(&m);
    }
    assert_int_equal(wrong, 0);
}

/* Not a folder at all. */
static void test_paths(void **state) {
    (void)state;
    mx_weights *w;
    mx_error error;
    maker m;
    maker_open(&m);
    maker_file(&m, "model.gguf", "GGUF", 4);
    maker_file(&m, "note.txt", "hello", 5);
    assert_int_equal(mx_weights_open("/nonexistent/folder", NULL, &w, &error), MX_IO);
    assert_non_null(strstr(error.text, "/nonexistent/folder"));
    assert_int_equal(mx_weights_open(maker_path(&m, "model.gguf"), NULL, &w, &error), MX_INVALID_FILE);
    assert_non_null(strstr(error.text, "too short"));
    assert_int_equal(mx_weights_open(maker_path(&m, "note.txt"), NULL, &w, &error), MX_INVALID_ARGUMENT);
    mx_checkpoint *ck;
    assert_int_equal(mx_checkpoint_open(maker_path(&m, "note.txt"), &ck, &error), MX_INVALID_FILE);
    assert_int_equal(mx_checkpoint_open(maker_path(&m, "absent"), &ck, &error), MX_IO);
    char longest[6000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_int_not_equal(mx_weights_open(longest, NULL, &w, &error), MX_OK);
    mx_config config;
    assert_int_equal(mx_config_read(longest, &config, &error), MX_INVALID_ARGUMENT);
    maker_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_case),
        cmocka_unit_test(test_program),
        cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests_name("malformed", tests, NULL, NULL);
}
