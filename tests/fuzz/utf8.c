/* Text on its way to a client: bytes in pieces to whole characters, past stop strings, into JSON, and back. What comes
 * out is what the bytes say when they are read at once. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "input.h"
#include "tokenizer/tokenizer.h"
#include "turn/stop.h"

static void check(bool right) {
    if (!right) abort();
}

/* The client's view of one event. */
static void add_event(const mx_bytes *text, mx_bytes *client) {
    mx_bytes event = {0};
    mx_json_document *document;
    mx_error error;
    check(mx_bytes_add_json(&event, text->data ? text->data : "", text->size));
    check(!memchr(event.data, '\n', event.size) && !memchr(event.data, '\r', event.size)); /* one line of an event */
    check(mx_json_parse("event", event.data, event.size, &document, &error) == MX_OK);
    const mx_json *root = mx_json_root(document);
    check(root->type == MX_JSON_STRING && root->size == text->size);
    check(mx_bytes_add(client, root->text, root->size));
    mx_json_free(document);
    mx_bytes_free(&event);
}

/* Pieces of 1 to 8 bytes, as `cut` says. */
static bool stream(const uint8_t *data, size_t size, uint8_t cut, mx_stop *stop, mx_bytes *client) {
    mx_utf8_stream utf8 = {0};
    mx_bytes text = {0}, shown = {0};
    bool found = false;
    for (size_t at = 0; at < size && !found; cut = (uint8_t)(cut * 5 + 3)) {
        const size_t n = 1 + cut % 8 < size - at ? 1 + cut % 8 : size - at;
        mx_bytes_clear(&text);
        mx_bytes_clear(&shown);
        check(mx_utf8_stream_add(&utf8, (const char *)data + at, n, &text));
        check(mx_is_utf8(text.data ? text.data : "", text.size));
        check(mx_stop_add(stop, text.data ? text.data : "", text.size, &shown, &found));
        add_event(&shown, client);
        at += n;
    }
    mx_bytes_clear(&text);
    mx_bytes_clear(&shown);
    if (!found) {
        check(mx_utf8_stream_end(&utf8, &text));
        check(mx_stop_add(stop, text.data ? text.data : "", text.size, &shown, &found));
    }
    if (!found) check(mx_stop_end(stop, &shown));
    add_event(&shown, client);
    mx_bytes_free(&text);
    mx_bytes_free(&shown);
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const strings[] = {"stop", "st", "\n\n", "\xE2\x82\xAC!"};
    if (size < 2) return 0;
    mx_stop stop;
    mx_error error;
    mx_bytes client = {0}, whole = {0};
    check(mx_stop_create(strings, data[0] % 5, &stop, &error) == MX_OK);
    const bool found = stream(data + 2, size - 2, data[1], &stop, &client);
    check(mx_bytes_add(&whole, "", 0) && mx_bytes_add_lossy(&whole, data + 2, size - 2));
    if (found)
        check(client.size < whole.size && !memcmp(client.data ? client.data : "", whole.data, client.size));
    else
        check(client.size == whole.size && !memcmp(client.data ? client.data : "", whole.data, client.size));
    mx_bytes_free(&client);
    mx_bytes_free(&whole);
    mx_stop_free(&stop);
    return 0;
}
