/* Listening sockets: TCP over IPv4 and IPv6, a unix socket, one that systemd opened. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "server/private.h"

enum { BACKLOG = 1024 };

static const char *scheme(const mx_server *s) {
    return s->certificate.size ? "https" : "http";
}

/* ---- TCP --------------------------------------------------------------------------------------------------------- */
/* s->address of the (first) socket as it is bound; where a name has several, by its name. */
static void set_address(mx_server *s) {
    const int fd = s->listeners[0];
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char host[NI_MAXHOST], port[NI_MAXSERV];
    snprintf(s->address, sizeof s->address, "%s://?", scheme(s));
    if (getsockname(fd, (struct sockaddr *)&bound, &size)) return;
    if (bound.ss_family == AF_UNIX) {
        const struct sockaddr_un *u = (const struct sockaddr_un *)&bound;
        snprintf(s->address, sizeof s->address, "unix:%.*s", (int)sizeof u->sun_path,
                 size > offsetof(struct sockaddr_un, sun_path) && *u->sun_path ? u->sun_path : "?");
    } else if (!getnameinfo((struct sockaddr *)&bound, size, host, sizeof host, port, sizeof port,
                            NI_NUMERICHOST | NI_NUMERICSERV)) {
        const char *name = s->listener_count > 1 ? s->host : host;
        const bool brackets = strchr(name, ':') != NULL;
        snprintf(s->address, sizeof s->address, "%s://%s%.200s%s:%s", scheme(s), brackets ? "[" : "", name,
                 brackets ? "]" : "", port);
    }
}

static bool is_loopback(const struct sockaddr_storage *bound) {
    if (bound->ss_family == AF_INET) return ntohl(((const struct sockaddr_in *)bound)->sin_addr.s_addr) >> 24 == 127;
    if (bound->ss_family != AF_INET6) return false;
    const struct in6_addr *a = &((const struct sockaddr_in6 *)bound)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(a) || (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127);
}

/* Is it TCP that is reached from this machine only? */
static bool is_local(int fd) {
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    return getsockname(fd, (struct sockaddr *)&bound, &size) == 0 && is_loopback(&bound);
}

bool mx_server_is_private(int fd) {
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    return getsockname(fd, (struct sockaddr *)&bound, &size) == 0 &&
           (bound.ss_family == AF_UNIX || is_loopback(&bound));
}

/* -1: errno. */
static int bind_tcp(const struct addrinfo *a) {
    const int on = 1, off = 0;
    const int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off); /* "::" is both */
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    const int why = errno;
    close(fd);
    errno = why;
    return -1;
}

static mx_status cannot_bind(const char *host, int port, int why, mx_error *error) {
    if (why == EADDRINUSE)
        return mx_fail(error, MX_IO,
                       "%s port %d is taken by another program (ss -ltnp shows which): end it, or choose another with "
                       "--port",
                       host, port);
    if (why == EACCES)
        return mx_fail(error, MX_IO, "%s port %d: ports below 1024 are root's: choose another with --port", host, port);
    if (why == EADDRNOTAVAIL)
        return mx_fail(error, MX_IO, "%s is no address of this machine: --host takes one, such as 127.0.0.1 or 0.0.0.0",
                       host);
    return mx_fail(error, MX_IO, "cannot listen on %s port %d: %s", host, port, strerror(why));
}

static void set_port(struct sockaddr *a, in_port_t port) {
    if (a->sa_family == AF_INET) ((struct sockaddr_in *)a)->sin_port = port;
    if (a->sa_family == AF_INET6) ((struct sockaddr_in6 *)a)->sin6_port = port;
}

/* The port that a socket got, in network order; 0: not known. */
static in_port_t port_of(int fd) {
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    if (getsockname(fd, (struct sockaddr *)&bound, &size)) return 0;
    return bound.ss_family == AF_INET ? ((struct sockaddr_in *)&bound)->sin_port
                                      : ((struct sockaddr_in6 *)&bound)->sin6_port;
}

/* Does an address stand in the list before `a`, too? */
static bool is_repeated(const struct addrinfo *list, const struct addrinfo *a) {
    for (; list != a; list = list->ai_next)
        if (list->ai_addrlen == a->ai_addrlen && memcmp(list->ai_addr, a->ai_addr, a->ai_addrlen) == 0) return true;
    return false;
}

/* All of a name's addresses that this machine has, on one port. 0, or errno. */
static int bind_all(mx_server *s, struct addrinfo *list) {
    int why = EADDRNOTAVAIL;
    for (struct addrinfo *a = list; a && s->listener_count < MX_LISTENERS; a = a->ai_next) {
        if (s->listener_count) set_port(a->ai_addr, port_of(s->listeners[0]));
        if (is_repeated(list, a)) continue;
        const int fd = bind_tcp(a);
        if (fd >= 0) {
            s->listeners[s->listener_count++] = fd;
            set_port(a->ai_addr, port_of(fd));
        } else if (errno != EADDRNOTAVAIL && errno != EAFNOSUPPORT) {
            return errno;
        } else {
            why = errno;
        }
    }
    return s->listener_count ? 0 : why;
}

static mx_status open_tcp(mx_server *s, mx_error *error) {
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    char port[12];
    snprintf(port, sizeof port, "%d", s->options.port);
    const int failed = getaddrinfo(s->host, port, &hints, &list);
    if (failed)
        return mx_fail(error, MX_INVALID_ARGUMENT, "host \"%s\": %s; expected an address or a name of this machine",
                       s->host, gai_strerror(failed));
    const int why = bind_all(s, list);
    freeaddrinfo(list);
    return why ? cannot_bind(s->host, s->options.port, why, error) : MX_OK;
}

/* ---- unix socket ------------------------------------------------------------------------------------------------- */
/* What lies at the path of an earlier server that did not end well, and nobody listens on, goes. */
static mx_status remove_stale(const struct sockaddr_un *a, mx_error *error) {
    struct stat info;
    if (lstat(a->sun_path, &info)) return MX_OK;
    if (!S_ISSOCK(info.st_mode))
        return mx_fail(error, MX_IO, "%s is there and is no socket: choose another path with --unix", a->sun_path);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return mx_fail(error, MX_IO, "no socket: %s", strerror(errno));
    const bool answered = connect(fd, (const struct sockaddr *)a, sizeof *a) == 0;
    const int why = answered ? 0 : errno;
    close(fd);
    if (answered || why != ECONNREFUSED)
        return mx_fail(error, MX_IO,
                       "%s is the socket of another program (%s): end it, or choose another path with --unix",
                       a->sun_path, answered ? "it answers" : strerror(why));
    mx_log(MX_LOG_INFO, "%s was left by a server that is gone: it is replaced", a->sun_path);
    return unlink(a->sun_path) ? mx_fail(error, MX_IO, "%s: %s", a->sun_path, strerror(errno)) : MX_OK;
}

static mx_status open_unix(mx_server *s, mx_error *error) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat info;
    const char *path = s->options.unix_socket;
    if (!*path || strlen(path) >= sizeof a.sun_path)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the path of a unix socket has 1 to %zu bytes, \"%.120s\" has %zu",
                       sizeof a.sun_path - 1, path, strlen(path));
    strcpy(a.sun_path, path);
    mx_status status = remove_stale(&a, error);
    if (status) return status;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return mx_fail(error, MX_IO, "no socket: %s", strerror(errno));
    s->listeners[s->listener_count++] = fd;
    if (bind(fd, (struct sockaddr *)&a, sizeof a))
        return mx_fail(error, MX_IO, "cannot make the socket %s: %s", path, strerror(errno));
    s->unix_path = strdup(path);
    if (s->unix_path && stat(path, &info) == 0) {
        s->unix_device = info.st_dev;
        s->unix_inode = info.st_ino;
    }
    if (listen(fd, BACKLOG)) return mx_fail(error, MX_IO, "cannot listen on %s: %s", path, strerror(errno));
    return MX_OK;
}

void mx_listen_close(mx_server *s) {
    struct stat info;
    while (s->listener_count) close(s->listeners[--s->listener_count]);
    if (s->unix_path && lstat(s->unix_path, &info) == 0 && info.st_dev == s->unix_device &&
        info.st_ino == s->unix_inode)
        unlink(s->unix_path);
}

/* ---- systemd's --------------------------------------------------------------------------------------------------- */
static mx_status open_inherited(mx_server *s, mx_error *error) {
    const int fd = s->options.inherited_socket;
    int listens = 0;
    socklen_t size = sizeof listens;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) || !listens)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "descriptor %d, which was handed over, is no listening socket: expected ListenStream= in the "
                       ".socket unit",
                       fd);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    s->listeners[s->listener_count++] = fd;
    return MX_OK;
}

mx_status mx_listen_open(mx_server *s, mx_error *error) {
    mx_status status = s->options.inherited_socket >= 0 ? open_inherited(s, error)
                       : s->options.unix_socket         ? open_unix(s, error)
                                                        : open_tcp(s, error);
    if (status) return status;
    set_address(s);
    bool private = true;
    s->local = true;
    for (int i = 0; i < s->listener_count; i++) {
        s->local &= is_local(s->listeners[i]);
        private &= mx_server_is_private(s->listeners[i]);
    }
    if (!s->key_count && !s->options.no_auth && !private)
        return mx_fail(
            error, MX_INVALID_ARGUMENT,
            "%s: others can reach it, so that a key is needed (--api-key-file, MXRUN_API_KEY or --api-key), or "
            "--no-auth",
            s->address);
    return MX_OK;
}

/* See sd_listen_fds(3) for the variables. */
mx_status mx_server_inherited(int *fd, mx_error *error) {
    const char *process = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    *fd = -1;
    if (!process || !count || strtol(process, NULL, 10) != (long)getpid()) return MX_OK;
    if (strcmp(count, "1") != 0)
        return mx_fail(error, MX_UNSUPPORTED,
                       "%s sockets were handed over (LISTEN_FDS), expected 1: one ListenStream= in the .socket unit",
                       count);
    *fd = 3;
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return MX_OK;
}
