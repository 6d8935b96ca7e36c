#include "api/request.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/chat.h"
#include "api/fields.h"
#include "api/rules.h"

/* Limits of one line. OpenAI has 128, 20 and 2,048 for the first three. */
enum { MOST_ANSWERS = 128, MOST_ALTERNATIVES = MX_TOP_LOGPROBS, MOST_PROMPTS = 2048, MOST_SAMPLES = 4096 };

bool mx_api_wrong(mx_api_problem *problem, const char *param, const char *code, const char *format, ...) {
    va_list list;
    *problem = (mx_api_problem){.http_status = 400, .code = code};
    snprintf(problem->param, sizeof problem->param, "%s", param ? param : "");
    va_start(list, format);
    vsnprintf(problem->text, sizeof problem->text, format, list);
    va_end(list);
    return false;
}

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
}

/* ---- seeds ------------------------------------------------------------------------------------------------------- */
/* The output of SplitMix64 (Steele, Lea, Flood 2014) at step `index`, as many bits of it as every reader of JSON keeps.
 */
static uint64_t mix(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) >> 11;
}

uint64_t mx_api_seed(const mx_api_request *r, int prompt, int k) {
    uint64_t seed = r->sampling.seed;
    if (prompt) seed = mix(~seed, (uint64_t)prompt);
    return k ? mix(seed, (uint64_t)k) : seed;
}

/* ---- fields ------------------------------------------------------------------------------------------------------ */
static mx_fields fields_of(mx_api_request *r, const mx_json *object) {
    return (mx_fields){object, "", &r->problem};
}

/* What changes the answer and is not there must not be passed over. */
static bool read_unsupported(mx_api_request *r, const mx_json *fields) {
    static const char *const chats[][2] = {
        {"functions", "the old form of tools; give them as \"tools\""},
        {"function_call", "the old form of tool_choice; give it as \"tool_choice\""},
        {"audio", "the model does not speak"},
    };
    if (!r->chat && mx_field(fields, "suffix"))
        return mx_api_wrong(&r->problem, "suffix", "unsupported_value", "suffix is not supported");
    for (int i = 0; i < 3 && r->chat; i++)
        if (mx_field(fields, chats[i][0]))
            return mx_api_wrong(&r->problem, chats[i][0], "unsupported_value", "%s: %s", chats[i][0], chats[i][1]);
    const mx_json *modalities = r->chat ? mx_field(fields, "modalities") : NULL;
    for (const mx_json *m = modalities ? modalities->child : NULL; m; m = m->next)
        if (!mx_json_is_string(m, "text"))
            return mx_api_wrong(&r->problem, "modalities", "unsupported_value",
                                "modalities: the model writes text only, [\"text\"]");
    return true;
}

static bool read_stream(const mx_api_reader *reader, mx_api_request *r, const mx_json *fields) {
    const mx_fields f = fields_of(r, fields);
    const mx_json *options = mx_field(fields, "stream_options");
    if (!mx_read_bool(&f, "stream", &r->stream)) return false;
    if (r->stream && !reader->streams)
        return mx_api_wrong(&r->problem, "stream", "unsupported_value", "stream: batches do not stream");
    if (!r->stream || !options) return true;
    if (options->type != MX_JSON_OBJECT)
        return mx_api_wrong(&r->problem, "stream_options", "invalid_type", "stream_options: expected an object");
    const mx_json *usage = mx_field(options, "include_usage");
    return !usage || mx_json_bool(usage, &r->include_usage) ||
           mx_api_wrong(&r->problem, "stream_options.include_usage", "invalid_type",
                        "stream_options.include_usage: expected true or false");
}

/* What can only be said once everything is there. */
static bool check_stream(mx_api_request *r) {
    if (r->best_of > r->n)
        return mx_api_wrong(&r->problem, "best_of", "unsupported_value",
                            "best_of is %d, n %d: the best of more answers can be told only without \"stream\"",
                            r->best_of, r->n);
    if (r->echo && r->logprobs >= 0 && r->n > 1)
        return mx_api_wrong(&r->problem, "n", "unsupported_value",
                            "n is %d: the prompt's logprobs (echo) beside several answers only without \"stream\"",
                            r->n);
    return true;
}

/* Rules that say no more than which tools there are, which the prompt says, too; or that none may be called, where it
 * says none. */
static bool is_optional(const mx_rules *rules) {
    if (rules->text) return false;
    if (rules->choice == MX_TOOLS_NONE) return !rules->tool_count;
    if (rules->choice != MX_TOOLS_AUTO) return false;
    for (int i = 0; i < rules->tool_count; i++)
        if (rules->tools[i].arguments) return false;
    return true;
}

/* A client that brings no tools cannot make a call, which a model that made some before is likely to want. */
static mx_status forbid_calls(mx_api_request *r, mx_error *error) {
    if (!(r->rules = mx_rules_create())) return no_memory(error);
    r->rules->choice = MX_TOOLS_NONE;
    return MX_OK;
}

/* What the answers must be like. */
static mx_status read_rules(const mx_api_reader *reader, mx_api_request *r, const mx_json *fields, mx_error *error) {
    const mx_api_settings *settings = reader->settings;
    const mx_bytes *own = settings->conversation ? mx_conversation_tools(settings->conversation) : NULL;
    mx_json_document *tools = NULL;
    mx_status status = MX_OK;
    if (r->chat && own && own->size && !mx_field(fields, "tools"))
        status = mx_json_parse("tools", own->data, own->size, &tools, error);
    if (!status)
        status =
            mx_api_read_rules(fields, tools ? mx_json_root(tools) : NULL, r->chat, &r->rules, &r->problem, error);
    mx_json_free(tools);
    if (!status && !r->problem.http_status && !r->rules && r->has_calls) status = forbid_calls(r, error);
    if (status || !r->rules || settings->vocabulary || settings->later) return status;
    if (is_optional(r->rules)) {
        mx_rules_free(r->rules);
        r->rules = NULL;
        return MX_OK;
    }
    const char *name = r->rules->text ? "response_format" : mx_field(fields, "tool_choice") ? "tool_choice" : "tools";
    mx_api_wrong(&r->problem, name, "unsupported_value", "%s: grammars are not there with this model's tokenizer",
                 name);
    return MX_OK;
}

static bool read_sampling(mx_api_request *r, const mx_json *fields) {
    const mx_fields f = fields_of(r, fields);
    mx_sampling *s = &r->sampling;
    const mx_json *seed = mx_field(fields, "seed");
    int64_t value;
    if (seed && !mx_json_int64(seed, &value)) {
        char *end;
        s->seed = seed->type == MX_JSON_NUMBER ? strtoull(seed->text, &end, 10) : 0;
        if (seed->type != MX_JSON_NUMBER || *end || strspn(seed->text, "0123456789") != seed->size || seed->size > 20)
            return mx_api_wrong(&r->problem, "seed", "invalid_type", "seed: expected a whole number of 64 bits");
    } else if (seed) {
        s->seed = (uint64_t)value;
    }
    return mx_read_float(&f, "temperature", 0, 10, &s->temperature) && mx_read_float(&f, "top_p", 0, 1, &s->top_p) &&
           mx_read_float(&f, "min_p", 0, 1, &s->min_p) && mx_read_int(&f, "top_k", 0, INT32_MAX, &s->top_k) &&
           mx_read_float(&f, "repetition_penalty", 0.01, 10, &s->repetition_penalty) &&
           mx_read_float(&f, "presence_penalty", -10, 10, &s->presence_penalty) &&
           mx_read_float(&f, "frequency_penalty", -10, 10, &s->frequency_penalty);
}

static int by_token(const void *a, const void *b) {
    const int32_t x = ((const mx_logit_bias *)a)->token, y = ((const mx_logit_bias *)b)->token;
    return (x > y) - (x < y);
}

/* {"1234": -100} */
static mx_status read_bias(mx_api_request *r, const mx_json *fields, int32_t vocab, mx_error *error) {
    const mx_json *map = mx_field(fields, "logit_bias");
    if (!map) return MX_OK;
    if (map->type != MX_JSON_OBJECT) {
        mx_api_wrong(&r->problem, "logit_bias", "invalid_type", "logit_bias: expected an object of token ids");
        return MX_OK;
    }
    r->bias = calloc(map->count + 1u, sizeof *r->bias);
    if (!r->bias) return no_memory(error);
    int count = 0;
    for (const mx_json *v = map->child; v; v = v->next, count++) {
        double value;
        const bool is_id = v->key_size > 0 && v->key_size < 10 && strspn(v->key, "0123456789") == v->key_size;
        if (!is_id || !mx_json_double(v, &value) || fabs(value) > 100) {
            mx_api_wrong(&r->problem, "logit_bias", "invalid_value",
                         "logit_bias: expected token ids with numbers from -100 to 100, found \"%.40s\"", v->key);
            return MX_OK;
        }
        const long token = strtol(v->key, NULL, 10);
        if (vocab && token >= vocab) {
            mx_api_wrong(&r->problem, "logit_bias", "invalid_value", "logit_bias: the model's tokens are 0 to %d",
                         vocab - 1);
            return MX_OK;
        }
        r->bias[count] = (mx_logit_bias){.token = (int32_t)token, .value = (float)value};
    }
    r->sampling.bias = r->bias;
    r->sampling.bias_count = count;
    if (count) qsort(r->bias, (size_t)count, sizeof *r->bias, by_token);
    for (int i = 1; i < count && !r->problem.http_status; i++)
        if (r->bias[i].token == r->bias[i - 1].token)
            mx_api_wrong(&r->problem, "logit_bias", "invalid_value", "logit_bias: token %d is there twice",
                         r->bias[i].token);
    return MX_OK;
}

/* Each is looked for behind every token, in the engine's thread. */
bool mx_api_check_stop(mx_api_problem *problem, const char *param, const mx_json *stop) {
    const bool array = stop->type == MX_JSON_ARRAY;
    if (array && stop->count > MX_API_MOST_STOPS)
        return mx_api_wrong(problem, param, "invalid_value", "%s: %u texts, at most %d are allowed", param, stop->count,
                            MX_API_MOST_STOPS);
    for (const mx_json *v = array ? stop->child : stop; v; v = array ? v->next : NULL) {
        if (v->type != MX_JSON_STRING || !v->size || memchr(v->text, 0, v->size))
            return mx_api_wrong(problem, param, "invalid_value",
                                "%s: expected texts that are not empty and hold no U+0000", param);
        if (v->size > MX_API_LONGEST_STOP)
            return mx_api_wrong(problem, param, "invalid_value", "%s: a text of %zu bytes, at most %d are allowed",
                                param, v->size, MX_API_LONGEST_STOP);
    }
    return true;
}

/* A string or an array of them; what the options say holds where a line says nothing. */
static mx_status read_stop(mx_api_request *r, const mx_json *fields, const mx_api_settings *settings, mx_error *error) {
    const mx_json *stop = mx_field(fields, "stop");
    if (stop && !mx_api_check_stop(&r->problem, "stop", stop)) return MX_OK;
    const bool array = stop && stop->type == MX_JSON_ARRAY;
    const int count = !stop ? settings->stop_count : array ? (int)stop->count : 1;
    r->stop = calloc((size_t)count + 1, sizeof *r->stop);
    if (!r->stop) return no_memory(error);
    const mx_json *v = array ? stop->child : stop;
    for (int i = 0; i < count; i++) {
        r->stop[i] = strdup(stop ? v->text : settings->stop[i]);
        if (!r->stop[i]) return no_memory(error);
        r->stop_count = i + 1;
        if (stop) v = v->next;
    }
    return MX_OK;
}

/* OpenAI's completions have a number; its chats true and "top_logprobs" beside it; the short form has either. */
static bool read_logprobs(mx_api_request *r, const mx_json *fields) {
    const mx_fields f = fields_of(r, fields);
    const mx_json *v = mx_field(fields, "logprobs");
    bool wanted = false;
    r->logprobs = -1;
    if (v && v->type == MX_JSON_NUMBER && !(r->form == MX_FORM_OPENAI && r->chat))
        return mx_read_int(&f, "logprobs", 0, MOST_ALTERNATIVES, &r->logprobs);
    if (r->form == MX_FORM_OPENAI && !r->chat && v)
        return mx_api_wrong(&r->problem, "logprobs", "invalid_type", "logprobs: expected a whole number of 0 to %d",
                            MOST_ALTERNATIVES);
    if (!mx_read_bool(&f, "logprobs", &wanted)) return false;
    int alternatives = -1;
    if (!mx_read_int(&f, "top_logprobs", 0, MOST_ALTERNATIVES, &alternatives)) return false;
    if (alternatives > 0 && !wanted)
        return mx_api_wrong(&r->problem, "top_logprobs", "invalid_value",
                            "top_logprobs is only for requests with \"logprobs\": true");
    if (wanted) r->logprobs = alternatives < 0 ? 0 : alternatives;
    return true;
}

static bool read_counts(mx_api_request *r, const mx_json *fields) {
    const mx_fields f = fields_of(r, fields);
    enum { COMPLETION_DEFAULT = 16 }; /* OpenAI's for completions */
    const bool completion = r->form == MX_FORM_OPENAI && !r->chat;
    if (completion && !r->max_tokens) r->max_tokens = COMPLETION_DEFAULT;
    r->n = 1;
    if (!r->chat && !mx_read_bool(&f, "echo", &r->echo)) return false;
    const char *limit = mx_field(fields, "max_completion_tokens") ? "max_completion_tokens" : "max_tokens";
    int64_t given = -1;
    if (mx_field(fields, limit) && mx_json_int64(mx_field(fields, limit), &given) && given == -1)
        r->max_tokens = 0; /* several front ends say so: until the context is full */
    else if (!mx_read_whole(&f, limit, r->echo ? 0 : 1, INT32_MAX, &r->max_tokens))
        return false;
    if (mx_field(fields, limit) && given == 0) {
        r->no_answer = true;
        r->max_tokens = 1;
    }
    if (!mx_read_whole(&f, "min_tokens", 0, INT32_MAX, &r->min_tokens) ||
        !mx_read_int(&f, "priority", INT32_MIN, INT32_MAX, &r->priority) ||
        !mx_read_number(&f, "deadline", 0, 1e9, &r->deadline) || !mx_read_int(&f, "n", 1, MOST_ANSWERS, &r->n))
        return false;
    if (r->max_tokens && r->min_tokens > r->max_tokens)
        return mx_api_wrong(&r->problem, "min_tokens", "invalid_value", "min_tokens is %lld, max_tokens only %lld",
                            (long long)r->min_tokens, (long long)r->max_tokens);
    r->best_of = r->n;
    if (r->chat) return true;
    if (!mx_read_int(&f, "best_of", 1, MOST_ANSWERS, &r->best_of)) return false;
    return r->best_of >= r->n || mx_api_wrong(&r->problem, "best_of", "invalid_value",
                                              "best_of is %d: of so many not n = %d can be returned", r->best_of, r->n);
}

/* ---- prompts of completions -------------------------------------------------------------------------------------- */
static bool is_ids(const mx_json *v) {
    return v->type == MX_JSON_ARRAY && v->child && v->child->type == MX_JSON_NUMBER;
}

size_t mx_api_long_text(int64_t context) {
    enum { SHORT = 256 << 10, TOKEN = 4 /* bytes of one, about */ };
    return context > SHORT / TOKEN ? TOKEN * (size_t)context : SHORT;
}

/* What is surely longer than the context is not tokenised to its end: its beginnings tell, each twice as long as the
 * one before. Where one is cut off a word may take other tokens than in the whole, but never so many. */
static mx_status encode_prompt(mx_api_request *r, const mx_api_settings *settings, const mx_json *v, mx_ids *out,
                               mx_error *error) {
    const int64_t context = settings->setup.context, sure = context + context / 16 + 16;
    for (size_t part = mx_api_long_text(context); context && part < v->size; part *= 2) {
        size_t size = part;
        while (size && ((unsigned char)v->text[size] & 0xc0) == 0x80) size--;
        out->count = 0;
        mx_status status = mx_encode_special(settings->tokenizer, v->text, size, out, error);
        r->beyond = out->count > sure;
        if (status || r->beyond) return status;
    }
    out->count = 0;
    return mx_encode_special(settings->tokenizer, v->text, v->size, out, error);
}

/* A string, or an array of token ids. */
static mx_status read_prompt(mx_api_request *r, const mx_api_settings *settings, const mx_json *v, mx_ids *out,
                             mx_error *error) {
    const mx_tokenizer *tokenizer = settings->tokenizer;
    if (v->type == MX_JSON_STRING) {
        mx_status status = encode_prompt(r, settings, v, out, error);
        if (!status && out->count == 0)
            mx_api_wrong(&r->problem, "prompt", "invalid_value", "prompt: the text is empty");
        return status;
    }
    for (const mx_json *id = v->child; id; id = id->next) {
        int64_t value;
        size_t size;
        if (!mx_json_int64(id, &value) || value < 0 || value > INT32_MAX ||
            !mx_token_bytes(tokenizer, (int32_t)value, &size)) {
            mx_api_wrong(&r->problem, "prompt", "invalid_value", "prompt: %s is no token; ids go from 0 to %d",
                         id->type == MX_JSON_NUMBER ? id->text : "what is no number", mx_tokenizer_size(tokenizer) - 1);
            return MX_OK;
        }
        if (!mx_ids_add(out, (int32_t)value)) return no_memory(error);
    }
    return MX_OK;
}

/* A string, an array of strings, of token ids, or of arrays of token ids. */
static mx_status read_prompts(mx_api_request *r, const mx_api_settings *settings, const mx_json *prompt,
                              mx_error *error) {
    const bool several = prompt->type == MX_JSON_ARRAY && !is_ids(prompt);
    const uint32_t count = several ? prompt->count : 1;
    if (count == 0 || count > MOST_PROMPTS) {
        mx_api_wrong(&r->problem, "prompt", "invalid_value", "prompt: %u of them, expected 1 to %d", count,
                     MOST_PROMPTS);
        return MX_OK;
    }
    r->prompts = calloc(count, sizeof *r->prompts);
    if (!r->prompts) return no_memory(error);
    r->prompt_count = (int)count;
    const mx_json *v = several ? prompt->child : prompt;
    for (int i = 0; i < r->prompt_count; i++, v = v->next) {
        if (v->type != MX_JSON_STRING && !is_ids(v)) {
            mx_api_wrong(&r->problem, "prompt", "invalid_type",
                         "prompt: expected a string, an array of strings, of token ids or of arrays of token ids");
            return MX_OK;
        }
        mx_status status = read_prompt(r, settings, v, &r->prompts[i], error);
        if (status || r->problem.http_status || r->beyond) return status;
    }
    return MX_OK;
}

/* ---- lines ------------------------------------------------------------------------------------------------------- */
static mx_status keep_id(mx_api_request *r, const mx_json *id, const char *name, mx_error *error) {
    if (!id || id->type == MX_JSON_NULL) return MX_OK;
    const bool fits = id->type == MX_JSON_STRING || (r->form == MX_FORM_SHORT && id->type == MX_JSON_NUMBER);
    if (!fits) {
        mx_api_wrong(&r->problem, name, "invalid_type", "%s: expected a string", name);
        return MX_OK;
    }
    return mx_json_write(&r->id, id) ? MX_OK : no_memory(error);
}

/* Finds what the line asks for; *fields is where its fields are. False: the problem is told. */
static bool find_body(mx_api_request *r, const mx_json *root, const mx_json **fields) {
    *fields = root;
    if (r->form == MX_FORM_SHORT) {
        r->chat = mx_field(root, "messages") != NULL;
        if (r->chat && mx_field(root, "prompt"))
            return mx_api_wrong(&r->problem, "prompt", "invalid_value", "give \"prompt\" or \"messages\", not both");
        return true;
    }
    const mx_json *method = mx_field(root, "method"), *url = mx_field(root, "url"), *body = mx_field(root, "body");
    if (method && !mx_json_is_string(method, "POST"))
        return mx_api_wrong(&r->problem, "method", "invalid_value", "method: expected \"POST\"");
    if (!body || body->type != MX_JSON_OBJECT)
        return mx_api_wrong(&r->problem, "body", body ? "invalid_type" : "missing_required_parameter",
                            "body: expected an object");
    r->chat = url ? mx_json_is_string(url, "/v1/chat/completions") : mx_field(body, "messages") != NULL;
    if (url && !r->chat && !mx_json_is_string(url, "/v1/completions"))
        return mx_api_wrong(&r->problem, "url", "unsupported_value",
                            "url: expected \"/v1/chat/completions\" or \"/v1/completions\"");
    *fields = body;
    return true;
}

/* `messages`, or, NULL, `prompt` as the user's only message. */
static mx_status read_chat(const mx_api_reader *reader, mx_api_request *r, const mx_json *fields,
                           const mx_json *messages, const mx_json *prompt, mx_error *error) {
    if (!messages && (prompt->type != MX_JSON_STRING || !prompt->size)) {
        mx_api_wrong(&r->problem, "prompt", "invalid_type",
                     "prompt: expected a string that is not empty (several prompts or token ids need \"raw\": true)");
        return MX_OK;
    }
    mx_api_chat *chat;
    mx_status status = mx_api_begin_chat(reader, fields, &chat, &r->problem, error);
    if (!chat) return status;
    status = messages ? mx_api_add_messages(chat, messages, &r->problem, error)
                      : mx_api_chat_add_user(chat, prompt->text, prompt->size, error);
    if (!status && !r->problem.http_status) status = mx_api_chat_finish(chat, r, error);
    mx_api_chat_free(chat);
    return status;
}

static mx_status read_what_to_say(const mx_api_reader *reader, mx_api_request *r, const mx_json *fields,
                                  mx_error *error) {
    const mx_fields f = fields_of(r, fields);
    const mx_json *messages = mx_field(fields, "messages"), *prompt = mx_field(fields, "prompt");
    r->prompts_field = r->chat ? "messages" : "prompt";
    if (r->chat ? !messages : !prompt) {
        mx_api_wrong(&r->problem, r->prompts_field, "missing_required_parameter",
                     r->form == MX_FORM_SHORT ? "neither \"prompt\" nor \"messages\" is there"
                     : r->chat                ? "messages: missing"
                                              : "prompt: missing");
        return MX_OK;
    }
    bool raw = reader->settings->raw;
    if (r->form == MX_FORM_SHORT && !r->chat) {
        if (!mx_read_bool(&f, "raw", &raw)) return MX_OK;
        r->chat = !raw;
    }
    if (!r->chat) return read_prompts(r, reader->settings, prompt, error);
    return read_chat(reader, r, fields, messages, prompt, error);
}

/* Everything but what is to be said, and where. */
static mx_status read_options(const mx_api_reader *reader, mx_api_request *r, const mx_json *fields, mx_error *error) {
    mx_status status = read_bias(r, fields, reader->settings->vocab, error);
    if (!status && !r->problem.http_status) status = read_stop(r, fields, reader->settings, error);
    if (!status && !r->problem.http_status) status = read_rules(reader, r, fields, error);
    if (status || r->problem.http_status) return status;
    if (!read_unsupported(r, fields) || !read_stream(reader, r, fields) || !read_sampling(r, fields) ||
        !read_logprobs(r, fields) || !read_counts(r, fields))
        return MX_OK;
    if ((int64_t)r->prompt_count * r->best_of > MOST_SAMPLES)
        mx_api_wrong(&r->problem, "n", "invalid_value", "%d prompts with %d answers each: at most %d together",
                     r->prompt_count, r->best_of, MOST_SAMPLES);
    else if (r->stream)
        check_stream(r);
    return MX_OK;
}

static mx_status read_fields(const mx_api_reader *reader, mx_api_request *r, const mx_json *root, mx_error *error) {
    const mx_json *fields;
    mx_status status = keep_id(r, mx_json_get(root, r->form == MX_FORM_OPENAI ? "custom_id" : "id"),
                               r->form == MX_FORM_OPENAI ? "custom_id" : "id", error);
    if (status || r->problem.http_status || !find_body(r, root, &fields)) return status;
    status = read_what_to_say(reader, r, fields, error);
    return status || r->problem.http_status ? status : read_options(reader, r, fields, error);
}

static mx_api_request begin(const mx_api_settings *settings, uint64_t seed) {
    mx_api_request r = {.sampling = settings->sampling, .max_tokens = settings->max_tokens, .logprobs = -1};
    r.sampling.seed = seed;
    return r;
}

mx_status mx_api_read(const mx_api_reader *reader, int64_t number, const char *text, size_t size, mx_api_request *out,
                      mx_error *error) {
    const mx_api_settings *settings = reader->settings;
    *out = begin(settings, mix(settings->sampling.seed, (uint64_t)number));
    mx_json_document *document;
    mx_error wrong;
    mx_status status = mx_json_parse("the line", text, size, &document, &wrong);
    if (status == MX_NO_MEMORY) return mx_fail(error, status, "line %lld: %s", (long long)number, wrong.text);
    if (status) {
        mx_api_wrong(&out->problem, NULL, "invalid_json", "%s", wrong.text);
        return MX_OK;
    }
    const mx_json *root = mx_json_root(document);
    if (root->type != MX_JSON_OBJECT) {
        mx_api_wrong(&out->problem, NULL, "invalid_type", "the line is no JSON object");
    } else {
        const bool openai = mx_json_get(root, "custom_id") || mx_json_get(root, "body") || mx_json_get(root, "url");
        out->form = openai ? MX_FORM_OPENAI : MX_FORM_SHORT;
        status = read_fields(reader, out, root, error);
        if (!status && !out->problem.http_status && out->beyond) mx_api_check_room(out, settings->setup.context);
    }
    mx_json_free(document);
    return status;
}

bool mx_api_check_room(mx_api_request *r, int64_t context) {
    for (int i = 0; i < r->prompt_count; i++) {
        const int64_t count = r->prompts[i].count;
        const bool more = r->beyond && count > context;
        if (context && count >= context)
            return mx_api_wrong(&r->problem, r->prompts_field, "context_length_exceeded",
                                "This model's maximum context length is %lld tokens, the answer included, and the "
                                "prompt has %s%lld: shorten it, or start the server with a larger context",
                                (long long)context, more ? "more than " : "", (long long)(more ? context : count));
    }
    return true;
}

mx_status mx_api_read_body(const mx_api_reader *reader, bool chat, uint64_t seed, const mx_json *body,
                           mx_api_request *out, mx_error *error) {
    *out = begin(reader->settings, seed);
    out->form = MX_FORM_OPENAI;
    out->chat = chat;
    mx_status status = read_what_to_say(reader, out, body, error);
    if (!status && !out->problem.http_status) status = read_options(reader, out, body, error);
    if (!status && !out->problem.http_status) mx_api_check_room(out, reader->settings->setup.context);
    return status;
}

const char *mx_api_client_name(const mx_api_request *r, const char *name) {
    for (int i = 0; i < r->name_count; i++)
        if (strcmp(r->names[i].harmony, name) == 0) return r->names[i].client;
    return name;
}

void mx_api_request_free(mx_api_request *r) {
    mx_bytes_free(&r->id);
    for (int i = 0; i < r->prompt_count; i++) mx_ids_free(&r->prompts[i]);
    free(r->prompts);
    free(r->bias);
    mx_rules_free(r->rules);
    for (int i = 0; i < r->name_count; i++) {
        free(r->names[i].harmony);
        free(r->names[i].client);
    }
    free(r->names);
    for (int i = 0; i < r->stop_count; i++) free(r->stop[i]);
    free(r->stop);
    *r = (mx_api_request){0};
}
