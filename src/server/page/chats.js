// Conversations in this browser's local storage: one item each and an index, so that a long one is not written again
// with every other.

const INDEX = 'mxrun.chats', CHAT = 'mxrun.chat.';

const read = (key, otherwise) => {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
};

// { id, title, changed } newest first
export const list_chats = () => {
  const index = read(INDEX, []);
  return Array.isArray(index) ? index.filter(c => c && typeof c.id === 'string') : [];
};

export const new_chat = () => ({ id: crypto.randomUUID ? crypto.randomUUID() : random_id(), title: '', changed: Date.now(), system: '', messages: [] });

const random_id = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, '0')).join('');

const TEXTS = ['text', 'thinking', 'note'];
const is_message = m => m && (m.role === 'user' || m.role === 'assistant') && TEXTS.every(t => m[t] === undefined || typeof m[t] === 'string') && typeof m.text === 'string';

// null: it is none of ours
export function checked(chat) {
  if (!chat || typeof chat.id !== 'string' || !/^[\w-]{1,64}$/.test(chat.id) || !Array.isArray(chat.messages) || !chat.messages.every(is_message)) return null;
  return { id: chat.id, title: String(chat.title ?? ''), changed: Number(chat.changed) || Date.now(), system: String(chat.system ?? ''), messages: chat.messages };
}

export const load_chat = id => checked(read(CHAT + id, null));

// Throws where the browser has no room.
export function save_chat(chat) {
  chat.changed = Date.now();
  if (!chat.title) chat.title = (chat.messages.find(m => m.role === 'user')?.text ?? '').trim().split('\n')[0].slice(0, 60);
  localStorage.setItem(CHAT + chat.id, JSON.stringify(chat));
  const others = list_chats().filter(c => c.id !== chat.id);
  localStorage.setItem(INDEX, JSON.stringify([{ id: chat.id, title: chat.title, changed: chat.changed }, ...others]));
}

export function remove_chat(id) {
  localStorage.removeItem(CHAT + id);
  localStorage.setItem(INDEX, JSON.stringify(list_chats().filter(c => c.id !== id)));
}

export const export_chats = () => JSON.stringify({ mxrun_chats: 1, chats: list_chats().map(c => load_chat(c.id)).filter(Boolean) }, null, 1);

// How many came; those with an id that is here already replace it. Throws a message for people.
export function import_chats(text) {
  let data;
  try { data = JSON.parse(text); } catch { throw new Error('This file is not JSON.'); }
  if (!Array.isArray(data?.chats)) throw new Error('This file holds no conversations of mxrun.');
  const chats = data.chats.map(checked).filter(Boolean);
  for (const chat of chats.reverse()) save_chat(chat);
  return chats.length;
}

// Settings of all conversations.
export const load_settings = () => {
  const s = read('mxrun.settings', {});
  return s && typeof s === 'object' && !Array.isArray(s) ? s : {};
};
export const save_settings = settings => localStorage.setItem('mxrun.settings', JSON.stringify(settings));
