/* Sends the requests of a file to a server, so many at once, and tells how long all of them took:
 *
 *     serve_client PORT CONNECTIONS FILE
 *
 * to 127.0.0.1. Each line of FILE is the path and, behind a tab, the JSON body of a POST. Does as little as it can with
 * the replies, for it shares the machine with the server: it looks for their ends. Prints seconds, bytes of the
 * replies' bodies and parts of streams; status 1 where a reply is not 200. tools/bench/serve_load --overhead runs it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cpu.h"

typedef enum where { IN_HEAD, IN_BODY, IN_SIZE, IN_CHUNK, BEHIND_CHUNK } where;

typedef struct connection {
    int fd;
    mx_bytes head; /* of the reply, or a line of a chunk's size */
    where where;
    uint64_t left; /* bytes of the body or chunk */
    bool last;     /* the chunk of no bytes */
} connection;

static char **lines; /* [line_count] */
static int line_count, next_line, done;
static uint64_t body_bytes, chunks;
static int wrong;

static void fail(const char *what) {
    fprintf(stderr, "serve_client: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* False: there is no more to send. */
static bool send_next(connection *c) {
    if (next_line == line_count) return false;
    char *path = lines[next_line++], *body = strchr(path, '\t');
    mx_bytes request = {0};
    if (!body) fail("a line without a tab");
    *body++ = 0;
    if (!mx_bytes_addf(&request,
                       "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       "Content-Length: %zu\r\n\r\n%s",
                       path, strlen(body), body))
        fail("memory");
    for (size_t sent = 0; sent < request.size;) {
        const ssize_t n = write(c->fd, request.data + sent, request.size - sent);
        if (n < 0 && errno != EINTR) fail("write");
        sent += n > 0 ? (size_t)n : 0;
    }
    mx_bytes_free(&request);
    c->where = IN_HEAD;
    mx_bytes_clear(&c->head);
    return true;
}

/* Takes one byte of head or size line. */
static void take_byte(connection *c, char byte) {
    if (!mx_bytes_add(&c->head, &byte, 1)) fail("memory");
    if (c->where == IN_SIZE) {
        if (byte != '\n') return;
        c->left = strtoull(c->head.data, NULL, 16);
        c->last = c->left == 0;
        c->where = c->last ? BEHIND_CHUNK : IN_CHUNK;
        chunks += !c->last;
        if (c->last) c->left = 2;
        return;
    }
    if (!mx_ends_with(c->head.data, "\r\n\r\n")) return;
    if (strncmp(c->head.data, "HTTP/1.1 200", 12) && !wrong++) fprintf(stderr, "%s\n", c->head.data);
    const char *length = strcasestr(c->head.data, "\r\nContent-Length:");
    c->where = length ? IN_BODY : IN_SIZE;
    c->left = length ? strtoull(length + 17, NULL, 10) : 0;
    mx_bytes_clear(&c->head);
}

/* Whether the reply ends with these bytes. */
static bool take(connection *c, const char *data, size_t size) {
    for (size_t i = 0; i < size;) {
        if (c->where == IN_HEAD || c->where == IN_SIZE) {
            take_byte(c, data[i++]);
            if (c->where == IN_BODY && !c->left) return true;
            continue;
        }
        const uint64_t n = c->left < size - i ? c->left : size - i;
        if (c->where != BEHIND_CHUNK) body_bytes += n;
        c->left -= n;
        i += n;
        if (c->left) break;
        if (c->where == IN_BODY || (c->where == BEHIND_CHUNK && c->last)) return true;
        mx_bytes_clear(&c->head);
        if (c->where == IN_CHUNK) c->left = 2;
        c->where = c->where == IN_CHUNK ? BEHIND_CHUNK : IN_SIZE;
    }
    return false;
}

static void read_lines(const char *path) {
    mx_bytes text = {0};
    mx_error error;
    if (mx_read_file(path, (size_t)1 << 30, &text, &error)) {
        fprintf(stderr, "serve_client: %s\n", error.text);
        exit(1);
    }
    int capacity = 1;
    for (size_t i = 0; i < text.size; i++) capacity += text.data[i] == '\n';
    lines = malloc((size_t)capacity * sizeof *lines);
    if (!lines) fail("memory");
    for (char *rest, *line = strtok_r(text.data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        lines[line_count++] = line;
}

static void connect_to(connection *c, int port, int epoll) {
    const struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int one = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)&to, sizeof to)) fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll_ctl");
}

int main(int argc, char **argv) {
    enum { EVENTS = 64, MOST = 4096 };
    static char data[1 << 16];
    if (argc != 4) {
        fprintf(stderr, "usage: serve_client PORT CONNECTIONS FILE\n");
        return 2;
    }
    const int port = atoi(argv[1]), count = atoi(argv[2]), epoll = epoll_create1(0);
    if (count < 1 || count > MOST) return 2;
    connection *all = calloc((size_t)count, sizeof *all);
    if (!all || epoll < 0) fail("memory");
    read_lines(argv[3]);
    const double start = mx_seconds();
    for (int i = 0; i < count && next_line < line_count; i++) {
        connect_to(&all[i], port, epoll);
        send_next(&all[i]);
    }
    while (done < line_count) {
        struct epoll_event events[EVENTS];
        const int n = epoll_wait(epoll, events, EVENTS, 120000);
        if (n <= 0) fail("nothing comes for two minutes");
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            const ssize_t size = read(c->fd, data, sizeof data);
            if (size <= 0) fail("closed in the middle");
            if (take(c, data, (size_t)size)) {
                done++;
                send_next(c);
            }
        }
    }
    printf("%.6f %llu %llu\n", mx_seconds() - start, (unsigned long long)body_bytes, (unsigned long long)chunks);
    return wrong > 0;
}
