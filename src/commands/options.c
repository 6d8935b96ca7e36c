#include "commands/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cpu.h"
#include "base/json.h"
#include "commands/common.h"
#include "commands/models.h"
#include "engine/model_parts.h"
#include "model/device.h"
#include "model/synthetic.h"
#include "plan/advice.h"

/* ---- what was given ---------------------------------------------------------------------------------------------- */
/* Numbers stay text until mx_options_check, which can then say which option is wrong and what it takes. */
static struct {
    char *model, *synthetic, *kv_type, *kv_memory, *prefix_cache, *prefix_cache_size, *speculate, *precision, *dense,
        *load, *numa, *quantize, *tokenizer, *seed, *device, *gpu_memory;
    const mx_kv_name *kv; /* what kv_type names; NULL: not given */
    uint64_t kv_bytes;    /* what kv_memory says; 0: not given */
    uint64_t cache_bytes; /* what prefix_cache_size says; 0: not given */
    uint64_t gpu_bytes;   /* what gpu_memory says; 0: not given */
    mx_device_choice on;  /* what device and the options that are the CPU's name */
    const char *where;    /* the same for mx_load_options */
    mx_speculation speculation;
    mx_load_way way;      /* what load names */
    mx_numa placed;       /* what numa names */
    mx_rounding rounding; /* what quantize names */
    int forget_rounded, greedy;
    char **logit_bias, **stop;
    char *system, *developer, *reasoning, *date, *tools;
    int keep_thinking;
} given;

enum {
    CTX,
    BATCH_TOKENS,
    THREADS,
    LAYERS,
    COUNT,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    MIN_P,
    REPETITION,
    PRESENCE,
    FREQUENCY,
    NUMBERS
};
enum { SYNTHETIC_SEED = 1 }; /* of weights, as bench has it */
static mx_number numbers[NUMBERS] = {
    [CTX] = {"--ctx", NULL, 0, 1, 1 << 30, true, false},
    [BATCH_TOKENS] = {"--batch-tokens", NULL, 0, 1, 65536, true, false},
    [THREADS] = {"--threads", NULL, 0, 1, MX_MOST_THREADS, true, false},
    [LAYERS] = {"--layers", NULL, 0, 1, MX_MAX_LAYERS, true, false},
    [COUNT] = {"-n", NULL, 0, 1, 1e15, true, false},
    [TEMPERATURE] = {"--temperature", NULL, 1, 0, 10, false, false},
    [TOP_K] = {"--top-k", NULL, 0, 0, 1 << 30, true, false},
    [TOP_P] = {"--top-p", NULL, 1, 0, 1, false, true},
    [MIN_P] = {"--min-p", NULL, 0, 0, 1, false, false},
    [REPETITION] = {"--repetition-penalty", NULL, 1, 0, 10, false, true},
    [PRESENCE] = {"--presence-penalty", NULL, 0, -10, 10, false, false},
    [FREQUENCY] = {"--frequency-penalty", NULL, 0, -10, 10, false, false},
};

#define STRING POPT_ARG_STRING
const struct poptOption mx_model_options[] = {
    {"model", 'm', STRING, &given.model, 0,
     "The model: a name (\"mxrun list --all\"), a folder, a file, or ORG/NAME[@REVISION][:FILE.gguf] of the Hugging "
     "Face "
     "hub",
     "MODEL"},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_hub_options, 0, NULL, NULL},
    {"device", 'd', STRING, &given.device, 0,
     "Where it runs: auto (default: a GPU that has room for the model and for --ctx, else the CPU; the CPU too where "
     "an "
     "option is the CPU's: --load, --numa, --dense openblas, int8), cpu, cuda, or cuda:N",
     "WHERE"},
    {"gpu-memory", '\0', STRING, &given.gpu_memory, 0,
     "Of the GPU's memory take at most so much: 20G (default: what is free)", "SIZE"},
    {"ctx", 'c', STRING, &numbers[CTX].text, 0, "Most tokens of prompt and answers together (default: what fits)", "N"},
    {"kv-type", '\0', STRING, &given.kv_type, 0, "Numbers in the KV cache: f16 (default), bf16 or f32", "TYPE"},
    {"kv-memory", '\0', STRING, &given.kv_memory, 0,
     "Memory for keys and values, of requests and of cached prefixes: 512M, 4G (default: most of what is free)",
     "SIZE"},
    {"prefix-cache", '\0', STRING, &given.prefix_cache, 0,
     "Folder that keeps what was computed of prompts, for later runs and for others at the same time", "FOLDER"},
    {"prefix-cache-size", '\0', STRING, &given.prefix_cache_size, 0,
     "It holds at most so much, what was used longest ago goes first: 512M, 4G (default 10 GB)", "SIZE"},
    {"batch-tokens", '\0', STRING, &numbers[BATCH_TOKENS].text, 0,
     "Most tokens in one step, of all requests together (default 512, on a GPU 2048)", "N"},
    {"speculate", '\0', STRING, &given.speculate, 0,
     "Guess what repeats itself and check it in one step, answers stay the same: auto (default: where it pays, on a "
     "GPU "
     "never), off, or on (which makes a GPU wait for each step)",
     "WHEN"},
    {"precision", '\0', STRING, &given.precision, 0,
     "Of activations in products: fp32, bf16x2, mixed, bf16 or int8 (default: see info)", "NAME"},
    {"dense", '\0', STRING, &given.dense, 0,
     "Who multiplies attention's matrices: own (default) or openblas, for processors without fast kernels", "WHO"},
    {"load", '\0', STRING, &given.load, 0,
     "Weights: map (default: page cache, the faster start), read (a copy from the disk, decodes no faster) or lazy "
     "(mapped, read when used)",
     "WAY"},
    {"numa", '\0', STRING, &given.numa, 0,
     "Weights on several memory nodes: auto (default), off, interleave, or spread: each node its part", "HOW"},
    {"quantize-experts", '\0', STRING, &given.quantize, 0,
     "Round experts that are BF16 when loading: mxfp4 (a quarter of the memory), or with scales by mxfp4:overflow or "
     "mxfp4:search (the least error); kept beside the model for the next start",
     "FORMAT"},
    {"no-experts-cache", '\0', POPT_ARG_NONE, &given.forget_rounded, 0,
     "Neither keep rounded experts nor take those of an earlier start", NULL},
    {"tokenizer", '\0', STRING, &given.tokenizer, 0,
     "Take the vocabulary from here: a tokenizer.json, a folder, a .gguf", "FILE"},
    {"synthetic", '\0', STRING, &given.synthetic, 0,
     "Instead of a model: random weights in the shape of gpt-oss-20b, gpt-oss-120b or of a config.json, with a "
     "--tokenizer; for tests and measurements",
     "NAME"},
    {"layers", '\0', STRING, &numbers[LAYERS].text, 0, "Only the first N layers of the synthetic model", "N"},
    {"threads", 't', STRING, &numbers[THREADS].text, 0, "Threads to compute with (default: one per core)", "N"},
    POPT_TABLEEND,
};

const struct poptOption mx_sampling_options[] = {
    {"max-tokens", 'n', STRING, &numbers[COUNT].text, 0,
     "Most tokens of an answer (default: until the context is full)", "N"},
    {"temperature", '\0', STRING, &numbers[TEMPERATURE].text, 0,
     "Randomness: 0 takes the likeliest (default: the model's, mostly 1)", "T"},
    {"top-k", '\0', STRING, &numbers[TOP_K].text, 0,
     "Choose among the K likeliest, 0: all (default: the model's, mostly 0)", "K"},
    {"top-p", '\0', STRING, &numbers[TOP_P].text, 0,
     "Choose among the likeliest that sum to P (default: the model's, mostly 1: all)", "P"},
    {"min-p", '\0', STRING, &numbers[MIN_P].text, 0, "Drop what is less likely than P times the best (default 0)", "P"},
    {"repetition-penalty", '\0', STRING, &numbers[REPETITION].text, 0,
     "Make every token of prompt and answer less likely (default 1: off)", "R"},
    {"presence-penalty", '\0', STRING, &numbers[PRESENCE].text, 0,
     "Taken off the logit of every token of the answer (default 0)", "V"},
    {"frequency-penalty", '\0', STRING, &numbers[FREQUENCY].text, 0,
     "The same, times how often it is there (default 0)", "V"},
    {"logit-bias", '\0', POPT_ARG_ARGV, &given.logit_bias, 0,
     "Add V, -100 (never) to 100, to the logit of token ID; may be repeated", "ID=V"},
    {"stop", '\0', POPT_ARG_ARGV, &given.stop, 0, "End the answer before this text; may be repeated", "TEXT"},
    {"greedy", '\0', POPT_ARG_NONE, &given.greedy, 0, "Always the likeliest token (as --temperature 0)", NULL},
    {"seed", '\0', STRING, &given.seed, 0, "Of the random choices (default: a random one, printed)", "N"},
    POPT_TABLEEND,
};

const struct poptOption mx_prompt_options[] = {
    {"system", '\0', STRING, &given.system, 0, "Who the model is: first line of the system message (\"\": none)",
     "TEXT"},
    {"developer", '\0', STRING, &given.developer, 0,
     "Instructions: the developer message (what other programs call system prompt)", "TEXT"},
    {"reasoning", '\0', STRING, &given.reasoning, 0, "How long to think: low, medium (default) or high", "EFFORT"},
    {"date", '\0', STRING, &given.date, 0, "What the model takes for today (default: today; \"\": no date)",
     "YYYY-MM-DD"},
    {"tools", '\0', STRING, &given.tools, 0, "JSON file with the functions it may call, as in OpenAI's API", "FILE"},
    {"keep-thinking", '\0', POPT_ARG_NONE, &given.keep_thinking, 0,
     "In a chat, leave all thinking in the prompt (default: only what follows the last final answer)", NULL},
    POPT_TABLEEND,
};

/* ---- checks ------------------------------------------------------------------------------------------------------ */
static bool check_numbers(const mx_command *command) {
    for (mx_number *n = numbers; n < numbers + NUMBERS; n++) {
        if (!mx_number_check(command, n)) return false;
    }
    if (given.greedy && numbers[TEMPERATURE].text && numbers[TEMPERATURE].value > 0) {
        mx_command_usage(command, "--greedy and --temperature %s contradict each other", numbers[TEMPERATURE].text);
        return false;
    }
    return true;
}

static bool parse_seed(const char *text, uint64_t *out) {
    if (!*text || strspn(text, "0123456789") != strlen(text)) return false;
    errno = 0;
    *out = strtoull(text, NULL, 10);
    return errno == 0;
}

static bool parse_bias(const char *text, mx_logit_bias *out) {
    char *end;
    errno = 0;
    long token = strtol(text, &end, 10);
    if (end == text || *end != '=' || errno || token < 0 || token > INT32_MAX || !end[1]) return false;
    const char *value = end + 1;
    out->token = (int32_t)token;
    if (strspn(value, "0123456789-+.eE") != strlen(value)) return false;
    out->value = strtof(value, &end);
    return !*end && fabsf(out->value) <= 100;
}

static int length_of(char **list) {
    int n = 0;
    while (list && list[n]) n++;
    return n;
}

/* --system and its like, in the order of mx_setting. */
static const struct {
    const char *option;
    char **value;
} settings[MX_SETTINGS] = {
    [MX_SETTING_SYSTEM] = {"--system", &given.system},
    [MX_SETTING_DEVELOPER] = {"--developer", &given.developer},
    [MX_SETTING_REASONING] = {"--reasoning", &given.reasoning},
    [MX_SETTING_DATE] = {"--date", &given.date},
};

static bool check_settings(const mx_command *command, bool raw) {
    mx_error error;
    for (int i = 0; i < MX_SETTINGS; i++) {
        const char *value = *settings[i].value;
        if (!value) continue;
        if (raw) {
            mx_command_usage(command, "%s needs the chat format, which --raw leaves out", settings[i].option);
            return false;
        }
        if (mx_setting_check((mx_setting)i, value, &error)) {
            mx_command_usage(command, "%s: %s", settings[i].option, error.text);
            return false;
        }
    }
    if (raw && given.tools) {
        mx_command_usage(command, "--tools needs the chat format, which --raw leaves out");
        return false;
    }
    return true;
}

static bool check_model(const mx_command *command) {
    const char *other = given.load           ? "--load"
                        : given.quantize     ? "--quantize-experts"
                        : given.prefix_cache ? "--prefix-cache"
                                             : NULL;
    if (!given.model && !given.synthetic)
        mx_command_usage(command, "no model given: -m takes a name such as \"stories\", or a path");
    else if (given.model && given.synthetic)
        mx_command_usage(command, "give -m or --synthetic, not both");
    else if (given.synthetic && !given.tokenizer)
        mx_command_usage(command, "--synthetic %s has no tokenizer: --tokenizer takes one from a file",
                         given.synthetic);
    else if (given.synthetic && other)
        mx_command_usage(command, "%s is for models in files (-m)", other);
    else if (!given.synthetic && numbers[LAYERS].text)
        mx_command_usage(command, "--layers is for --synthetic models");
    else
        return true;
    return false;
}

bool mx_options_check(const mx_command *command, bool raw, int *exit_code) {
    *exit_code = MX_EXIT_USAGE;
    if (!check_model(command) || !check_numbers(command)) return false;
    uint64_t seed;
    mx_logit_bias bias;
    if (given.seed && !parse_seed(given.seed, &seed)) {
        mx_command_usage(command, "--seed %s: expected a whole number from 0 to 2^64 - 1", given.seed);
        return false;
    }
    if (given.numa && !mx_numa_find(command, given.numa, &given.placed)) return false;
    if (given.kv_memory && !mx_size_check(command, "--kv-memory", given.kv_memory, &given.kv_bytes)) return false;
    if (given.prefix_cache_size &&
        !mx_size_check(command, "--prefix-cache-size", given.prefix_cache_size, &given.cache_bytes))
        return false;
    if (given.prefix_cache_size && !given.prefix_cache) {
        mx_command_usage(command, "--prefix-cache-size needs --prefix-cache FOLDER");
        return false;
    }
    if (given.speculate && !mx_speculation_find(command, given.speculate, &given.speculation)) return false;
    if (given.load && !mx_load_find(command, given.load, &given.way)) return false;
    if (given.quantize && !mx_quantize_find(command, given.quantize, &given.rounding)) return false;
    if (given.kv_type && !(given.kv = mx_kv_find(command, given.kv_type))) return false;
    mx_precisions precision;
    mx_error error;
    if (given.precision && mx_precisions_parse(given.precision, &precision, &error)) {
        mx_command_usage(command, "--precision: %s", error.text);
        return false;
    }
    if (given.dense && strcmp(given.dense, "own") != 0 && strcmp(given.dense, "openblas") != 0) {
        mx_command_usage(command, "--dense %s: expected own or openblas", given.dense);
        return false;
    }
    const mx_device_given device = {.device = given.device,
                                    .gpu_memory = given.gpu_memory,
                                    .load = given.load,
                                    .numa = given.numa,
                                    .dense = given.dense,
                                    .precision = &precision,
                                    .precisions = given.precision != NULL};
    if (!mx_device_find(command, &device, &given.on, &given.where, &given.gpu_bytes)) return false;
    for (int i = 0; i < length_of(given.logit_bias); i++) {
        if (parse_bias(given.logit_bias[i], &bias)) continue;
        mx_command_usage(command, "--logit-bias %s: expected ID=V with a token id and a number from -100 to 100",
                         given.logit_bias[i]);
        return false;
    }
    for (int i = 0; i < length_of(given.stop); i++) {
        if (*given.stop[i] && mx_is_utf8(given.stop[i], strlen(given.stop[i]))) continue;
        mx_command_usage(command, "--stop: the text is %s", *given.stop[i] ? "not UTF-8" : "empty");
        return false;
    }
    if (!check_settings(command, raw)) return false;
    *exit_code = MX_EXIT_OK;
    return true;
}

/* ---- session ----------------------------------------------------------------------------------------------------- */
static mx_status set_sampling(mx_session *s, mx_error *error) {
    s->sampling = mx_model_sampling(s->model);
    if (numbers[TEMPERATURE].text) s->sampling.temperature = (float)numbers[TEMPERATURE].value;
    if (given.greedy) s->sampling.temperature = 0;
    if (numbers[TOP_K].text) s->sampling.top_k = (int)numbers[TOP_K].value;
    if (numbers[TOP_P].text) s->sampling.top_p = (float)numbers[TOP_P].value;
    s->sampling.min_p = (float)numbers[MIN_P].value;
    s->sampling.repetition_penalty = (float)numbers[REPETITION].value;
    s->sampling.presence_penalty = (float)numbers[PRESENCE].value;
    s->sampling.frequency_penalty = (float)numbers[FREQUENCY].value;
    if (given.seed) {
        parse_seed(given.seed, &s->sampling.seed);
    } else {
        uint32_t random; /* short enough to be typed again */
        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) random = (uint32_t)(mx_seconds() * 1e6);
        s->sampling.seed = random;
        s->random_seed = true;
    }
    int count = length_of(given.logit_bias);
    s->bias = calloc((size_t)count + 1, sizeof *s->bias);
    if (!s->bias) return mx_fail(error, MX_NO_MEMORY, "no memory for --logit-bias");
    for (int i = 0; i < count; i++) {
        parse_bias(given.logit_bias[i], &s->bias[i]);
        if (s->bias[i].token >= s->info.vocab) {
            return mx_fail(error, MX_INVALID_ARGUMENT, "--logit-bias %s: the model's tokens are 0 to %d",
                           given.logit_bias[i], s->info.vocab - 1);
        }
    }
    s->sampling.bias = s->bias;
    s->sampling.bias_count = count;
    return MX_OK;
}

static mx_status read_tools(mx_conversation *c, mx_error *error) {
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    mx_status status = mx_read_file(given.tools, (size_t)64 << 20, &text, error);
    if (!status) status = mx_json_parse(given.tools, text.data ? text.data : "", text.size, &document, error);
    if (!status) status = mx_conversation_set_tools(c, given.tools, mx_json_root(document), error);
    mx_json_free(document);
    mx_bytes_free(&text);
    return status ? mx_fail_within(error, status, "--tools") : MX_OK;
}

static mx_status start_conversation(mx_session *s, mx_error *error) {
    mx_status status = mx_conversation_create(s->tokenizer, &s->conversation, error);
    for (int i = 0; i < MX_SETTINGS && !status; i++) {
        const char *value = *settings[i].value;
        if (value) status = mx_conversation_set(s->conversation, (mx_setting)i, value, error);
    }
    if (!status) mx_conversation_keep_thinking(s->conversation, given.keep_thinking);
    return !status && given.tools ? read_tools(s->conversation, error) : status;
}

/* Its path is the name. */
static mx_status shape_model(mx_session *s, mx_error *error) {
    mx_config config;
    snprintf(s->path, sizeof s->path, "%s", given.synthetic);
    return mx_synthetic_config(given.synthetic, (int)numbers[LAYERS].value, &config, error);
}

/* What is small and often wrong comes first: with a big model the user should not wait for a typing error. */
static mx_status prepare(mx_session *s, bool raw, mx_error *error) {
    mx_status status =
        given.synthetic ? shape_model(s, error) : mx_resolve_model(given.model, s->path, sizeof s->path, error);
    if (!status) status = mx_tokenizer_open(given.tokenizer ? given.tokenizer : s->path, &s->tokenizer, error);
    if (!status && !raw) status = start_conversation(s, error);
    s->today = !given.date;
    s->default_memory = !given.kv_memory;
    s->max_tokens = (int64_t)numbers[COUNT].value;
    s->stop = given.stop;
    s->stop_count = length_of(given.stop);
    return status;
}

/* The tokens that end messages. Returns how many the tokenizer has. */
static int message_ends(const mx_tokenizer *t, int32_t out[3]) {
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(t);
    const int32_t ends[3] = {special.end, special.call, special.return_};
    int count = 0;
    for (int i = 0; i < 3; i++)
        if (ends[i] >= 0) out[count++] = ends[i];
    return count;
}

/* Before many GB are read. Weights that are read when they are used (--load lazy) were meant to be. */
static bool warn_of_memory(const mx_session *s) {
    if (given.synthetic || given.way == MX_LOAD_LAZY || mx_device_wanted(&given.on)) return false;
    return mx_plan_warn(&(mx_plan_load){.path = s->path,
                                        .context = numbers[CTX].text ? (int64_t)numbers[CTX].value : 0,
                                        .kv_memory = (double)given.kv_bytes,
                                        .kv = given.kv ? given.kv->format : MX_F16,
                                        .form = mx_experts_form(given.rounding),
                                        .copied = given.way == MX_LOAD_READ,
                                        .threads = (int)numbers[THREADS].value});
}

/* One more than the highest id of text: names of format tokens may be reserved beyond a model's logits. */
static int32_t text_tokens(const mx_tokenizer *t) {
    int32_t count = mx_tokenizer_size(t);
    while (count > 0 && mx_is_special(t, count - 1)) count--;
    return count;
}

static mx_status make_model(mx_session *s, const mx_load_options *options, mx_error *error) {
    mx_config config;
    mx_progress progress;
    mx_status status = mx_synthetic_config(given.synthetic, (int)numbers[LAYERS].value, &config, error);
    if (status) return status;
    const int32_t tokens = text_tokens(s->tokenizer);
    if (tokens > config.vocab)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s has %d tokens, %s only %d logits: take another --tokenizer",
                       given.tokenizer, tokens, given.synthetic, config.vocab);
    mx_progress_start(&progress, "making weights", (double)mx_synthetic_bytes(&config), true);
    status = mx_model_make(&config, SYNTHETIC_SEED, options, &progress, &s->model, error);
    mx_progress_clear(&progress);
    return status;
}

/* Bits of the ids that have a token; the caller frees them. */
static mx_status find_tokens(const mx_session *s, uint32_t **out, mx_error *error) {
    const int32_t vocab = mx_model_config(s->model)->vocab;
    *out = calloc((size_t)vocab / 32 + 1, sizeof **out);
    if (!*out) return mx_fail(error, MX_NO_MEMORY, "no memory");
    for (int32_t i = 0; i < vocab; i++) (*out)[i >> 5] |= (uint32_t)mx_is_token(s->tokenizer, i) << (i & 31);
    return MX_OK;
}

static mx_status load(mx_session *s, const mx_engine_options *engine, mx_error *error) {
    int threads = (int)numbers[THREADS].value;
    int32_t boundary[3];
    mx_loading loading = {0};
    mx_engine_options engine_options = engine ? *engine : (mx_engine_options){0};
    engine_options.boundary = boundary;
    engine_options.boundary_count = message_ends(s->tokenizer, boundary);
    uint32_t *tokens = NULL;
    engine_options.kv_memory = given.kv_bytes;
    engine_options.prefix_cache = given.prefix_cache;
    engine_options.prefix_cache_bytes = given.cache_bytes;
    engine_options.batch_tokens = (int)numbers[BATCH_TOKENS].value;
    engine_options.speculation = given.speculation;
    engine_options.threads = threads;
    if (numbers[CTX].text) engine_options.context = (int64_t)numbers[CTX].value;
    if (given.kv) engine_options.kv_type = given.kv->type;
    engine_options.precision = given.precision;
    engine_options.openblas = given.dense && !strcmp(given.dense, "openblas");
    const mx_load_options load_options = {.threads = threads,
                                          .way = given.way,
                                          .numa = given.placed,
                                          .quantize_experts = given.rounding,
                                          .keep_rounded = !given.forget_rounded,
                                          .device = given.where,
                                          .engine = &engine_options,
                                          .gpu_memory = given.gpu_bytes,
                                          .told = warn_of_memory(s),
                                          .progress = mx_loading_shown,
                                          .user = &loading};
    mx_status status =
        given.synthetic ? make_model(s, &load_options, error) : mx_model_open(s->path, &load_options, &s->model, error);
    mx_loading_end(&loading);
    if (status) return status;
    if (!mx_turn_stop_tokens(s->tokenizer, mx_model_config(s->model), &s->stop_tokens)) {
        return mx_fail(error, MX_NO_MEMORY, "no memory");
    }
    loading.started = false;
    engine_options.progress = mx_loading_shown;
    engine_options.progress_user = &loading;
    status = find_tokens(s, &tokens, error);
    engine_options.tokens = tokens;
    if (!status) status = mx_engine_create(s->model, &engine_options, &s->engine, error);
    free(tokens);
    mx_loading_end(&loading);
    if (status) return status;
    s->info = mx_engine_get_info(s->engine);
    return set_sampling(s, error);
}

bool mx_session_prepare(const mx_command *command, bool raw, mx_session *out, int *exit_code) {
    *out = (mx_session){.command = command, .name = given.synthetic ? given.synthetic : given.model};
    if (!mx_options_check(command, raw, exit_code)) return false;
    double start = mx_seconds();
    mx_error error = {0};
    if (prepare(out, raw, &error)) {
        *exit_code = mx_command_fail(command, &error);
        return false;
    }
    out->load_seconds = mx_seconds() - start;
    return true;
}

bool mx_session_load(mx_session *s, const mx_engine_options *engine, int *exit_code) {
    double start = mx_seconds();
    mx_error error = {0};
    if (load(s, engine, &error)) {
        *exit_code = mx_command_fail(s->command, &error);
        return false;
    }
    s->load_seconds += mx_seconds() - start;
    return true;
}

bool mx_session_open(const mx_command *command, bool raw, mx_session *out, int *exit_code) {
    return mx_session_prepare(command, raw, out, exit_code) && mx_session_load(out, NULL, exit_code);
}

void mx_session_close(mx_session *s) {
    mx_engine_destroy(s->engine);
    mx_model_close(s->model);
    mx_vocabulary_free(s->vocabulary);
    mx_tokenizer_close(s->tokenizer);
    mx_conversation_free(s->conversation);
    mx_ids_free(&s->stop_tokens);
    free(s->bias);
    *s = (mx_session){0};
}

/* ---- fingerprint ------------------------------------------------------------------------------------------------- */
/* With its NUL, so that no two lists of texts are alike. */
static void hash_text(XXH3_state_t *hash, const char *text) {
    XXH3_64bits_update(hash, text ? text : "\1", text ? strlen(text) + 1 : 2);
}

static mx_status hash_tensors(XXH3_state_t *hash, const char *folder, mx_error *error) {
    mx_checkpoint *checkpoint;
    char identity[MX_IDENTITY];
    mx_pool *pool;
    mx_loading hashing = {.label = "looking at the model"};
    mx_status status = mx_checkpoint_open_as(folder, mx_experts_form(given.rounding), &checkpoint, error);
    if (status) return status;
    status = mx_pool_create((int)numbers[THREADS].value, &pool, error);
    if (!status) {
        const mx_identity_options options = {.pool = pool, .progress = mx_loading_shown, .user = &hashing};
        status = mx_checkpoint_identity(checkpoint, &options, identity, error);
        mx_loading_end(&hashing);
        mx_pool_destroy(pool);
    }
    mx_checkpoint_close(checkpoint);
    if (!status) hash_text(hash, identity);
    return status;
}

/* A file that is a model has these within, hashed with its tensors. */
static mx_status hash_model(XXH3_state_t *hash, const char *folder, mx_error *error) {
    static const char *const names[] = {"config.json", "generation_config.json"};
    mx_status status = hash_tensors(hash, folder, error);
    for (size_t i = 0; i < sizeof names / sizeof *names && !status; i++) {
        char path[8192];
        mx_bytes content = {0};
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        const bool found = access(path, F_OK) == 0;
        hash_text(hash, found ? names[i] : NULL);
        if (found) status = mx_read_file(path, (size_t)1 << 30, &content, error);
        if (!status) XXH3_64bits_update(hash, content.data, content.size);
        mx_bytes_free(&content);
    }
    return status;
}

/* Its name or, where that is a file's, what stands there; its layers are hashed with the numbers. */
static mx_status hash_synthetic(XXH3_state_t *hash, mx_error *error) {
    char path[8192];
    mx_bytes content = {0};
    hash_text(hash, "synthetic");
    hash_text(hash, given.synthetic);
    if (!strchr(given.synthetic, '/') && !mx_ends_with(given.synthetic, "config.json")) return MX_OK;
    snprintf(path, sizeof path, "%s%s", given.synthetic,
             mx_ends_with(given.synthetic, "config.json") ? "" : "/config.json");
    mx_status status = mx_read_file(path, (size_t)1 << 30, &content, error);
    if (!status) XXH3_64bits_update(hash, content.data, content.size);
    mx_bytes_free(&content);
    return status;
}

mx_status mx_session_fingerprint(const mx_session *s, uint64_t *out, mx_error *error) {
    XXH3_state_t *hash = XXH3_createState();
    if (!hash) return mx_fail(error, MX_NO_MEMORY, "no memory");
    XXH3_64bits_reset(hash);
    mx_status status = given.synthetic ? hash_synthetic(hash, error) : hash_model(hash, s->path, error);
    const uint64_t vocabulary = mx_tokenizer_hash(s->tokenizer);
    XXH3_64bits_update(hash, &vocabulary, sizeof vocabulary);
    for (int i = 0; i < NUMBERS; i++)
        if (i != THREADS && i != BATCH_TOKENS && i != CTX && (i != LAYERS || numbers[i].text))
            hash_text(hash, numbers[i].text);
    const char *const texts[] = {given.kv_type,
                                 given.dense,
                                 given.quantize,
                                 given.seed,
                                 given.greedy ? "greedy" : NULL,
                                 given.keep_thinking ? "thinking" : NULL};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) hash_text(hash, texts[i]);
    for (int i = 0; i < length_of(given.stop); i++) hash_text(hash, given.stop[i]);
    hash_text(hash, NULL);
    for (int i = 0; i < length_of(given.logit_bias); i++) hash_text(hash, given.logit_bias[i]);
    hash_text(hash, NULL);
    for (int i = 0; i < MX_SETTINGS && s->conversation; i++)
        hash_text(hash, mx_conversation_get(s->conversation, (mx_setting)i));
    hash_text(hash, s->conversation ? mx_conversation_tools(s->conversation)->data : "raw");
    *out = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    return status;
}

/* ---- turns ------------------------------------------------------------------------------------------------------ */
mx_status mx_session_turn(mx_session *s, const mx_ids *prompt, mx_turn *turn, const volatile sig_atomic_t *interrupted,
                          mx_error *error) {
    if (prompt->count >= s->info.context) {
        return mx_fail(error, MX_CONTEXT_FULL,
                       "the prompt has %lld tokens, the context holds %lld and the answer needs room too",
                       (long long)prompt->count, (long long)s->info.context);
    }
    const mx_request request = {
        .prompt = prompt->data,
        .prompt_count = prompt->count,
        .max_tokens = s->max_tokens,
        .sampling = s->sampling,
        .stop = s->stop_tokens.data,
        .stop_count = (int)s->stop_tokens.count,
    };
    return mx_turn_run(turn, s->engine, &request, interrupted, error);
}

void mx_session_kv_memory(const mx_session *s, char out[static 40]) {
    const double bytes = (double)s->info.kv_bytes;
    snprintf(out, 40, "%.1f %s", bytes < 1e9 ? bytes / 1e6 : bytes / 1e9, bytes < 1e9 ? "MB" : "GB");
}

void mx_session_show_memory(const mx_session *s) {
    char memory[40];
    mx_session_kv_memory(s, memory);
    fprintf(stderr, "mxrun: context %lld tokens, KV memory %s\n", (long long)s->info.context, memory);
}

bool mx_session_statistics(const mx_session *s, const mx_turn_result *result, mx_bytes *out) {
    const struct mx_usage *u = &result->usage;
    double computed = (double)(u->prompt_tokens - u->cached_tokens);
    if (!mx_bytes_addf(out, "%lld prompt", (long long)u->prompt_tokens) ||
        (u->cached_tokens && !mx_bytes_addf(out, " (%lld cached)", (long long)u->cached_tokens)) ||
        !mx_bytes_addf(out, " + %lld new tokens | first token %.3f s after %.3f s of loading",
                       (long long)u->generated_tokens, result->seconds_to_first, s->load_seconds)) {
        return false;
    }
    if (u->prompt_seconds > 0 && !mx_bytes_addf(out, " | prompt %.1f tokens/s", computed / u->prompt_seconds))
        return false;
    if (u->generate_seconds > 0 && u->generated_tokens > 1 &&
        !mx_bytes_addf(out, " | decode %.1f tokens/s", (double)(u->generated_tokens - 1) / u->generate_seconds)) {
        return false;
    }
    if (u->drafted_tokens && !mx_bytes_addf(out, " | %lld of %lld guessed tokens right", (long long)u->accepted_tokens,
                                            (long long)u->drafted_tokens)) {
        return false;
    }
    return mx_bytes_addf(out, " | memory %.0f MB | seed %llu", (double)mx_memory_peak() / 1e6,
                         (unsigned long long)s->sampling.seed);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */
const char *mx_session_model(const mx_session *s) {
    const char *slash = strrchr(s->path, '/');
    return !strcmp(s->name, "stories") || !slash || !slash[1] ? s->name : slash + 1;
}

mx_api_settings mx_session_settings(const mx_session *s) {
    mx_api_settings out = {.tokenizer = s->tokenizer,
                           .conversation = s->conversation,
                           .model = mx_session_model(s),
                           .sampling = s->sampling,
                           .max_tokens = s->max_tokens,
                           .stop = (const char *const *)s->stop,
                           .stop_count = s->stop_count,
                           .stop_tokens = &s->stop_tokens,
                           .vocab = s->info.vocab};
    out.setup.context = s->info.context;
    snprintf(out.setup.tier, sizeof out.setup.tier, "%s", s->info.tier);
    snprintf(out.setup.precision, sizeof out.setup.precision, "%s", s->info.precision);
    return out;
}
