/* mxrun serve: answers over HTTP. */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "commands/common.h"
#include "commands/options.h"
#include "grammar/schema.h"
#include "server/server.h"

static char *host, *unix_socket, *tls_certificate, *tls_key, *key_file, *max_body, *max_kept, *alias;
static char **given_keys, **cors, **allowed_hosts;
static int no_auth, no_page, allow_priority;
#define KEY_VARIABLE "MXRUN_API_KEY"
enum { PORT, QUEUE, CONNECTIONS, RUNNING, READ, WRITE, IDLE, KEEP_ALIVE, STOP, NUMBERS };
static mx_number numbers[NUMBERS] = {
    [PORT] = {"--port", NULL, 8080, 0, 65535, true, false},
    [QUEUE] = {"--max-queue", NULL, 256, 1, 100000, true, false},
    [CONNECTIONS] = {"--max-connections", NULL, 1024, 1, 100000, true, false},
    [RUNNING] = {"--max-running", NULL, 64, 1, 4096, true, false},
    [READ] = {"--read-timeout", NULL, 30, 0, 86400, false, true},
    [WRITE] = {"--write-timeout", NULL, 30, 0, 86400, false, true},
    [IDLE] = {"--idle-timeout", NULL, 75, 0, 86400, false, true},
    [KEEP_ALIVE] = {"--keep-alive", NULL, 15, 0, 86400, false, true},
    [STOP] = {"--stop-timeout", NULL, 30, 0, 86400, false, true},
};

#define STRING POPT_ARG_STRING
static const struct poptOption listen_options[] = {
    {"host", '\0', STRING, &host, 0, "Address to listen on (default 127.0.0.1: this machine only)", "ADDRESS"},
    {"port", '\0', STRING, &numbers[PORT].text, 0, "Port (default 8080; 0: any that is free)", "N"},
    {"unix", '\0', STRING, &unix_socket, 0, "Listen on a unix socket instead", "PATH"},
    {"tls-cert", '\0', STRING, &tls_certificate, 0, "HTTPS: the certificate, with its chain, as PEM", "FILE"},
    {"tls-key", '\0', STRING, &tls_key, 0, "HTTPS: its private key, as PEM", "FILE"},
    {"api-key", '\0', POPT_ARG_ARGV, &given_keys, 0,
     "Clients must send this key; may be repeated. Other users of this machine see it in the list of processes: "
     "--api-key-file or the variable MXRUN_API_KEY hide it",
     "KEY"},
    {"api-key-file", '\0', STRING, &key_file, 0, "The same from a file, one key a line", "FILE"},
    {"no-auth", '\0', POPT_ARG_NONE, &no_auth, 0,
     "No key is asked for, also where others than this machine can reach the address", NULL},
    {"cors", '\0', POPT_ARG_ARGV, &cors, 0,
     "Let pages of this origin use the server: https://example.org, null, or * for all; may be repeated", "ORIGIN"},
    {"allow-host", '\0', POPT_ARG_ARGV, &allowed_hosts, 0,
     "Without a key: another name under which browsers on this machine reach the server; may be repeated", "NAME"},
    POPT_TABLEEND,
};

static const struct poptOption limit_options[] = {
    {"max-running", '\0', STRING, &numbers[RUNNING].text, 0, "Answers computed at once (default 64)", "N"},
    {"max-queue", '\0', STRING, &numbers[QUEUE].text, 0,
     "Answers that wait for that; more are refused, with 429 (default 256)", "N"},
    {"allow-priority", '\0', POPT_ARG_NONE, &allow_priority, 0,
     "Clients may put their requests before those of others, by \"priority\"", NULL},
    {"max-connections", '\0', STRING, &numbers[CONNECTIONS].text, 0,
     "Connections at once; more have to wait (default 1024)", "N"},
    {"max-body", '\0', STRING, &max_body, 0, "Largest request: 512K, 64M (default 16M)", "SIZE"},
    {"max-kept", '\0', STRING, &max_kept, 0,
     "Memory for answers whose tokens come back with a conversation, and as much for /v1/responses (default 64M)",
     "SIZE"},
    {"read-timeout", '\0', STRING, &numbers[READ].text, 0, "Seconds in which a request must be there (default 30)",
     "S"},
    {"write-timeout", '\0', STRING, &numbers[WRITE].text, 0,
     "Seconds after which a client that takes nothing is cut off (default 30)", "S"},
    {"idle-timeout", '\0', STRING, &numbers[IDLE].text, 0,
     "Seconds after which a connection without a request is closed (default 75)", "S"},
    {"keep-alive", '\0', STRING, &numbers[KEEP_ALIVE].text, 0,
     "Seconds after which a quiet stream gets a comment, so that nobody between closes it (default 15)", "S"},
    {"stop-timeout", '\0', STRING, &numbers[STOP].text, 0,
     "Seconds that answers at work may still take after Ctrl-C or SIGTERM (default 30)", "S"},
    {"model-name", '\0', STRING, &alias, 0, "What clients are told that the model is called", "NAME"},
    {"no-page", '\0', POPT_ARG_NONE, &no_page, 0, "No chat page at /", NULL},
    POPT_TABLEEND,
};

static const struct poptOption options[] = {
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)listen_options, 0, "Listening:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)limit_options, 0, "Serving:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_model_options, 0, "Model:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_prompt_options, 0,
     "Chat format, where a request does not say it:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_sampling_options, 0,
     "Choosing tokens, where a request does not say it:", NULL},
    POPT_TABLEEND,
};

/* ---- keys -------------------------------------------------------------------------------------------------------- */
typedef struct key_list {
    mx_bytes file;     /* the keys of a file point into it */
    const char **keys; /* [count] */
    int count;
} key_list;

static bool add_key(key_list *list, const char *key) {
    const char **more = realloc(list->keys, sizeof *more * (size_t)(list->count + 1));
    if (!more) return false;
    list->keys = more;
    list->keys[list->count++] = key;
    return true;
}

static bool is_empty(const char *key) {
    return !key[strspn(key, " \t\r\n")];
}

/* One key a line; white space around it, empty lines and lines that begin with # do not count. */
static mx_status read_keys(key_list *list, mx_error *error) {
    mx_status status = mx_read_file(key_file, 1 << 20, &list->file, error);
    if (status) return status;
    mx_server_warn_of_mode(key_file, "the keys");
    const int before = list->count;
    char *rest = list->file.data;
    for (char *line; rest && (line = strsep(&rest, "\n"));) {
        line += strspn(line, " \t\r");
        size_t n = strlen(line);
        while (n && strchr(" \t\r", line[n - 1])) n--;
        line[n] = 0;
        if (n && *line != '#' && !add_key(list, line)) return mx_out_of_memory(error);
    }
    if (list->count > before) return MX_OK;
    return mx_fail(error, MX_INVALID_FILE, "%s: no key in it (expected one a line)", key_file);
}

static mx_status collect_keys(key_list *list, mx_error *error) {
    const char *variable = getenv(KEY_VARIABLE);
    for (char **key = given_keys; key && *key; key++)
        if (!add_key(list, *key)) return mx_out_of_memory(error);
    if (variable && !(no_auth && is_empty(variable)) && !add_key(list, variable)) return mx_out_of_memory(error);
    return key_file ? read_keys(list, error) : MX_OK;
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */
static bool is_loopback(const char *name) {
    unsigned char address[4];
    if (!name || strcmp(name, "::1") == 0 || strcmp(name, "localhost") == 0) return true;
    return inet_pton(AF_INET, name, address) == 1 && address[0] == 127;
}

/* `inherited`: systemd's socket; -1: none. */
static bool check_keys(const mx_command *self, const key_list *keys, int inherited) {
    for (int i = 0; i < keys->count; i++) {
        if (!is_empty(keys->keys[i])) continue;
        mx_command_usage(self, "%s: the key is empty",
                         keys->keys[i] == getenv(KEY_VARIABLE) ? KEY_VARIABLE : "--api-key");
        return false;
    }
    if (keys->count && no_auth) {
        mx_command_usage(self, "--no-auth contradicts the API key that is given (--api-key, --api-key-file or "
                               "MXRUN_API_KEY)");
        return false;
    }
    if (keys->count || no_auth) return true;
    if (inherited >= 0 ? mx_server_is_private(inherited) : unix_socket || is_loopback(host)) return true;
    mx_command_usage(self,
                     "%s%s: others can reach it, so that a key is needed (--api-key-file, MXRUN_API_KEY or --api-key), "
                     "or --no-auth",
                     inherited >= 0 ? "the socket of systemd" : "--host ", inherited >= 0 ? "" : host);
    return false;
}

/* SCHEME://HOST[:PORT], as browsers send it: https://example.org, chrome-extension://abc; "null"; "*". */
static bool check_origin(const mx_command *self, const char *origin) {
    const char *rest = strstr(origin, "://");
    if (!strcmp(origin, "*") || !strcmp(origin, "null")) return true;
    if (rest && rest > origin && rest[3] && !strpbrk(rest + 3, "/?#") && !strpbrk(origin, " \t\r\n,*")) return true;
    mx_command_usage(self, "--cors %s: expected an origin, such as https://example.org (no path), null, or *", origin);
    return false;
}

static bool check_host(const mx_command *self, const char *name) {
    if (*name && !strpbrk(name, " \t\r\n,/:*")) return true;
    mx_command_usage(self, "--allow-host %s: expected a name without port, such as box.example.org", name);
    return false;
}

static int count(char **list) {
    int n = 0;
    while (list && list[n]) n++;
    return n;
}

static bool check_options(const mx_command *self, size_t *body, uint64_t *kept) {
    uint64_t size = 0;
    for (int i = 0; i < NUMBERS; i++)
        if (!mx_number_check(self, &numbers[i])) return false;
    if (max_body && !mx_size_check(self, "--max-body", max_body, &size)) return false;
    *body = (size_t)size;
    if (max_kept && !mx_size_check(self, "--max-kept", max_kept, kept)) return false;
    if (!tls_certificate != !tls_key) {
        mx_command_usage(self, "--tls-cert and --tls-key go together");
        return false;
    }
    if (unix_socket && (host || numbers[PORT].text)) {
        mx_command_usage(self, "--unix goes without --host and --port");
        return false;
    }
    for (char **o = cors; o && *o; o++)
        if (!check_origin(self, *o)) return false;
    for (char **h = allowed_hosts; h && *h; h++)
        if (!check_host(self, *h)) return false;
    return true;
}

/* ---- signals ----------------------------------------------------------------------------------------------------- */
static volatile sig_atomic_t stop;

static void on_signal(int number) {
    (void)number;
    if (stop < 2) stop++;
}

static void catch_signals(void) {
    static const int numbers_[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers_ / sizeof *numbers_; i++) {
        struct sigaction old, action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        /* nohup, and shells that start something in the background, want it ignored. */
        if (sigaction(numbers_[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(numbers_[i], &action, NULL);
    }
}

/* Tells systemd, see sd_notify(3). */
static void notify(const char *text) {
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (!path || (*path != '/' && *path != '@') || strlen(path) >= sizeof a.sun_path) return;
    memcpy(a.sun_path, path, strlen(path));
    if (*path == '@') a.sun_path[0] = 0;
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    const socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&a, size) < 0)
        mx_log(MX_LOG_WARNING, "NOTIFY_SOCKET %s: %s", path, strerror(errno));
    close(fd);
}

static void on_stop(void) {
    notify("STOPPING=1");
}

/* ---- command ----------------------------------------------------------------------------------------------------- */
static mx_api_settings settings_of(const mx_session *s) {
    mx_api_settings settings = mx_session_settings(s);
    if (alias) settings.model = alias;
    return settings;
}

static void announce(const mx_session *s, const char *model, const mx_server *server, const mx_server_options *o) {
    char memory[40];
    mx_session_kv_memory(s, memory);
    fprintf(stderr, "mxrun serve: %s at %s (context %lld, KV memory %s, %d at once, %s)\n", model,
            mx_server_address(server), (long long)s->info.context, memory, s->info.max_running,
            o->api_key_count ? "with API key" : "no API key");
    notify("READY=1");
}

/* The masks of strings, bounded or not, are dear to make and serve all schemas: not only when the first one asks. */
static void prepare_masks(mx_vocabulary *v) {
    static const char text[] = "{\"properties\": {\"a\": {\"type\": \"string\", \"maxLength\": 100}}}";
    const mx_schema_options few = {.spaces = MX_SPACES_FEW};
    mx_json_document *document = NULL;
    mx_grammar *g = NULL;
    if (v && !mx_json_parse("strings", text, sizeof text - 1, &document, NULL) &&
        !mx_schema_compile(mx_json_root(document), "strings", &few, &g, NULL))
        mx_grammar_prepare(g, v, 0.2);
    mx_grammar_free(g);
    mx_json_free(document);
}

static mx_status serve(mx_session *s, const mx_server_options *o, mx_vocabulary **vocabulary, mx_error *error) {
    mx_server *server;
    mx_api_settings settings = settings_of(s);
    mx_status status = mx_vocabulary_create(s->tokenizer, s->info.vocab, vocabulary, error);
    if (status == MX_UNSUPPORTED) status = MX_OK; /* no grammars with this tokenizer */
    settings.vocabulary = *vocabulary;
    prepare_masks(*vocabulary);
    catch_signals(); /* not before: while the model is loaded they end the program */
    if (!status) status = mx_server_create(o, s->engine, &settings, s->path, s->today, &server, error);
    if (!status) {
        announce(s, settings.model, server, o);
        status = mx_server_run(server, &stop, error);
        mx_server_free(server);
    }
    return status;
}

static int work(const mx_command *self, const mx_server_options *o) {
    mx_error error;
    mx_session session;
    mx_vocabulary *vocabulary = NULL;
    int exit_code = MX_EXIT_OK;
    const mx_engine_options engine = {.max_running = (int)numbers[RUNNING].value};
    signal(SIGPIPE, SIG_IGN);
    if (mx_session_prepare(self, false, &session, &exit_code) && mx_session_load(&session, &engine, &exit_code) &&
        serve(&session, o, &vocabulary, &error))
        exit_code = mx_command_fail(self, &error);
    mx_session_close(&session);
    mx_vocabulary_free(vocabulary); /* constraints in the engine use it */
    return exit_code;
}

static int run(const mx_command *self, int argc, const char **argv) {
    const char *const *positional;
    key_list keys = {0};
    mx_error error;
    int exit_code, inherited;
    size_t body;
    uint64_t kept = 0;
    if (!mx_command_parse(self, options, argc, argv, &positional, &exit_code)) return exit_code;
    if (positional) return mx_command_usage(self, "unexpected argument \"%s\"", *positional);
    if (!check_options(self, &body, &kept)) return MX_EXIT_USAGE;
    if (mx_server_inherited(&inherited, &error) || collect_keys(&keys, &error)) {
        exit_code = mx_command_fail(self, &error);
    } else if (!check_keys(self, &keys, inherited)) {
        exit_code = MX_EXIT_USAGE;
    } else {
        const mx_server_options o = {
            .host = host,
            .port = (int)numbers[PORT].value,
            .unix_socket = unix_socket,
            .inherited_socket = inherited,
            .tls_certificate = tls_certificate,
            .tls_key = tls_key,
            .api_keys = keys.keys,
            .api_key_count = keys.count,
            .no_auth = no_auth,
            .cors_origins = (const char *const *)cors,
            .cors_origin_count = count(cors),
            .allowed_hosts = (const char *const *)allowed_hosts,
            .allowed_host_count = count(allowed_hosts),
            .body_bytes = body,
            .replay_bytes = kept,
            .responses_bytes = kept,
            .connections = (int)numbers[CONNECTIONS].value,
            .queue = (int)numbers[QUEUE].value,
            .read_seconds = numbers[READ].value,
            .write_seconds = numbers[WRITE].value,
            .idle_seconds = numbers[IDLE].value,
            .keep_alive_seconds = numbers[KEEP_ALIVE].value,
            .stop_seconds = numbers[STOP].value,
            .page = !no_page,
            .allow_priority = allow_priority,
            .on_stop = on_stop,
        };
        exit_code = work(self, &o);
    }
    free(keys.keys);
    mx_bytes_free(&keys.file);
    return exit_code;
}

const mx_command mx_command_serve = {
    .name = "serve",
    .arguments = "-m MODEL [OPTION]...",
    .summary = "Answer over HTTP, as OpenAI, Anthropic and Ollama do",
    .description = "Loads a model and answers requests over HTTP until Ctrl-C: programs made for\n"
                   "OpenAI's API (base URL http://127.0.0.1:8080/v1), for Anthropic's or for Ollama's\n"
                   "work with it. Without options only this machine can reach it.\n"
                   "\n"
                   "  /v1/chat/completions /v1/completions /v1/responses /v1/models   OpenAI\n"
                   "  /v1/messages                                                    Anthropic\n"
                   "  /api/chat /api/generate /api/tags /api/show /api/version        Ollama\n"
                   "  /v1/tokenize /v1/detokenize /openapi.json\n"
                   "  /health /ready /metrics (Prometheus)\n"
                   "  /                                                               a page to chat\n"
                   "\n"
                   "Elsewhere than on this machine (--host) it wants a key (--api-key-file, or the\n"
                   "variable MXRUN_API_KEY), unless --no-auth says that anybody may ask. Where only this\n"
                   "machine reaches it and no key is asked for, pages of other sites are kept out: by\n"
                   "Host (localhost, addresses, this machine's names and --allow-host pass) and by\n"
                   "Origin (--cors allows more).\n"
                   "\n"
                   "Many requests are answered at once; beyond --max-running they wait, beyond --max-queue\n"
                   "they are refused with 429 and Retry-After. Who goes away is not answered any further.\n"
                   "\n"
                   "The first Ctrl-C (SIGINT, SIGTERM) takes no more requests and finishes what is at\n"
                   "work, at most --stop-timeout seconds; the second ends at once. systemd can hand over\n"
                   "the socket (LISTEN_FDS) and is told when the server is ready (NOTIFY_SOCKET).\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun serve -m stories\n"
                   "  $ curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\":\n"
                   "    \"user\", \"content\": \"Tell me a story.\"}]}'\n"
                   "  $ MXRUN_API_KEY=$(cat key) mxrun serve -m DIR --host 0.0.0.0 --tls-cert c.pem --tls-key k.pem",
    .run = run,
};
