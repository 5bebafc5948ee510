// Talks to the chat page of a server in a real browser, and prints what happened as JSON.
// node chat_page.mjs URL CHROMIUM [FOLDER FOR SCREENSHOTS]; NODE_MODULES has puppeteer-core and axe-core.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [url, chromium, shots] = process.argv.slice(2);
const modules = createRequire(join(process.env.NODE_MODULES, "x.js"));
const puppeteer = modules("puppeteer-core");
const axe = readFileSync(modules.resolve("axe-core/axe.min.js"), "utf8");

const found = { serious: [], errors: [] };
const browser = await puppeteer.launch({ executablePath: chromium, headless: true, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => found.errors.push(String(error)));
  page.on("console", (message) => { if (message.type() === "error") found.errors.push(message.text()); });
  await page.setViewport({ width: 1280, height: 800 });
  await page.goto(url);
  await page.waitForSelector("#compare:not([hidden])");

  // Of all states of the page, in both colour schemes and widths: what a checker of accessibility calls serious.
  const check = async (state) => {
    for (const scheme of ["light", "dark"]) {
      for (const [width, height] of [[1280, 800], [390, 844]]) {
        await page.setViewport({ width, height });
        await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
        await page.evaluate(axe);
        const { violations } = await page.evaluate(() => axe.run());
        for (const each of violations) {
          if (["serious", "critical"].includes(each.impact)) {
            found.serious.push(`${state}, ${scheme}, ${width}: ${each.id}: ${each.nodes.map((node) => node.html).join(" ")}`);
          }
        }
        if (shots) await page.screenshot({ path: join(shots, `${state}-${scheme}-${width}.png`) });
      }
    }
    await page.setViewport({ width: 1280, height: 800 });
  };
  const say = async (text) => { await page.focus("#words"); await page.keyboard.type(text); await page.keyboard.press("Enter"); };
  const replied = (count) => page.waitForFunction((count) => {
    const sides = [...document.querySelectorAll(".side:not([hidden])")];
    const all = sides.every((side) => side.querySelectorAll(".assistant .text.done").length === count);
    return all && document.querySelector("#send").getAttribute("aria-label") === "Send";
  }, {}, count);
  const texts = (kind) => page.$$eval(`.side:not([hidden]) .${kind} .text`, (all) => all.map((each) => each.textContent));
  const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") || document.activeElement.id);
  const press = async (name) => { await page.focus(`.side:not([hidden]) ${name}`); await page.keyboard.press("Enter"); };

  await check("empty");

  // A dialog, by the keyboard alone.
  await say("Hello!");
  await replied(1);
  await say("And then?");
  await replied(2);
  found.dialog = { said: await texts("user"), replies: (await texts("assistant")).length };
  await press('[data-name="up-3"]');
  found.focus = [await focused()];
  await press('[data-name="retry-3"]');
  found.focus.push(await focused());
  await replied(2);
  found.versions = await page.$eval('[data-name="before-3"]', (each) => each.nextSibling.textContent);
  await check("dialog");
  await page.click("#settings-button");
  await check("settings");
  await page.click("#settings-button");

  // Two models, one prompt to both.
  await page.click("#compare");
  await say("What do you two say?");
  await replied(3);
  found.both = await page.$$eval(".side select", (all) => all.map((each) => each.value));
  found.saidToBoth = (await texts("user")).filter((text) => text === "What do you two say?").length;
  await check("compare");

  // A reply with markup stays text. What the server answers from here on is replaced.
  const hostile = ["<img src=x onerror='window.ran = 1'><script>window.ran = 1</script>", "<b>other</b>"];
  await page.setRequestInterception(true);
  page.on("request", (request) => {
    if (!request.url().endsWith("/v1/chat/completions")) { request.continue(); return; }
    const chunk = { choices: [{ index: 0, delta: { content: hostile.shift() }, finish_reason: "stop" }] };
    request.respond({ contentType: "text/event-stream", body: `data: ${JSON.stringify(chunk)}\n\ndata: [DONE]\n\n` });
  });
  await page.click("#new");
  await say("Run this");
  await replied(1);
  found.markup = await texts("assistant");
  found.heard = await page.$eval("#heard", (each) => each.textContent);
  found.ran = await page.evaluate(() => window.ran ?? null);
  found.drawn = (await page.$$("#sides img, #sides script, #sides b")).length;

  // What is saved.
  const saved = (button) => page.evaluate(async (button) => {
    const made = URL.createObjectURL;
    let blob;
    URL.createObjectURL = (given) => { blob = given; return made(given); };
    document.querySelector(button).click();
    URL.createObjectURL = made;
    return blob.text();
  }, button);
  await (await page.$(".side [data-name='up-1']")).press("Enter");
  await (await page.$(".side + .side [data-name='down-1']")).press("Enter");
  await page.click("#settings-button");
  found.preferences = await saved("#save-pairs");
  found.dialogs = await saved("#save-dialog");
  // A browser without a window has no clipboard.
  await page.evaluate(() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; });
  await page.click("#copy-dialog");
  await page.waitForFunction(() => document.querySelector("#heard").textContent === "Copied");
  found.copied = await page.evaluate(() => window.copied);
} finally {
  await browser.close();
}
console.log(JSON.stringify(found));
