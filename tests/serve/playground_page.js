// Runs the playground's script in Node with as little of a page as it needs: JSON in, JSON out.
"use strict";
const fs = require("fs"), vm = require("vm");
const { script, address, mode, fields, picture, call } = JSON.parse(fs.readFileSync(0, "utf8"));

const shown = [];  // [class, address] of every picture, in the order in which they came to be seen

class Element {
  constructor(value = "") {
    Object.assign(this, { value, dataset: {}, children: [], textContent: "" });
    this.classList = { add() {}, remove() {}, toggle() {} };
  }
  addEventListener() {}
  append(...more) { this.children.push(...more); }
  prepend(...more) { this.children.unshift(...more); }
  replaceChildren() { this.children = []; }
  set src(url) { shown.push([this.className, url]); }
}

const elements = {};
const context = vm.createContext({
  console, performance, AbortController, TextDecoderStream, URL, FormData, Image: Element,
  location: { href: address },
  fetch: (path, options) => fetch(new URL(path, address), options),
  document: {
    getElementById: (id) => (elements[id] ??= new Element(fields[id])),
    querySelector: () => ({ value: mode }), querySelectorAll: () => [], addEventListener() {},
    createElement: () => new Element(), createTextNode: (data) => ({ data }),
  },
});
const run = (code) => vm.runInContext(code, context);

(async () => {
  run(fs.readFileSync(script, "utf8"));
  if (picture) {
    context.blob = await (await fetch(picture)).blob();
    run(`picture = { blob, url: ${JSON.stringify(picture)} }`);
  }
  while (!elements.model?.textContent) await new Promise((resolve) => setTimeout(resolve, 5));
  const answer = await run(call);
  console.log(JSON.stringify({ answer, shown, status: elements.status?.textContent, count: elements.answer?.children.length }));
})();
