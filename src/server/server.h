#ifndef MX_SERVER_H
#define MX_SERVER_H

#include <signal.h>

#include "api/request.h"
#include "engine/mxrun.h"

/* The HTTP server around one engine. */
typedef struct mx_server mx_server;

typedef struct mx_server_options {
    const char *host;                      /* "127.0.0.1"; "0.0.0.0", "::", a name */
    int port;                              /* 0: any that is free (mx_server_address tells) */
    const char *unix_socket;               /* path, instead of host and port; NULL: none */
    int inherited_socket;                  /* of systemd's socket activation, instead of both; -1: none */
    const char *tls_certificate, *tls_key; /* PEM files; NULL: no TLS */
    const char *const *api_keys;           /* [api_key_count]; 0: none is asked for */
    int api_key_count;
    bool no_auth; /* without a key, too, it may listen where others than this machine reach it */
    /* Origins whose pages may use it, "*": all; NULL: no CORS. */
    const char *const *cors_origins;
    int cors_origin_count;
    /* More names than its own under which this machine's browsers may know it, where no key is asked for. */
    const char *const *allowed_hosts;
    int allowed_host_count;
    size_t header_bytes, body_bytes; /* most; 0: 64 KiB, 16 MiB */
    int connections;                 /* most at once; 0: 1024 */
    int queue;                       /* most answers that wait for the engine; more: 429. 0: 256 */
    double read_seconds;             /* headers and body are there within so long; 0: 30 */
    double write_seconds;            /* a client that takes nothing for so long is cut off; 0: 30 */
    double idle_seconds;             /* a connection without a request is closed; 0: 75 */
    double keep_alive_seconds;       /* a stream in which nothing happens gets a comment; 0: 15 */
    size_t backlog_bytes;            /* of a stream that its client does not read: more, and it is cut off; 0: 4 MiB */
    double stop_seconds;             /* of a graceful stop: answers at work may take so long; 0: 30 */
    uint64_t replay_bytes, responses_bytes; /* memory of what may come back; 0: 64 MiB, 64 MiB */
    bool page;                              /* the page at / */
    bool allow_priority;                    /* clients may put themselves before others ("priority") */
    void (*on_stop)(void);                  /* called once, when stopping begins; NULL: nothing is */
    const struct mx_endpoint *more;         /* of the program that embeds it, looked at first; NULL: none. Borrowed */
} mx_server_options;

/* Listens; nothing is answered before mx_server_run. Copies the options; engine and settings stay the caller's and must
 * outlive the server. */
mx_status mx_server_create(const mx_server_options *options, mx_engine *engine, const mx_api_settings *settings,
                           const char *model_path, bool dated, mx_server **out, mx_error *error);
/* "http://127.0.0.1:8080", "unix:/run/mxrun.sock" */
const char *mx_server_address(const mx_server *s);
/* Serves until *stop is not 0: takes no more connections, ends what is at work or waits options.stop_seconds for it,
 * then returns MX_OK; once *stop is 2 or more it cuts off at once. An error is the engine's. Runs mx_step in the
 * calling thread. */
mx_status mx_server_run(mx_server *s, const volatile sig_atomic_t *stop, mx_error *error);
void mx_server_free(mx_server *s); /* NULL allowed */

/* The socket that systemd handed over to this process (LISTEN_PID, LISTEN_FDS), for options.inherited_socket; -1: none.
 * Later callers, and children, do not see it. */
mx_status mx_server_inherited(int *fd, mx_error *error);
/* Is it reached from this machine only (a unix socket, a loopback address)? */
bool mx_server_is_private(int fd);
/* Warns where anybody may read a file with secrets: "the private key". */
void mx_server_warn_of_mode(const char *path, const char *secret);

#endif
