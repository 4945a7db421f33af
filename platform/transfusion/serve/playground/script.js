"use strict";
const $ = (id) => document.getElementById(id);
const mode = () => document.querySelector("input[name=mode]:checked").value;
const HINTS = {
  draw: "What to draw", describe: "A question about the picture, or nothing",
  story: "How the story begins", edit: "What the picture should become",
};
let picture = null;  // {blob, url} of the upload
let running = null;  // AbortController of the request under way

function number(id) { return $(id).value === "" ? undefined : Number($(id).value); }

// What is asked: the path and either a JSON body or the fields of a form.
function request() {
  const prompt = $("prompt").value.trim(), kind = mode();
  const drawing = {
    seed: number("seed"), num_inference_steps: number("steps"), guidance_scale: number("guidance"),
    negative_prompt: $("negative").value.trim() || undefined,
  };
  if (kind === "draw") {
    return { path: "/v1/images/generations", body: { prompt, ...drawing, stream: true, partial_images: 3 } };
  }
  if (kind === "edit") {
    return { path: "/v1/images/edits", form: { prompt, ...drawing, stream: true, partial_images: 3 } };
  }
  const content = [];
  if (picture) content.push({ type: "image_url", image_url: { url: picture.url } });
  if (prompt) content.push({ type: "text", text: prompt });
  const body = {
    messages: [{ role: "user", content }], stream: true, seed: drawing.seed,
    temperature: number("temperature"), max_tokens: number("tokens"),
  };
  if (kind === "story") {
    Object.assign(body, drawing, { modalities: ["text", "image"], max_images: number("pictures"), previews: 3 });
  }
  return { path: "/v1/chat/completions", body };
}

function missing(asked) {
  if (["describe", "edit"].includes(mode()) && !picture) return "Choose a picture first.";
  if (mode() !== "describe" && !$("prompt").value.trim()) return "Write a prompt first.";
  return "";
}

function say(text, fault = false) {
  $("status").textContent = text;
  $("status").classList.toggle("fault", fault);
}

function headers() {
  return $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
}

async function send(asked, signal) {
  if (asked.form) {
    const form = new FormData();
    for (const [name, value] of Object.entries(asked.form)) if (value !== undefined) form.append(name, value);
    form.append("image", picture.blob, "picture.png");
    return fetch(asked.path.slice(1), { method: "POST", body: form, headers: headers(), signal });
  }
  return fetch(asked.path.slice(1), {
    method: "POST", signal, body: JSON.stringify(asked.body),
    headers: { "Content-Type": "application/json", ...headers() },
  });
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// Text and pictures are appended in the order in which they come; a preview gives its place to the picture.
function show() {
  const answer = $("answer");
  answer.replaceChildren();
  let preview = null, text = null;
  return {
    text(piece) {
      if (!text) { text = document.createTextNode(""); answer.append(text); }
      text.data += piece;
    },
    preview(url) {
      if (!preview) { preview = new Image(); preview.className = "preview"; preview.alt = "A picture on its way"; answer.append(preview); }
      preview.src = url;
      text = null;
    },
    picture(url, label) {
      const image = preview || new Image();
      image.className = ""; image.alt = label; image.src = url;
      if (!preview) answer.append(image);
      preview = text = null;
      keep(url, label);
    },
  };
}

function keep(url, label) {
  const button = document.createElement("button"), image = new Image();
  button.type = "button";
  button.title = `${label} - use as the picture`;
  image.src = url;
  image.alt = label;
  button.append(image);
  button.addEventListener("click", async () => choose(await (await fetch(url)).blob()));
  $("gallery").prepend(button);
}

async function run() {
  if (running) return;
  const asked = request(), fault = missing(asked);
  if (fault) return say(fault, true);
  const began = performance.now(), label = $("prompt").value.trim() || mode();
  const out = show(), png = (data) => `data:image/png;base64,${data}`;
  running = new AbortController();
  $("run").disabled = true;
  $("stop").disabled = false;
  say("working");
  try {
    const answer = await send(asked, running.signal);
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      if (event.type) {
        if (event.type.endsWith("partial_image")) out.preview(png(event.b64_json));
        else out.picture(png(event.b64_json), label);
        continue;
      }
      const delta = event.choices.length ? event.choices[0].delta : {};
      if (delta.content) out.text(delta.content);
      if (delta.preview) out.preview(delta.preview.image_url.url);
      for (const image of delta.images || []) out.picture(image.image_url.url, label);
    }
    say(`done in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (error.name === "AbortError") say("stopped");
    else say(error.message, true);
  } finally {
    running = null;
    $("run").disabled = false;
    $("stop").disabled = true;
  }
}

function choose(blob) {
  const reader = new FileReader();
  reader.onload = () => {
    picture = { blob, url: reader.result };
    $("chosen").src = reader.result;
    $("chosen").hidden = $("clear").hidden = false;
    $("hint").hidden = true;
  };
  reader.readAsDataURL(blob);
}

function clear() {
  picture = null;
  $("file").value = "";
  $("chosen").hidden = $("clear").hidden = true;
  $("hint").hidden = false;
}

function quoted(text) { return `'${text.replaceAll("'", "'\\''")}'`; }

// JSON goes by standard input: Linux takes no argument over 128 KB, which an upload soon is.
function asCurl() {
  const asked = request(), url = quoted(new URL(asked.path.slice(1), location.href).href);
  const key = $("key").value ? " -H \"Authorization: Bearer $KEY\"" : "";
  if (asked.form) {
    const fields = Object.entries(asked.form).filter(([, value]) => value !== undefined);
    // A prompt may begin with an @ or hold a semicolon, which -F would take for its own.
    return `curl -N ${url}${key} -F image=@picture.png ` + fields.map(([name, value]) => `--form-string ${quoted(`${name}=${value}`)}`).join(" ");
  }
  return `curl -N ${url}${key} -H 'Content-Type: application/json' -d @- <<'JSON'\n${JSON.stringify(asked.body)}\nJSON`;
}

// A value as Python writes it. Its strings and numbers are JSON's.
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const given = Object.entries(value).filter(([, one]) => one !== undefined);
  return `{${given.map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
}

function asPython() {
  const asked = request(), base = new URL("v1", location.href).href;
  const lines = ["import openai", "", `client = openai.OpenAI(base_url=${python(base)}, api_key="KEY")`];
  const model = `model=${python($("model").dataset.id || "")}`;
  if (asked.form) {
    const { prompt, stream, partial_images, ...more } = asked.form;
    lines.push(`answer = client.images.edit(image=open("picture.png", "rb"), prompt=${python(prompt)}, ${model}, extra_body=${python(more)})`);
  } else if (asked.path.includes("images")) {
    const { prompt, stream, partial_images, ...more } = asked.body;
    lines.push(`answer = client.images.generate(prompt=${python(prompt)}, ${model}, extra_body=${python(more)})`);
  } else {
    const { messages, stream, previews, ...more } = asked.body;
    lines.push(`answer = client.chat.completions.create(${model}, messages=${python(messages)}, extra_body=${python(more)})`);
  }
  return lines.join("\n");
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
  } catch {
    // Without permission the text is shown, to be copied by hand.
    $("answer").textContent = text;
  }
}

function changed() {
  $("form").dataset.mode = mode();
  $("prompt").placeholder = HINTS[mode()];
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("stop").addEventListener("click", () => running && running.abort());
$("curl").addEventListener("click", () => copy(asCurl(), "curl"));
$("python").addEventListener("click", () => copy(asPython(), "Python"));
$("clear").addEventListener("click", clear);
$("file").addEventListener("change", () => $("file").files[0] && choose($("file").files[0]));
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", changed);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  if (event.key === "Escape" && running) running.abort();
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) choose(file);
});
$("upload").addEventListener("dragover", (event) => { event.preventDefault(); $("upload").classList.add("over"); });
$("upload").addEventListener("dragleave", () => $("upload").classList.remove("over"));
$("upload").addEventListener("drop", (event) => {
  event.preventDefault();
  $("upload").classList.remove("over");
  if (event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
});
changed();
fetch("health").then((answer) => answer.json()).then((health) => {
  $("model").textContent = health.model;
  $("model").dataset.id = health.model;
}).catch(() => { $("model").textContent = "not reachable"; });
