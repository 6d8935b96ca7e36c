#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "plan/model.h"
#include "server/ollama.h"
#include "server/protocol.h"

/* What Ollama's clients ask about models. There is one. */

/* The version of Ollama whose API this is: clients ask before they use what is new. */
static const char speaks[] = "0.12.0";

void mx_ollama_version(mx_exchange *x) {
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    mx_api_putf(&w, "{\"version\":\"%s\",\"mxrun\":\"%s\"}", speaks, MX_VERSION);
    mx_reply(x, !w.failed, &out);
}

/* ---- details ----------------------------------------------------------------------------------------------------- */
/* The files, as far as they can be looked at; of made-up weights there are none. */
typedef struct details {
    const mx_server_parts *parts;
    mx_plan_model *model; /* owned; NULL: nothing is known */
    double parameters;
    const char *format; /* of the files: "safetensors", "gguf" */
} details;

/* All numbers of a model of this shape. */
static double count_parameters(const mx_config *c) {
    const double H = c->hidden, I = c->intermediate, E = c->experts, Q = (double)c->heads * c->head_dim,
                 K = (double)c->kv_heads * c->head_dim, V = c->vocab;
    const double attention = H * (Q + 2 * K) + Q * H + c->heads + (c->attention_bias ? Q + 2 * K + H : 0);
    const double experts = E * (2 * I * H + 2 * I + I * H + H), router = E * H + E;
    return c->layers * (attention + experts + router + 2 * H) + H + (c->tied_embeddings ? 1 : 2) * V * H;
}

static details look(const mx_server_parts *parts) {
    details d = {.parts = parts, .format = ""};
    mx_location location;
    d.model = parts->model_path ? malloc(sizeof *d.model) : NULL;
    if (!d.model) return d;
    if (mx_plan_model_read(parts->model_path, MX_EXPERTS_KEPT, d.model, NULL)) {
        free(d.model);
        d.model = NULL;
        return d;
    }
    d.parameters = count_parameters(&d.model->config);
    if (!mx_location_find(parts->model_path, &location, NULL))
        d.format = location.layout == MX_LAYOUT_GGUF    ? "gguf"
                   : location.layout == MX_LAYOUT_METAL ? "metal"
                                                        : "safetensors";
    return d;
}

static void put_member(mx_api_writer *w, const char *before, const char *text) {
    mx_api_put(w, before);
    mx_api_put_string(w, text, strlen(text));
}

/* "20.9B", "9.7M" */
static void put_details(mx_api_writer *w, const details *d) {
    char size[16] = "", formats[MX_PLAN_FORMATS] = "";
    const double billions = d->parameters / 1e9;
    if (d->model) {
        snprintf(size, sizeof size, billions >= 1 ? "%.1fB" : "%.1fM", billions >= 1 ? billions : billions * 1e3);
        snprintf(formats, sizeof formats, "%s", mx_plan_format_name(d->model->formats.experts));
    }
    put_member(w, "\"details\":{\"parent_model\":\"\",\"format\":", d->format);
    put_member(w, ",\"family\":\"gptoss\",\"families\":[\"gptoss\"],\"parameter_size\":", size);
    put_member(w, ",\"quantization_level\":", formats);
    mx_api_put(w, "}");
}

/* Ollama's digest is of the files' content. This one tells models apart by name, age and size: nobody reads 60 GB for a
 * list. */
static void put_digest(mx_api_writer *w, const mx_server_parts *parts) {
    char text[300];
    const int n = snprintf(text, sizeof text, "%.200s %lld %llu", parts->model, (long long)parts->model_created,
                           (unsigned long long)parts->info.weight_bytes);
    mx_api_put(w, ",\"digest\":\"");
    for (XXH64_hash_t seed = 0; seed < 4; seed++)
        mx_api_putf(w, "%016llx", (unsigned long long)XXH64(text, (size_t)n, seed));
    mx_api_put(w, "\"");
}

/* "name", "model", "size", "digest", "details" */
static void put_model(mx_api_writer *w, const details *d, uint64_t bytes) {
    put_member(w, "{\"name\":", d->parts->model);
    put_member(w, ",\"model\":", d->parts->model);
    mx_api_putf(w, ",\"size\":%llu", (unsigned long long)bytes);
    put_digest(w, d->parts);
    mx_api_put(w, ",");
    put_details(w, d);
}

/* ---- endpoints --------------------------------------------------------------------------------------------------- */
void mx_ollama_tags(mx_exchange *x) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    details d = look(parts);
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    mx_api_put(&w, "{\"models\":[");
    put_model(&w, &d, parts->info.weight_bytes);
    mx_api_put(&w, ",\"modified_at\":");
    mx_ollama_put_time(&w, parts->model_created, 0);
    mx_api_put(&w, "}]}");
    free(d.model);
    mx_reply(x, !w.failed, &out);
}

void mx_ollama_ps(mx_exchange *x) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const uint64_t bytes = parts->info.weight_bytes + parts->info.kv_bytes;
    details d = look(parts);
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    mx_api_put(&w, "{\"models\":[");
    put_model(&w, &d, bytes);
    mx_api_putf(&w, ",\"size_vram\":%llu,\"context_length\":%lld", *parts->info.device ? (unsigned long long)bytes : 0,
                (long long)parts->info.context);
    mx_api_put(&w, ",\"expires_at\":\"2318-10-04T00:00:00Z\"}]}"); /* it stays as long as the server runs */
    free(d.model);
    mx_reply(x, !w.failed, &out);
}

/* The keys under which Ollama tells what a GGUF of the model says. */
static void put_info(mx_api_writer *w, const details *d) {
    mx_api_putf(w, ",\"model_info\":{\"general.architecture\":\"gptoss\",\"gptoss.context_length\":%lld",
                (long long)d->parts->info.context);
    put_member(w, ",\"general.basename\":", d->parts->model);
    if (d->model) {
        const mx_config *c = &d->model->config;
        mx_api_putf(w, ",\"general.parameter_count\":%.0f,\"gptoss.embedding_length\":%d,\"gptoss.block_count\":%d",
                    d->parameters, c->hidden, c->layers);
        mx_api_putf(w, ",\"gptoss.attention.head_count\":%d,\"gptoss.attention.head_count_kv\":%d", c->heads,
                    c->kv_heads);
        mx_api_putf(w, ",\"gptoss.attention.key_length\":%d,\"gptoss.attention.sliding_window\":%d", c->head_dim,
                    c->window);
        mx_api_putf(w, ",\"gptoss.expert_count\":%d,\"gptoss.expert_used_count\":%d", c->experts, c->top_k);
    }
    mx_api_put(w, "}");
}

void mx_ollama_show(mx_exchange *x) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const mx_json *body = mx_exchange_json(x);
    if (!body) return;
    const mx_json *name = mx_json_get(body, "model");
    if (!name) name = mx_json_get(body, "name"); /* its older name */
    mx_api_problem problem;
    if (!mx_ollama_check_model(parts, name, &problem)) {
        mx_exchange_refuse(x, &problem);
        return;
    }
    details d = look(parts);
    const mx_sampling *s = &parts->settings.sampling;
    mx_bytes out = {0}, parameters = {0};
    mx_api_writer w = {.out = &out};
    w.failed |= !mx_bytes_addf(&parameters, "temperature %g\ntop_p %g\ntop_k %d", (double)s->temperature,
                               (double)s->top_p, s->top_k);
    mx_api_put(&w, "{\"license\":\"\",\"modelfile\":");
    mx_api_put_string(&w, "# the one model of this mxrun server", 36);
    mx_api_put(&w, ",\"parameters\":");
    mx_api_put_string(&w, parameters.data, parameters.size);
    /* Chats are rendered by harmony's rules, not by a template. */
    mx_api_put(&w, ",\"template\":\"{{ .Prompt }}\",");
    put_details(&w, &d);
    put_info(&w, &d);
    mx_api_put(&w, ",\"capabilities\":[\"completion\"");
    if (parts->settings.conversation) mx_api_put(&w, ",\"tools\",\"thinking\"");
    mx_api_put(&w, "],\"modified_at\":");
    mx_ollama_put_time(&w, parts->model_created, 0);
    mx_api_put(&w, "}");
    mx_bytes_free(&parameters);
    free(d.model);
    mx_reply(x, !w.failed, &out);
}
