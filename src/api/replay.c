#include "api/replay.h"

mx_status mx_replay_create(uint64_t bytes, mx_replay **out, mx_error *error) {
    (void)bytes;
    (void)out;
    return mx_fail(error, MX_UNSUPPORTED, "not built yet");
}

void mx_replay_free(mx_replay *r) {
    (void)r;
}

void mx_replay_keep(mx_replay *r, const char *id, int answer, const mx_ids *prompt, const mx_turn *turn) {
    (void)r;
    (void)prompt;
    (void)id;
    (void)answer;
    (void)turn;
}

void mx_replay_date(mx_replay *r, uint64_t key, bool begins, char out[static 11]) {
    (void)r;
    (void)begins;
    (void)key;
    (void)out;
}
