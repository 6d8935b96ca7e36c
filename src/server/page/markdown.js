// Markdown as models write it, to elements. Text only ever becomes text nodes: nothing a model writes can become
// markup, an attribute other than a checked link, or a script.

const element = (name, children = [], attributes = {}) => {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  e.append(...children);
  return e;
};

// ---- inside a line ---------------------------------------------------------------------------------------------

const LINK = /^(?:https?:\/\/|mailto:)[^\s<>"]+$/i;
const INLINE = [
  // code first: nothing inside it means anything
  [/(`+)(?!`)([\s\S]*?[^`])\1(?!`)/, m => element('code', [m[2].replace(/^ (.*) $/s, '$1')])],
  [/\[([^\][]+)\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)/, m => link(m[2], inline(m[1]), m[0])],
  [/<((?:https?:\/\/|mailto:)[^\s<>]+)>/i, m => link(m[1], [m[1]], m[0])],
  [/\bhttps?:\/\/[^\s<>"')\]]*[^\s<>"')\].,;:!?*_]/i, m => link(m[0], [m[0]], m[0])],
  [/\*\*\*(?=\S)([\s\S]*?\S)\*\*\*/, m => element('strong', [element('em', inline(m[1]))])],
  [/\*\*(?=\S)([\s\S]*?\S)\*\*(?!\*)/, m => element('strong', inline(m[1]))],
  [/(?<![\p{L}\p{N}_])__(?=\S)([\s\S]*?\S)__(?![\p{L}\p{N}_])/u, m => element('strong', inline(m[1]))],
  [/~~(?=\S)([\s\S]*?\S)~~/, m => element('del', inline(m[1]))],
  [/(?<!\*)\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/, m => element('em', inline(m[1]))],
  [/(?<![\p{L}\p{N}_])_(?=[^\s_])([^_]*[^\s_])_(?![\p{L}\p{N}_])/u, m => element('em', inline(m[1]))],
  [/\\([\\`*_{}[\]()#+\-.!|<>~])/, m => m[1]],
  [/ {2,}\n|\\\n/, () => element('br')],
];

function link(to, children, source) {
  if (!LINK.test(to)) return source;
  return element('a', children, { href: to, target: '_blank', rel: 'noopener noreferrer nofollow' });
}

// The earliest match wins, of those that begin together the one named first.
function inline(text) {
  const out = [];
  while (text) {
    let best = null, make = null;
    for (const [pattern, builder] of INLINE) {
      const m = pattern.exec(text);
      if (m && (!best || m.index < best.index)) [best, make] = [m, builder];
    }
    if (!best) break;
    if (best.index) out.push(text.slice(0, best.index));
    out.push(make(best));
    text = text.slice(best.index + best[0].length);
  }
  if (text) out.push(text);
  return out;
}

// ---- blocks ----------------------------------------------------------------------------------------------------

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const begins_block = line => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || QUOTE.test(line);

// Lines [from, end) of one block: {kind, end, ...}
function next_block(lines, from) {
  const line = lines[from];
  let m, end = from + 1;
  if ((m = FENCE.exec(line))) {
    const close = new RegExp(`^ {0,3}${m[2][0]}{${m[2].length},}\\s*$`);
    while (end < lines.length && !close.test(lines[end])) end++;
    return { kind: 'code', language: m[3].trim().split(/\s/)[0], indent: m[1].length, open: end === lines.length, last: end, end: Math.min(end + 1, lines.length) };
  }
  if ((m = HEADING.exec(line))) return { kind: 'heading', level: m[1].length, text: m[2], end };
  if (RULE.test(line)) return { kind: 'rule', end };
  if (QUOTE.test(line)) {
    while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !begins_block(lines[end]))) end++;
    return { kind: 'quote', end };
  }
  if ((m = ITEM.exec(line))) {
    const indent = m[1].length;
    while (end < lines.length) {
      const next = lines[end], item = ITEM.exec(next), depth = next.length - next.trimStart().length;
      if (!next.trim()) {
        const after = lines[end + 1];
        if (after === undefined || !after.trim()) break;
        if (!ITEM.test(after) && after.length - after.trimStart().length <= indent) break;
      } else if (depth <= indent && !item && begins_block(next)) break;
      else if (item && item[1].length < indent) break;
      else if (item && item[1].length === indent && /\d/.test(item[2]) !== /\d/.test(m[2])) break;
      end++;
    }
    return { kind: 'list', indent, ordered: /\d/.test(m[2]), start: parseInt(m[2], 10), end };
  }
  if (line.includes('|') && lines[from + 1] !== undefined && lines[from + 1].includes('-') && DIVIDER.test(lines[from + 1])) {
    end++;
    while (end < lines.length && lines[end].includes('|')) end++;
    return { kind: 'table', end };
  }
  while (end < lines.length && lines[end].trim() && !begins_block(lines[end])) end++;
  return { kind: 'paragraph', end };
}

const cells = line => line.trim().replace(/^\||\|$/g, '').split(/(?<!\\)\|/).map(c => c.trim().replace(/\\\|/g, '|'));

function code_block(text, language, copied) {
  const copy = element('button', ['Copy'], { type: 'button' });
  copy.addEventListener('click', () => copied(text, copy));
  return element('div', [
    element('div', [element('span', [language || 'code']), copy], { class: 'bar' }),
    element('pre', [element('code', [text])], { tabindex: '0' }),
  ], { class: 'code' });
}

function list(lines, block, copied) {
  const out = element(block.ordered ? 'ol' : 'ul');
  if (block.ordered && block.start !== 1) out.setAttribute('start', String(block.start));
  for (let i = 0; i < lines.length;) {
    const m = ITEM.exec(lines[i]);
    const width = m ? m[0].length : 0;
    const own = [lines[i].slice(width)];
    for (i++; i < lines.length; i++) {
      const item = ITEM.exec(lines[i]);
      if (item && item[1].length <= block.indent) break;
      const spaces = lines[i].length - lines[i].trimStart().length;
      own.push(lines[i].slice(Math.min(spaces, width)));
    }
    while (own.length && !own.at(-1).trim()) own.pop();
    const children = blocks(own, copied);
    // a tight item is its text, without a paragraph
    if (children.length && children[0].tagName === 'P') children.splice(0, 1, ...children[0].childNodes);
    out.append(element('li', children));
  }
  return out;
}

function table(lines) {
  const row = (line, name) => element('tr', cells(line).map(c => element(name, inline(c))));
  return element('table', [
    element('thead', [row(lines[0], 'th')]),
    element('tbody', lines.slice(2).map(line => row(line, 'td'))),
  ]);
}

function build(lines, block, copied) {
  switch (block.kind) {
    case 'code': {
      const body = lines.slice(1, block.open ? lines.length : lines.length - 1);
      return code_block(body.map(l => l.replace(new RegExp(`^ {0,${block.indent}}`), '')).join('\n'), block.language, copied);
    }
    case 'heading': return element(`h${Math.min(block.level + 1, 6)}`, inline(block.text));
    case 'rule': return element('hr');
    case 'quote': return element('blockquote', blocks(lines.map(l => l.replace(QUOTE, '')), copied));
    case 'list': return list(lines, block, copied);
    case 'table': return table(lines);
    default: return element('p', inline(lines.map(l => l.trimStart()).join('\n')));
  }
}

function cut(lines) {
  const out = [];
  for (let i = 0; i < lines.length;) {
    if (!lines[i].trim()) { i++; continue; }
    const block = next_block(lines, i);
    out.push({ block, lines: lines.slice(i, block.end) });
    i = block.end;
  }
  return out;
}

function blocks(lines, copied) {
  return cut(lines).map(({ block, lines: own }) => build(own, block, copied));
}

// Shows `text` in `target`. Called again with more text only the blocks that changed are made anew, so that a long
// answer streams smoothly and a selection in what is finished stays. `copied(text, button)`: somebody wants the code.
export function show_markdown(target, text, copied) {
  const shown = target.shown_blocks ?? (target.shown_blocks = []);
  const wanted = cut(text.split('\n'));
  let same = 0;
  while (same < shown.length && same < wanted.length && shown[same].source === wanted[same].lines.join('\n')) same++;
  for (const old of shown.splice(same)) old.node.remove();
  for (const { block, lines } of wanted.slice(same)) {
    const node = build(lines, block, copied);
    target.append(node);
    shown.push({ source: lines.join('\n'), node });
  }
}
