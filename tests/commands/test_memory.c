/* The memory that mxrun takes, as the kernel counts it: what it is resident with at most is the weights, keys and
 * values, and 300 MB. A model of a few hundred MB as wide as gpt-oss-20b, made for the test and removed with it. */
#include "support.h"

#include <sys/statvfs.h>

#include "base/cpu.h"
#include "tests/sanitized.h"

enum { WORDS = 1100, ANSWER = 8 };
static const double ALLOWED = 300e6;

static const char config[] =
    "{\"model_type\":\"gpt_oss\",\"num_hidden_layers\":2,\"hidden_size\":2880,\"intermediate_size\":2880,"
    "\"num_attention_heads\":64,\"num_key_value_heads\":8,\"head_dim\":64,\"num_local_experts\":8,"
    "\"num_experts_per_tok\":4,\"vocab_size\":4096,\"max_position_embeddings\":131072,\"sliding_window\":128,"
    "\"rms_norm_eps\":1e-5,\"rope_theta\":150000,\"eos_token_id\":4089}";
static const double kv_of_a_token = 2 * 2 * 8 * 64 * 2; /* layers, keys and values, heads, head_dim, F16 */

/* The folder, with the tokenizer of "stories"; its tensors' bytes. */
static double make_model(char folder[200]) {
    char path[300], target[4200], shape[200];
    double bytes;
    write_test_file("config.json", config, shape);
    snprintf(folder, 200, "%s/wide", test_folder);
    outcome o = run("bench", "--synthetic", shape, "--save", folder);
    expect_code(&o, 0);
    outcome_free(&o);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    snprintf(target, sizeof target, "%s/tools/stories/checkpoint/tokenizer.json", getenv("MXRUN_SOURCE"));
    assert_int_equal(symlink(target, path), 0);
    o = run("info", "-m", folder, "--json");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *total = mx_json_get(mx_json_get(mx_json_root(d), "weights"), "total");
    assert_true(mx_json_double(mx_json_get(total, "bytes"), &bytes));
    mx_json_free(d);
    outcome_free(&o);
    return bytes;
}

static bool room(double bytes) {
    struct statvfs disk;
    return !statvfs(test_folder, &disk) && (double)disk.f_bavail * (double)disk.f_frsize > 2 * bytes &&
           (double)mx_memory_available() > 4 * bytes;
}

static void resident_memory_is_weights_cache_and_little_else(void **state) {
    (void)state;
    static const char *const loads[] = {"map", "read", "lazy"};
    char folder[200], *prompt;
    if (SANITIZED || !room(500e6)) {
        print_message("skipped: the sanitizer takes memory of its own, or memory or disk are short\n");
        skip();
    }
    const double weights = make_model(folder), tokens = WORDS + ANSWER;
    assert_true(weights > 1.2 * ALLOWED); /* a second copy of them could not hide */
    prompt = malloc(WORDS * 4 + 1);
    assert_non_null(prompt);
    for (int i = 0; i < WORDS; i++) strcpy(prompt + 4 * i, " the");
    for (int i = 0; i < 3; i++) {
        outcome o = run("-m", folder, "--raw", "--greedy", "-n", "8", "--load", loads[i], "--json", "-p", prompt);
        expect_code(&o, 0);
        mx_json_document *d = parse_output(&o);
        double said, counted;
        assert_true(mx_json_double(mx_json_get(mx_json_get(mx_json_root(d), "usage"), "prompt_tokens"), &counted));
        assert_true(counted >= WORDS && counted <= WORDS + 1);
        assert_true(mx_json_double(mx_json_get(mx_json_root(d), "memory_bytes"), &said));
        mx_json_free(d);
        const double most = weights + tokens * kv_of_a_token + ALLOWED;
        print_message("--load %s: %.0f MB resident, weights are %.0f MB\n", loads[i], o.resident / 1e6, weights / 1e6);
        if (o.resident > most) fail_msg("--load %s: %.0f bytes resident, %.0f allowed", loads[i], o.resident, most);
        if (i < 2) assert_true(o.resident > weights); /* all of them are there, so this was measured */
        assert_true(said > 0.95 * o.resident && said < 1.05 * o.resident);
        outcome_free(&o);
    }
    free(prompt);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(resident_memory_is_weights_cache_and_little_else)};
    return cmocka_run_group_tests_name("memory", tests, program_set_up, program_tear_down);
}
