// Conversations in this browser's local storage: one item each and an index of titles, so that a long one is not
// written again with every other. Several tabs may be open.

const INDEX = 'mxrun.chats', CHAT = 'mxrun.chat.', SETTINGS = 'mxrun.settings';

const read = (key, otherwise) => {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
};

// ---- what a conversation is ------------------------------------------------------------------------------------
// { id, title, changed, system, messages: [{ role: 'user' | 'assistant', text, thinking?, thought?, note? }] }

const random_id = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, '0')).join('');

export const new_chat = () => ({ id: random_id(), title: '', changed: Date.now(), system: '', messages: [] });

// null: it is none
function checked_message(m) {
  if (!m || !['user', 'assistant'].includes(m.role) || typeof m.text !== 'string') return null;
  const out = { role: m.role, text: m.text };
  for (const name of ['thinking', 'note']) if (m[name]) out[name] = String(m[name]);
  if (Number(m.thought) > 0) out.thought = Number(m.thought);
  return out;
}

function checked(chat) {
  if (typeof chat?.id !== 'string' || !/^[\w-]{1,64}$/.test(chat.id) || !Array.isArray(chat.messages)) return null;
  const messages = chat.messages.map(checked_message);
  if (messages.includes(null)) return null;
  return { id: chat.id, title: String(chat.title ?? ''), changed: Number(chat.changed) || 0, system: String(chat.system ?? ''), messages };
}

// ---- the storage -----------------------------------------------------------------------------------------------

const seen = new WeakMap(); // conversation → when what it was read from, or written to, was changed

// null: there is none
export function load_chat(id) {
  const chat = checked(read(CHAT + id, null));
  if (chat) seen.set(chat, chat.changed);
  return chat;
}

// [{ id, title, changed }], newest first. What the items are counts: another tab may have written the index meanwhile.
export function list_chats() {
  const index = read(INDEX, []), known = new Map();
  for (const c of Array.isArray(index) ? index : []) if (typeof c?.id === 'string') known.set(c.id, c);
  const out = [];
  try {
    for (let i = 0; i < localStorage.length; i++) {
      const key = localStorage.key(i);
      if (!key.startsWith(CHAT)) continue;
      const id = key.slice(CHAT.length), c = known.get(id) ?? load_chat(id);
      if (c) out.push({ id, title: String(c.title ?? ''), changed: Number(c.changed) || 0 });
    }
  } catch { /* the browser gives this page no storage: there are none */ }
  return out.sort((a, b) => b.changed - a.changed);
}

function put(chat) {
  localStorage.setItem(CHAT + chat.id, JSON.stringify(chat));
  seen.set(chat, chat.changed);
  const others = list_chats().filter(c => c.id !== chat.id);
  localStorage.setItem(INDEX, JSON.stringify([{ id: chat.id, title: chat.title, changed: chat.changed }, ...others]));
}

// Throws where the browser has no room. Where another tab has changed the conversation since this one read it, both
// stay: this one gets an id of its own, and true is returned.
export function save_chat(chat) {
  const stored = seen.has(chat) ? load_chat(chat.id) : null;
  const both = Boolean(stored) && stored.changed !== seen.get(chat);
  if (both) chat.id = random_id();
  chat.changed = Math.max(Date.now(), chat.changed + 1);
  if (!chat.title) chat.title = (chat.messages.find(m => m.role === 'user')?.text ?? '').trim().split('\n')[0].slice(0, 60);
  put(chat);
  return both;
}

export function remove_chat(id) {
  localStorage.removeItem(CHAT + id);
  try { localStorage.setItem(INDEX, JSON.stringify(list_chats())); } catch { /* list_chats knows without */ }
}

// changed({ list, chat, settings }): another tab wrote. chat: id of a conversation, '' where everything was removed.
export function watch_storage(changed) {
  addEventListener('storage', ({ key }) => {
    const chat = key === null ? '' : key.startsWith(CHAT) ? key.slice(CHAT.length) : null;
    changed({ list: chat !== null || key === INDEX, chat, settings: key === null || key === SETTINGS });
  });
}

// ---- to files and back -----------------------------------------------------------------------------------------

export const export_chats = () => JSON.stringify({ mxrun_chats: 1, chats: list_chats().map(c => load_chat(c.id)).filter(Boolean) }, null, 1);

// How many came. Of two with the same id the newer one stays. Throws a message for people.
export function import_chats(text) {
  let data;
  try { data = JSON.parse(text); } catch { throw new Error('This file is not JSON: expected one that “Export” made.'); }
  if (!Array.isArray(data?.chats)) throw new Error('This file holds no conversations: expected one that “Export” made.');
  let count = 0;
  for (const chat of data.chats.map(checked)) {
    if (!chat || (load_chat(chat.id)?.changed ?? -1) >= chat.changed) continue;
    try { put(chat); } catch { throw new Error(`This browser has no room for all of them: ${count} came.`); }
    count++;
  }
  return count;
}

// ---- settings of all conversations -----------------------------------------------------------------------------

export const load_settings = () => {
  const s = read(SETTINGS, {});
  return s && typeof s === 'object' && !Array.isArray(s) ? s : {};
};
// Throws where the browser has no room.
export const save_settings = settings => localStorage.setItem(SETTINGS, JSON.stringify(settings));
