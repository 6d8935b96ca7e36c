// Markdown inside a block: one pass over the text, no more work than its length asks for, whatever it holds, and no
// more than DEEP elements within each other. Text only ever becomes text nodes: nothing that a model writes can become
// markup, an attribute other than a checked link, or a script.

const DEEP = 16;             // open marks at once; more are text
const ELEMENTS = 1000;       // of one block; what follows is text
const LONGEST = 2000;        // characters of an address or a formula

export const element = (name, children = [], attributes = {}) => {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  e.append(...children);
  return e;
};

const ADDRESS = /^(?:https?:\/\/[^\s<>"]|mailto:)[^\s<>"]*$/i;
const SPECIAL = /[\\`*_~[\]!<$\n]|https?:\/\//gi;
const SPACE = /\s/, PUNCTUATION = /[\p{P}\p{S}]/u, WORD = /[\p{L}\p{N}_]/u;
const TAGS = { '*': 'em', '_': 'em', '**': 'strong', '__': 'strong', '~~': 'del' };

// A link, or null where the address is of no kind that is safe.
const link = (to, children) => ADDRESS.test(to) ? element('a', children, { href: to, target: '_blank', rel: 'noopener noreferrer nofollow' }) : null;

// What of "(address "title")" begins at `from`: { to, end }, or null
function destination(text, from) {
  if (text[from] !== '(') return null;
  let depth = 1, to = null;
  for (let i = from + 1; i < text.length && i - from < LONGEST; i++) {
    const c = text[i];
    if (c === '\n') return null;
    if (to === null && SPACE.test(c)) to = text.slice(from + 1, i);
    else if (c === '(' && to === null && ++depth > 8) return null;
    else if (c === ')' && (to !== null || --depth === 0)) return { to: to ?? text.slice(from + 1, i), end: i + 1 };
  }
  return null;
}

const code_text = text => text.startsWith(' ') && text.endsWith(' ') && text.trim() ? text.slice(1, -1) : text;

// What stands open: marks of emphasis and brackets, each with the nodes since.
class Open {
  constructor() { this.frames = [{ mark: '', nodes: [] }]; }
  add(...nodes) { this.frames.at(-1).nodes.push(...nodes); }
  begin(mark) { if (this.frames.length > DEEP) this.add(mark); else this.frames.push({ mark, nodes: [] }); }
  // Index of the innermost one for which is(mark), not beyond a bracket; -1: none
  find(is) {
    for (let i = this.frames.length - 1; i > 0; i--) {
      if (is(this.frames[i].mark)) return i;
      if (this.frames[i].mark.endsWith('[')) return -1;
    }
    return -1;
  }
  // Closes it; marks within that nobody closed are text.
  end(index) {
    while (this.frames.length > index + 1) this.spill();
    return this.frames.pop().nodes;
  }
  spill() {
    const { mark, nodes } = this.frames.pop();
    this.add(mark);
    for (const node of nodes) this.add(node);
  }
  all() { while (this.frames.length > 1) this.spill(); return this.frames[0].nodes; }
}

// A run of * or _ or ~ from `at`: closes what it can, opens what is left of it.
function emphasis(open, text, at, run) {
  const before = at ? text[at - 1] : ' ', after = text[at + run.length] ?? ' ';
  const solid = c => !SPACE.test(c), point = c => PUNCTUATION.test(c);
  const left = solid(after) && (!point(after) || !solid(before) || point(before));
  const right = solid(before) && (!point(before) || !solid(after) || point(after));
  const inside = run[0] === '_' && WORD.test(before) && WORD.test(after);
  let rest = run;
  while (right && !inside && rest) {
    let index = open.find(mark => mark === rest && mark in TAGS);
    if (index < 0) index = open.find(mark => mark in TAGS && rest.startsWith(mark));
    if (index < 0) break;
    const { mark } = open.frames[index];
    open.add(element(TAGS[mark], open.end(index)));
    rest = rest.slice(mark.length);
  }
  if (!rest) return;
  if (!left || inside || rest.length > 3 || (rest[0] === '~' && rest.length !== 2)) open.add(rest);
  else if (rest.length === 3) { open.begin(rest.slice(1)); open.begin(rest[0]); }
  else open.begin(rest);
}

// The nodes and strings of a text.
export function inline(text) {
  const open = new Open(), places = {};
  const next = (mark, from) => { // where `mark` is next; each part of the text is searched once for it
    if (places[mark] === undefined || (places[mark] >= 0 && places[mark] < from)) places[mark] = text.indexOf(mark, from);
    return places[mark];
  };
  let ticks = null; // length of a run of backticks → where those are, the next one last
  const closing_ticks = (length, from) => {
    if (!ticks) {
      ticks = {};
      for (const m of text.matchAll(/`+/g)) (ticks[m[0].length] ??= []).push(m.index);
      for (const list of Object.values(ticks)) list.reverse();
    }
    const list = ticks[length];
    while (list?.length && list.at(-1) < from) list.pop();
    return list?.at(-1) ?? -1;
  };
  let at = 0, elements = 0;
  while (at < text.length && elements < ELEMENTS) {
    SPECIAL.lastIndex = at;
    const m = SPECIAL.exec(text);
    if (!m) break;
    if (m.index > at) open.add(text.slice(at, m.index));
    at = m.index;
    const c = m[0], two = text.slice(at, at + 2);
    elements++;
    if (c === '`') {
      let length = 1;
      while (text[at + length] === '`') length++;
      const end = closing_ticks(length, at + length);
      if (end < 0) open.add('`'.repeat(length));
      else open.add(element('code', [code_text(text.slice(at + length, end).replaceAll('\n', ' '))]));
      at = (end < 0 ? at : end) + length;
    } else if (c === '*' || c === '_' || c === '~') {
      let end = at + 1;
      while (text[end] === c) end++;
      emphasis(open, text, at, text.slice(at, end));
      at = end;
    } else if (two === '\\(' || two === '\\[' || two === '$$') { // a formula, as it is written
      const mark = two === '$$' ? two : two === '\\(' ? '\\)' : '\\]', end = next(mark, at + 2);
      if (end > at + 2 && end - at < LONGEST) {
        open.add(element('span', [text.slice(at + 2, end).trim()], { class: 'math' }));
        at = end + 2;
      } else { open.add(two === '$$' ? two : two[1]); at += 2; }
    } else if (c === '\\') {
      if (two[1] === '\n') open.add(element('br'));
      else open.add(/[!-/:-@[-`{-~]/.test(two[1] ?? '') ? two[1] : two);
      at += 2;
    } else if (c === '\n') {
      if (text.slice(at - 2, at) === '  ') open.add(element('br'));
      open.add('\n');
      at++;
    } else if (c === '[' || two === '![') { // pictures are not fetched: links to them
      open.begin(c === '[' ? '[' : '![');
      at += c === '[' ? 1 : 2;
    } else if (c === ']') {
      const index = open.find(mark => mark.endsWith('[')), target = index < 0 ? null : destination(text, at + 1);
      const made = target && !open.frames[index].linked && ADDRESS.test(target.to);
      if (made) {
        const nodes = open.end(index);
        open.add(link(target.to, nodes.length ? nodes : [target.to]));
        for (const frame of open.frames) frame.linked = true; // no link within a link
        at = target.end;
      } else {
        if (index >= 0) { while (open.frames.length > index) open.spill(); }
        open.add(']');
        at++;
      }
    } else if (c === '<') {
      const tag = /<(?:(br) ?\/?|((?:https?:\/\/|mailto:)[^\s<>]{1,2000}))>/iy;
      tag.lastIndex = at;
      const found = tag.exec(text);
      open.add(found?.[1] ? element('br') : (found && link(found[2], [found[2]])) ?? '<');
      at += found ? found[0].length : 1;
    } else if (c.length > 1) {
      const end = at + /^[^\s<>"')\]]*/.exec(text.slice(at, at + LONGEST))[0].replace(/[.,;:!?*_]{1,50}$/, '').length;
      const address = text.slice(at, Math.max(end, at + c.length));
      const bare = open.frames.some(f => f.mark.endsWith('[')) || WORD.test(text[at - 1] ?? ' ');
      open.add((!bare && link(address, [address])) || address);
      at += address.length;
    } else {
      open.add(c);
      at++;
    }
  }
  if (at < text.length) open.add(text.slice(at));
  return open.all();
}
