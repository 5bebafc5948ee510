// Answers prompts with llama.cpp for generation_speed.py, or tokenizes texts: a line of JSON in, a line of JSON out.
// node llama_cpp.mjs MODEL.gguf PROMPTS CONTEXT THREADS [TYPE OF THE CACHE]
import {createInterface} from "node:readline";
import {getLlama} from "node-llama-cpp";

const [modelPath, ...sizes] = process.argv.slice(2);
const [prompts, contextSize, threads] = sizes.map(Number), kind = sizes[3] ?? "F16";
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: "error"});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const cache = {experimentalKvCacheKeyType: kind, experimentalKvCacheValueType: kind};
const shape = {contextSize, threads: {ideal: threads, min: threads}, ...cache};
const wide = await model.createContext({...shape, sequences: prompts});
const slots = Array.from({length: prompts}, () => wide.getSequence());
const single = (await model.createContext({...shape, sequences: 1})).getSequence();

async function reply(slot, ids, tokens) {
    await slot.clearHistory();
    const made = [];
    for await (const token of slot.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        made.push(token);
        if (made.length === tokens) break;
    }
    return made;
}

console.log(JSON.stringify({cpu: llama.systemInfo}));
for await (const line of createInterface({input: process.stdin})) {
    const {together, tokens, encoded, texts} = JSON.parse(line);
    let replies = [];
    if (texts) replies = texts.map((text) => [...model.tokenize(text, true)]);
    else if (together) replies = await Promise.all(encoded.map((ids, i) => reply(slots[i], ids, tokens)));
    else for (const ids of encoded) replies.push(await reply(single, ids, tokens));
    console.log(JSON.stringify(replies));
}
process.exit(0);
