// What the page asks of the server: the same OpenAI endpoints that everybody uses.

export const key = {
  get: () => sessionStorage.getItem('mxrun.key') ?? '',
  set: value => value ? sessionStorage.setItem('mxrun.key', value) : sessionStorage.removeItem('mxrun.key'),
};

const headers = () => key.get() ? { Authorization: `Bearer ${key.get()}` } : {};

async function problem(response) {
  let text = `The server answered ${response.status} ${response.statusText}.`;
  try { text = (await response.json()).error.message ?? text; } catch { /* no JSON: the status says it */ }
  const error = new Error(text);
  error.status = response.status;
  return error;
}

export async function model_name() {
  const response = await fetch('v1/models', { headers: headers() });
  if (!response.ok) throw await problem(response);
  return (await response.json()).data?.[0]?.id ?? 'mxrun';
}

// { name: value } of the gauges without labels; null: not to be had
export async function gauges() {
  const response = await fetch('metrics', { headers: headers() });
  if (!response.ok) return null;
  const out = {};
  for (const m of (await response.text()).matchAll(/^([a-z_]+) ([-+0-9.eE]+)$/gm)) out[m[1]] = Number(m[2]);
  return out;
}

// Events of a stream: data of each, as they come.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split('\n');
    rest = lines.pop();
    for (const line of lines) if (line.startsWith('data:')) yield line.slice(5).trim();
  }
}

// Streams an answer. heard({thinking, text, finish, usage}) with each part. Throws what is wrong, for people.
export async function answer(body, signal, heard) {
  const response = await fetch('v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers() },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await problem(response);
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    finished ||= Boolean(choice?.finish_reason);
    heard({ thinking: choice?.delta?.reasoning_content ?? '', text: choice?.delta?.content ?? '', finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null });
  }
  if (!finished) throw new Error('The connection to the server was lost before the answer was complete.');
}
