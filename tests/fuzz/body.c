/* Bodies of HTTP requests to every endpoint of every protocol, and what each says of tokens that a model might write:
 * whatever is asked, the reply is JSON or a stream of whole events, and a status that does not blame us. */
#include <stdlib.h>
#include <string.h>

#include "../server/fake_exchange.h"
#include "input.h"
#include "server/responses_store.h"

static void check(bool right) {
    if (!right) abort();
}

static mx_server_parts parts;
static const mx_endpoint *endpoints[64];
static int endpoint_count;

static void add_table(const mx_endpoint *table) {
    for (; table->method && endpoint_count < 64; table++)
        if (!strcmp(table->method, "POST")) endpoints[endpoint_count++] = table;
}

static void prepare(void) {
    static mx_tokenizer *tokenizer;
    static mx_ids stop;
    mx_error error;
    check(mx_tokenizer_open(getenv("MXRUN_FUZZ_TOKENIZER"), &tokenizer, &error) == MX_OK);
    const mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    check(mx_ids_add(&stop, special.return_) && mx_ids_add(&stop, special.call));
    parts.tokenizer = tokenizer;
    parts.model = "stories";
    parts.info = (mx_engine_info){.context = 8192, .vocab = mx_tokenizer_size(tokenizer)};
    parts.settings = (mx_api_settings){.tokenizer = tokenizer,
                                       .model = "stories",
                                       .sampling = MX_SAMPLING_DEFAULT,
                                       .stop_tokens = &stop,
                                       .vocab = parts.info.vocab};
    mx_conversation *chats;
    check(mx_conversation_create(tokenizer, &chats, &error) == MX_OK);
    parts.settings.conversation = chats;
    check(mx_vocabulary_create(tokenizer, parts.info.vocab, &parts.vocabulary, &error) == MX_OK);
    parts.settings.vocabulary = parts.vocabulary;
    check(mx_replay_create(1 << 20, &parts.replay, &error) == MX_OK);
    check(mx_response_store_create(1 << 20, &parts.responses, &error) == MX_OK);
    add_table(mx_openai_endpoints);
    add_table(mx_responses_endpoints);
    add_table(mx_anthropic_endpoints);
    add_table(mx_ollama_endpoints);
    add_table(mx_tool_endpoints);
    check(endpoint_count > 0);
}

/* Every line of a stream of events is empty, a comment, or "field: value" of UTF-8; its data are JSON. */
static void check_events(const mx_bytes *body) {
    const char *at = body->data, *end = at + body->size;
    check(!body->size || end[-1] == '\n');
    while (at < end) {
        const char *line = at, *stop = memchr(at, '\n', (size_t)(end - at));
        const size_t size = (size_t)(stop - line);
        mx_json_document *document;
        mx_error error;
        at = stop + 1;
        if (size < 6 || memcmp(line, "data: ", 6) != 0 || (size == 12 && !memcmp(line, "data: [DONE]", 12))) continue;
        check(mx_json_parse("event", line + 6, size - 6, &document, &error) == MX_OK);
        mx_json_free(document);
    }
}

static void check_lines(const mx_bytes *body) {
    for (const char *at = body->data, *end = at + body->size; at < end;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        mx_json_document *document = NULL;
        mx_error error;
        check(stop && mx_json_parse("line", at, (size_t)(stop - at), &document, &error) == MX_OK);
        mx_json_free(document);
        at = stop + 1;
    }
}

static void check_reply(const fake_reply *r) {
    mx_json_document *document;
    mx_error error;
    if (r->status == 0) return; /* more answers than are tried here */
    check(r->status == 200 || (r->status >= 400 && r->status < 500) || r->worked || r->status == 501);
    check(mx_is_utf8(r->body.data ? r->body.data : "", r->body.size));
    if (!strncmp(r->type, "text/event-stream", 17)) {
        check_events(&r->body);
    } else if (strstr(r->type, "ndjson")) {
        check_lines(&r->body);
    } else if (strstr(r->type, "json")) {
        check(mx_json_parse("reply", r->body.data, r->body.size, &document, &error) == MX_OK);
        mx_json_free(document);
    }
}

/* Byte 0: endpoint; 1: how it ends; 2: how many of the last bytes are tokens; then the body. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint64_t number;
    if (!endpoint_count) prepare();
    if (size < 3 || size < 3u + data[2]) return 0;
    const mx_harmony_ids s = mx_tokenizer_harmony_ids(parts.tokenizer);
    const int32_t special[] = {s.channel, s.message, s.end, s.start, s.constrain, s.call, s.return_};
    int32_t tokens[256];
    const int count = data[2];
    for (int i = 0; i < count; i++) {
        const uint8_t b = data[size - (size_t)count + (size_t)i];
        tokens[i] = b < 7 ? special[b] : (b * 7) % mx_tokenizer_size(parts.tokenizer);
        if (tokens[i] < 0) tokens[i] = 0;
    }
    const mx_endpoint *endpoint = endpoints[data[0] % endpoint_count];
    const fake_request request = {.endpoint = endpoint,
                                  .path = endpoint->path,
                                  .body = data + 3,
                                  .size = size - 3 - (size_t)count,
                                  .tokens = tokens,
                                  .count = count,
                                  .finish = (mx_finish)(data[1] % 6),
                                  .fails = data[1] >> 4 == 15};
    fake_reply reply;
    fake_exchange(&parts, &request, ++number, &reply);
    check_reply(&reply);
    fake_reply_free(&reply);
    return 0;
}
