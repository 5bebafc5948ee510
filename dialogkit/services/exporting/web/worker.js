// The model in a thread of its own, so that the page stays alive while it computes.

import { load } from "./model.js";

const stopped = new Set();
const loading = load((here, all) => postMessage({ here, all }));
loading.catch(() => {}); // each request says what went wrong
let before = Promise.resolve();

onmessage = ({ data }) => {
  if (data.stop) stopped.add(data.stop);
  else before = before.then(() => answer(data)); // one reply at a time: they share the keys and values
};

async function answer({ id, path, request }) {
  try {
    const model = await loading;
    if (path === "v1/models") postMessage({ id, content: { data: [{ id: model.name }] } });
    else {
      const isStopped = () => stopped.has(id);
      for await (const event of isStopped() ? [] : model.chat(request, isStopped)) postMessage({ id, event });
    }
  } catch (error) {
    postMessage({ id, error: error.message || String(error) });
  }
  stopped.delete(id);
  postMessage({ id, done: true });
}
