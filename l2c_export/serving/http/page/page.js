"use strict";

// The page of `l2c serve`: it asks the server's own API, as any client would, and shows what comes.

const $ = (id) => document.getElementById(id);
const MOST_PREVIEWS = 100, FEW_PREVIEWS = 6; // of pixels, and where each has to be decoded
const FEW_CLASSES = 20, MOST_KEPT = 40;
const COLOURS = { c: "--computed", r: "--reused", f: "--forecast", "-": "--jumped" };
const WORDS = { c: "computed", r: "reused", f: "forecast", "-": "jumped over" };

const state = { models: [], model: null, label: "0", schedule: null, running: null };

// the server

class Refused extends Error {}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem("l2c-key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) $("key-field").hidden = false;
  throw new Refused(body.error?.message ?? `the server answers ${answer.status}`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.split("\ndata: ")[1]);
  }
}

// what is asked for

function request(label) {
  const about = state.model.l2c;
  const asked = { model: state.model.id, prompt: label ?? prompt() };
  asked.seed = Number($("seed").value);
  if (about.guidance_scale !== null) asked.guidance_scale = Number($("guidance").value);
  if (about.num_inference_steps.length > 1) asked.num_inference_steps = Number($("steps").value);
  if (about.sizes.length > 1) asked.size = $("size").value;
  if (about.negative_prompt && $("negative").value) asked.negative_prompt = $("negative").value;
  return asked;
}

function prompt() {
  const about = state.model.l2c;
  if (about.prompt === "nothing") return "";
  if (about.prompt === "text") return $("prompt").value;
  return $("class-name").hidden ? state.label : $("class-name").value;
}

function showShell() {
  const key = $("key-field").hidden ? "" : " -H \"Authorization: Bearer $KEY\"";
  const body = JSON.stringify(request()).replaceAll("'", "'\\''");
  $("shell").textContent = `curl -s ${location.origin}/v1/images/generations${key} -H "Content-Type: application/json" -d '${body}'`
    + " | python3 -c 'import base64, json, sys; open(\"out.png\", \"wb\").write("
    + "base64.b64decode(json.load(sys.stdin)[\"data\"][0][\"b64_json\"]))'";
}

// what comes

async function post(asked) {
  return ask("v1/images/generations", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked), signal: state.running.signal,
  });
}

async function draw() {
  const steps = Number($("steps").value);
  const previews = Math.min(steps - 1, state.model.l2c.decoder ? FEW_PREVIEWS : MOST_PREVIEWS);
  const asked = { ...request(), stream: true, ...(previews > 0 ? { partial_images: previews } : {}) };
  const began = performance.now();
  for await (const event of events(await post(asked))) {
    if (event.error) throw new Refused(event.error.message);
    const source = `data:image/${event.output_format};base64,${event.b64_json}`;
    if (event.type.endsWith("completed")) {
      show(source, event.size, 1);
      fill(slot(asked), source, event.size, asked);
      return { ...event.l2c, seconds: (performance.now() - began) / 1000 };
    }
    show(source, event.size, event.l2c.step / event.l2c.steps);
    say(`step ${event.l2c.step} of ${event.l2c.steps}`);
    point(event.l2c.step);
  }
  throw new Refused("the server ended the stream before the picture was there");
}

async function drawQuietly(asked, figure) {
  const body = await (await post(asked)).json(), made = body.data[0];
  fill(figure, `data:image/${body.output_format};base64,${made.b64_json}`, body.size, asked);
  return made.l2c;
}

function show(source, size, share) {
  const picture = $("picture");
  picture.src = source;
  picture.alt = `${state.model.id}: ${prompt() || "a picture"}, seed ${$("seed").value}`;
  picture.classList.toggle("pixelated", parseInt(size, 10) < 256);
  picture.hidden = false;
  $("hint").hidden = true;
  $("progress").value = share;
}

// A place among the pictures that were drawn before, and what comes into it.

function slot(asked) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  caption.textContent = state.model.l2c.prompt === "class" ? `${asked.prompt} · ${asked.seed}` : asked.prompt || asked.seed;
  figure.className = "empty";
  figure.append(new Image(), caption);
  $("strip").prepend(figure);
  while ($("strip").children.length > MOST_KEPT) $("strip").lastChild.remove();
  return figure;
}

function fill(figure, source, size, asked) {
  const image = figure.firstChild;
  figure.className = "";
  image.src = source;
  image.alt = image.title = `${asked.prompt}, seed ${asked.seed}`;
  image.classList.toggle("pixelated", parseInt(size, 10) < 256);
  image.addEventListener("click", () => {
    show(source, size, 1);
    $("seed").value = asked.seed;
    choose(String(asked.prompt));
    showShell();
  });
}

function say(words, wrong = false) {
  $("status").textContent = words || "\u00a0";
  $("status").classList.toggle("wrong", wrong);
}

async function run(work) {
  state.running = new AbortController();
  for (const id of ["draw", "draw-all"]) $(id).disabled = true;
  $("stop").disabled = false;
  $("progress").value = 0;
  say("waiting for a batch");
  try {
    say(await work());
  } catch (error) {
    say(error.name === "AbortError" ? "stopped" : error instanceof Refused ? error.message : "the server does not answer", error.name !== "AbortError");
  } finally {
    point(null);
    for (const id of ["draw", "draw-all"]) $(id).disabled = false;
    $("stop").disabled = true;
  }
}

const ms = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.0995 ? 1 : 0)} ms`;

async function one() {
  const took = await draw();
  const beside = took.batch > 1 ? ` in a batch of ${took.batch}` : "";
  return `${ms(took.run_seconds)} to draw${beside}, ${ms(took.queued_seconds)} in the queue, ${ms(took.seconds)} in all`;
}

async function every() {
  const asked = [...$("classes").children].map((each) => request(each.dataset.label));
  const figures = asked.toReversed().map(slot).reverse();
  const began = performance.now();
  let done = 0;
  try {
    const took = await Promise.all(asked.map(async (each, n) => {
      const one = await drawQuietly(each, figures[n]);
      $("progress").value = ++done / asked.length;
      say(`${done} of ${asked.length}`);
      return one;
    }));
    const largest = Math.max(...took.map((each) => each.batch));
    return `${asked.length} pictures in ${ms((performance.now() - began) / 1000)}, up to ${largest} in a batch`;
  } finally {
    for (const each of figures) if (each.className === "empty") each.remove();
  }
}

// the form

function options(select, values, words = String) {
  select.replaceChildren(...values.map((value) => new Option(words(value), value)));
  select.closest("label").hidden = values.length < 2;
}

function choose(label) {
  state.label = label;
  if (state.model.l2c.prompt === "text") $("prompt").value = label;
  for (const each of $("classes").children) each.setAttribute("aria-checked", each.dataset.label === label);
  if (!$("class-name").hidden) $("class-name").value = label;
}

async function changeModel(id) {
  state.model = state.models.find((each) => each.id === id);
  const about = state.model.l2c, few = about.classes !== null && about.classes <= FEW_CLASSES;
  $("about").textContent = `${about.architecture}, ${about.sizes.join(" or ")}, ${about.precision} by ${about.backend}, `
    + `up to ${about.images_at_once} at once${about.random_weights ? ", with random weights: its pictures mean nothing" : ""}`;
  $("class-field").hidden = about.prompt !== "class";
  $("prompt-field").hidden = about.prompt !== "text";
  $("negative-field").hidden = !about.negative_prompt;
  $("guidance-field").hidden = about.guidance_scale === null;
  $("draw-all").hidden = !few;
  $("classes").hidden = !few;
  $("class-name").hidden = few;
  const names = Object.fromEntries(Object.entries(about.class_names ?? {}).map(([name, number]) => [number, name]));
  $("classes").replaceChildren(...(few ? [...Array(about.classes).keys()] : []).map((number) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: names[number] ?? number });
    button.dataset.label = String(number);
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => { choose(button.dataset.label); showShell(); });
    return button;
  }));
  $("class-names").replaceChildren(...Object.keys(about.class_names ?? {}).slice(0, 5000).map((name) => new Option(name)));
  if (about.prompt === "class") choose(few ? "0" : Object.keys(about.class_names ?? {})[0] ?? "0");
  options($("steps"), about.num_inference_steps);
  options($("size"), about.sizes);
  if (about.guidance_scale !== null) {
    $("guidance").max = Math.max(10, 2 * about.guidance_scale);
    $("guidance").value = about.guidance_scale;
  }
  $("guidance-shown").value = $("guidance").value;
  showShell();
  await changeSchedule();
}

async function changeSchedule() {
  const steps = $("steps").value;
  state.schedule = await (await ask(`v1/models/${state.model.id}/schedule?num_inference_steps=${steps}`)).json();
  const { computed_share: share, sublayers, cells, sampler } = state.schedule, calls = cells[0].length;
  const words = `${sublayers} sublayers in ${calls} calls of the network, ${sampler}: ${(100 * share).toFixed(1)} % are computed`;
  const { names } = state.schedule;
  $("share").textContent = `${words}. Down: ${names[0]} to ${names[sublayers - 1]}; to the right: calls.`;
  $("cells").setAttribute("aria-label", words);
  for (const [letter, name] of Object.entries({ r: "r", f: "f", "-": "j" })) {
    document.querySelector(`#legend .${name}`).hidden = !cells.some((row) => row.includes(letter));
  }
  paint();
}

// the schedule as a picture

function paint() {
  if (!state.schedule) return;
  const { cells, sublayers } = state.schedule, canvas = $("cells"), rows = cells.length, calls = cells[0].length;
  const width = canvas.clientWidth, height = Math.max(4, Math.min(10, Math.floor(420 / rows))), gap = rows > sublayers ? 6 : 0;
  const ratio = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round((rows * height + gap) * ratio);
  canvas.style.height = `${rows * height + gap}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  for (let row = 0; row < rows; row++) {
    for (let call = 0; call < calls; call++) {
      const left = Math.round(call * width / calls), right = Math.round((call + 1) * width / calls);
      pen.fillStyle = style.getPropertyValue(COLOURS[cells[row][call]]);
      pen.fillRect(left, row * height + (row >= sublayers ? gap : 0), right - left - 1, height - 1);
    }
  }
}

function point(step) {
  const cursor = $("cursor");
  cursor.hidden = step === null || !state.schedule;
  if (cursor.hidden) return;
  const ends = state.schedule.ends_step, calls = ends.length;
  let call = 0, seen = 0;
  while (call < calls - 1 && (seen += ends[call]) < step) call++;
  cursor.style.left = `${100 * call / calls}%`;
  cursor.style.width = `${100 / calls}%`;
}

function pointed(event) {
  const box = $("cells").getBoundingClientRect(), { cells, names, timesteps } = state.schedule;
  const call = Math.floor((event.clientX - box.left) / box.width * timesteps.length);
  const row = Math.floor((event.clientY - box.top) / box.height * cells.length);
  const letter = cells[row]?.[call];
  $("cell").textContent = letter ? `${names[row]}, call ${call + 1}, t ${timesteps[call]}: ${WORDS[letter]}` : "";
}

// the beginning

async function start() {
  try {
    const listed = await (await ask("v1/models")).json();
    state.models = listed.data;
    if (!state.models.length) throw new Refused("the models are being loaded");
    options($("model"), state.models.map((each) => each.id));
    await changeModel(state.models[0].id);
    $("draw").disabled = false;
    say("");
  } catch (error) {
    say(error instanceof Refused ? error.message : "the server does not answer", true);
    if ($("key-field").hidden) setTimeout(start, 1000);
  }
}

function anotherSeed() {
  $("seed").value = Math.floor(Math.random() * 100000);
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); if (state.model && !$("draw").disabled) run(one); });
$("draw-all").addEventListener("click", () => run(every));
$("stop").addEventListener("click", () => state.running?.abort());
$("dice").addEventListener("click", () => { anotherSeed(); showShell(); });
$("model").addEventListener("change", () => changeModel($("model").value));
$("steps").addEventListener("change", changeSchedule);
$("form").addEventListener("input", () => { $("guidance-shown").value = $("guidance").value; if (state.model) showShell(); });
$("key").addEventListener("change", () => { sessionStorage.setItem("l2c-key", $("key").value); start(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("cells").addEventListener("mousemove", (event) => { if (state.schedule) pointed(event); });
$("cells").addEventListener("mouseleave", () => { $("cell").textContent = ""; });
window.addEventListener("resize", paint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
$("draw").disabled = true;
anotherSeed();
start();
