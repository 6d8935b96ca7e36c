// Settings: what is kept for all conversations, and the system prompt of one.
import { key } from './api.js';
import { load_settings, save_settings } from './chats.js';

const $ = id => document.getElementById(id);
const NUMBERS = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];

export let settings = load_settings();

// What a request says of sampling.
export function sampling() {
  const body = { reasoning_effort: $('effort').value };
  for (const name of NUMBERS) {
    const value = settings[name] ?? '';
    if (value !== '' && Number.isFinite(Number(value))) body[name === 'max_tokens' ? 'max_completion_tokens' : name] = Number(value);
  }
  return body;
}

export function set(name, value) {
  settings[name] = value;
  try { save_settings(settings); } catch { /* they hold until the page is closed */ }
}

export function show_settings() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
  const known = [...$('effort').options].some(o => o.value === settings.effort);
  $('effort').value = known ? settings.effort : 'medium';
}

export function reload_settings() {
  settings = load_settings();
  show_settings();
}

export function open_settings(chat, field) {
  if ($('settings').open) return;
  for (const name of NUMBERS) $(name).value = settings[name] ?? '';
  $('theme').value = settings.theme ?? '';
  $('key').value = key.get();
  $('system').value = chat.system;
  $('system-all').checked = Boolean(settings.system) && settings.system === chat.system;
  $('settings').showModal();
  if (field) $(field).focus();
}

// Takes what the dialog says; the system prompt is returned.
export function take_settings() {
  for (const name of NUMBERS) settings[name] = $(name).value;
  settings.theme = $('theme').value;
  const system = $('system').value.trim() ? $('system').value : '';
  if ($('system-all').checked) settings.system = system;
  else if (settings.system === system) settings.system = '';
  set('effort', $('effort').value);
  key.set($('key').value.trim());
  show_settings();
  return system;
}
