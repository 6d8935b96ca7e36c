#include "api/chat.h"

bool mx_api_tool_name(const char *name, size_t size, char out[static 65]) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";
    size_t n = 0;
    for (size_t i = 0; i < size; n++) {
        if (n == 64) return false;
        const int length = mx_utf8_length(name + i, size - i);
        out[n] = name[i] && strchr(allowed, name[i]) ? name[i] : '_';
        i += length > 0 ? (size_t)length : 1;
    }
    out[n] = 0;
    return n > 0;
}

mx_status mx_api_chat_finish(mx_api_chat *chat, mx_api_request *request, mx_error *error) {
    (void)chat;
    (void)request;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_chat_create(const mx_api_settings *settings, mx_replay *replay, bool dated, mx_api_chat **out,
                             mx_error *error) {
    (void)settings;
    (void)replay;
    (void)dated;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

void mx_api_chat_free(mx_api_chat *chat) {
    (void)chat;
}

mx_status mx_api_chat_set_reasoning(mx_api_chat *chat, const char *effort, mx_error *error) {
    (void)chat;
    (void)effort;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_chat_set_tools(mx_api_chat *chat, const char *name, const mx_json *tools, mx_error *error) {
    (void)chat;
    (void)name;
    (void)tools;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_chat_add_instructions(mx_api_chat *chat, const char *text, size_t size, mx_error *error) {
    (void)chat;
    (void)text;
    (void)size;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_chat_add_user(mx_api_chat *chat, const char *text, size_t size, mx_error *error) {
    (void)chat;
    (void)text;
    (void)size;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_chat_add_said(mx_api_chat *chat, const mx_api_said *said, mx_error *error) {
    (void)chat;
    (void)said;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_chat_add_result(mx_api_chat *chat, const char *call_id, const char *tool, const char *text,
                                 size_t size, mx_error *error) {
    (void)chat;
    (void)call_id;
    (void)tool;
    (void)text;
    (void)size;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

mx_status mx_api_chat_prompt(mx_api_chat *chat, mx_ids *out, mx_error *error) {
    (void)chat;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}
