// The model in this browser: onnxruntime computes the logits, and keeps the keys and values of what was read.

import * as ort from "./onnxruntime.js";
import { Sampler } from "./sampling.js";
import { Growing, Tokenizer } from "./tokenizer.js";

const AT_ONCE = 64; // tokens of a prompt that are read before a stop is noticed
const RANGES = { temperature: [0, 2], top_p: [0, 1], max_tokens: [1, 1e6], seed: [0, 2 ** 32 - 1] };

// Loads the files beside this one; `onProgress` receives the bytes of the model that are here, and all.
export async function load(onProgress = () => {}) {
  ort.env.wasm.numThreads = 1; // more need headers that few static servers send
  ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime.wasm", import.meta.url).href };
  const [settings, rules, graph] = await Promise.all([
    get("settings.json").then((response) => response.json()),
    get("tokenizer.json").then((response) => response.json()),
    get("model.onnx").then((response) => bytesOf(response, onProgress)),
  ]);
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return new Model(settings, new Tokenizer(rules, settings.splits, settings.format), session);
}

async function get(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`The file ${name} cannot be loaded (status ${response.status}).`);
  return response;
}

async function bytesOf(response, onProgress) {
  const all = Number(response.headers.get("Content-Length")) || 0;
  const parts = [];
  let here = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onProgress(here += value.length, all);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export class Model {
  constructor(settings, tokenizer, session) {
    Object.assign(this, { settings, tokenizer, session });
    this.forget();
  }

  get name() { return this.settings.name; }

  forget() {
    const { layers, groups, head } = this.settings.cache;
    this.read = []; // the ids whose keys and values are kept
    this.past = {};
    for (let layer = 0; layer < layers; layer++) {
      for (const kind of ["key", "value"]) {
        this.past[`past_${kind}_${layer}`] = new ort.Tensor("float32", new Float32Array(0), [groups, 0, head]);
      }
    }
  }

  // Yields the ids of the reply to a prompt of ids; the last may be an end.
  async *reply(prompt, sampler, most, isStopped = () => false) {
    const shared = this.read.findIndex((id, at) => id !== prompt[at]);
    // The last id is always computed: it yields the reply's first token.
    this.keepFirst(Math.min(shared < 0 ? this.read.length : shared, prompt.length - 1));
    let fresh = prompt.slice(this.read.length);
    for (let made = 0; made < most;) {
      const scores = await this.step(fresh.slice(0, AT_ONCE));
      fresh = fresh.slice(AT_ONCE);
      await messages();
      if (isStopped()) return;
      if (fresh.length) continue;
      const token = sampler.choose(scores);
      yield token;
      made++;
      if (this.settings.ends.includes(token)) return;
      fresh = [token];
    }
  }

  // Reads ids, and returns the logits after the last.
  async step(ids) {
    const inputs = {
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      keep: new ort.Tensor("int64", BigInt64Array.of(1n), [1]),
      ...this.past,
    };
    const { logits, ...present } = await this.session.run(inputs);
    for (const [name, tensor] of Object.entries(present)) this.past[name.replace("present", "past")] = tensor;
    for (const id of ids) this.read.push(id);
    return logits.data;
  }

  keepFirst(count) {
    if (count === this.read.length) return;
    this.read.length = count;
    for (const [name, { data, dims: [groups, read, head] }] of Object.entries(this.past)) {
      const kept = new Float32Array(groups * count * head);
      for (let group = 0; group < groups; group++) {
        const start = group * read * head;
        kept.set(data.subarray(start, start + count * head), group * count * head);
      }
      this.past[name] = new ort.Tensor("float32", kept, [groups, count, head]);
    }
  }

  // Yields what a server of OpenAI's chat API would send.
  async *chat(request, isStopped) {
    for (const [name, [least, most]] of Object.entries(RANGES)) {
      const value = request[name];
      if (value === undefined) continue;
      const isRight = value >= least && value <= most && (name === "temperature" || name === "top_p" || Number.isInteger(value));
      if (!isRight) throw new Error(`${name} is ${value}; it must be a number from ${least} to ${most}.`);
    }
    const { context, sampling } = this.settings;
    const config = { ...sampling, ...request, max_new_tokens: request.max_tokens ?? sampling.max_new_tokens };
    const room = context - Math.max(1, Math.min(config.max_new_tokens, Math.floor(context / 2)));
    const { messages: dialog, leftOut } = this.fitting(request.messages, room);
    const prompt = this.tokenizer.prompt(dialog).slice(-room);
    const sampler = new Sampler(config, request.seed ?? Math.floor(Math.random() * 2 ** 32));
    const growing = new Growing(this.tokenizer);
    const chunk = (content, finish_reason = null) => ({ choices: [{ delta: { content }, finish_reason }], left_out: leftOut });
    let tokens = 0, isEnded = false;
    const most = Math.min(config.max_new_tokens, context - prompt.length);
    for await (const token of this.reply(prompt, sampler, most, isStopped)) {
      tokens++;
      isEnded = this.settings.ends.includes(token);
      if (!isEnded) yield chunk(growing.add(token));
    }
    yield { ...chunk(growing.end(), isEnded ? "stop" : "length"), usage: { completion_tokens: tokens } };
  }

  // The messages without as many of the oldest turns as do not fit; a system text and the last message stay.
  fitting(messages, room) {
    const first = messages[0].role === "system" ? 1 : 0;
    const without = (turns) => [...messages.slice(0, first), ...messages.slice(first + 2 * turns)];
    let turns = 0;
    while (messages.length > first + 2 * turns + 1 && this.tokenizer.prompt(without(turns)).length > room) turns++;
    return { messages: without(turns), leftOut: 2 * turns };
  }
}

// Lets messages to this worker arrive.
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); resolve(); };
    port2.postMessage(null);
  });
}
