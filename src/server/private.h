#ifndef MX_SERVER_PRIVATE_H
#define MX_SERVER_PRIVATE_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "server/exchange.h"
#include "server/metrics.h"
#include "server/server.h"

/* What http.c, pool.c, exchange.c, work.c, watch.c and server.c share.
 *
 * Threads: a few of libmicrohttpd's (read requests, call handle(), write replies), a pool (handle() of large bodies),
 * the caller of mx_server_run (the engine's steps and the forms), and the watcher (clients that went away, deadlines,
 * keep-alive comments). Locks in this order: server->lock or jobs_lock, exchange->lock, then those of libmicrohttpd and
 * of the engine, which call nobody back. */

/* ---- connections ------------------------------------------------------------------------------------------------- */
typedef enum mx_phase {
    MX_PHASE_FRESH,   /* connected, nothing read yet */
    MX_PHASE_IDLE,    /* between two requests */
    MX_PHASE_READING, /* the request line is there */
    MX_PHASE_BUSY,    /* the whole request is */
} mx_phase;

/* A connection; all but hung_up under server->lock. */
typedef struct mx_slot {
    bool used, shut; /* shut: it was cut off, libmicrohttpd closes it */
    struct mx_worker *worker;
    int fd;
    atomic_bool hung_up; /* the client sends nothing more */
    uint32_t generation; /* counts who had the slot, so that late news of the one before are known */
    mx_phase phase;
    double since; /* mx_seconds() at which the phase began */
    mx_exchange *exchange;
    int next_free;
} mx_slot;

/* ---- exchanges --------------------------------------------------------------------------------------------------- */
typedef enum mx_state {
    MX_STATE_OPEN,   /* no reply yet; with a job: the engine works on it */
    MX_STATE_STREAM, /* a reply that grows */
    MX_STATE_ENDED,  /* `out` has all of the reply, or the last part of the stream */
} mx_state;

typedef struct mx_header {
    char *name, *value; /* owned */
} mx_header;

typedef struct mx_job mx_job;

struct mx_exchange {
    atomic_int references;
    mx_server *server;
    mx_slot *slot;

    /* The request, of the connection's thread, or the pool's, until handle() is over, then unchanged. */
    char *path, *variable;       /* owned; variable NULL: none */
    const mx_endpoint *endpoint; /* NULL: none is like it */
    bool routed;                 /* it is this one; false: only errors have its form */
    const char *method;          /* a constant */
    mx_bytes body;
    bool zero;    /* the path has %00 in it: libmicrohttpd tells only what is before */
    bool discard; /* a refusal is decided, the rest of the body is thrown away */
    bool begun;   /* counted in server->busy */
    mx_json_document *json;
    mx_exchange *next_handled; /* in the pool's queue */
    char id[33];
    int64_t created;
    double started;
    mx_header *headers; /* [header_count], of the reply */
    int header_count;

    pthread_mutex_t lock;              /* for all below, and `out` and `job` are the engine's and the connection's */
    struct MHD_Connection *connection; /* NULL: the request is over for libmicrohttpd */
    mx_state state;
    int status;       /* HTTP; 0: none yet */
    const char *type; /* content type, a constant or of a form */
    mx_bytes out;     /* what the client gets */
    size_t taken;     /* bytes of it that libmicrohttpd has */
    bool streams;     /* the reply is a stream, perhaps ended by now */
    bool queued;      /* libmicrohttpd has the reply's head */
    bool suspended;   /* libmicrohttpd waits for mx_exchange_wake */
    bool handled;     /* the pool has it: handle() is not over, and until then the connection stays suspended */
    bool gone;        /* the client went away, or was cut off */
    double moved;     /* mx_seconds() at which something was last taken or added */
    mx_job *job;      /* NULL: none, or over */
};

/* Created when a request line was read. NULL: no memory. */
mx_exchange *mx_exchange_create(mx_server *s);
void mx_exchange_keep(mx_exchange *x);
void mx_exchange_drop(mx_exchange *x);
/* Frees the body and its tree; what was made of them is there. */
void mx_exchange_forget_request(mx_exchange *x);

/* With x->lock held: */
void mx_exchange_wake(mx_exchange *x); /* there is something for libmicrohttpd to do */
void mx_exchange_cut(mx_exchange *x);  /* cancels its work and shuts the connection */
/* The reply is an error, in the form of the endpoint's protocol; no stream has begun. */
void mx_exchange_set_problem(mx_exchange *x, const mx_api_problem *problem);

/* Fills `problem`; returns it. */
mx_api_problem *mx_problem_set(mx_api_problem *problem, int http_status, const char *code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- http.c ------------------------------------------------------------------------------------------------------ */
/* Threads of libmicrohttpd, that read, call handle() unless the body is large, and write, each with its connections.
 * Connections are accepted by the watcher: libmicrohttpd's own way to stop listening (MHD_quiesce_daemon, 0.9.75) ends
 * the program where one of its threads wakes up meanwhile. */
enum { MX_WORKERS = 4 };
typedef struct mx_worker {
    mx_server *server;
    struct MHD_Daemon *daemon; /* NULL: not running */
    int connections;           /* under server->lock; those handed over that are not seen yet, too */
} mx_worker;

mx_status mx_http_start(mx_server *s, mx_error *error);
/* Hands a client over; the descriptor is libmicrohttpd's from then on. */
void mx_http_add(mx_server *s, int fd, const struct sockaddr *address, socklen_t size);
void mx_http_stop(mx_server *s);

/* Calls handle(), and sees to it that there is a reply or work. */
void mx_exchange_handle(mx_exchange *x);

/* ---- pool.c ------------------------------------------------------------------------------------------------------ */
mx_status mx_pool_start(mx_server *s, mx_error *error);
/* Suspends the connection until a thread of the pool has called handle(). false: as many wait as may. */
bool mx_pool_add(mx_exchange *x);
/* Takes no more, waits for those in handle() and cuts off those that wait. May be called twice; NULL pool allowed. */
void mx_pool_stop(mx_server *s);
void mx_pool_free(mx_server *s);

/* ---- route.c, gate.c --------------------------------------------------------------------------------------------- */
/* Finds x->endpoint (and x->variable) for x->path, or sets the problem; `allow`: the methods of the path, for 405. */
bool mx_route(mx_exchange *x, const char *method, mx_api_problem *problem, char allow[static 64]);

/* The path of a request line, which may begin with "http://HOST". */
const char *mx_route_path(const char *url);
bool mx_route_has_zero(const char *uri); /* as it came, with its % */

/* Is it clear where the request ends and whom it is for, also to a proxy before us (else 400, and the connection must
 * end), and is the body as it is (else 415)? */
bool mx_gate_check_head(struct MHD_Connection *connection, mx_api_problem *problem);
/* May this request be answered: keys, Host, Origin. false: `problem` says why not. */
bool mx_gate_check(mx_exchange *x, struct MHD_Connection *connection, mx_api_problem *problem);
/* Headers of CORS for any reply. `preflight`: and those of an OPTIONS request. */
void mx_gate_add_headers(mx_exchange *x, struct MHD_Connection *connection, struct MHD_Response *response,
                         bool preflight);
enum { MX_KEY_HASH = 32 };
/* White space around a key does not count. false: there is no more to it (or no SHA-256). */
bool mx_gate_hash(const char *key, unsigned char out[static MX_KEY_HASH]);

/* ---- listen.c, tls.c --------------------------------------------------------------------------------------------- */
/* The listening sockets of s->options, one for each address of a name, s->address and s->unix_path. */
enum { MX_LISTENERS = 8 };
mx_status mx_listen_open(mx_server *s, mx_error *error);
/* Closes them, and removes the unix socket's file where it is still ours. May be called twice. */
void mx_listen_close(mx_server *s);

/* Reads both files and checks that they belong together. */
mx_status mx_tls_read(const char *certificate, const char *key, mx_bytes *certificate_out, mx_bytes *key_out,
                      mx_error *error);

/* ---- work.c ------------------------------------------------------------------------------------------------------ */
/* With x->lock held: the engine need not go on. */
void mx_job_cancel(mx_job *job);
/* With x->lock held: appends what keeps a quiet stream open. Returns whether there is such a thing. */
bool mx_job_keep_alive(mx_job *job, mx_bytes *out);
/* Hands all events that the engine has to their exchanges. */
void mx_work_take(mx_server *s);
/* Ends all jobs with an error. */
void mx_work_fail_all(mx_server *s, const mx_api_problem *problem);
/* Frees the jobs of which the engine will tell nothing more. */
void mx_work_abandon(mx_server *s);
/* Seconds after which a client that was refused may try again. */
int mx_work_retry_after(mx_server *s);

/* ---- watch.c ----------------------------------------------------------------------------------------------------- */
mx_status mx_watch_start(mx_server *s, mx_error *error);
void mx_watch_stop(mx_server *s);
void mx_watch_wake(mx_server *s); /* something in s->stopping, s->closing or the number of connections changed */
/* With server->lock held, for a connection that is new: what its client asked for ends when it goes away. */
void mx_watch_slot(mx_server *s, mx_slot *slot);

/* ---- the server -------------------------------------------------------------------------------------------------- */
struct mx_server {
    mx_server_options options; /* no zeros; strings owned in `strings` */
    char *host, *unix_path;    /* owned */
    char own_name[256];        /* of this machine */
    char **origins;            /* [options.cors_origin_count], owned */
    char **hosts;              /* [options.allowed_host_count], owned */
    bool any_origin;           /* "*" is among the origins */
    unsigned char (*keys)[MX_KEY_HASH];
    int key_count;
    bool local; /* only this machine reaches it, over TCP, browsers too: without keys Host and Origin count */
    mx_bytes certificate, key; /* PEM; empty: no TLS */
    mx_engine *engine;
    mx_server_parts parts;
    mx_metrics *metrics;
    char address[300];
    uint64_t unix_device, unix_inode;
    int listeners[MX_LISTENERS]; /* [listener_count]; the watcher's while it runs */
    int listener_count;          /* 0: none (any more) */
    mx_worker workers[MX_WORKERS];
    struct mx_pool *pool;

    pthread_mutex_t lock;
    mx_slot *slots; /* [slot_count] */
    int slot_count, free_slot;
    atomic_int connected;          /* slots used */
    atomic_int busy;               /* exchanges whose request is there and whose reply is not gone out */
    _Atomic size_t bodies;         /* bytes of all bodies that are not read as JSON yet */
    atomic_bool stopping, closing; /* closing: nothing waits any more */

    pthread_t watcher;
    bool watching;
    int watch_fd, watch_wake; /* epoll, eventfd */
    bool accepting;           /* the watcher's: the listeners are in epoll */
    atomic_bool full;         /* it is not, for there are as many connections as may be */

    pthread_mutex_t jobs_lock;
    mx_job *jobs;
    atomic_int at_work;                  /* answers that the engine has */
    double finish_interval, last_finish; /* seconds between two answers' ends, smoothed; the engine's thread */
    _Atomic double retry_interval;
};

#endif
