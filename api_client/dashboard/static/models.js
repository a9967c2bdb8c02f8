// Shows /models/now once a second. Everything is set as text, never as markup.
"use strict";

(() => {
  const POLL_MS = 1000;
  const LEFT_MS = 30000; // a field that nobody has touched for so long was left
  const SILENT_MS = 15000; // longer than a look takes where Redis does not answer
  // Whole addresses: fetch refuses relative ones on a page opened as http://user:password@host.
  const at = (path) => new URL(path, location.origin);
  const $id = (id) => document.getElementById(id);
  const PRESSURE = { normal: "success", elevated: "warning", high: "danger", critical: "danger" };
  const STATE = { ready: "success", starting: "warning", stopping: "warning", broken: "danger" };
  const EVENT = { loaded: "success", lifted: "success", lowered: "secondary", unloaded: "secondary",
    evicted: "warning", refused: "danger", out_of_memory: "danger" };
  const JOB = { running: "primary", complete: "success", paused: "warning", incomplete: "danger", failed: "danger" };
  const RATE_FROM_S = 15, RATE_OVER_S = 60; // chunks end several at once: a few seconds tell nothing
  const SLOTS_DRAWN = 32; // who wants no limit allows a million

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick" || name === "onsubmit") node[name] = value;
      else if (value !== null && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const badge = (text, colour) => make("span", { class: `badge text-bg-${colour} me-1` }, text);
  const cell = (...children) => make("td", {}, ...children);
  const number = (text) => make("td", { class: "text-end models-number" }, String(text));
  const count = (items) => items.toLocaleString("en");
  function gb(bytes) {
    if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
    return bytes >= 1e6 ? `${Math.round(bytes / 1e6)} MB` : `${Math.round(bytes / 1e3)} KB`;
  }
  const time = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });
  function span(seconds) {
    if (seconds < 120) return `${Math.round(seconds)} s`;
    return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
  }

  function say(text, colour) {
    const toast = make("div", { class: `toast text-bg-${colour} show`, role: "status" },
      make("div", { class: "toast-body" }, text));
    $id("toast-container").append(toast);
    setTimeout(() => toast.remove(), 8000);
  }

  async function ask(action, body) {
    let answer;
    try {
      const reply = await fetch(at(`/models/do/${action}`), { method: "POST", body: JSON.stringify(body) });
      answer = await reply.json();
    } catch (error) {
      say(`${action}: no answer (${error.message})`, "danger");
      return;
    }
    if (answer.error) say(`${action}: ${answer.error}`, "danger");
    else for (const one of answer.answers) say(`${one.worker}: ${one.message}`, "success");
    await look();
  }

  function stepsDown(model) {
    if (model.pinned) return ["pinned"];
    if (model.leases) return ["in use"];
    if (!model.steps_down) return ["kept"];
    const { to, in_s } = model.steps_down;
    const where = to === "host" ? "to host memory" : "leaves";
    if (in_s <= 0) return [`${where} with the next sweep`];
    const left = (100 * in_s) / (in_s + model.idle_s);
    return [`${where} in ${span(in_s)}`, make("div", { class: "progress models-countdown" },
      make("div", { class: "progress-bar bg-secondary", style: `width: ${left}%` }))];
  }

  function modelRow(worker, model, place, readOnly) {
    const button = (label, action, colour) => make("button", {
      class: `btn btn-sm btn-outline-${colour} ms-1`, type: "button", "data-action": action,
      "aria-label": `${label} ${model.id} on ${worker.name}`,
      onclick: (event) => { event.target.disabled = true; ask(action, { model: model.id, worker: worker.name }); },
    }, label);
    return make("tr", { "data-model": model.id, "data-tier": model.tier },
      make("td", { class: "models-place" }, String(place + 1)),
      cell(make("b", {}, model.id), " ", worker.current === model.id ? badge("current", "primary") : null,
        model.next_out ? badge("next out", "warning") : null),
      cell(badge(model.tier, model.tier === "device" ? "success" : "secondary")),
      number(model.leases), number(model.bytes ? gb(model.bytes) : "–"), number(model.uses), number(span(model.idle_s)),
      cell(...stepsDown(model)),
      make("td", { class: "text-end models-buttons" }, ...(readOnly ? [] : [
        model.tier === "device" ? null : button("Load", "load", "primary"),
        worker.current === model.id ? null : button("Switch to", "switch", "primary"), button("Unload", "unload", "danger")].filter(Boolean))));
  }

  function memoryBar(memory) {
    const part = (bytes, colour, title) => make("div", {
      class: `progress-bar bg-${colour}`, style: `width: ${(100 * bytes) / memory.total}%`, title });
    const models = memory.models.reduce((sum, model) => sum + model.bytes, 0);
    return make("div", { class: "models-memory" }, memory.name,
      make("div", { class: "progress" },
        ...memory.models.map((model) => part(model.bytes, "success", `${model.id}: ${gb(model.bytes)}`)),
        part(memory.others, "secondary", `everything else: ${gb(memory.others)}`)),
      `${models ? `models ${gb(models)}, ` : ""}free ${gb(memory.free)} of ${gb(memory.total)}`);
  }

  const looks = new Map(); // of each job, whatever its id: [when, items finished], for the rate
  function rate(job, now) {
    const seen = (job.running && looks.get(job.id)) || []; // planning and pauses tell nothing
    looks.set(job.id, seen);
    seen.push([now, job.done + job.failed]);
    while (seen[0][0] < now - RATE_OVER_S) seen.shift();
    const seconds = now - seen[0][0];
    return job.running && seconds >= RATE_FROM_S ? (job.done + job.failed - seen[0][1]) / seconds : 0;
  }

  function jobRows(job, now) {
    const share = job.chunks ? (100 * job.chunks_done) / job.chunks : 0;
    const speed = rate(job, now), left = job.items - job.done - job.failed;
    const row = make("tr", { "data-job": job.id }, cell(make("b", {}, job.id)), cell(job.model),
      cell(badge(job.state, JOB[job.state] ?? "secondary")),
      make("td", { class: "w-25" }, make("div", { class: "models-share", title: `${job.chunks_done} of ${job.chunks} chunks` },
        make("div", { class: "progress" }, make("div", { class: "progress-bar", style: `width: ${share}%` })),
        `${Math.round(share)} %`)),
      number(`${count(job.done)} of ${count(job.items)}`), number(count(job.failed)),
      number(speed ? count(Math.round(speed)) : ""), number(speed && left > 0 ? span(left / speed) : ""),
      number(job.workers || ""));
    return job.trouble ? [row, make("tr", { class: "models-told" }, make("td", { colspan: row.cells.length }, job.trouble))] : [row];
  }

  const knobs = {}; // what is being typed survives the redrawing
  let touchedAt = 0; // while somebody types or chooses, workers are not redrawn
  for (const sign of ["focusin", "input", "keydown", "pointerdown"]) {
    $id("workers").addEventListener(sign, () => { touchedAt = Date.now(); });
  }
  function knobForm(worker) {
    const typed = (knobs[worker.name] ??= { name: "slots", value: "" });
    const choice = make("select", { class: "form-select form-select-sm", name: "knob", "aria-label": "Setting" },
      ...Object.keys(worker.settings).map((name) =>
        make("option", { value: name, selected: name === typed.name ? "" : null }, `${name} = ${worker.settings[name]}`)));
    const value = make("input", { class: "form-control form-control-sm", name: "value", "aria-label": "New value",
      placeholder: "new value", required: "" });
    value.value = typed.value;
    choice.onchange = () => { typed.name = choice.value; };
    value.oninput = () => { typed.value = value.value; };
    return make("form", {
      class: "models-knobs", "data-worker": worker.name,
      onsubmit: (event) => {
        event.preventDefault();
        value.blur(); // Enter leaves the caret there, where nothing is redrawn
        let given = typed.value;
        try { given = JSON.parse(given); } catch { if (typed.name === "pinned") given = given.split(",").filter(Boolean); }
        ask("set", { worker: worker.name, name: typed.name, value: given });
        typed.value = "";
      },
    }, choice, value, make("button", { class: "btn btn-sm btn-outline-primary", type: "submit",
      "aria-label": `Set on ${worker.name}` }, "Set"));
  }

  function workerCard(worker, readOnly) {
    const swept = worker.swept_s === null ? "not swept yet" : `swept ${span(worker.swept_s)} ago`;
    const heads = ["LRU", "Model", "Tier", "Leases", "Memory", "Uses", "Idle", "Steps down", ""];
    const numbers = new Set(["Leases", "Memory", "Uses", "Idle"]);
    const seated = worker.models.filter((model) => model.tier === "device").length;
    const seats = make("span", { class: "models-slots", title: `${seated} of ${worker.slots} slots are taken` },
      ...Array.from({ length: Math.min(Math.max(worker.slots, seated), SLOTS_DRAWN) }, (_, n) => make("i", { class: n < seated ? "taken" : null })));
    return make("section", { class: "detail-card models-worker", "data-worker": worker.name },
      make("h2", {}, worker.name, badge(worker.state, STATE[worker.state]),
        worker.pressure === "normal" ? null : badge(`memory pressure ${worker.pressure}`, PRESSURE[worker.pressure]),
        seats, make("small", {}, `${worker.device} · ${seated} of ${worker.slots} slots · ${swept}`)),
      ...[worker.trouble, ...worker.complaints].filter(Boolean).map((told) =>
        make("div", { class: "alert alert-warning py-2" }, told)),
      ...worker.memories.map(memoryBar),
      make("div", { class: "table-responsive" }, make("table", { class: "table table-sm table-hover align-middle mt-2 mb-0" },
        make("thead", {}, make("tr", {}, ...heads.map((head) =>
          make("th", { class: numbers.has(head) ? "text-end" : null }, head)))),
        make("tbody", {}, ...worker.models.map((model, place) => modelRow(worker, model, place, readOnly)),
          ...(worker.models.length ? [] : [make("tr", {}, make("td", { colspan: 9 }, "no model in memory"))])))),
      readOnly ? null : knobForm(worker));
  }

  // Who has come to a button by the keyboard, or scrolled aside to it, finds it there.
  function redraw(workers, cards) {
    const table = (worker) => workers.querySelector(`[data-worker="${CSS.escape(worker)}"] .table-responsive`);
    const aside = [...workers.children].map(({ dataset: { worker } }) => [worker, table(worker).scrollLeft]);
    const button = workers.contains(document.activeElement) && document.activeElement.ariaLabel;
    workers.replaceChildren(...cards);
    for (const [worker, left] of aside) if (left && table(worker)) table(worker).scrollLeft = left;
    if (button) workers.querySelector(`button[aria-label="${CSS.escape(button)}"]`)?.focus({ preventScroll: true });
  }

  function show(now) {
    $id("current").textContent = now.current ?? "none";
    $id("well").textContent = now.well ? "All is well." : "Something needs a hand.";
    $id("tiles").replaceChildren(...now.tiles.map((tile) => make("article", { class: `metric-card metric-card-${tile.mood}` },
      make("p", { class: "metric-label" }, tile.label), make("p", { class: "metric-value" }, String(tile.value)),
      make("p", { class: "models-about" }, tile.about))));
    if (now.alarms.join() !== [...$id("alarms").children].map((alarm) => alarm.textContent).join()) { // else read out again
      $id("alarms").replaceChildren(...now.alarms.map((text) => make("div", { class: "alert alert-danger" }, text)));
    }
    const at = document.activeElement, workers = $id("workers");
    const typing = workers.contains(at) && at.tagName !== "BUTTON" && Date.now() - touchedAt <= LEFT_MS;
    const pressing = workers.querySelector(":active"); // a button that is replaced meanwhile is not clicked
    if (!typing && !pressing) redraw(workers, now.workers.map((worker) => workerCard(worker, now.read_only)));
    $id("jobs-card").hidden = !now.jobs.length;
    $id("jobs").replaceChildren(...now.jobs.flatMap((job) => jobRows(job, now.now)));
    $id("queues").replaceChildren(...Object.entries(now.queues).map(([name, depth]) =>
      make("tr", { "data-queue": name }, cell(name.replace(/\.dq2$/, " only")), number(depth.interactive),
        number(depth.bulk), number(depth.oldest_s ? span(depth.oldest_s) : ""))));
    $id("no-events").hidden = now.events.length > 0;
    $id("events").replaceChildren(...now.events.map((event) => make("tr", { "data-kind": event.kind },
      cell(time(event.at)), cell(event.worker), cell(badge(event.kind.replaceAll("_", " "), EVENT[event.kind])), cell(event.model),
      cell(event.reason), cell(event.asked_by))));
    if (now.read_only) return;
    $id("catalogue").replaceChildren(...now.catalogue.map((id) => make("option", { value: id })));
    const choice = $id("worker-choice"), names = ["", ...now.workers.map((worker) => worker.name)];
    if (names.join() !== [...choice.options].map((option) => option.value).join()) {
      choice.replaceChildren(...names.map((name) => make("option", { value: name }, name || "any worker")));
    }
  }

  async function look() {
    let live = true, told = "Live";
    try {
      const reply = await fetch(at("/models/now"), { signal: AbortSignal.timeout(SILENT_MS) });
      const now = reply.status === 401 ? { error: "Another password is wanted: load the page again" } : await reply.json();
      if (reply.ok) show(now);
      else [live, told] = [false, now.error];
    } catch {
      [live, told] = [false, "The dashboard does not answer"];
    }
    if (!live && $id("tiles").firstChild) $id("well").textContent = "As it was last seen.";
    if ($id("live").textContent !== told) $id("live").textContent = told; // else read out again
    $id("live-dot").classList.toggle("status-dot-live", live);
    return live;
  }

  const commands = $id("commands");
  if (commands) {
    commands.onsubmit = (event) => {
      event.preventDefault();
      ask(event.submitter.value, { model: commands.model.value, worker: commands.worker.value });
    };
    $id("sweep").onclick = () => ask("sweep", { worker: commands.worker.value });
  }
  (async function poll() {
    await look();
    setTimeout(poll, POLL_MS);
  })();
})();
