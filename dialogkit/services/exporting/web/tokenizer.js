// Byte-level BPE and the chat format: the ids of a dialog, as dialogkit makes them.

const SPACE = "\\p{White_Space}", OTHER = "\\P{White_Space}";
const GPT2 = `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!${OTHER})|${SPACE}+`;
// The long s is a small s where case is ignored.
const CLITICS = "'(?:[sSſtTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
const REST = `| ?[^${SPACE}\\p{L}\\p{N}]+[\\r\\n]*|${SPACE}*[\\r\\n]+|${SPACE}+(?!${OTHER})|${SPACE}+`;
const SPLITS = {
  "gpt-2": [GPT2],
  "llama-bpe": [`${CLITICS}\\p{N}{1,3}${REST}`],
  "qwen2": [`${CLITICS}\\p{N}${REST}`],
  "smollm": ["\\p{N}", GPT2],
};

// GPT-2's letter for each byte: printable bytes stand for themselves.
const LETTERS = [], BYTES = new Map();
for (let byte = 0, others = 0; byte < 256; byte++) {
  const isPrinted = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  LETTERS.push(String.fromCharCode(isPrinted ? byte : 256 + others++));
  BYTES.set(LETTERS[byte], byte);
}

export class Tokenizer {
  // `rules` is the content of tokenizer.json; `splits` names how texts are split; `format` is the chat format.
  constructor(rules, splits, format) {
    const { vocab, merges, ignore_merges } = rules.model;
    this.ids = new Map(Object.entries(vocab));
    this.ranks = new Map(merges.map((merge, rank) => [typeof merge === "string" ? merge : merge.join(" "), rank]));
    this.keepsWholeWords = Boolean(ignore_merges);
    this.composes = rules.normalizer?.type === "NFC";
    this.patterns = SPLITS[splits].map((pattern) => new RegExp(pattern, "gu"));
    this.format = format;
    this.words = new Map();
    this.texts = new Map(Object.entries(vocab).map(([text, id]) => [id, text]));
    this.special = new Set();
    this.added = new Map();
    for (const token of rules.added_tokens) {
      this.ids.set(token.content, token.id);
      this.texts.delete(token.id);
      if (token.special) this.special.add(token.id);
      else this.added.set(token.content, token.id);
    }
    // What looks like a special token is text; other added tokens are found in texts, the longest first.
    const named = [...this.added.keys()].sort((one, other) => other.length - one.length);
    this.addedPattern = named.length ? new RegExp(named.map(escaped).join("|"), "gu") : null;
  }

  // The ids after which the reply to `messages` starts.
  prompt(messages) {
    const { start, separator, end_of_turn: end } = this.format;
    const ids = [];
    const special = (token) => { if (token) ids.push(this.ids.get(token)); };
    const text = (words) => { for (const id of this.encode(words)) ids.push(id); };
    special(start);
    for (const { role, content } of messages) {
      const [opening, label] = this.format[role];
      special(opening);
      if (role === "assistant") text(label);
      text(role === "assistant" ? separator + content : label + separator + content);
      special(end);
    }
    special(this.format.assistant[0]);
    text(this.format.assistant[1]);
    return ids;
  }

  encode(text) {
    const ids = [];
    for (const part of this.addedPattern ? pieces([text], this.addedPattern) : [text]) {
      const known = this.added.get(part);
      if (known !== undefined) { ids.push(known); continue; }
      const words = this.patterns.reduce(pieces, [this.composes ? part.normalize("NFC") : part]);
      for (const word of words) for (const id of this.word(word)) ids.push(id);
    }
    return ids;
  }

  word(word) {
    let ids = this.words.get(word);
    if (ids === undefined) {
      const letters = Array.from(new TextEncoder().encode(word), (byte) => LETTERS[byte]);
      const whole = this.keepsWholeWords ? this.ids.get(letters.join("")) : undefined;
      ids = whole !== undefined ? [whole] : this.merged(letters).map((part) => this.ids.get(part));
      if (this.words.size < 10000) this.words.set(word, ids);
    }
    return ids;
  }

  merged(parts) {
    for (;;) {
      let best = Infinity;
      for (let at = 1; at < parts.length; at++) best = Math.min(best, this.rank(parts, at));
      if (best === Infinity) return parts;
      const joined = [];
      for (let at = 0; at < parts.length; at++) {
        if (at + 1 < parts.length && this.rank(parts, at + 1) === best) joined.push(parts[at] + parts[++at]);
        else joined.push(parts[at]);
      }
      parts = joined;
    }
  }

  rank(parts, at) {
    return this.ranks.get(`${parts[at - 1]} ${parts[at]}`) ?? Infinity;
  }

  bytes(id) {
    if (this.special.has(id)) return new Uint8Array();
    const text = this.texts.get(id);
    if (text !== undefined) return Uint8Array.from(text, (letter) => BYTES.get(letter));
    const added = [...this.added].find(([, number]) => number === id);
    return new TextEncoder().encode(added ? added[0] : "");
  }

  decode(ids) {
    const reading = new Growing(this);
    return ids.map((id) => reading.add(id)).join("") + reading.end();
  }
}

// The text of a reply as it grows: without white space around it, or half a character at its end.
export class Growing {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.held = "";
    this.begun = false;
  }

  add(id) { return this.grown(this.decoder.decode(this.tokenizer.bytes(id), { stream: true })); }

  end() { return this.grown(this.decoder.decode()); }

  grown(text) {
    text = this.held + text;
    if (!this.begun) text = text.trimStart();
    const said = text.trimEnd();
    this.begun ||= said !== "";
    this.held = text.slice(said.length);
    return said;
  }
}

// Splits each text into what a pattern finds and what stands between.
function pieces(texts, pattern) {
  const found = [];
  for (const text of texts) {
    let done = 0;
    for (const match of text.matchAll(pattern)) {
      if (match.index > done) found.push(text.slice(done, match.index));
      found.push(match[0]);
      done = match.index + match[0].length;
    }
    if (done < text.length) found.push(text.slice(done));
  }
  return found;
}

function escaped(text) { return text.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&"); }
