// The chat page asks a server for replies. Here a worker answers instead, with the model in this browser.
"use strict";
{
  const network = window.fetch.bind(window);
  const waiting = new Map();
  let requests = 0, worker, problem = "";

  function fail(text) {
    problem = text;
    for (const take of waiting.values()) take({ error: text });
  }
  function json(status, content) {
    return new Response(JSON.stringify(content), { status, headers: { "Content-Type": "application/json" } });
  }
  const refused = (text) => json(500, { error: { message: text } });

  try {
    worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => data.id ? waiting.get(data.id)?.(data) : showProgress(data);
    worker.onerror = () => fail("The model cannot be loaded: a file is missing, or this browser is too old.");
  } catch {
    problem = "Open this page from a web server: browsers start no model from a file on the disk.";
  }

  function showProgress({ here, all }) {
    const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
    const isWhole = here === all;
    document.getElementById("model-name").textContent =
      isWhole ? "Starting the model" : `Loading ${mib(here)}${all > here ? ` of ${mib(all)}` : ""} MiB`;
  }

  // The events of a reply, as a server streams them.
  function streamed(id, signal) {
    let stop;
    return new ReadableStream({
      start(controller) {
        const send = (event) => controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(event)}\n\n`));
        const end = () => { waiting.delete(id); signal?.removeEventListener("abort", stop); };
        stop = () => {
          worker.postMessage({ stop: id });
          end();
          controller.error(signal.reason);
        };
        signal?.addEventListener("abort", stop);
        waiting.set(id, ({ event, error }) => {
          if (event) { send(event); return; }
          if (error) send({ error: { message: error } });
          end();
          controller.close();
        });
      },
    });
  }

  window.fetch = async (address, options = {}) => {
    const path = String(address);
    if (!path.startsWith("v1/")) return network(address, options);
    if (problem) return refused(problem);
    const id = ++requests;
    const request = options.body ? JSON.parse(options.body) : {};
    if (path === "v1/chat/completions") {
      const body = streamed(id, options.signal);
      worker.postMessage({ id, path, request });
      return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
    }
    worker.postMessage({ id, path, request });
    return new Promise((resolve) => waiting.set(id, ({ content, error }) => {
      waiting.delete(id);
      resolve(error ? refused(error) : json(200, content));
    }));
  };
}
