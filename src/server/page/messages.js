// A message of the conversation as the page shows it.
import { element } from './inline.js';
import { show_markdown, show_text } from './markdown.js';

// message → { node, on }: its article, and who acts: { run(message): how far its answer is, or undefined;
// edited(message, text); regenerate(message); unfold: whether thinking is to be seen; unfolded(whether) }
const views = new WeakMap();

export const node_of = message => views.get(message)?.node;

export function button(label, act, attributes = {}) {
  const e = element('button', [label], { type: 'button', ...attributes });
  e.addEventListener('click', () => act(e));
  return e;
}

// ---- copying ---------------------------------------------------------------------------------------------------

// Where a page that came without TLS from another machine has no clipboard
function copy_selected(text) {
  const area = element('textarea', [], { class: 'visually-hidden' }), before = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  before?.focus();
  return done;
}

async function copied(text, source) {
  let done;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    done = copy_selected(text);
  }
  const before = source.dataset.label ??= source.textContent;
  source.textContent = done ? 'Copied' : 'The browser does not allow it';
  setTimeout(() => { source.textContent = before; }, 1500);
}

// ---- parts -----------------------------------------------------------------------------------------------------

const seconds = s => s < 60 ? `${Math.round(s)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;

export function speed(tokens, milliseconds) {
  const words = [`${tokens} token${tokens === 1 ? '' : 's'}`];
  if (tokens > 1 && milliseconds > 0) words.push(`${((tokens - 1) / milliseconds * 1000).toFixed(1)} tokens/s`);
  return words.join(' · ');
}

// Folded; who unfolds one that is being written sees the next ones, too.
function show_thinking(message, { node, on }, run) {
  let details = node.querySelector(':scope > .thinking');
  if (!details) {
    const summary = element('summary');
    summary.addEventListener('click', () => { if (on.run(message)) on.unfolded(!details.open); });
    details = element('details', [summary, element('div', [], { class: 'text', dir: 'auto' })], { class: 'thinking' });
    details.open = Boolean(run) && on.unfold();
    node.querySelector(':scope > .body').before(details);
  }
  const still = run && !message.text;
  const time = still ? (performance.now() - run.first) / 1000 : message.thought ?? 0;
  show_text(details.firstChild, (still ? 'Thinking …' : time >= 1 ? 'Thought for' : 'Thinking') + (time >= 1 ? ` ${seconds(time)}` : ''));
  show_text(details.lastChild, message.thinking);
}

function show_tools(message, { node, on }, run) {
  const tools = node.querySelector(':scope > .tools'), note = run ? (run.tokens ? speed(run.tokens, performance.now() - run.first) : 'waiting for the server …') : message.note ?? '';
  if (run && tools.firstChild?.className === 'note') return show_text(tools.firstChild, note);
  tools.replaceChildren();
  if (!run) {
    tools.append(button('Copy', b => copied(message.text, b)));
    if (message.role === 'user') tools.append(button('Edit', () => edit(message)));
    const again = message.role === 'user' ? 'Ask again' : 'Regenerate';
    tools.append(button(again, () => on.regenerate(message), { class: 'again' })); // to be seen at the end only
  }
  tools.append(element('span', [note], { class: 'note' }));
}

// Shows what a message has by now. `until`: as of show_markdown, false: there is more to do.
export function update_message(message, until) {
  const view = views.get(message);
  if (!view || view.editing) return true;
  const { node, on } = view, body = node.querySelector(':scope > .body'), run = on.run(message);
  let complete = true;
  node.classList.toggle('writing', Boolean(run));
  if (message.thinking) show_thinking(message, view, run);
  if (message.role === 'user') show_text(body, message.text);
  else complete = show_markdown(body, message.text, copied, until);
  show_tools(message, view, run);
  return complete;
}

// An article, empty until update_message.
export function make_message(message, on) {
  const node = element('article', [
    element('h2', [message.role === 'user' ? 'You' : 'Answer'], { class: 'visually-hidden' }),
    element('div', [], { class: 'body', ...message.role === 'user' ? { dir: 'auto' } : {} }),
    element('div', [], { class: 'tools' }),
  ], { class: `message ${message.role}` });
  views.set(message, { node, on, editing: false });
  return node;
}

function edit(message) {
  const view = views.get(message), { node, on } = view, before = [...node.childNodes];
  const area = element('textarea', [], { class: 'editor', 'aria-label': 'Edit the message', dir: 'auto' });
  const done = () => {
    view.editing = false;
    node.replaceChildren(...before);
    update_message(message);
    [...node.querySelectorAll('.tools button')].find(b => b.textContent === 'Edit')?.focus();
  };
  const send = () => {
    if (!area.value.trim()) return;
    view.editing = false;
    on.edited(message, area.value);
  };
  view.editing = true;
  area.value = message.text;
  area.addEventListener('keydown', event => {
    if (event.isComposing) return;
    if (event.key === 'Escape') { event.stopPropagation(); done(); }
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) send();
  });
  node.replaceChildren(area, element('div', [
    element('span', ['What follows it is replaced.'], { class: 'note' }), button('Cancel', done), button('Send', send, { class: 'main' }),
  ], { class: 'row end' }));
  area.style.height = `${Math.min(area.scrollHeight + 4, 400)}px`;
  area.focus();
}
