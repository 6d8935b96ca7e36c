#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/files.h"
#include "base/json.h"
#include "hub/http.h"
#include "hub/private.h"

/* A pull: ask the hub what there is, hold that against models.txt and mxrun.lock, fetch what is missing into blobs/,
 * then make the snapshot and the ref, in this order, so that a name never stands for less than all of it: with links
 * or, where the file system has none, with the blobs themselves. */

enum { ASK_RETRIES = 3 };

/* The folder where a new snapshot is built. Without links it takes the blobs themselves, so a pull that was killed
 * there left more than names: it has the commit in its name then, and the next pull goes on with it. */
#define BUILDING ".mxrun-snapshot"

typedef struct item {
    const char *path;             /* in the repository */
    const mx_listed_file *listed; /* what models.txt says; NULL */
    mx_remote remote;
    char blob[MX_ETAG_TEXT]; /* name in blobs/ */
    bool git;                /* that is git's SHA-1 */
    bool there;
    int download;                             /* its number there; -1: none */
    char url[MX_HUB_PATH], part[MX_HUB_PATH]; /* part: while it is coming in */
    char complete[MX_HUB_PATH];               /* what the download makes of it */
} item;

typedef struct job {
    const mx_hub *hub;
    const mx_target *target;
    const mx_pull_options *options;
    mx_http_options http, asking; /* asking: answers come soon, or the user waits for nothing */
    char endpoint[300];           /* of the hub, for messages */
    char folder[MX_HUB_PATH];
    char asked[MX_REVISION];     /* revision that the hub is asked for */
    char commit[MX_COMMIT_TEXT]; /* "": not told yet */
    bool pinned;                 /* `asked` is what mxrun.lock pins */
    bool links;
    mx_hub_layout layout;
    mx_pins pins;
    mx_strings needed, wanted;
    item *item;
    int items;
    mx_download *download;
    int downloads;
    mx_pull_event event;
} job;

static mx_status out_of_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "out of memory");
}

static void tell(job *j, mx_pull_event_type type) {
    j->event.type = type;
    if (j->options->event) j->options->event(j->options->user, &j->event);
}

static void tell_waiting(void *user) {
    tell(user, MX_PULL_WAITING);
}

/* ---- addresses --------------------------------------------------------------------------------------------------- */
static void quote(const char *text, bool slashes, char *out, size_t size) {
    size_t used = 0;
    for (const char *p = text; *p && used + 4 < size; p++) {
        if (isalnum((unsigned char)*p) || strchr("-._~", *p) || (slashes && *p == '/'))
            out[used++] = *p;
        else
            used += (size_t)snprintf(out + used, size - used, "%%%02X", (unsigned char)*p);
    }
    out[used] = 0;
}

static mx_status file_url(const job *j, const char *revision, const char *path, char out[MX_HUB_PATH],
                          mx_error *error) {
    char r[3 * MX_REVISION + 1], p[3 * MX_FILE_NAME + 1];
    quote(revision, false, r, sizeof r);
    quote(path, true, p, sizeof p);
    return mx_hub_path(out, error, "%s/%s/resolve/%s/%s", j->hub->endpoint, j->target->repository, r, p);
}

/* ---- what the hub has -------------------------------------------------------------------------------------------- */
static mx_status take_listing(job *j, const char *url, const mx_json *root, mx_strings *there, mx_error *error) {
    const mx_json *commit = mx_json_get(root, "sha"), *siblings = mx_json_get(root, "siblings");
    if (!siblings || siblings->type != MX_JSON_ARRAY)
        return mx_fail(error, MX_INVALID_FILE, "%s: the answer has no list \"siblings\": this is no model hub", url);
    if (commit && commit->type == MX_JSON_STRING && mx_is_commit(commit->text))
        mx_set_text(j->commit, sizeof j->commit, commit->text);
    for (const mx_json *v = siblings->child; v; v = v->next) {
        const mx_json *name = mx_json_get(v, "rfilename");
        if (!name || name->type != MX_JSON_STRING || strlen(name->text) != name->size || !mx_is_file_name(name->text))
            continue; /* nothing that could be needed has such a name */
        if (!mx_strings_add(there, name->text)) return out_of_memory(error);
    }
    return MX_OK;
}

static mx_status list_hub(job *j, mx_error *error) {
    char url[MX_HUB_PATH], shown[300], revision[3 * MX_REVISION + 1];
    quote(j->asked, false, revision, sizeof revision);
    mx_status status =
        mx_hub_path(url, error, "%s/api/models/%s/revision/%s", j->hub->endpoint, j->target->repository, revision);
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    mx_strings there = {0};
    if (!status) mx_url_shown(url, shown);
    if (!status) status = mx_remote_get(url, &j->asking, (int64_t)32 << 20, &text, error);
    if (!status) status = mx_json_parse(shown, text.data ? text.data : "", text.size, &document, error);
    if (!status) status = take_listing(j, shown, mx_json_root(document), &there, error);
    if (!status) status = mx_choose_files(j->target, &there, &j->layout, &j->needed, &j->wanted, error);
    mx_strings_free(&there);
    mx_json_free(document);
    mx_bytes_free(&text);
    return status;
}

static mx_status list_files(job *j, mx_error *error) {
    const mx_known_model *known = j->target->known;
    if (!known || known->file_count == 0) return list_hub(j, error);
    j->layout = known->layout;
    for (int i = 0; i < known->file_count; i++)
        if (!mx_strings_add(known->files[i].optional ? &j->wanted : &j->needed, known->files[i].path))
            return out_of_memory(error);
    return MX_OK;
}

/* ---- is it what it should be? ------------------------------------------------------------------------------------ */
static mx_status check_commit(job *j, const mx_remote *r, mx_error *error) {
    const char *found = mx_is_commit(r->commit) ? r->commit : j->commit;
    if (!*found)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s does not say which commit it sends (X-Repo-Commit): this is no model hub, or no full mirror",
                       j->endpoint);
    if (j->pinned && strcmp(found, j->asked) != 0)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s has changed: mxrun.lock pins commit %.12s, the hub sends %.12s; \"mxrun pull %s --update\" "
                       "takes what is there now",
                       j->target->repository, j->asked, found, j->target->name);
    if (j->commit[0] && strcmp(found, j->commit) != 0)
        return mx_fail(error, MX_INVALID_FILE, "%s changed while it was asked for (%.12s, then %.12s); pull again",
                       j->target->repository, j->commit, found);
    mx_set_text(j->commit, sizeof j->commit, found);
    return MX_OK;
}

static mx_status check_listed(const job *j, const item *it, mx_error *error) {
    const mx_listed_file *l = it->listed;
    const mx_remote *r = &it->remote;
    if (l && l->size >= 0 && r->size >= 0 && l->size != r->size)
        return mx_fail(error, MX_INVALID_FILE, "%s: the hub has %lld bytes, %s:%d says %lld; nothing was downloaded",
                       it->path, (long long)r->size, j->target->known->source, l->line, (long long)l->size);
    if (l && l->sha256[0] && r->sha256[0] && strcmp(l->sha256, r->sha256) != 0)
        return mx_fail(error, MX_INVALID_FILE, "%s: the hub has SHA-256 %s, %s:%d says %s; nothing was downloaded",
                       it->path, r->sha256, j->target->known->source, l->line, l->sha256);
    return MX_OK;
}

static mx_status check_pinned(const job *j, const item *it, mx_error *error) {
    const mx_pinned_file *p = j->pinned ? mx_pins_file(&j->pins, j->asked, it->path) : NULL;
    if (!p || ((it->remote.size < 0 || p->size == it->remote.size) && !strcmp(p->etag, it->blob))) return MX_OK;
    return mx_fail(error, MX_INVALID_FILE,
                   "%s has changed: mxrun.lock pins %lld bytes with etag %.64s, the hub sends %lld with %.64s; \"mxrun "
                   "pull %s --update\" takes what is there now",
                   it->path, (long long)p->size, p->etag, (long long)it->remote.size, it->blob, j->target->name);
}

/* Etags become names of files, as with huggingface_hub; what could leave the folder does not get through. */
static mx_status name_blob(const job *j, item *it, mx_error *error) {
    const char *etag = it->remote.etag;
    if (!*etag)
        return mx_fail(error, MX_INVALID_FILE, "%s: %s sends no ETag: this is no model hub, or no full mirror",
                       it->path, j->endpoint);
    size_t n = 0;
    for (; etag[n] && n < 128; n++)
        it->blob[n] = (char)(isalnum((unsigned char)etag[n]) || (n && strchr("._-", etag[n])) ? etag[n] : '-');
    it->blob[n] = 0;
    it->git = mx_is_hexadecimal(it->blob, 40);
    return MX_OK;
}

/* ---- the plan ---------------------------------------------------------------------------------------------------- */
static const mx_listed_file *listed(const mx_target *target, const char *path) {
    for (int i = 0; target->known && i < target->known->file_count; i++)
        if (!strcmp(target->known->files[i].path, path)) return &target->known->files[i];
    return NULL;
}

static mx_status ask_for(job *j, const char *path, bool optional, mx_error *error) {
    item *more = realloc(j->item, ((size_t)j->items + 1) * sizeof *more);
    if (!more) return out_of_memory(error);
    j->item = more;
    item *it = &j->item[j->items];
    *it = (item){.path = path, .listed = listed(j->target, path), .download = -1};
    mx_status status = file_url(j, j->commit[0] ? j->commit : j->asked, path, it->url, error);
    if (!status) status = mx_remote_stat(it->url, &j->asking, &it->remote, error);
    if (status == MX_NOT_FOUND && optional) return MX_OK;
    if (status == MX_NOT_FOUND && j->pinned)
        return mx_fail(
            error, status,
            "%s: the hub has it no longer at commit %.12s, which mxrun.lock pins; \"mxrun pull %s --update\" "
            "takes what is there now",
            path, j->asked, j->target->name);
    if (!status) status = check_commit(j, &it->remote, error);
    if (!status) status = name_blob(j, it, error);
    if (!status) status = check_listed(j, it, error);
    if (!status) status = check_pinned(j, it, error);
    if (!status) j->items++;
    return status;
}

static bool has_size(const char *path, int64_t size) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) && (size < 0 || info.st_size == size);
}

/* Where it comes in, and whether it is there already. Their own .incomplete files hold a beginning; ours may have
 * holes, which another tool must not take for one: hence the longer name. */
static mx_status place_item(job *j, item *it, mx_error *error) {
    char path[MX_HUB_PATH];
    mx_status status = file_url(j, j->commit, it->path, it->url, error);
    if (!status) status = mx_hub_path(it->part, error, "%s/blobs/%s.mxrun.incomplete", j->folder, it->blob);
    if (!status)
        status =
            mx_hub_path(it->complete, error, "%s/blobs/%s%s", j->folder, it->blob, it->git ? ".mxrun.unchecked" : "");
    if (!status) status = mx_hub_path(path, error, "%s/blobs/%s", j->folder, it->blob);
    if (status) return status;
    it->there = has_size(path, it->remote.size);
    for (int i = 0; i < 2 && !it->there && !j->links && !status; i++) {
        status =
            mx_hub_path(path, error, "%s/%s%s/%s", j->folder, i ? BUILDING "-" : "snapshots/", j->commit, it->path);
        it->there = !status && has_size(path, it->remote.size);
    }
    return status;
}

static const char *known_hash(const job *j, const item *it) {
    const mx_pinned_file *p = mx_pins_file(&j->pins, j->commit, it->path);
    if (it->listed && it->listed->sha256[0]) return it->listed->sha256;
    if (it->remote.sha256[0]) return it->remote.sha256;
    return p && !strcmp(p->etag, it->blob) ? p->sha256 : "";
}

static mx_status plan(job *j, mx_error *error) {
    mx_status status = list_files(j, error);
    for (int i = 0; i < j->needed.count && !status; i++) status = ask_for(j, j->needed.text[i], false, error);
    for (int i = 0; i < j->wanted.count && !status; i++) status = ask_for(j, j->wanted.text[i], true, error);
    if (status) return status;
    j->download = calloc((size_t)j->items + 1, sizeof *j->download);
    if (!j->download) return out_of_memory(error);
    for (int i = 0; i < j->items && !status; i++) {
        item *it = &j->item[i];
        status = place_item(j, it, error);
        j->event.total += it->remote.size > 0 ? it->remote.size : 0;
        bool twice = false; /* two names of one content */
        for (int k = 0; k < i; k++) twice |= j->item[k].download >= 0 && !strcmp(j->item[k].blob, it->blob);
        if (it->there || twice) continue;
        it->download = j->downloads++;
        mx_download *d = &j->download[it->download];
        *d = (mx_download){.url = it->url, .name = it->path, .incomplete = it->part, .complete = it->complete};
        d->size = it->remote.size;
        mx_set_text(d->sha256, sizeof d->sha256, known_hash(j, it));
        mx_set_text(d->etag, sizeof d->etag, it->remote.etag);
        mx_download_look(d);
        j->event.missing += d->size > d->had ? d->size - d->had : 0;
    }
    j->event.files = j->downloads ? j->download : NULL;
    j->event.count = j->downloads;
    j->event.commit = j->commit;
    return status;
}

static mx_status check_space(job *j, mx_error *error) {
    struct statvfs info;
    if (statvfs(j->folder, &info) == 0) j->event.free_space = (int64_t)info.f_bavail * (int64_t)info.f_frsize;
    const mx_status status = mx_download_room(j->download, j->downloads, error);
    return status == MX_NO_SPACE ? mx_fail_within(error, status, "HF_HUB_CACHE names the place") : status;
}

/* ---- fetching ---------------------------------------------------------------------------------------------------- */
static void on_download(void *user, const mx_download_event *e) {
    job *j = user;
    j->event.file = e->file;
    j->event.text = e->text;
    j->event.seconds = e->seconds;
    tell(j, e->type == MX_DOWNLOAD_RETRY      ? MX_PULL_RETRY
            : e->type == MX_DOWNLOAD_FINISHED ? MX_PULL_FILE
                                              : MX_PULL_PROGRESS);
    j->event.file = NULL;
    j->event.text = NULL;
}

/* A small file has git's name, which the download does not know. */
static mx_status check_git(job *j, const item *it, mx_error *error) {
    char found[41], path[MX_HUB_PATH];
    mx_status status = mx_hub_path(path, error, "%s/blobs/%s", j->folder, it->blob);
    if (!status) status = mx_git_sha1_file(it->complete, found, j->options->stop, error);
    if (status) return status;
    if (strcmp(found, it->blob) != 0) {
        unlink(it->complete);
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: what came has git's SHA-1 %s, the hub said %s; it was thrown away, pull again", it->path,
                       found, it->blob);
    }
    if (rename(it->complete, path) == 0) return MX_OK;
    return mx_fail(error, MX_IO, "%s: cannot rename it to %s: %s", it->complete, path, strerror(errno));
}

static mx_status pin(job *j, mx_error *error) {
    if (!mx_pins_set_revision(&j->pins, j->target->revision, j->commit)) return out_of_memory(error);
    for (int i = 0; i < j->items; i++) {
        const item *it = &j->item[i];
        if (it->remote.size >= 0 &&
            !mx_pins_set_file(&j->pins, j->commit, it->path, it->remote.size, it->blob, known_hash(j, it)))
            return out_of_memory(error);
    }
    return mx_pins_write(j->folder, &j->pins, error);
}

/* Sizes and hashes that only the finished files tell. */
static mx_status complete_items(job *j, mx_error *error) {
    mx_status status = MX_OK;
    for (int i = 0; i < j->items && !status; i++) {
        item *it = &j->item[i];
        if (it->download >= 0) {
            const mx_download *d = &j->download[it->download];
            mx_set_text(it->remote.sha256, sizeof it->remote.sha256, d->sha256);
            if (d->size >= 0) it->remote.size = d->size;
            if (it->git) status = check_git(j, it, error);
        } else if (!known_hash(j, it)[0] && it->remote.size >= 0 && it->remote.size < (int64_t)64 << 20) {
            char path[MX_HUB_PATH];
            status = mx_hub_path(path, error, "%s/blobs/%s", j->folder, it->blob);
            if (!status && access(path, R_OK) == 0)
                status = mx_sha256_file(path, it->remote.sha256, NULL, NULL, j->options->stop, error);
        }
    }
    return status;
}

/* ---- publishing -------------------------------------------------------------------------------------------------- */
/* Without links a blob moves to its name, unless one after it has the same content. What an earlier pull has moved is
 * in the folder where it built, or in the snapshot. */
static mx_status publish_content(const job *j, int number, const char *building, const char *into, mx_error *error) {
    const item *it = &j->item[number];
    char path[MX_HUB_PATH], blob[MX_HUB_PATH], built[MX_HUB_PATH];
    mx_status status = mx_hub_path(path, error, "%s/%s", into, it->path);
    if (!status) status = mx_hub_path(blob, error, "%s/blobs/%s", j->folder, it->blob);
    if (!status) status = mx_hub_path(built, error, "%s/%s", building, it->path);
    if (status || has_size(path, it->remote.size)) return status;
    if (!has_size(blob, it->remote.size) && has_size(built, it->remote.size)) { /* the snapshot came meanwhile */
        mx_make_folders(path, 0777);
        if (rename(built, path) == 0) return MX_OK;
        return mx_fail(error, MX_IO, "%s: cannot rename it to %s: %s", built, path, strerror(errno));
    }
    bool again = false;
    for (int k = number + 1; k < j->items && !again && !status; k++) {
        if (strcmp(j->item[k].blob, it->blob) != 0) continue;
        status = mx_hub_path(path, error, "%s/%s", into, j->item[k].path);
        again = !has_size(path, it->remote.size);
    }
    if (status) return status;
    return mx_publish_file(j->folder, into, it->path, it->blob, again ? MX_PUBLISH_COPY : MX_PUBLISH_MOVE, error);
}

/* A new snapshot is built beside and renamed; to one that is there files are added. */
static mx_status publish(job *j, mx_error *error) {
    char snapshot[MX_HUB_PATH], building[MX_HUB_PATH];
    struct stat info;
    mx_status status = mx_hub_path(snapshot, error, "%s/snapshots/%s", j->folder, j->commit);
    if (!status)
        status = mx_hub_path(building, error, "%s/" BUILDING "%s%s", j->folder, j->links ? "" : "-",
                             j->links ? "" : j->commit);
    if (status) return status;
    const bool fresh = stat(snapshot, &info) != 0;
    const char *into = fresh ? building : snapshot;
    if (fresh && j->links) status = mx_clear_folder(building, error);
    for (int i = 0; i < j->items && !status; i++)
        status = j->links ? mx_publish_file(j->folder, into, j->item[i].path, j->item[i].blob, MX_PUBLISH_LINK, error)
                          : publish_content(j, i, building, into, error);
    if (status || !fresh) return status;
    mx_make_folders(snapshot, 0777);
    if (rename(building, snapshot) == 0) return MX_OK;
    return mx_fail(error, MX_IO, "%s: cannot rename it to %s: %s", building, snapshot, strerror(errno));
}

/* What pulls left that were killed: beginnings of state files and, once a snapshot is published, folders where one was
 * built. A link in the stead of such a folder goes at once: nothing is to be built or found where it leads. */
static mx_status sweep(const job *j, bool published, mx_error *error) {
    mx_strings names;
    mx_status status = mx_list_files(j->folder, &names, error);
    for (int i = 0; i < names.count && !status; i++) {
        char path[MX_HUB_PATH];
        const bool building = !strncmp(names.text[i], BUILDING, strlen(BUILDING));
        const bool state = !strncmp(names.text[i], "blobs/", 6) && strstr(names.text[i], ".mxrun.incomplete.state.");
        status = mx_hub_path(path, error, "%s/%s", j->folder, names.text[i]);
        char *slash = status ? NULL : strchr(path + strlen(j->folder) + 1, '/');
        if (status || !(building || state) || (building && slash && !published)) continue;
        if (building && slash) *slash = 0;
        status = mx_clear_folder(path, error);
    }
    mx_strings_free(&names);
    return status;
}

static mx_status look_again(job *j, mx_copy *out, mx_error *error) {
    char snapshot[MX_HUB_PATH], missing[300];
    mx_copy_free(out);
    mx_status status = mx_hub_path(snapshot, error, "%s/snapshots/%s", j->folder, j->commit);
    if (!status) status = mx_look_at(j->target, &j->pins, j->commit, snapshot, out, error);
    if (status || out->complete) return status;
    mx_copy_missing(out, missing);
    if (!missing[0])
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: no layout of a model is there after the pull; remove it and pull again", snapshot);
    return mx_fail(error, MX_INVALID_FILE, "%s: all that the hub lists is there, but the model needs %s, too",
                   j->target->repository, missing);
}

static mx_status fetch(job *j, mx_copy *out, mx_error *error) {
    mx_status status = plan(j, error);
    if (!status) status = check_space(j, error);
    if (status) return status;
    tell(j, MX_PULL_PLANNED);
    if (j->downloads && j->options->confirm && !j->options->confirm(j->options->user, &j->event))
        return mx_fail(error, MX_CANCELLED, "not downloaded");
    status = pin(j, error);
    if (!status && j->downloads) status = mx_download_files(j->download, j->downloads, &j->http, on_download, j, error);
    if (!status) status = complete_items(j, error);
    if (!status) status = pin(j, error);
    if (!status) status = publish(j, error);
    if (!status) status = mx_refs_write(j->folder, j->target->revision, j->commit, error);
    if (!status) status = sweep(j, true, error);
    if (!status) status = look_again(j, out, error);
    return status;
}

/* ---- the pull ---------------------------------------------------------------------------------------------------- */
static mx_status offline_answer(const job *j, const mx_copy *copy, mx_error *error) {
    char missing[300];
    mx_copy_missing(copy, missing);
    return mx_fail(error, MX_NOT_FOUND, "%s is not in %s (missing: %s), and mxrun is offline", j->target->repository,
                   j->hub->folder, *missing ? missing : "everything");
}

static mx_status choose_revision(job *j, mx_error *error) {
    mx_pins_free(&j->pins);
    mx_status status = mx_pins_read(j->folder, &j->pins, error);
    const char *pinned = status ? NULL : mx_pins_commit(&j->pins, j->target->revision);
    j->pinned = pinned && !j->options->update;
    mx_set_text(j->asked, sizeof j->asked, j->pinned ? pinned : j->target->revision);
    return status;
}

static mx_status run_locked(job *j, mx_copy *out, mx_error *error) {
    j->links = mx_has_links(j->folder);
    /* Another process may have done it meanwhile. */
    mx_copy_free(out);
    mx_status status = mx_cache_find(j->hub, j->target, out, error);
    if (!status && !(out->complete && !j->options->update)) {
        status = sweep(j, false, error);
        if (!status) status = choose_revision(j, error);
        if (!status) tell(j, MX_PULL_ASKING);
        if (!status) status = fetch(j, out, error);
    }
    if (status) return status;
    j->event.path = out->path;
    j->event.total = out->bytes;
    j->event.commit = out->commit;
    tell(j, j->downloads ? MX_PULL_DONE : MX_PULL_PRESENT);
    return MX_OK;
}

static mx_status make_folders(job *j, mx_error *error) {
    char path[MX_HUB_PATH];
    struct stat info;
    mx_status status = mx_hub_path(path, error, "%s/blobs/x", j->folder);
    if (status) return status;
    mx_make_folders(path, 0777);
    *strrchr(path, '/') = 0;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
        return mx_fail(error, MX_IO, "%s: cannot make the folder: %s", path, strerror(errno ? errno : ENOTDIR));
    return MX_OK;
}

/* Another pull that came to nothing may have taken the folders away meanwhile. */
static mx_status lock(job *j, mx_repository_lock *out, mx_error *error) {
    mx_status status = make_folders(j, error);
    if (!status) status = mx_repository_lock_take(j->folder, true, tell_waiting, j, j->options->stop, out, error);
    return status ? status : make_folders(j, error);
}

/* A pull that came to nothing leaves no folder that other tools would take for a damaged repository. */
static void take_back_folders(const job *j) {
    char path[MX_HUB_PATH];
    mx_strings names;
    if (!mx_hub_path(path, NULL, "%s/blobs", j->folder)) rmdir(path);
    const bool empty = !mx_list_files(j->folder, &names, NULL) && names.count == 1;
    if (empty && !strcmp(names.text[0], "mxrun.busy") && !mx_hub_path(path, NULL, "%s/mxrun.busy", j->folder)) {
        unlink(path);
        rmdir(j->folder);
    }
    mx_strings_free(&names);
}

/* A pull that was killed between snapshot and ref left its pin alone, which tells other tools nothing. */
static mx_status mend_ref(job *j, const mx_copy *copy, mx_error *error) {
    char ref[MX_COMMIT_TEXT] = "";
    if (mx_is_commit(j->target->revision) || !mx_is_commit(copy->commit)) return MX_OK;
    mx_refs_read(j->folder, j->target->revision, ref);
    return *ref ? MX_OK : mx_refs_write(j->folder, j->target->revision, copy->commit, error);
}

mx_status mx_pull(const mx_hub *hub, const mx_target *target, const mx_pull_options *options, mx_copy *out,
                  mx_error *error) {
    job j = {.hub = hub, .target = target, .options = options, .links = true};
    j.http = (mx_http_options){.token = hub->token, .stop = options->stop};
    j.asking = j.http;
    j.asking.retries = ASK_RETRIES;
    j.event = (mx_pull_event){.target = target, .endpoint = j.endpoint, .folder = j.folder};
    mx_url_shown(hub->endpoint, j.endpoint);
    mx_repository_lock held = {-1};
    mx_status status = mx_repository_folder(hub, target->repository, j.folder, error);
    *out = (mx_copy){0};
    if (!status) status = mx_cache_find(hub, target, out, error);
    if (!status && out->complete && (!options->update || hub->offline)) {
        status = mend_ref(&j, out, error);
        j.event.path = out->path;
        j.event.total = out->bytes;
        j.event.commit = out->commit;
        tell(&j, MX_PULL_PRESENT);
    } else if (!status && hub->offline) {
        status = offline_answer(&j, out, error);
    } else if (!status) {
        status = lock(&j, &held, error);
        if (!status) {
            status = run_locked(&j, out, error);
            if (status) take_back_folders(&j);
        }
    }
    mx_repository_lock_release(&held);
    mx_pins_free(&j.pins);
    mx_strings_free(&j.needed);
    mx_strings_free(&j.wanted);
    free(j.item);
    free(j.download);
    return status;
}
