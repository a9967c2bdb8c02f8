// Shows /models/now once a second. Everything is set as text, never as markup.
"use strict";

(() => {
  const POLL_MS = 1000;
  // Whole addresses: fetch refuses relative ones on a page opened as http://user:password@host.
  const at = (path) => new URL(path, location.origin);
  const $id = (id) => document.getElementById(id);
  const PRESSURE = { normal: "success", elevated: "warning", high: "danger", critical: "danger" };
  const STATE = { ready: "success", starting: "warning", stopping: "warning", broken: "danger" };

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
  const number = (text) => make("td", { class: "text-end" }, String(text));
  const gb = (bytes) => (bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);
  const time = (at) => new Date(at * 1000).toLocaleTimeString();
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
    if (model.pinned) return "pinned";
    if (model.leases) return "in use";
    if (!model.steps_down) return "kept";
    const where = model.steps_down.to === "host" ? "to host memory" : "leaves";
    const when = model.steps_down.in_s > 0 ? `in ${span(model.steps_down.in_s)}` : "with the next sweep";
    return `${where} ${when}`;
  }

  function modelRow(worker, model, place, readOnly) {
    const button = (label, action, colour) => make("button", {
      class: `btn btn-sm btn-outline-${colour} ms-1`, type: "button", "data-action": action,
      onclick: (event) => { event.target.disabled = true; ask(action, { model: model.id, worker: worker.name }); },
    }, label);
    return make("tr", { "data-model": model.id, "data-tier": model.tier },
      number(place + 1),
      cell(make("b", {}, model.id), " ", worker.current === model.id ? badge("current", "primary") : null,
        model.next_out ? badge("next out", "warning") : null),
      cell(badge(model.tier, model.tier === "device" ? "success" : "secondary")),
      number(model.leases), number(gb(model.bytes)), number(model.uses), number(span(model.idle_s)),
      cell(stepsDown(model)),
      make("td", { class: "text-end" }, ...(readOnly ? [] : [
        model.tier === "device" ? null : button("Load", "load", "primary"),
        button("Switch to", "switch", "primary"), button("Unload", "unload", "danger")].filter(Boolean))));
  }

  function memoryBar(memory) {
    const part = (bytes, colour, title) => make("div", {
      class: `progress-bar bg-${colour}`, style: `width: ${(100 * bytes) / memory.total}%`, title });
    return make("div", { class: "models-memory" }, memory.name,
      make("div", { class: "progress" }, part(memory.models, "success", `models ${gb(memory.models)}`),
        part(memory.others, "secondary", `others ${gb(memory.others)}`)),
      `models ${gb(memory.models)}, free ${gb(memory.free)} of ${gb(memory.total)}`);
  }

  function jobRow(job) {
    const share = job.chunks ? (100 * job.chunks_done) / job.chunks : 0;
    return make("tr", { "data-job": job.id }, cell(make("b", {}, job.id)), cell(badge(job.state, "primary")),
      make("td", { class: "w-25" }, make("div", { class: "progress", title: `${job.chunks_done} of ${job.chunks}` },
        make("div", { class: "progress-bar", style: `width: ${share}%` }, `${Math.round(share)} %`))),
      number(`${job.done} of ${job.items}`), number(job.failed), cell(job.trouble));
  }

  const knobs = {}; // what is being typed survives the redrawing
  function knobForm(worker) {
    const typed = (knobs[worker.name] ??= { name: "slots", value: "" });
    const choice = make("select", { class: "form-select form-select-sm", name: "knob", "aria-label": "Setting" },
      ...Object.keys(worker.settings).map((name) =>
        make("option", { value: name, selected: name === typed.name ? "" : null }, `${name} = ${worker.settings[name]}`)));
    const value = make("input", { class: "form-control form-control-sm", name: "value", "aria-label": "New value" });
    value.value = typed.value;
    choice.onchange = () => { typed.name = choice.value; };
    value.oninput = () => { typed.value = value.value; };
    return make("form", {
      class: "models-knobs", "data-worker": worker.name,
      onsubmit: (event) => {
        event.preventDefault();
        let given = typed.value;
        try { given = JSON.parse(given); } catch { given = given.split(",").filter(Boolean); }
        ask("set", { worker: worker.name, name: typed.name, value: given });
        typed.value = "";
      },
    }, choice, value, make("button", { class: "btn btn-sm btn-outline-primary", type: "submit" }, "Set"));
  }

  function workerCard(worker, readOnly) {
    const swept = worker.swept_s === null ? "never" : `${span(worker.swept_s)} ago`;
    const heads = ["LRU", "Model", "Tier", "Leases", "Memory", "Uses", "Idle", "Steps down", ""];
    const numbers = new Set(["LRU", "Leases", "Memory", "Uses", "Idle"]);
    return make("section", { class: "detail-card models-worker", "data-worker": worker.name },
      make("h2", {}, worker.name, " ", badge(worker.state, STATE[worker.state]),
        badge(`pressure ${worker.pressure}`, PRESSURE[worker.pressure])),
      make("p", { class: "page-description mb-2" },
        `${worker.device}, ${worker.slots} slots, current ${worker.current ?? "none"}, last sweep ${swept}`,
        worker.trouble ? `: ${worker.trouble}` : ""),
      ...worker.memories.map(memoryBar),
      make("div", { class: "table-responsive" }, make("table", { class: "table table-sm table-hover align-middle mt-2 mb-0" },
        make("thead", {}, make("tr", {}, ...heads.map((head) =>
          make("th", { class: numbers.has(head) ? "text-end" : null }, head)))),
        make("tbody", {}, ...worker.models.map((model, place) => modelRow(worker, model, place, readOnly)),
          ...(worker.models.length ? [] : [make("tr", {}, make("td", { colspan: 9 }, "no model in memory"))])))),
      readOnly ? null : knobForm(worker));
  }

  function show(now) {
    $id("current").textContent = now.current ?? "none";
    $id("alarms").replaceChildren(...now.alarms.map((text) => make("div", { class: "alert alert-danger" }, text)));
    if (!$id("workers").contains(document.activeElement) || document.activeElement.tagName === "BUTTON") {
      $id("workers").replaceChildren(...now.workers.map((worker) => workerCard(worker, now.read_only)));
    }
    $id("jobs-card").hidden = !now.jobs.length;
    $id("jobs").replaceChildren(...now.jobs.map(jobRow));
    $id("queues").replaceChildren(...Object.entries(now.queues).map(([name, depth]) =>
      make("tr", { "data-queue": name }, cell(name), number(depth.interactive), number(depth.bulk))));
    $id("events").replaceChildren(...now.events.map((event) => make("tr", { "data-kind": event.kind },
      cell(time(event.at)), cell(event.worker), cell(event.kind.replaceAll("_", " ")), cell(event.model),
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
      const reply = await fetch(at("/models/now"));
      const now = await reply.json();
      if (reply.ok) show(now);
      else [live, told] = [false, now.error];
    } catch {
      [live, told] = [false, "The dashboard does not answer"];
    }
    $id("live").textContent = told;
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
