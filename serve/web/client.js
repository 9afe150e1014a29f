// What the page asks of one arm, over OpenAI's API.

export class Arm {
  constructor(url, key) {
    this.url = url.replace(/\/+$/, "");
    this.key = key;
  }

  async #ask(path, options = {}) {
    const headers = { ...(this.key && { authorization: `Bearer ${this.key}` }), ...options.headers };
    const response = await fetch(this.url + path, { ...options, headers });
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    const error = new Error(body.error?.message ?? `status ${response.status}`);
    error.status = response.status;
    throw error;
  }

  /** Its card in /v1/models: id, variant, digest, max_model_len. */
  async card() {
    return (await (await this.#ask("/v1/models")).json()).data[0];
  }

  /** The numbers of /metrics, those of several labels added up, and of temperatures the highest. */
  async metrics() {
    const found = new Map();
    for (const line of (await (await this.#ask("/metrics")).text()).split("\n")) {
      const match = /^([a-z_]+)(?:\{.*\})? (\S+)$/.exec(line);
      if (!match) continue;
      const [, name, value] = match;
      const before = found.get(name);
      const both = name.includes("temperature") ? Math.max : (a, b) => a + b;
      found.set(name, before === undefined ? Number(value) : both(before, Number(value)));
    }
    return found;
  }

  /** Streams an answer: yields {content, reasoning, usage}, each where there is one. */
  async *chat(body, signal) {
    const response = await this.#ask("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    for await (const event of events(response.body)) {
      if (event === "[DONE]") return;
      const chunk = JSON.parse(event);
      if (chunk.error) throw new Error(chunk.error.message);
      const delta = chunk.choices[0]?.delta ?? {};
      yield { content: delta.content, reasoning: delta.reasoning_content, usage: chunk.usage };
    }
    throw new Error("the stream broke off");
  }
}

/** The data of server-sent events; an event may come in pieces. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (held + value).split("\n\n");
    held = whole.pop();
    for (const event of whole) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
