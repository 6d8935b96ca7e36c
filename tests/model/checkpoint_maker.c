#include "checkpoint_maker.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"

static const char *const default_fields[][2] = {
    {"model_type", "\"gpt_oss\""},
    {"num_hidden_layers", "2"},
    {"hidden_size", "64"},
    {"intermediate_size", "32"},
    {"num_attention_heads", "2"},
    {"num_key_value_heads", "1"},
    {"head_dim", "32"},
    {"num_local_experts", "2"},
    {"num_experts_per_tok", "1"},
    {"vocab_size", "16"},
    {"sliding_window", "8"},
    {"layer_types", "[\"sliding_attention\",\"full_attention\"]"},
    {"max_position_embeddings", "4096"},
    {"rms_norm_eps", "1e-05"},
    {"swiglu_limit", "7.0"},
    {"eos_token_id", "3"},
    {"rope_theta", "150000"},
    {"rope.rope_type", "\"yarn\""},
    {"rope.factor", "32.0"},
    {"rope.beta_fast", "32.0"},
    {"rope.beta_slow", "1.0"},
    {"rope.truncate", "false"},
    {"rope.original_max_position_embeddings", "128"},
};

static const struct {
    const char *name, *dtype;
    int dims;
    int64_t shape[4];
} layer_tensors[] = {
    {"input_layernorm.weight", "BF16", 1, {64}},
    {"self_attn.q_proj.weight", "BF16", 2, {64, 64}},
    {"self_attn.q_proj.bias", "BF16", 1, {64}},
    {"self_attn.k_proj.weight", "BF16", 2, {32, 64}},
    {"self_attn.k_proj.bias", "BF16", 1, {32}},
    {"self_attn.v_proj.weight", "BF16", 2, {32, 64}},
    {"self_attn.v_proj.bias", "BF16", 1, {32}},
    {"self_attn.o_proj.weight", "BF16", 2, {64, 64}},
    {"self_attn.o_proj.bias", "BF16", 1, {64}},
    {"self_attn.sinks", "BF16", 1, {2}},
    {"post_attention_layernorm.weight", "BF16", 1, {64}},
    {"mlp.router.weight", "BF16", 2, {2, 64}},
    {"mlp.router.bias", "BF16", 1, {2}},
    {"mlp.experts.gate_up_proj_blocks", "U8", 4, {2, 64, 2, 16}},
    {"mlp.experts.gate_up_proj_scales", "U8", 3, {2, 64, 2}},
    {"mlp.experts.gate_up_proj_bias", "BF16", 2, {2, 64}},
    {"mlp.experts.down_proj_blocks", "U8", 4, {2, 64, 1, 16}},
    {"mlp.experts.down_proj_scales", "U8", 3, {2, 64, 1}},
    {"mlp.experts.down_proj_bias", "BF16", 2, {2, 64}},
};

static uint64_t element_bytes(const char *dtype) {
    static const struct {
        const char *name;
        uint64_t bytes;
    } sizes[] = {{"BF16", 2}, {"F16", 2}, {"F32", 4}, {"I32", 4}, {"I64", 8}, {"F64", 8}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!strcmp(dtype, sizes[i].name)) return sizes[i].bytes;
    return 1;
}

static void fill(maker_tensor *t) {
    uint64_t size = element_bytes(t->dtype);
    const uint16_t bf16 = 0x3F80, f16 = 0x3C00;
    const float f32 = 1;
    for (uint64_t i = 0; i + size <= t->bytes; i += size) {
        if (!strcmp(t->dtype, "BF16"))
            memcpy(t->data + i, &bf16, 2);
        else if (!strcmp(t->dtype, "F16"))
            memcpy(t->data + i, &f16, 2);
        else if (!strcmp(t->dtype, "F32"))
            memcpy(t->data + i, &f32, 4);
        else
            memset(t->data + i, strstr(t->name, "_scales") ? 127 : 0x12, size);
    }
}

void maker_retype(maker_tensor *t, const char *dtype, int dims, const int64_t *shape) {
    if (dtype != t->dtype) snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
    t->dims = dims;
    t->bytes = element_bytes(dtype);
    for (int i = 0; i < dims; i++) {
        t->shape[i] = shape[i];
        t->bytes *= (uint64_t)shape[i];
    }
    free(t->data);
    t->data = malloc(t->bytes + 1);
    assert_non_null(t->data);
    fill(t);
}

maker_tensor *maker_add(maker *m, const char *name, const char *dtype, int dims, const int64_t *shape) {
    assert_true(m->tensors < MAKER_TENSORS);
    maker_tensor *t = &m->tensor[m->tensors++];
    *t = (maker_tensor){.begin = -1, .end = -1};
    snprintf(t->name, sizeof t->name, "%s", name);
    maker_retype(t, dtype, dims, shape);
    return t;
}

maker_tensor *maker_find(maker *m, const char *name) {
    for (int i = 0; i < m->tensors; i++)
        if (!strcmp(m->tensor[i].name, name)) return &m->tensor[i];
    fail_msg("the test names a tensor that is not there: %s", name);
    return NULL;
}

void maker_set(maker *m, const char *key, const char *value) {
    int i = 0;
    while (i < m->fields && strcmp(m->field[i].key, key)) i++;
    if (i == m->fields) {
        assert_true(m->fields < MAKER_FIELDS);
        snprintf(m->field[m->fields++].key, sizeof m->field[i].key, "%s", key);
    }
    assert_true(!value || strlen(value) < sizeof m->field[i].value);
    snprintf(m->field[i].value, sizeof m->field[i].value, "%s", value ? value : "");
}

void maker_open(maker *m) {
    *m = (maker){.files = 1, .rope_name = "rope_scaling", .extra = "\"__metadata__\":{\"format\":\"pt\"},"};
    const char *tmp = getenv("TMPDIR");
    snprintf(m->folder, sizeof m->folder, "%s/mxrun-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(m->folder));
    for (size_t i = 0; i < sizeof default_fields / sizeof *default_fields; i++)
        maker_set(m, default_fields[i][0], default_fields[i][1]);
    maker_add(m, "model.embed_tokens.weight", "BF16", 2, (int64_t[]){16, 64});
    for (int layer = 0; layer < 2; layer++)
        for (size_t i = 0; i < sizeof layer_tensors / sizeof *layer_tensors; i++) {
            char name[100];
            snprintf(name, sizeof name, "model.layers.%d.%s", layer, layer_tensors[i].name);
            maker_add(m, name, layer_tensors[i].dtype, layer_tensors[i].dims, layer_tensors[i].shape);
        }
    maker_add(m, "model.norm.weight", "BF16", 1, (int64_t[]){64});
    maker_add(m, "lm_head.weight", "BF16", 2, (int64_t[]){16, 64});
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

void maker_remove(const char *folder) {
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void maker_close(maker *m) {
    for (int i = 0; i < m->tensors; i++) free(m->tensor[i].data);
    maker_remove(m->folder);
}

const char *maker_path(const maker *m, const char *name) {
    static char path[4][400];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", m->folder, name);
    return path[next];
}

void maker_file(const maker *m, const char *name, const void *data, size_t size) {
    FILE *f = fopen(maker_path(m, name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void write_config(const maker *m) {
    mx_bytes text = {0}, rope = {0};
    for (int i = 0; i < m->fields; i++) {
        const char *key = m->field[i].key, *value = m->field[i].value;
        if (!*value) continue;
        if (!strncmp(key, "rope.", 5))
            assert_true(mx_bytes_addf(&rope, "%s\"%s\":%s", rope.size ? "," : "", key + 5, value));
        else
            assert_true(mx_bytes_addf(&text, "%s\"%s\":%s", text.size ? "," : "{", key, value));
    }
    if (rope.size) assert_true(mx_bytes_addf(&text, ",\"%s\":{%s}", m->rope_name, rope.data));
    assert_true(mx_bytes_add_string(&text, "}"));
    maker_file(m, "config.json", text.data, text.size);
    mx_bytes_free(&text);
    mx_bytes_free(&rope);
}

static void file_name(const maker *m, int file, char out[64]) {
    if (m->files == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", file, m->files - 1);
}

static void write_weights(const maker *m, int file) {
    mx_bytes header = {0}, data = {0}, all = {0};
    assert_true(mx_bytes_addf(&header, "{%s", m->extra));
    for (int i = 0; i < m->tensors; i++) {
        const maker_tensor *t = &m->tensor[i];
        if (t->file != file || t->absent) continue;
        int64_t begin = t->begin >= 0 ? t->begin : (int64_t)data.size;
        int64_t end = t->end >= 0 ? t->end : (int64_t)(data.size + t->bytes);
        if (t->name_as)
            assert_true(mx_bytes_add_string(&header, t->name_as));
        else
            assert_true(mx_bytes_add_json(&header, t->name, strlen(t->name)));
        assert_true(mx_bytes_addf(&header, ":{\"dtype\":\"%s\",\"shape\":[", t->dtype));
        for (int d = 0; d < t->dims; d++)
            assert_true(mx_bytes_addf(&header, "%s%lld", d ? "," : "", (long long)t->shape[d]));
        assert_true(mx_bytes_addf(&header, "],\"data_offsets\":[%lld,%lld]},", (long long)begin, (long long)end));
        assert_true(mx_bytes_add(&data, t->data, t->bytes));
    }
    if (header.data[header.size - 1] == ',') header.size--;
    assert_true(mx_bytes_add_string(&header, "}"));
    uint64_t length = header.size;
    char name[64];
    assert_true(mx_bytes_add(&all, &length, 8) && mx_bytes_add(&all, header.data, header.size));
    if (data.size) assert_true(mx_bytes_add(&all, data.data, data.size));
    file_name(m, file, name);
    maker_file(m, name, all.data, all.size);
    mx_bytes_free(&header);
    mx_bytes_free(&data);
    mx_bytes_free(&all);
}

static void write_index(const maker *m) {
    mx_bytes text = {0};
    assert_true(mx_bytes_add_string(&text, "{\"metadata\":{\"total_size\":1},\"weight_map\":{"));
    for (int i = 0; i < m->tensors; i++) {
        char name[64];
        file_name(m, m->tensor[i].file, name);
        const char *as = m->tensor[i].index_as ? m->tensor[i].index_as : name;
        assert_true(mx_bytes_addf(&text, "%s\"%s\":\"%s\"", i ? "," : "", m->tensor[i].name, as));
    }
    assert_true(mx_bytes_add_string(&text, "}}"));
    maker_file(m, "model.safetensors.index.json", text.data, text.size);
    mx_bytes_free(&text);
}

void maker_write(const maker *m) {
    write_config(m);
    for (int i = 0; i < m->files; i++) write_weights(m, i);
    if (m->index) write_index(m);
}
