#include "api/chat.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "api/write.h"
#include "base/log.h"
#include "turn/prompt_hash.h"

/* Messages are kept as they come and become a conversation at the end, when all that the prompt depends on is known. */
typedef enum step_kind { USER, INSTRUCTIONS, SAID, RESULT } step_kind;

typedef struct call call;
struct call {
    char *id, *name; /* id NULL: none; name as harmony says it */
    mx_bytes arguments;
    bool answered; /* it has a result */
    call *next;    /* of the chat */
    call *older;   /* in its bucket */
};

typedef struct step {
    step_kind kind;
    mx_bytes text;
    char *id;          /* SAID: of the answer, NULL: none; RESULT: the tool's name */
    mx_bytes thinking; /* SAID */
    bool has_text;
    call *calls;
    int call_count;
} step;

enum { CALL_BUCKETS = 1024 };

struct mx_api_chat {
    mx_conversation *conversation;
    mx_replay *replay;
    bool dated;
    step *steps;
    int count, capacity;
    call *first_call, *last_call; /* of all steps */
    call *unanswered;             /* all before it have results; NULL: not known */
    call *by_id[CALL_BUCKETS];    /* the latest first */
    mx_api_name *names;           /* of all tools, as far as they have one */
    int name_count;
    mx_prompt_hash *hash; /* of what stands before something that the assistant said; NULL: no replay */
    mx_ids before;        /* scratch: what was counted last: the prompt so far, or the ids of a text */
    /* While a prompt is made: */
    const mx_tokenizer *tokenizer;
    int64_t context, limit; /* limit: the context, or 0: make all of it */
    size_t since;           /* bytes of the messages behind those that were last counted */
    bool beyond;            /* it is longer than the limit: the rest is left out */
};

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for a chat");
}

/* ---- life -------------------------------------------------------------------------------------------------------- */
mx_status mx_api_chat_create(const mx_api_settings *settings, mx_replay *replay, bool dated, mx_api_chat **out,
                             mx_error *error) {
    *out = NULL;
    if (!settings->conversation)
        return mx_fail(error, MX_UNSUPPORTED, "no chats: the tokenizer has no chat format, or --raw was given");
    mx_api_chat *chat = calloc(1, sizeof *chat);
    if (!chat) return no_memory(error);
    chat->replay = replay;
    chat->tokenizer = settings->tokenizer;
    chat->context = settings->setup.context;
    chat->dated = dated && replay;
    mx_status status = mx_conversation_copy_settings(settings->conversation, &chat->conversation, error);
    if (status) {
        free(chat);
        return status;
    }
    *out = chat;
    return MX_OK;
}

static void free_step(step *s) {
    for (int i = 0; i < s->call_count; i++) {
        free(s->calls[i].id);
        free(s->calls[i].name);
        mx_bytes_free(&s->calls[i].arguments);
    }
    free(s->calls);
    free(s->id);
    mx_bytes_free(&s->text);
    mx_bytes_free(&s->thinking);
}

static void free_names(mx_api_name *names, int count) {
    for (int i = 0; i < count; i++) {
        free(names[i].harmony);
        free(names[i].client);
    }
    free(names);
}

void mx_api_chat_free(mx_api_chat *chat) {
    if (!chat) return;
    for (int i = 0; i < chat->count; i++) free_step(&chat->steps[i]);
    free(chat->steps);
    free_names(chat->names, chat->name_count);
    mx_prompt_hash_free(chat->hash);
    mx_ids_free(&chat->before);
    mx_conversation_free(chat->conversation);
    free(chat);
}

/* Takes the step over, in every case. `complete`: its memory is all there. */
static mx_status add_step(mx_api_chat *chat, step *s, bool complete, mx_error *error) {
    if (complete && chat->count == chat->capacity) {
        const int capacity = chat->capacity ? 2 * chat->capacity : 16;
        step *steps = realloc(chat->steps, (size_t)capacity * sizeof *steps);
        complete = steps != NULL;
        if (steps) {
            chat->steps = steps;
            chat->capacity = capacity;
        }
    }
    if (!complete) {
        free_step(s);
        return no_memory(error);
    }
    chat->steps[chat->count++] = *s;
    return MX_OK;
}

/* ---- settings ---------------------------------------------------------------------------------------------------- */
static mx_status set(mx_conversation *c, mx_setting setting, const char *value, mx_error *error) {
    return strcmp(mx_conversation_get(c, setting), value) ? mx_conversation_set(c, setting, value, error) : MX_OK;
}

mx_status mx_api_chat_set_reasoning(mx_api_chat *chat, const char *effort, mx_error *error) {
    return set(chat->conversation, MX_SETTING_REASONING, effort, error);
}

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

static bool is_function(const mx_json *tool) {
    const mx_json *type = mx_json_get(tool, "type");
    return !type || mx_json_is_string(type, "function");
}

static const mx_json *name_of(const mx_json *tool) {
    const mx_json *function = mx_json_get(tool, "function");
    return mx_json_get(function ? function : tool, "name");
}

/* No two tools may have one name in harmony. */
static mx_status keep_name(mx_api_chat *chat, const char *field, const mx_json *name, const char *harmony,
                           mx_error *error) {
    if (strlen(name->text) != name->size)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: a function's name holds U+0000", field);
    for (int i = 0; i < chat->name_count; i++) {
        const mx_api_name *other = &chat->names[i];
        if (strcmp(other->harmony, harmony) != 0) continue;
        if (!strcmp(other->client, name->text))
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "%s: two functions are called \"%s\": leave one out, or give it another name", field,
                           name->text);
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: \"%s\" and \"%s\" are the same name to the model, %s: give one of them another name", field,
                       other->client, name->text, harmony);
    }
    mx_api_name *names = realloc(chat->names, (size_t)(chat->name_count + 1) * sizeof *names);
    if (!names) return no_memory(error);
    chat->names = names;
    mx_api_name *n = &names[chat->name_count];
    *n = (mx_api_name){strdup(harmony), strdup(name->text)};
    chat->name_count++;
    return n->harmony && n->client ? MX_OK : no_memory(error);
}

/* One tool with a name that harmony can say, appended to an array. What is wrong with it mx_conversation_set_tools will
 * tell. */
static mx_status add_tool(mx_api_chat *chat, const char *field, const mx_json *tool, mx_bytes *out, mx_error *error) {
    const mx_json *function = mx_json_get(tool, "function"), *name = name_of(tool);
    char harmony[65];
    if (!function) function = tool;
    if (out->size > 1 && !mx_bytes_add_string(out, ",")) return no_memory(error);
    if (!name || name->type != MX_JSON_STRING || !mx_api_tool_name(name->text, name->size, harmony))
        return mx_json_write(out, tool) ? MX_OK : no_memory(error);
    mx_status status = keep_name(chat, field, name, harmony, error);
    if (status) return status;
    bool added = mx_bytes_add_string(out, "{\"type\":\"function\",\"function\":{\"name\":") &&
                 mx_bytes_add_json(out, harmony, strlen(harmony));
    static const char *const members[] = {"description", "parameters"};
    for (int i = 0; i < 2 && added; i++) {
        const mx_json *v = mx_json_get(function, members[i]);
        added = !v || (mx_bytes_addf(out, ",\"%s\":", members[i]) && mx_json_write(out, v));
    }
    return added && mx_bytes_add_string(out, "}}") ? MX_OK : no_memory(error);
}

static mx_status add_tools(mx_api_chat *chat, const char *field, const mx_json *tools, mx_bytes *out, mx_error *error) {
    static atomic_bool warned;
    mx_status status = mx_bytes_add_string(out, "[") ? MX_OK : no_memory(error);
    for (const mx_json *tool = tools->child; tool && !status; tool = tool->next) {
        if (is_function(tool)) {
            status = add_tool(chat, field, tool, out, error);
        } else if (!atomic_exchange(&warned, true)) {
            const mx_json *type = mx_json_get(tool, "type");
            mx_log(
                MX_LOG_WARNING,
                "a client offers tools of type \"%.40s\": only functions are passed on to the model, others are left "
                "out (this is said once)",
                type->type == MX_JSON_STRING ? type->text : "");
        }
    }
    return status || mx_bytes_add_string(out, "]") ? status : no_memory(error);
}

mx_status mx_api_chat_set_tools(mx_api_chat *chat, const char *field, const mx_json *tools, mx_error *error) {
    free_names(chat->names, chat->name_count);
    chat->names = NULL;
    chat->name_count = 0;
    if (tools && tools->type == MX_JSON_ARRAY && tools->count > MX_API_MOST_TOOLS)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: %u tools, at most %d are allowed", field, tools->count,
                       MX_API_MOST_TOOLS);
    if (!tools || tools->type != MX_JSON_ARRAY)
        return mx_conversation_set_tools(chat->conversation, field, tools, error);
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    mx_status status = add_tools(chat, field, tools, &text, error);
    if (!status) status = mx_json_parse(field, text.data, text.size, &document, error);
    if (!status) status = mx_conversation_set_tools(chat->conversation, field, mx_json_root(document), error);
    mx_json_free(document);
    mx_bytes_free(&text);
    return status;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
mx_status mx_api_chat_add_instructions(mx_api_chat *chat, const char *text, size_t size, mx_error *error) {
    if (size && memchr(text, 0, size)) return mx_fail(error, MX_INVALID_ARGUMENT, "instructions hold U+0000");
    step s = {.kind = INSTRUCTIONS};
    return add_step(chat, &s, mx_bytes_add(&s.text, text, size), error);
}

mx_status mx_api_chat_add_user(mx_api_chat *chat, const char *text, size_t size, mx_error *error) {
    step s = {.kind = USER};
    return add_step(chat, &s, mx_bytes_add(&s.text, text, size), error);
}

static bool copy_call(call *to, const mx_api_call *from, const char *name) {
    return (!from->id || (to->id = strdup(from->id))) && (to->name = strdup(name)) &&
           mx_api_add_arguments(&to->arguments, from->arguments, from->size);
}

static call **bucket_of(mx_api_chat *chat, const char *id) {
    return &chat->by_id[XXH3_64bits(id, strlen(id)) % CALL_BUCKETS];
}

static void list_call(mx_api_chat *chat, call *c) {
    *(chat->last_call ? &chat->last_call->next : &chat->first_call) = c;
    chat->last_call = c;
    if (!c->id) return;
    call **bucket = bucket_of(chat, c->id);
    c->older = *bucket;
    *bucket = c;
}

mx_status mx_api_chat_add_said(mx_api_chat *chat, const mx_api_said *said, mx_error *error) {
    step s = {.kind = SAID, .has_text = said->has_text};
    bool complete = mx_bytes_add(&s.text, said->text, said->text_size) &&
                    mx_bytes_add(&s.thinking, said->thinking, said->thinking_size) &&
                    (!said->id || (s.id = strdup(said->id)));
    if (complete && said->call_count) complete = (s.calls = calloc((size_t)said->call_count, sizeof *s.calls)) != NULL;
    for (int i = 0; i < said->call_count && complete; i++) {
        char name[65];
        if (!mx_api_tool_name(said->calls[i].name, strlen(said->calls[i].name), name)) {
            free_step(&s);
            return mx_fail(error, MX_INVALID_ARGUMENT, "a call of a function whose name is empty or longer than 64");
        }
        s.call_count = i + 1;
        complete = copy_call(&s.calls[i], &said->calls[i], name);
    }
    mx_status status = add_step(chat, &s, complete, error);
    for (int i = 0; i < s.call_count && !status; i++) list_call(chat, &s.calls[i]);
    return status;
}

/* The latest call with this id; without one the first that has no result. */
static call *find_call(mx_api_chat *chat, const char *id) {
    call *c = id ? *bucket_of(chat, id) : chat->unanswered ? chat->unanswered : chat->first_call;
    while (c && (id ? strcmp(c->id, id) != 0 : c->answered)) c = id ? c->older : c->next;
    if (!id) chat->unanswered = c;
    return c;
}

mx_status mx_api_chat_add_result(mx_api_chat *chat, const char *call_id, const char *tool, const char *text,
                                 size_t size, mx_error *error) {
    char name[65];
    call *of = call_id || !tool ? find_call(chat, call_id) : NULL;
    if (of) of->answered = true;
    if (!of && !tool)
        return call_id ? mx_fail(error, MX_NOT_FOUND, "no call before has the id \"%.80s\"", call_id)
                       : mx_fail(error, MX_NOT_FOUND, "a result, but no call before it is without one");
    if (!of && !mx_api_tool_name(tool, strlen(tool), name))
        return mx_fail(error, MX_INVALID_ARGUMENT, "a result of a tool whose name is empty or longer than 64");
    step s = {.kind = RESULT, .id = strdup(of ? of->name : name)};
    return add_step(chat, &s, s.id && mx_bytes_add(&s.text, text, size), error);
}

/* ---- prompts beyond the context ---------------------------------------------------------------------------------- */
/* Each long text is taken to be in the prompt, thinking that would be left out of it, too: no model thought so long
 * here. */
static bool long_text(const mx_api_chat *chat, size_t size) {
    return chat->limit && !chat->beyond && size > mx_api_long_text(chat->limit);
}

static mx_status measure(mx_api_chat *chat, const mx_bytes *text, mx_error *error) {
    if (!long_text(chat, text->size)) return MX_OK;
    chat->before.count = 0;
    mx_status status =
        mx_encode_some(chat->tokenizer, text->data, text->size, chat->limit + 1, NULL, &chat->before, error);
    chat->beyond = chat->before.count > chat->limit;
    return status;
}

/* Before a step is added: sets chat->beyond where there is no room for it, or for those before it; chat->before has
 * more ids than the context then. */
static mx_status check_step(mx_api_chat *chat, const step *s, mx_error *error) {
    enum { HEADER = 16 };
    mx_status status = measure(chat, &s->text, error);
    if (!status) status = measure(chat, &s->thinking, error);
    for (int i = 0; i < s->call_count && !status; i++) status = measure(chat, &s->calls[i].arguments, error);
    if (!status && long_text(chat, chat->since)) {
        chat->since = 0;
        chat->before.count = 0;
        status = mx_conversation_prompt(chat->conversation, &chat->before, error);
        chat->beyond = chat->before.count > chat->limit;
    }
    chat->since += s->text.size + s->thinking.size + HEADER;
    for (int i = 0; i < s->call_count; i++) chat->since += s->calls[i].arguments.size + HEADER;
    return status;
}

/* The prompt so far is beyond twice the context: a few words of a client's may stand for long answers. */
static mx_status stop_here(mx_api_chat *chat, mx_error *error) {
    chat->beyond = true;
    chat->before.count = 0;
    return mx_conversation_prompt(chat->conversation, &chat->before, error);
}

/* ---- what the assistant said ------------------------------------------------------------------------------------- */
/* A client may have cut one answer into several messages: steps [0, count) at once, if an answer says just this. */
static mx_status replay_run(mx_api_chat *chat, const step *steps, int count, uint64_t prompt, bool *found,
                            mx_error *error) {
    mx_bytes text = {0}, calls = {0};
    const char *ids[64];
    mx_replay_key key = {.ids = ids, .prompt = prompt, .calls = &calls};
    bool complete = true;
    for (int i = 0; i < count && complete; i++) {
        const step *s = &steps[i];
        if (s->text.size)
            complete = (!text.size || mx_bytes_add_string(&text, "\n\n")) &&
                       mx_bytes_add_lossy(&text, s->text.data, s->text.size);
        for (int k = 0; k < s->call_count && complete; k++) {
            const call *c = &s->calls[k];
            complete = mx_replay_add_call(&calls, c->name, c->arguments.data, c->arguments.size);
            if (c->id && key.id_count < 64) ids[key.id_count++] = c->id;
        }
        if (s->id && key.id_count < 64) ids[key.id_count++] = s->id;
    }
    key.text = text.data;
    key.text_size = text.size;
    mx_status status =
        complete ? mx_replay_find(chat->replay, &key, chat->conversation, found, error) : no_memory(error);
    mx_bytes_free(&text);
    mx_bytes_free(&calls);
    return status;
}

static mx_status render_said(mx_conversation *c, const step *s, mx_error *error) {
    mx_status status = MX_OK;
    if (s->thinking.size)
        status = mx_conversation_add_assistant(c, "analysis", s->thinking.data, s->thinking.size, error);
    /* No text beside thinking: that is as far as it came. */
    if (!status && (s->text.size || (s->has_text && !s->call_count && !s->thinking.size)))
        status =
            mx_conversation_add_assistant(c, s->call_count ? "commentary" : "final", s->text.data, s->text.size, error);
    for (int i = 0; i < s->call_count && !status; i++)
        status = mx_conversation_add_call(c, s->calls[i].name, s->calls[i].arguments.data, s->calls[i].arguments.size,
                                          error);
    return status;
}

/* The longest beginnings first. `count` messages of the assistant, one behind the other. */
static mx_status add_run(mx_api_chat *chat, const step *steps, int count, mx_error *error) {
    for (int i = 0; i < count;) {
        bool found = false;
        int taken = 1;
        if (chat->replay) {
            enum { LONGEST = 8, TOO_LONG = 2 };
            mx_status status = MX_OK;
            int64_t ids;
            const uint64_t hash = mx_prompt_hash_of(chat->hash, chat->conversation, &ids);
            if (chat->limit && ids / TOO_LONG > chat->limit) return stop_here(chat, error);
            const int most = count - i < LONGEST ? count - i : LONGEST;
            for (taken = most; taken > 0 && !status && !found; taken -= !found)
                status = replay_run(chat, steps + i, taken, hash, &found, error);
            if (status) return status;
        }
        if (!found) {
            mx_status status = check_step(chat, &steps[i], error);
            if (!status && !chat->beyond) status = render_said(chat->conversation, &steps[i], error);
            if (status || chat->beyond) return status;
            taken = 1;
        }
        i += taken;
    }
    return MX_OK;
}

/* ---- prompts ----------------------------------------------------------------------------------------------------- */
/* The instructions at the beginning, with empty lines between, are the developer message. *rest: the first step behind
 * them. */
static mx_status set_developer(mx_api_chat *chat, int *rest, mx_error *error) {
    mx_bytes all = {0};
    int i = 0;
    bool complete = mx_bytes_add(&all, "", 0);
    for (; i < chat->count && chat->steps[i].kind == INSTRUCTIONS && complete; i++)
        complete = (!all.size || mx_bytes_add_string(&all, "\n\n")) &&
                   mx_bytes_add(&all, chat->steps[i].text.data, chat->steps[i].text.size);
    mx_status status = complete ? measure(chat, &all, error) : no_memory(error);
    if (!status && i > 0 && !chat->beyond) status = set(chat->conversation, MX_SETTING_DEVELOPER, all.data, error);
    mx_bytes_free(&all);
    *rest = i;
    return status;
}

static uint64_t mix(uint64_t hash, const void *data, size_t size) {
    return XXH3_64bits_withSeed(size ? data : "", size, hash);
}

/* The day on which this conversation began. */
static mx_status set_date(mx_api_chat *chat, mx_error *error) {
    const char *developer = mx_conversation_get(chat->conversation, MX_SETTING_DEVELOPER);
    const step *user = NULL;
    bool begins = true;
    for (int i = 0; i < chat->count; i++) {
        if (!user && chat->steps[i].kind == USER) user = &chat->steps[i];
        begins = begins && chat->steps[i].kind != SAID;
    }
    uint64_t key = mix(0, developer, strlen(developer));
    if (user) key = mix(key, user->text.data, user->text.size);
    char day[11];
    mx_replay_date(chat->replay, key, begins, day);
    return set(chat->conversation, MX_SETTING_DATE, day, error);
}

static mx_status add_steps(mx_api_chat *chat, int from, mx_error *error) {
    mx_status status = MX_OK;
    for (int i = from, run; i < chat->count && !status && !chat->beyond; i += run) {
        const step *s = &chat->steps[i];
        run = 1;
        if (s->kind != SAID) status = check_step(chat, s, error);
        if (status || chat->beyond) {
        } else if (s->kind == SAID) {
            while (i + run < chat->count && s[run].kind == SAID) run++;
            status = add_run(chat, s, run, error);
        } else if (s->kind == USER) {
            status = mx_conversation_add_user(chat->conversation, s->text.data, s->text.size, error);
        } else if (s->kind == INSTRUCTIONS) {
            status = mx_conversation_add_developer(chat->conversation, s->text.data, s->text.size, error);
        } else {
            status = mx_conversation_add_tool_result(chat->conversation, s->id, s->text.data, s->text.size, error);
        }
    }
    return status;
}

static mx_status make_prompt(mx_api_chat *chat, int64_t limit, mx_ids *out, mx_error *error) {
    int rest;
    chat->limit = limit;
    chat->since = 0;
    chat->beyond = false;
    mx_conversation_truncate(chat->conversation, 0);
    mx_status status = set_developer(chat, &rest, error);
    if (!status && chat->dated && !chat->beyond) status = set_date(chat, error);
    mx_prompt_hash_free(chat->hash);
    chat->hash = NULL;
    if (!status && chat->replay && !chat->beyond)
        status = mx_prompt_hash_create(chat->conversation, &chat->hash, error);
    if (!status) status = add_steps(chat, rest, error);
    if (status) return status;
    if (!chat->beyond) return mx_conversation_prompt(chat->conversation, out, error);
    return mx_ids_add_all(out, chat->before.data, chat->before.count) ? MX_OK : no_memory(error);
}

mx_status mx_api_chat_prompt(mx_api_chat *chat, mx_ids *out, mx_error *error) {
    return make_prompt(chat, 0, out, error);
}

mx_status mx_api_chat_finish(mx_api_chat *chat, mx_api_request *request, mx_error *error) {
    if (!(request->prompts = calloc(1, sizeof *request->prompts))) return no_memory(error);
    request->prompt_count = 1;
    request->chat = true;
    request->has_calls = chat->first_call != NULL;
    request->names = chat->names;
    request->name_count = chat->name_count;
    chat->names = NULL;
    chat->name_count = 0;
    mx_status status = make_prompt(chat, chat->context, request->prompts, error);
    request->beyond = chat->beyond;
    return status;
}
