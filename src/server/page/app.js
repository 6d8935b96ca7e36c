import { answer, gauges, key, model_name } from './api.js';
import { export_chats, import_chats, list_chats, load_chat, load_settings, new_chat, remove_chat, save_chat, save_settings } from './chats.js';
import { show_markdown } from './markdown.js';

const $ = id => document.getElementById(id);
const make = (name, props = {}, ...children) => {
  const e = Object.assign(document.createElement(name), props);
  e.append(...children);
  return e;
};

let chat = new_chat();
let settings = load_settings();
let running = null; // { abort, chat, message, started, first, tokens } while an answer is written

// ---- telling ---------------------------------------------------------------------------------------------------

function tell(text) {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}
const say = text => { $('status').textContent = text; };

function keep() {
  try {
    save_chat(chat);
  } catch {
    tell('This browser has no room left for conversations: export them and delete some. This one is not saved.');
  }
  show_list();
}

async function copied(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    button.textContent = 'The browser does not allow it';
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}

// ---- list of conversations -------------------------------------------------------------------------------------

function show_list() {
  $('chats').replaceChildren(...list_chats().map(c => {
    const current = c.id === chat.id;
    const open = make('button', { className: 'open', type: 'button', textContent: c.title || 'New chat', title: c.title });
    if (current) open.setAttribute('aria-current', 'true');
    open.addEventListener('click', () => { open_chat(c.id); show_side(false); });
    const remove = make('button', { className: 'icon remove', type: 'button', textContent: '✕' });
    remove.setAttribute('aria-label', `Delete “${c.title || 'New chat'}”`);
    remove.addEventListener('click', () => delete_chat(c));
    return make('li', { className: current ? 'current' : '' }, open, remove);
  }));
}

function open_chat(id) {
  const found = load_chat(id);
  if (!found) return tell('This conversation cannot be read any more.');
  if (found.id !== chat.id) halt();
  chat = running?.chat.id === found.id ? running.chat : found;
  show_chat();
}

function delete_chat(c) {
  if (!confirm(`Delete “${c.title || 'New chat'}”? This cannot be undone.`)) return;
  if (c.id === chat.id) { halt(); chat = new_chat(); }
  remove_chat(c.id);
  show_chat();
}

function begin_chat() {
  halt();
  chat = new_chat();
  show_chat();
  show_side(false);
  $('prompt').focus();
}

function show_side(shown) {
  $('side').classList.toggle('shown', shown);
  $('open-side').setAttribute('aria-expanded', String(shown));
  if (shown) $('new').focus();
}

// ---- messages --------------------------------------------------------------------------------------------------

const at_end = () => $('messages').scrollHeight - $('messages').scrollTop - $('messages').clientHeight < 60;
const to_end = () => { $('messages').scrollTop = $('messages').scrollHeight; };

function show_chat() {
  tell('');
  const list = chat.messages.map(show_message);
  if (!list.length) list.push(make('p', { className: 'empty', textContent: 'What would you like to know?' }));
  $('messages').replaceChildren(...list);
  to_end();
  show_list();
  $('system').value = chat.system;
  document.title = chat.title ? `${chat.title} – mxrun` : 'mxrun';
}

function tool(label, act) {
  const button = make('button', { type: 'button', textContent: label });
  button.addEventListener('click', () => act(button));
  return button;
}

function show_message(message) {
  const node = make('article', { className: `message ${message.role}` });
  node.setAttribute('aria-label', message.role === 'user' ? 'You' : 'Answer');
  message_parts.set(message, node);
  update_message(message, true);
  return node;
}
const message_parts = new WeakMap();

// Shows what a message has by now; `whole`: with its buttons.
function update_message(message, whole) {
  const node = message_parts.get(message);
  if (!node) return;
  if (message.thinking) show_thinking(node, message);
  let body = node.querySelector(':scope > .body');
  if (!body) node.append(body = make('div', { className: 'body' }));
  if (message.role === 'user') body.textContent = message.text;
  else show_markdown(body, message.text, copied);
  if (whole) show_tools(node, message);
}

function show_thinking(node, message) {
  let details = node.querySelector(':scope > .thinking');
  if (!details) {
    details = make('details', { className: 'thinking' }, make('summary', { textContent: 'Thinking' }), make('div', { className: 'text' }));
    node.prepend(details);
  }
  details.lastChild.textContent = message.thinking;
  details.firstChild.textContent = running?.message === message && !message.text ? 'Thinking …' : 'Thinking';
}

function show_tools(node, message) {
  node.querySelector(':scope > .tools')?.remove();
  const tools = make('div', { className: 'tools' });
  if (running?.message === message) return;
  tools.append(tool('Copy', button => copied(message.text, button)));
  if (message.role === 'user') tools.append(tool('Edit', () => edit(message)));
  else tools.append(tool('Regenerate', () => regenerate(message)));
  if (message.note) tools.append(make('span', { className: 'note', textContent: message.note }));
  node.append(tools);
}

function edit(message) {
  const node = message_parts.get(message);
  const area = make('textarea', { className: 'editor', value: message.text });
  area.setAttribute('aria-label', 'Edit the message');
  const send = tool('Send', () => {
    if (!area.value.trim()) return;
    halt();
    chat.messages.splice(chat.messages.indexOf(message));
    ask(area.value);
  });
  const cancel = tool('Cancel', () => update_again(message));
  node.replaceChildren(area, make('div', { className: 'row end' }, cancel, send));
  area.focus();
}

function update_again(message) {
  message_parts.get(message).replaceChildren();
  update_message(message, true);
}

function regenerate(message) {
  halt();
  const index = chat.messages.indexOf(message);
  if (index < 0) return;
  chat.messages.splice(index);
  show_chat();
  write();
}

// ---- asking ----------------------------------------------------------------------------------------------------

function ask(text) {
  chat.messages.push({ role: 'user', text });
  keep();
  show_chat();
  write();
}

function request() {
  const messages = chat.messages.map(m => m.role === 'user' ? { role: 'user', content: m.text }
    : { role: 'assistant', content: m.text, ...(m.thinking ? { reasoning_content: m.thinking } : {}) });
  if (chat.system.trim()) messages.unshift({ role: 'system', content: chat.system });
  const body = { model: $('model').textContent, messages, reasoning_effort: $('effort').value };
  for (const name of ['temperature', 'top_p', 'top_k', 'min_p', 'seed']) {
    if (settings[name] !== undefined && settings[name] !== '') body[name] = Number(settings[name]);
  }
  if (settings.max_tokens) body.max_completion_tokens = Number(settings.max_tokens);
  return body;
}

function note_of(run, finish, usage) {
  const parts = [];
  if (usage) {
    parts.push(`${usage.completion_tokens} tokens`);
    const seconds = (performance.now() - run.first) / 1000;
    if (usage.completion_tokens > 1 && seconds > 0) parts.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
  }
  if (finish === 'length') parts.push('cut: the limit of tokens was reached');
  return parts.join(' · ');
}

async function write() {
  const body = request();
  const run = running = { abort: new AbortController(), chat, message: { role: 'assistant', text: '', thinking: '' }, first: 0, tokens: 0 };
  const { message } = run;
  let finish = null, usage = null, frame = 0;
  run.chat.messages.push(message);
  $('messages').append(show_message(message));
  to_end();
  show_running(true);
  say('The answer is being written.');
  tell('');
  const paint = () => {
    frame = 0;
    if (run.chat !== chat) return;
    const follow = at_end();
    update_message(message, false);
    if (follow) to_end();
  };
  try {
    await answer(body, run.abort.signal, part => {
      if (!run.first && (part.text || part.thinking)) run.first = performance.now();
      run.tokens += part.text || part.thinking ? 1 : 0;
      message.text += part.text;
      message.thinking += part.thinking;
      finish = part.finish ?? finish;
      usage = part.usage ?? usage;
      if (!frame) frame = requestAnimationFrame(paint);
    });
    say('The answer is complete.');
  } catch (error) {
    if (run.abort.signal.aborted) finish = 'stopped';
    else {
      tell(error instanceof TypeError ? 'The server cannot be reached.' : error.message);
      if (error.status === 401) open_settings('key');
    }
    say(run.abort.signal.aborted ? 'Stopped.' : 'No answer.');
  }
  cancelAnimationFrame(frame);
  end(run, finish === 'stopped' ? 'stopped' : note_of(run, finish, usage));
}

function end(run, note) {
  if (running === run) running = null;
  const { message } = run;
  if (note) message.note = note;
  if (!message.text && !message.thinking) {
    const index = run.chat.messages.indexOf(message);
    if (index >= 0) run.chat.messages.splice(index, 1);
    message_parts.get(message)?.remove();
  } else if (run.chat === chat) {
    update_message(message, true);
  }
  if (run.chat === chat || load_chat(run.chat.id)) {
    try { save_chat(run.chat); } catch { tell('This browser has no room left: the answer is not saved.'); }
  }
  show_list();
  show_running(running !== null);
}

function halt() {
  running?.abort.abort();
}

function show_running(busy) {
  $('send').hidden = busy;
  $('stop').hidden = !busy;
  $('messages').setAttribute('aria-busy', String(busy));
}

// ---- settings --------------------------------------------------------------------------------------------------

const NUMBERS = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];

function open_settings(field) {
  for (const name of NUMBERS) $(name).value = settings[name] ?? '';
  $('theme').value = settings.theme ?? '';
  $('key').value = key.get();
  $('system').value = chat.system;
  if (!$('settings').open) $('settings').showModal();
  if (field) $(field).focus();
}

function take_settings() {
  for (const name of NUMBERS) settings[name] = $(name).value;
  settings.theme = $('theme').value;
  settings.effort = $('effort').value;
  key.set($('key').value.trim());
  if (chat.system !== $('system').value) {
    chat.system = $('system').value;
    if (chat.messages.length) keep();
  }
  try { save_settings(settings); } catch { tell('This browser has no room left: settings hold until the page is closed.'); }
  show_theme();
  meet();
}

function show_theme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

// ---- the server ------------------------------------------------------------------------------------------------

async function meet() {
  try {
    $('model').textContent = await model_name();
  } catch (error) {
    tell(error.status === 401 ? 'This server wants an API key: enter it in the settings.' : error.message);
  }
}

const bytes = n => n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : `${(n / 1e6).toFixed(0)} MB`;

let last = null; // { time, tokens }: tokens that the server wrote for everybody
async function watch() {
  const g = document.hidden ? null : await gauges().catch(() => null);
  if (!g) return;
  const now = { time: performance.now(), tokens: g.mxrun_generated_tokens_total ?? 0 };
  const rate = last ? (now.tokens - last.tokens) / ((now.time - last.time) / 1000) : 0;
  last = now;
  const parts = [`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`];
  if (g.process_resident_memory_bytes) parts.push(bytes(g.process_resident_memory_bytes));
  if (g.mxrun_answers_waiting) parts.push(`${g.mxrun_answers_waiting} waiting`);
  $('stats').textContent = parts.join(' · ');
}

// ---- controls --------------------------------------------------------------------------------------------------

function grow() {
  $('prompt').style.height = 'auto';
  $('prompt').style.height = `${$('prompt').scrollHeight}px`;
}

function send() {
  const text = $('prompt').value;
  if (!text.trim() || running) return;
  $('prompt').value = '';
  grow();
  ask(text);
}

function download(text) {
  const url = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  const a = make('a', { href: url, download: 'mxrun-chats.json' });
  a.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function take_file() {
  const file = $('file').files[0];
  $('file').value = '';
  if (!file) return;
  try {
    const count = import_chats(await file.text());
    say(`${count} conversations came.`);
    show_list();
  } catch (error) {
    tell(error.message);
  }
}

$('composer').addEventListener('submit', event => { event.preventDefault(); send(); });
$('prompt').addEventListener('input', grow);
$('prompt').addEventListener('keydown', event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener('keydown', event => {
  if (event.key !== 'Escape' || $('settings').open) return;
  if ($('side').classList.contains('shown')) { show_side(false); $('open-side').focus(); } else halt();
});
$('stop').addEventListener('click', halt);
$('new').addEventListener('click', begin_chat);
$('open-side').addEventListener('click', () => show_side(true));
$('close-side').addEventListener('click', () => show_side(false));
$('open-settings').addEventListener('click', () => open_settings());
$('settings').addEventListener('close', take_settings);
$('export').addEventListener('click', () => download(export_chats()));
$('import').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', take_file);
$('effort').value = settings.effort ?? 'medium';
$('effort').addEventListener('change', () => { settings.effort = $('effort').value; save_settings(settings); });

show_theme();
const newest = list_chats()[0];
if (newest) chat = load_chat(newest.id) ?? chat;
show_chat();
meet();
watch();
setInterval(watch, 2000);
$('prompt').focus();
