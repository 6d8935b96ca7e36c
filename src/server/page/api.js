// What the page asks of the server: the same OpenAI endpoints that everybody uses.

let api_key = '';
try { api_key = sessionStorage.getItem('mxrun.key') ?? ''; } catch { /* no storage: until the page is closed */ }
export const key = {
  get: () => api_key,
  set: value => {
    api_key = value;
    try { sessionStorage.setItem('mxrun.key', value); } catch { /* as above */ }
  },
};

const headers = () => api_key ? { Authorization: `Bearer ${api_key}` } : {};

// An error for people: { message, status, code }
async function problem(response) {
  const error = new Error(`The server answered ${response.status} ${response.statusText}.`);
  error.status = response.status;
  try {
    const told = (await response.json()).error;
    error.message = told.message ?? error.message;
    error.code = told.code;
  } catch { /* no JSON: the status says it */ }
  const seconds = response.headers.get('Retry-After');
  if (seconds) error.message = `${error.message.replace(/\.?$/, '.')} Try again in ${seconds} s.`;
  if (error.code === 'context_length_exceeded') error.message += ' Begin a new chat, or shorten this one by editing a message.';
  return error;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error('The server cannot be reached: does “mxrun serve” still run?');
  }
  if (!response.ok) throw await problem(response);
  return response;
}

export async function model_name() {
  return (await (await ask('v1/models', { headers: headers() })).json()).data?.[0]?.id ?? 'mxrun';
}

// { name: value } of the gauges and counters without labels
export async function gauges() {
  const response = await ask('metrics', { headers: headers(), signal: AbortSignal.timeout(5000) });
  const out = {};
  for (const m of (await response.text()).matchAll(/^([a-z_]+) ([-+0-9.eE]+)$/gm)) out[m[1]] = Number(m[2]);
  return out;
}

// Events of a stream: data of each, as they come.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line.startsWith('data:')) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => { /* it is broken already */ });
  }
}

// Streams an answer. heard({ thinking, text, finish, usage }) with each part. Throws what is wrong, for people.
export async function answer(body, signal, heard) {
  const response = await ask('v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers() },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const lost = 'The connection to the server was lost before the answer was complete.';
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices?.[0], delta = choice?.delta ?? {};
      finished ||= Boolean(choice?.finish_reason);
      heard({ thinking: delta.reasoning_content ?? '', text: delta.content ?? '', finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null });
    }
  } catch (error) {
    throw error instanceof TypeError && !signal.aborted ? new Error(lost) : error;
  }
  if (!finished) throw new Error(lost);
}
