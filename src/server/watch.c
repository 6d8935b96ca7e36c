/* A thread that lets clients in, sees them go away, cuts off those that are too slow, and keeps quiet streams open. It
 * depends on no step of the engine, which may take long. */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cpu.h"
#include "server/private.h"

static uint64_t name_of(const mx_server *s, const mx_slot *slot) {
    return (uint64_t)slot->generation << 32 | (uint64_t)(slot - s->slots);
}
static const uint64_t WAKE = UINT64_MAX, LISTENER = UINT64_MAX - 1;

/* libmicrohttpd does not watch a connection that waits for the engine, nor sees an end that comes together with data.
 * Where there is no memory for it, it is seen when it is written to. */
void mx_watch_slot(mx_server *s, mx_slot *slot) {
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = name_of(s, slot)};
    epoll_ctl(s->watch_fd, EPOLL_CTL_ADD, slot->fd, &event); /* closing takes it out again */
}

/* One that only said that it sends no more gets replies, but no answers of the model: it cannot be told from one that
 * went away. */
static void client_gone(mx_server *s, uint64_t name) {
    pthread_mutex_lock(&s->lock);
    mx_slot *slot = &s->slots[(uint32_t)name];
    if (slot->used && slot->generation == name >> 32) {
        mx_exchange *x = slot->exchange;
        atomic_store(&slot->hung_up, true);
        if (x) {
            pthread_mutex_lock(&x->lock);
            if (x->job && x->state != MX_STATE_ENDED) mx_exchange_cut(x);
            pthread_mutex_unlock(&x->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- letting in -------------------------------------------------------------------------------------------------- */
/* Whoever finds no place waits in the kernel's queue. */
static void set_accepting(mx_server *s, bool wanted) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = LISTENER};
    bool ok = s->listener_count > 0;
    if (wanted == s->accepting) return;
    for (int i = 0; i < s->listener_count; i++) {
        const int failed = epoll_ctl(s->watch_fd, wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, s->listeners[i], &event);
        ok &= !failed || errno == (wanted ? EEXIST : ENOENT);
    }
    if (ok) s->accepting = wanted;
}

static bool has_place(mx_server *s) {
    if (atomic_load(&s->connected) < s->options.connections) return true;
    atomic_store(&s->full, true); /* before it is looked at again, so that a place that gets free meanwhile wakes us */
    if (atomic_load(&s->connected) >= s->options.connections) return false;
    atomic_store(&s->full, false);
    return true;
}

/* false: there is no place for more. */
static bool let_in_at(mx_server *s, int listener) {
    enum { AT_ONCE = 32 };
    struct sockaddr_storage address;
    bool place = true;
    for (int i = 0; i < AT_ONCE && (place = has_place(s)); i++) {
        socklen_t size = sizeof address;
        const int fd = accept4(listener, (struct sockaddr *)&address, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            mx_http_add(s, fd, (struct sockaddr *)&address, size);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            return false; /* until the next sweep */
        } else if (errno != ECONNABORTED && errno != EINTR) {
            break;
        }
    }
    return place;
}

static void let_in(mx_server *s) {
    for (int i = 0; i < s->listener_count; i++)
        if (!let_in_at(s, s->listeners[i])) set_accepting(s, false);
}

/* After something changed. */
static void look_again(mx_server *s) {
    if (atomic_load(&s->stopping)) {
        set_accepting(s, false);
        mx_listen_close(s);
    } else if (has_place(s)) {
        atomic_store(&s->full, false);
        set_accepting(s, true);
    }
}

/* ---- deadlines --------------------------------------------------------------------------------------------------- */
/* Whether it is the client that keeps a reply from going out: a socket that has room waits for us. */
static bool blocks(const mx_slot *slot) {
    struct pollfd p = {.fd = slot->fd, .events = POLLOUT};
    return poll(&p, 1, 0) != 1 || p.revents != POLLOUT;
}

static void sweep_busy(mx_server *s, mx_exchange *x, double now) {
    if (pthread_mutex_trylock(&x->lock)) return; /* somebody is at it: the next sweep sees to it */
    const double quiet = now - x->moved;
    const bool waits = x->suspended && x->state == MX_STATE_STREAM && x->out.size == x->taken;
    if (x->queued && !x->suspended && quiet > s->options.write_seconds && blocks(x->slot)) {
        mx_exchange_cut(x);
    } else if (waits && x->job && quiet > s->options.keep_alive_seconds) {
        if (mx_job_keep_alive(x->job, &x->out)) mx_exchange_wake(x);
    }
    pthread_mutex_unlock(&x->lock);
}

static void sweep_slot(mx_server *s, mx_slot *slot, double now) {
    double limit = slot->phase == MX_PHASE_IDLE ? s->options.idle_seconds : s->options.read_seconds;
    if (limit > 1 && atomic_load(&slot->hung_up)) limit = 1; /* what it sent is read by then */
    if (slot->phase == MX_PHASE_BUSY && slot->exchange) {
        sweep_busy(s, slot->exchange, now);
    } else if (!slot->shut && slot->phase != MX_PHASE_BUSY && now - slot->since > limit) {
        slot->shut = true;
        shutdown(slot->fd, SHUT_RDWR);
    }
}

static void sweep(mx_server *s) {
    const double now = mx_seconds();
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->slot_count; i++)
        if (s->slots[i].used) sweep_slot(s, &s->slots[i], now);
    pthread_mutex_unlock(&s->lock);
}

/* Seconds between two sweeps: short beside all deadlines. */
static double period(const mx_server *s) {
    const double limits[] = {s->options.read_seconds, s->options.write_seconds, s->options.idle_seconds,
                             s->options.keep_alive_seconds};
    double least = 4;
    for (int i = 0; i < 4; i++) least = limits[i] < least ? limits[i] : least;
    return least / 4 < 0.01 ? 0.01 : least / 4;
}

static void *watch(void *server) {
    mx_server *s = server;
    enum { EVENTS = 32 };
    struct epoll_event events[EVENTS];
    const double every = period(s);
    double next = mx_seconds() + every;
    while (!atomic_load(&s->closing)) {
        const double left = next - mx_seconds();
        const int n = epoll_wait(s->watch_fd, events, EVENTS, left > 0 ? (int)(left * 1e3) + 1 : 0);
        for (int i = 0; i < n; i++) {
            uint64_t count;
            if (events[i].data.u64 == LISTENER) {
                let_in(s);
            } else if (events[i].data.u64 == WAKE) {
                const ssize_t taken = read(s->watch_wake, &count, sizeof count);
                (void)taken;
                look_again(s);
            } else {
                client_gone(s, events[i].data.u64);
            }
        }
        if (mx_seconds() < next) continue;
        sweep(s);
        look_again(s);
        next = mx_seconds() + every;
    }
    set_accepting(s, false);
    return NULL;
}

/* ---- start and end ----------------------------------------------------------------------------------------------- */
mx_status mx_watch_start(mx_server *s, mx_error *error) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = WAKE};
    if (epoll_ctl(s->watch_fd, EPOLL_CTL_ADD, s->watch_wake, &event))
        return mx_fail(error, MX_IO, "epoll: %s", strerror(errno));
    set_accepting(s, true);
    if (!s->accepting) return mx_fail(error, MX_IO, "%s: epoll: %s", s->address, strerror(errno));
    const int failed = pthread_create(&s->watcher, NULL, watch, s);
    if (failed) return mx_fail(error, MX_NO_MEMORY, "no thread: %s", strerror(failed));
    s->watching = true;
    return MX_OK;
}

void mx_watch_wake(mx_server *s) {
    const uint64_t one = 1;
    const ssize_t written = write(s->watch_wake, &one, sizeof one);
    (void)written; /* one that is full wakes, too */
}

void mx_watch_stop(mx_server *s) {
    if (!s->watching) return;
    mx_watch_wake(s);
    pthread_join(s->watcher, NULL);
    s->watching = false;
}
