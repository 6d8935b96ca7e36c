#include "server/server.h"

mx_status mx_server_create(const mx_server_options *options, mx_engine *engine, const mx_api_settings *settings,
                           const char *model_path, bool dated, mx_server **out, mx_error *error) {
    (void)options;
    (void)engine;
    (void)settings;
    (void)model_path;
    (void)dated;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

const char *mx_server_address(const mx_server *s) {
    (void)s;
    return NULL;
}

mx_status mx_server_run(mx_server *s, const volatile sig_atomic_t *stop, mx_error *error) {
    (void)s;
    (void)stop;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

void mx_server_free(mx_server *s) {
    (void)s;
}
