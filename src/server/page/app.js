// The page: conversations at the left, one of them in the middle, answers as they are written.
import { answer, gauges, model_name } from './api.js';
import { export_chats, import_chats, list_chats, load_chat, new_chat, remove_chat, save_chat, watch_storage } from './chats.js';
import { element } from './inline.js';
import { button, make_message, node_of, speed, update_message } from './messages.js';
import { open_settings, reload_settings, sampling, set, settings, show_settings, take_settings } from './settings.js';

const $ = id => document.getElementById(id);
const SHOWN = 60;          // messages; earlier ones at the press of a button
const SAVE = 2000;         // ms: how often an answer that is being written is saved
const touch = matchMedia('(hover: none) and (pointer: coarse)'), narrow = matchMedia('(max-width: 720px)');

let chat = begun();
let first_shown = 0;
const runs = new Set(); // answers that are being written: { abort, chat, message, first, tokens, saved, cost, gone }

const run_of = c => [...runs].find(r => r.chat.id === c.id);

function begun() {
  return { ...new_chat(), system: settings.system ?? '' };
}

// ---- telling ---------------------------------------------------------------------------------------------------

// What is wrong; act: what may be done about it, { label, act }; good: nothing is
function tell(text, act, good = false) {
  $('notice').className = good ? 'good' : '';
  $('notice').replaceChildren(text ?? '', ...act ? [button(act.label, () => { tell(''); act.act(); })] : []);
  $('notice').hidden = !text;
}
const say = text => { $('status').textContent = text; };

function save(c) {
  try {
    if (save_chat(c)) tell('Another tab has changed this conversation, too: both are kept.');
    return true;
  } catch {
    if (c === chat) tell('This browser has no room left for conversations, and this one is not saved: export them and delete some.');
    return false;
  }
}

function rest_focus() {
  (touch.matches ? $('messages') : $('prompt')).focus({ preventScroll: true });
}

// ---- the list of conversations ---------------------------------------------------------------------------------

function show_list() {
  const focused = document.activeElement?.closest?.('#chats') && document.activeElement.dataset.of;
  $('chats').replaceChildren(...list_chats().map(c => {
    const current = c.id === chat.id, title = c.title || 'New chat';
    const open = button(title, () => { open_chat(c.id); show_side(false); }, { class: 'open', title, dir: 'auto', 'data-of': c.id });
    if (current) open.setAttribute('aria-current', 'true');
    const remove = button('✕', () => delete_chat(c), { class: 'icon remove', 'aria-label': `Delete “${title}”` });
    return element('li', [open, remove], { class: `${current ? 'current' : ''} ${run_of(c) ? 'writing' : ''}` });
  }));
  if (focused) [...$('chats').querySelectorAll('.open')].find(b => b.dataset.of === focused)?.focus();
}

function open_chat(id) {
  const found = run_of({ id })?.chat ?? load_chat(id);
  if (!found) return tell('This conversation cannot be read any more.');
  chat = found;
  show_chat();
}

function delete_chat(c) {
  if (!confirm(`Delete “${c.title || 'New chat'}”? This cannot be undone.`)) return;
  halt(c, true);
  remove_chat(c.id);
  if (c.id === chat.id) chat = begun();
  show_chat();
  ($('chats').querySelector('.open') ?? $('new')).focus();
}

function begin_chat() {
  chat = begun();
  show_chat();
  show_side(false);
  $('prompt').focus();
}

// On a narrow screen the list lies over the conversation.
function show_side(shown) {
  const was = $('side').classList.contains('shown');
  $('side').classList.toggle('shown', shown);
  $('veil').hidden = !shown;
  $('main').inert = shown;
  $('open-side').setAttribute('aria-expanded', String(shown));
  if (shown) $('close-side').focus();
  else if (was) $('open-side').focus();
}

// ---- the conversation ------------------------------------------------------------------------------------------

let seen_top = 0;      // where it was scrolled to last
let follow = true;     // the end of the conversation is in view, and is to stay so
let pending = [];      // messages that are not shown to their end yet
const to_end = () => { $('messages').scrollTop = $('messages').scrollHeight; };

const acts = {
  run: message => [...runs].find(r => r.message === message),
  edited: (message, text) => {
    halt(chat);
    const index = chat.messages.indexOf(message);
    chat.messages.splice(index);
    if (!index) chat.title = '';
    show_chat();
    ask(text);
  },
  regenerate,
  unfold: () => settings.unfold === true,
  unfolded: whether => set('unfold', whether),
};

// Long conversations are shown in pieces, the last messages first, so that the page stays responsive.
function show_pending() {
  const until = performance.now() + 12;
  while (pending.length && performance.now() < until) if (update_message(pending.at(-1), until)) pending.pop();
  if (pending.length) requestAnimationFrame(show_pending);
}

function show_chat(from = Math.max(0, chat.messages.length - SHOWN)) {
  tell('');
  first_shown = from;
  pending = chat.messages.slice(from);
  const list = pending.map(m => make_message(m, acts));
  if (from) list.unshift(button(`Show ${from} earlier messages`, show_earlier, { class: 'earlier' }));
  if (chat.system) list.unshift(element('details', [element('summary', ['System prompt']), element('div', [chat.system], { class: 'text', dir: 'auto' })], { class: 'thinking' }));
  if (!chat.messages.length) list.push(element('p', ['What would you like to know?'], { class: 'empty' }));
  $('log').replaceChildren(...list);
  follow = true;
  show_pending();
  to_end();
  show_list();
  show_running();
  show_title();
}

function show_title() {
  document.title = chat.title ? `${chat.title} – mxrun` : 'mxrun';
}

function show_earlier() {
  const top = node_of(chat.messages[first_shown]).offsetTop - $('messages').scrollTop, at = chat.messages[first_shown];
  show_chat(Math.max(0, first_shown - SHOWN));
  follow = false;
  $('messages').scrollTop = node_of(at).offsetTop - top;
  $('messages').focus({ preventScroll: true });
}

// ---- asking ----------------------------------------------------------------------------------------------------

// One more message at the end of the conversation.
function append(message) {
  chat.messages.push(message);
  $('log').querySelector('.empty')?.remove();
  $('log').append(make_message(message, acts));
  update_message(message);
  follow = true;
  to_end();
}

function ask(text) {
  tell('');
  append({ role: 'user', text });
  save(chat);
  show_title();
  write();
  rest_focus();
}

// Answers what stands before `message`, or at it where it is the user's.
function regenerate(message) {
  const index = chat.messages.indexOf(message);
  if (index < 0 || run_of(chat)) return;
  chat.messages.splice(message.role === 'user' ? index + 1 : index);
  show_chat();
  write();
  rest_focus();
}

function request() {
  const messages = chat.messages.map(m => m.role === 'user' ? { role: 'user', content: m.text }
    : { role: 'assistant', content: m.text, ...m.thinking ? { reasoning_content: m.thinking } : {} });
  if (chat.system) messages.unshift({ role: 'system', content: chat.system });
  return { model: $('model').textContent, messages, ...sampling() };
}

// Shows an answer that is being written, at most a quarter of the time.
function paint(run) {
  run.frame = 0;
  if (run.chat !== chat || !runs.has(run)) return;
  const begin = performance.now(), complete = update_message(run.message, begin + 12);
  run.cost = performance.now() - begin;
  if (!complete) paint_soon(run);
}

function paint_soon(run) {
  run.frame ||= setTimeout(() => requestAnimationFrame(() => paint(run)), Math.min(3 * run.cost, 500));
}

// What there is of an answer, lest a reload lose it.
function save_part(run) {
  run.saved = performance.now();
  const { message } = run;
  if (run.gone || (!message.text && !message.thinking)) return;
  message.note = 'not finished';
  save(run.chat);
  delete message.note;
}

function hear(run, part) {
  const { message } = run, now = performance.now();
  if (part.text || part.thinking) {
    run.first ||= now;
    run.tokens++;
    if (part.text && !message.text && message.thinking) message.thought = Math.round((now - run.first) / 1000);
    message.text += part.text;
    message.thinking += part.thinking;
    if (now - run.saved > SAVE) save_part(run);
  }
  run.finish = part.finish ?? run.finish;
  run.usage = part.usage ?? run.usage;
  paint_soon(run);
}

async function write() {
  const body = request(), message = { role: 'assistant', text: '', thinking: '' };
  const run = { abort: new AbortController(), chat, message, first: 0, tokens: 0, saved: performance.now(), cost: 0, frame: 0, finish: null, usage: null, gone: false };
  runs.add(run);
  append(message);
  show_running();
  show_list();
  say('The answer is being written.');
  try {
    await answer(body, run.abort.signal, part => hear(run, part));
    end(run, run.finish === 'length' ? 'cut: the limit of tokens was reached' : '');
    say('The answer is complete.');
  } catch (error) {
    end(run, run.abort.signal.aborted ? 'stopped' : 'not finished');
    say(run.abort.signal.aborted ? 'Stopped.' : '');
    if (!run.abort.signal.aborted && run.chat === chat) fail(error);
  }
}

function fail(error) {
  tell(error.message, { label: 'Try again', act: () => regenerate(chat.messages.at(-1)) });
  if (error.status === 401) open_settings(chat, 'key');
}

function end(run, note) {
  const { message } = run, { messages } = run.chat;
  runs.delete(run);
  clearTimeout(run.frame);
  const tokens = run.usage?.completion_tokens ?? run.tokens;
  message.note = [tokens ? speed(tokens, performance.now() - run.first) : '', note].filter(Boolean).join(' · ');
  if (!message.text && !message.thinking && !run.usage) {
    if (messages.includes(message)) messages.splice(messages.indexOf(message), 1);
    node_of(message)?.remove();
  } else if (run.chat === chat && messages.includes(message)) {
    pending.unshift(message);
    show_pending();
  }
  if (!run.gone) save(run.chat);
  show_list();
  show_running();
}

// Stops the answer of a conversation. `gone`: the conversation is deleted.
function halt(c, gone = false) {
  const run = run_of(c);
  if (!run) return;
  run.gone = gone;
  run.abort.abort();
}

function show_running() {
  const busy = Boolean(run_of(chat)), focused = document.activeElement;
  $('send').hidden = busy;
  $('stop').hidden = !busy;
  $('log').setAttribute('aria-busy', String(busy));
  if (!busy && focused === $('stop')) rest_focus();
}

// ---- the server ------------------------------------------------------------------------------------------------

let met = false, key_missing = false;
async function meet() {
  try {
    $('model').textContent = await model_name();
    met = true;
    if (key_missing) tell('');
    key_missing = false;
  } catch (error) {
    met = false;
    key_missing = error.status === 401;
    if (key_missing) tell('This server wants an API key: enter it in the settings.', { label: 'Settings', act: () => open_settings(chat, 'key') });
    else if (error.status) tell(error.message);
  }
}

const bytes = n => n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : `${(n / 1e6).toFixed(0)} MB`;

let last = null; // { time, tokens }: tokens that the server wrote for everybody
async function watch() {
  if (document.hidden) return;
  let g;
  try {
    g = await gauges();
  } catch (error) {
    last = null;
    met = false;
    $('stats').textContent = error.status === 401 ? 'no API key' : 'no server';
    return;
  }
  if (!met) meet();
  const now = { time: performance.now(), tokens: g.mxrun_generated_tokens_total ?? 0 };
  const rate = last ? (now.tokens - last.tokens) / ((now.time - last.time) / 1000) : 0;
  last = now;
  const parts = [rate > 0 ? `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s` : 'idle'];
  if (g.process_resident_memory_bytes) parts.push(bytes(g.process_resident_memory_bytes));
  if (g.mxrun_answers_waiting) parts.push(`${g.mxrun_answers_waiting} waiting`);
  $('stats').textContent = parts.join(' · ');
  $('stats').title = `Of the server: tokens of all its answers, resident memory. ${bytes(g.mxrun_kv_bytes_used ?? 0)} of at most ${bytes(g.mxrun_kv_bytes ?? 0)} hold keys and values.`;
}

// ---- controls --------------------------------------------------------------------------------------------------

function grow() {
  $('prompt').style.height = 'auto';
  $('prompt').style.height = `${$('prompt').scrollHeight}px`;
}

function send() {
  const text = $('prompt').value;
  if (!text.trim() || run_of(chat)) return;
  $('prompt').value = '';
  grow();
  ask(text);
}

function download(text) {
  const url = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  element('a', [], { href: url, download: 'mxrun-chats.json' }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function take_file() {
  const file = $('file').files[0];
  if (!file) return;
  try {
    const count = import_chats(await file.text());
    tell(`${count} conversation${count === 1 ? '' : 's'} came.`, null, true);
  } catch (error) {
    tell(error.message);
  }
  $('file').value = '';
  show_list();
}

function settings_closed() {
  const system = take_settings();
  if (system !== chat.system) {
    chat.system = system;
    if (chat.messages.length) save(chat);
    show_chat();
  }
  meet();
}

// Another tab wrote.
function storage_changed(what) {
  if (what.settings) reload_settings();
  if (what.list) show_list();
  if (what.chat === null || (what.chat && what.chat !== chat.id) || run_of(chat) || !chat.messages.length) return;
  if ($('log').querySelector('.editor')) return; // save_chat will keep both
  const other = load_chat(chat.id), top = $('messages').scrollTop, end = follow;
  chat = other ?? begun();
  show_chat();
  if (!end) $('messages').scrollTop = top;
  if (!other) tell('This conversation was deleted in another tab.');
}

$('composer').addEventListener('submit', event => { event.preventDefault(); send(); });
$('prompt').addEventListener('input', grow);
$('prompt').addEventListener('keydown', event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  send();
});
document.addEventListener('keydown', event => {
  if (event.key !== 'Escape' || $('settings').open || event.isComposing) return;
  if ($('side').classList.contains('shown')) show_side(false);
  else halt(chat);
});
$('messages').addEventListener('scroll', () => {
  const m = $('messages');
  // an answer may have grown since: only who moves up wants to stay there
  if (m.scrollHeight - m.scrollTop - m.clientHeight < 60) follow = true;
  else if (m.scrollTop < seen_top) follow = false;
  seen_top = m.scrollTop;
});
const sizes = new ResizeObserver(() => { if (follow) to_end(); });
sizes.observe($('log'));
sizes.observe($('messages'));
$('stop').addEventListener('click', () => halt(chat));
$('new').addEventListener('click', begin_chat);
$('open-side').addEventListener('click', () => show_side(true));
$('close-side').addEventListener('click', () => show_side(false));
$('veil').addEventListener('click', () => show_side(false));
narrow.addEventListener('change', () => show_side(false));
$('open-settings').addEventListener('click', () => open_settings(chat));
$('settings').addEventListener('close', settings_closed);
$('export').addEventListener('click', () => download(export_chats()));
$('import').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', take_file);
$('effort').addEventListener('change', () => set('effort', $('effort').value));
addEventListener('pagehide', () => runs.forEach(save_part));
document.addEventListener('visibilitychange', () => { if (document.hidden) runs.forEach(save_part); else watch(); });
watch_storage(storage_changed);

show_settings();
const newest = list_chats()[0];
if (newest) chat = load_chat(newest.id) ?? chat;
show_chat();
meet();
watch();
setInterval(watch, 2000);
if (!touch.matches) $('prompt').focus();
