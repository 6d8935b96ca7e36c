// Markdown as models write it, to elements: blocks here, what is inside them in inline.js. Every line is looked at a
// fixed number of times; patterns have no two parts that could share the same characters, so that none backtracks long.
import { element, inline } from './inline.js';

const DEEP = 10;     // lists and quotes within each other; what is deeper is a paragraph
const LINES = 200;   // of a paragraph, list, quote, table; the next lines begin another
const COLUMNS = 60;
const AT_ONCE = 16;  // blocks that the browser is to lay out in a frame

const FENCE = /^( {0,3})(`{3,}|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const QUOTE = /^ {0,3}> ?/;

// At least three of * or - or _, and nothing but space
const is_rule = line => /^ {0,3}(?:\*[*\s]*|-[-\s]*|_[_\s]*)$/.test(line) && line.replace(/\s+/g, '').length > 2;
const begins_block = line => FENCE.test(line) || HEADING.test(line) || is_rule(line) || ITEM.test(line) || QUOTE.test(line);
const indent_of = line => line.length - line.trimStart().length;
const spaced = line => line.includes('\t') ? line.replace(/^[ \t]+/, w => w.replaceAll('\t', '    ')) : line;
const is_blank = line => !line.trim();

// Whether a line ends the code that `fence` began.
function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text[0] === fence[0] && indent_of(line) < 4 && !text.replaceAll(fence[0], '');
}

const cells = line => line.trim().replace(/^\|/, '').replace(/\|$/, '').split(/(?<!\\)\|/).map(c => c.trim().replaceAll('\\|', '|'));

// Cells of a table's head; 0: these two lines begin none
function columns(head, divider) {
  if (!head.includes('|') || !divider?.includes('-') || !/^[\s|:-]+$/.test(divider)) return 0;
  const marks = cells(divider);
  return marks.length <= COLUMNS && marks.every(c => /^:?-+:?$/.test(c)) && cells(head).length === marks.length ? marks.length : 0;
}

function end_of_list(lines, from, [, { length: indent }, mark]) {
  const ordered = c => c >= '0' && c <= '9';
  let end = from + 1;
  for (; end < lines.length && end - from < LINES; end++) {
    const next = lines[end], item = ITEM.exec(next);
    if (is_blank(next)) {
      const after = lines[end + 1];
      if (after === undefined || is_blank(after) || (!ITEM.test(after) && indent_of(after) <= indent)) break;
    } else if (item) {
      if (item[1].length < indent || (item[1].length === indent && ordered(item[2][0]) !== ordered(mark[0]))) break;
    } else if (indent_of(next) <= indent && begins_block(next)) break;
  }
  return end;
}

// Lines [from, end) are one block: { kind, end, ... }. Looks at the line after `end` and no further.
function next_block(lines, from, depth) {
  const line = lines[from], most = Math.min(lines.length, from + LINES);
  let m, end = from + 1;
  if ((m = FENCE.exec(line))) {
    while (end < lines.length && !closes(lines[end], m[2])) end++;
    const open = end === lines.length;
    return { kind: 'code', language: m[3].trim().split(/\s/)[0], indent: m[1].length, open, end: open ? end : end + 1 };
  }
  if ((m = HEADING.exec(line))) return { kind: 'heading', level: m[1].length, end };
  if (is_rule(line)) return { kind: 'rule', end };
  if (QUOTE.test(line) && depth < DEEP) {
    while (end < most && !is_blank(lines[end]) && (QUOTE.test(lines[end]) || !begins_block(lines[end]))) end++;
    return { kind: 'quote', end };
  }
  if ((m = ITEM.exec(line)) && depth < DEEP) return { kind: 'list', indent: m[1].length, start: parseInt(m[2], 10), end: end_of_list(lines, from, m) };
  const width = columns(line, lines[end]);
  if (width) {
    while (++end < most && lines[end].includes('|'));
    return { kind: 'table', width, end };
  }
  while (end < most && !is_blank(lines[end]) && !begins_block(lines[end]) && !columns(lines[end], lines[end + 1])) end++;
  return { kind: 'paragraph', end };
}

// ---- elements --------------------------------------------------------------------------------------------------

function heading(line, level) {
  let text = line.trim().slice(level).trim(), end = text.length;
  while (text[end - 1] === '#') end--;
  if (!end || /\s/.test(text[end - 1])) text = text.slice(0, end).trim();
  return element(`h${Math.min(level + 2, 6)}`, inline(text)); // h2 names the message
}

function code_text(lines, block) {
  const body = lines.slice(1, block.open ? lines.length : -1);
  return (block.indent ? body.map(l => l.slice(Math.min(block.indent, indent_of(l)))) : body).join('\n');
}

function code(lines, block, copied) {
  const copy = element('button', ['Copy'], { type: 'button', 'aria-label': 'Copy the code' });
  const shown = element('code', [code_text(lines, block)]);
  copy.addEventListener('click', () => copied(shown.textContent, copy));
  return element('div', [
    element('div', [element('span', [block.language || 'code']), copy], { class: 'bar' }),
    element('pre', [shown], { tabindex: '0', dir: 'ltr' }),
  ], { class: 'code' });
}

function list(lines, block, depth, copied) {
  const out = element(block.start >= 0 ? 'ol' : 'ul');
  if (block.start >= 0 && block.start !== 1) out.setAttribute('start', String(block.start));
  for (let i = 0; i < lines.length;) {
    const width = ITEM.exec(lines[i])?.[0].length ?? 0;
    const own = [lines[i].slice(width).replace(/^\[([ xX])\] /, (_, c) => c === ' ' ? '☐ ' : '☑ ')];
    for (i++; i < lines.length; i++) {
      const item = ITEM.exec(lines[i]);
      if (item && item[1].length <= block.indent) break;
      own.push(lines[i].slice(Math.min(indent_of(lines[i]), width)));
    }
    const children = blocks(own, depth + 1, copied);
    // a tight item is its text, without a paragraph
    if (children[0]?.tagName === 'P') children.splice(0, 1, ...children[0].childNodes);
    out.append(element('li', children));
  }
  return out;
}

function table(lines, width) {
  const row = (line, name) => {
    const texts = cells(line);
    return element('tr', Array.from({ length: width }, (_, i) => element(name, inline(texts[i] ?? ''))));
  };
  return element('div', [element('table', [
    element('thead', [row(lines[0], 'th')]),
    element('tbody', lines.slice(2).map(line => row(line, 'td'))),
  ])], { class: 'table', tabindex: '0' });
}

function build(lines, block, depth, copied) {
  switch (block.kind) {
    case 'code': return code(lines, block, copied);
    case 'heading': return heading(lines[0], block.level);
    case 'rule': return element('hr');
    case 'quote': return element('blockquote', blocks(lines.map(l => l.replace(QUOTE, '')), depth + 1, copied));
    case 'list': return list(lines, block, depth, copied);
    case 'table': return table(lines, block.width);
    default: return element('p', inline(lines.map(l => l.trimStart()).join('\n')));
  }
}

function blocks(lines, depth, copied) {
  const out = [];
  for (let i = 0; i < lines.length;) {
    if (is_blank(lines[i])) { i++; continue; }
    const block = next_block(lines, i, depth);
    out.push(build(lines.slice(i, block.end), block, depth, copied));
    i = block.end;
  }
  return out;
}

// ---- showing ---------------------------------------------------------------------------------------------------

// Makes the text of a node `text`; where that only adds to it what is there stays, a selection with it.
export function show_text(node, text) {
  const old = node.firstChild;
  if (old && text.startsWith(old.data)) {
    if (text.length > old.data.length) old.appendData(text.slice(old.data.length));
  } else {
    node.textContent = text;
  }
}

const states = new WeakMap(); // of a target: { text, blocks: [{ at, source, block, node }] }

// Whether `node` shows this block now, being what showed `old`, with more lines of code at most.
function extended(old, source, block, lines) {
  if (!old || old.block.kind !== block.kind) return false;
  if (old.source === source) return true;
  if (block.kind !== 'code' || old.block.language !== block.language || old.block.indent !== block.indent) return false;
  show_text(old.node.querySelector('code'), code_text(lines, block));
  return true;
}

// Shows `text` in `target`. Called again with more text it looks only at the last two blocks and what follows (nothing
// before can change), so that a long answer streams smoothly and a selection in what is finished stays. Stops after
// the time `until` (performance.now()) and returns false where there is more to do: call it again in the next frame.
// `copied(text, button)`: somebody wants the code.
export function show_markdown(target, text, copied, until = Infinity) {
  let state = states.get(target);
  if (!state || !text.startsWith(state.text)) {
    target.replaceChildren();
    states.set(target, state = { blocks: [] });
  }
  state.text = text;
  const old = state.blocks.splice(-2);
  let at = old[0]?.at ?? 0, complete = true, made = 0;
  const raw = text.slice(at).split('\n'), lines = raw.map(spaced);
  for (let i = 0; i < lines.length;) {
    if (is_blank(lines[i])) { at += raw[i++].length + 1; continue; }
    if (performance.now() > until || (made === AT_ONCE && until < Infinity)) { complete = false; break; }
    const block = next_block(lines, i, 0), own = lines.slice(i, block.end), source = own.join('\n');
    let shown = old.shift();
    if (!extended(shown, source, block, own)) {
      for (const gone of [shown, ...old.splice(0)]) gone?.node.remove();
      made++;
      shown = { node: build(own, block, 0, copied) };
      if (block.kind !== 'code') shown.node.dir = 'auto'; // here only: the browser looks through all of its text
      target.append(shown.node);
    }
    state.blocks.push({ at, source, block, node: shown.node });
    for (; i < block.end; i++) at += raw[i].length + 1;
  }
  for (const gone of old) gone.node.remove();
  return complete;
}
