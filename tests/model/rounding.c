/* Experts of 16 bits that are rounded to MXFP4 when a model is loaded, against the rule of OCP MX v1.0 (section 6.3) in
 * float64: scale 2^(floor(log2(largest)) - 2), nearest number, ties to the even code, saturating. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "checkpoint_maker.h"
#include "model/model.h"

enum { EXPERTS = 2, IN = 64, OUT = 64, NUMBERS = EXPERTS * IN * OUT, BLOCKS = NUMBERS / 32 };

static uint16_t numbers[BLOCKS][32]; /* BF16, [experts, out, in] by blocks */

static double value_of(uint16_t bits) {
    const int exponent = bits >> 7 & 255, fraction = bits & 127;
    const double size = exponent ? ldexp(128 + fraction, exponent - 134) : ldexp(fraction, -133);
    return bits >> 15 ? -size : size;
}

static const double codes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

static int nearest(double size) {
    int best = 0;
    for (int i = 1; i < 8; i++) {
        const double now = fabs(size - codes[i]), before = fabs(size - codes[best]);
        if (now < before || (now <= before && i % 2 == 0)) best = i;
    }
    return best;
}

/* The scale's byte and the codes of one block. */
static int reference(const uint16_t block[32], int code[32]) {
    double most = 0;
    for (int i = 0; i < 32; i++) most = fmax(most, fabs(value_of(block[i])));
    int exponent = 0; /* most < 2^exponent */
    if (most > 0) frexp(most, &exponent);
    int scale = most > 0 ? exponent - 1 - 2 : 0;
    if (scale < -127) scale = -127;
    for (int i = 0; i < 32; i++) code[i] = nearest(ldexp(fabs(value_of(block[i])), -scale)) | (block[i] >> 15 ? 8 : 0);
    return scale + 127;
}

static uint32_t state = 1;
static uint32_t any(void) {
    state = state * 1664525 + 1013904223;
    return state >> 8;
}

/* A BF16 that is `size` exactly. */
static uint16_t exactly(double size) {
    int exponent;
    frexp(size, &exponent);
    const uint16_t bits = (uint16_t)((exponent + 126) << 7 | ((int)ldexp(size, 8 - exponent) & 127));
    assert_true(value_of(bits) >= size && value_of(bits) <= size);
    return bits;
}

/* What lies in the middle of two codes, above and below it, and beyond 6: of a block whose largest is `most`. */
static void fill_ties(uint16_t *block, double most) {
    static const double middle[] = {0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5};
    block[0] = exactly(most);
    for (int i = 0; i < 7; i++)
        for (int side = -1; side <= 1; side++)
            block[1 + 3 * i + side + 1] = (uint16_t)((int)exactly(middle[i]) + side + (i % 2 ? 0x8000 : 0));
    for (int i = 22; i < 32; i++) block[i] = exactly(i - 22 < 8 && codes[i - 22] > 0 ? codes[i - 22] : 1);
}

static void fill(void) {
    static const double most[] = {4, 5, 5.03125, 6, 7, 7.5, 7.96875};
    int b = 0;
    for (size_t i = 0; i < sizeof most / sizeof *most; i++) fill_ties(numbers[b++], most[i]);
    memset(numbers[b++], 0, sizeof *numbers); /* zeros */
    for (int i = 0; i < 32; i++) numbers[b][i] = 0x8000;
    b++;
    for (int i = 0; i < 32; i++) numbers[b][i] = (uint16_t)(i * 4 + (i % 2 ? 0x8000 : 0)); /* subnormals */
    b++;
    memset(numbers[b], 0, sizeof *numbers);
    numbers[b++][7] = 1; /* the smallest */
    memset(numbers[b], 0, sizeof *numbers);
    numbers[b++][31] = 0x807F;                                                /* the largest subnormal */
    for (int i = 0; i < 32; i++) numbers[b][i] = (uint16_t)(0x7F7F - 16 * i); /* the largest numbers */
    b++;
    /* Every exponent once as the largest, then blocks of any numbers. */
    for (int exponent = 0; b < BLOCKS; b++) {
        const int top = exponent < 255 ? exponent : 100 + (int)(any() % 50);
        for (int i = 0; i < 32; i++) {
            const int below = (int)(any() % 6);
            const int e = i == 9 ? top : top > below ? top - below : 0;
            numbers[b][i] = (uint16_t)((any() & 1) << 15 | (unsigned)e << 7 | (any() & 127));
        }
        exponent += exponent < 12 || exponent > 240 ? 1 : 2;
    }
}

/* A folder with `numbers` as layer 0's gate_up_proj, transposed as such files are; its down_proj holds ones. */
static void write_folder(maker *m) {
    maker_open(m);
    for (int layer = 0; layer < 2; layer++)
        for (int part = 0; part < 2; part++) {
            char name[100];
            const char *which = part ? "down_proj" : "gate_up_proj";
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s_scales", layer, which);
            maker_find(m, name)->absent = true;
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s_blocks", layer, which);
            maker_tensor *t = maker_find(m, name);
            maker_retype(t, "BF16", 3, (int64_t[]){EXPERTS, part ? 32 : IN, OUT});
            snprintf(t->name, sizeof t->name, "model.layers.%d.mlp.experts.%s", layer, which);
            if (layer || part) continue;
            for (int e = 0; e < EXPERTS; e++)
                for (int o = 0; o < OUT; o++)
                    for (int i = 0; i < IN; i++)
                        memcpy(t->data + 2 * ((e * IN + i) * OUT + o), &numbers[((e * OUT + o) * IN + i) / 32][i % 32],
                               2);
        }
    maker_write(m);
}

static int said;

static void listen(void *user, mx_log_level level, const char *line) {
    (void)user;
    said += level == MX_LOG_INFO && strstr(line, "4 expert tensors are rounded from BF16 to MXFP4");
}

static mx_status load(const maker *m, mx_weights **w, mx_error *error) {
    const mx_load_options options = {.way = MX_LOAD_LAZY, .threads = 2, .quantize_experts = true};
    said = 0;
    mx_log_set_sink(listen, NULL);
    const mx_status status = mx_weights_load(m->folder, &options, NULL, w, error);
    mx_log_set_sink(NULL, NULL);
    return status;
}

static void every_block_is_the_reference_s(void **unused) {
    (void)unused;
    maker m;
    mx_weights *w;
    mx_error error;
    fill();
    write_folder(&m);
    if (load(&m, &w, &error)) fail_msg("%s", error.text);
    assert_int_equal(said, 1);
    const mx_tensor *blocks = mx_checkpoint_find(w->checkpoint, "model.layers.0.mlp.experts.gate_up_proj_blocks"),
                    *scales = mx_checkpoint_find(w->checkpoint, "model.layers.0.mlp.experts.gate_up_proj_scales");
    assert_true(blocks && scales && blocks->bytes == NUMBERS / 2 && scales->bytes == BLOCKS);
    uint8_t *apart = malloc(blocks->bytes); /* by one recipe alone, before weights are loaded */
    mx_checkpoint *ck;
    assert_non_null(apart);
    mx_log_set_sink(listen, NULL);
    assert_int_equal(mx_checkpoint_open_as(m.folder, MX_EXPERTS_MXFP4, &ck, NULL), MX_OK);
    mx_log_set_sink(NULL, NULL);
    mx_tensor_slices(mx_checkpoint_find(ck, blocks->name), 0, EXPERTS, apart);
    assert_memory_equal(apart, blocks->data, blocks->bytes);
    mx_tensor_slices(mx_checkpoint_find(ck, scales->name), 0, EXPERTS, apart);
    assert_memory_equal(apart, scales->data, scales->bytes);
    for (int b = 0; b < BLOCKS; b++) {
        int code[32];
        const int scale = reference(numbers[b], code);
        if (scales->data[b] != scale) fail_msg("block %d: scale %d, expected %d", b, scales->data[b], scale);
        for (int i = 0; i < 32; i++) {
            const int found = blocks->data[16 * b + i / 2] >> (i % 2 ? 4 : 0) & 15;
            if (found != code[i])
                fail_msg("block %d: number %d, %g, is code %d, expected %d (scale %d)", b, i, value_of(numbers[b][i]),
                         found, code[i], scale);
        }
    }
    free(apart);
    mx_checkpoint_close(ck);
    mx_weights_close(w);
    maker_close(&m);
}

/* No scale can say what a block holds that has an infinity or no number in it. */
static void what_is_no_number_is_refused(void **unused) {
    (void)unused;
    static const uint16_t bad[] = {0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        maker m;
        mx_weights *w;
        mx_error error;
        for (int b = 0; b < BLOCKS; b++)
            for (int k = 0; k < 32; k++) numbers[b][k] = 0x3F80;
        numbers[BLOCKS - 3][5] = bad[i];
        write_folder(&m);
        assert_int_equal(load(&m, &w, &error), MX_INVALID_FILE);
        assert_null(w);
        static const char *const is[] = {"infinity", "-infinity", "NaN", "NaN", "NaN"};
        char text[200];
        snprintf(text, sizeof text,
                 "model.layers.0.mlp.experts.gate_up_proj: expert 1, row 62, column 37 is %s: ", is[i]);
        if (!strstr(error.text, text) || !strstr(error.text, "quantize MODEL OUT --allow-nonfinite"))
            fail_msg("%04X: %s", bad[i], error.text);
        maker_close(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_is_the_reference_s),
        cmocka_unit_test(what_is_no_number_is_refused),
    };
    return cmocka_run_group_tests_name("rounding of experts", tests, NULL, NULL);
}
