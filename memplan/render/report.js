"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const packed = Uint8Array.from(atob(document.getElementById("formulas").textContent), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const holder = document.createElement("script");
  holder.textContent = "window.memplanStructures = " + text;
  document.head.append(holder);
  const structures = window.memplanStructures;

  // ---- the formula: the largest state of each moment, from the emitted expressions
  function moments(key, batch, seq, rank) {
    const structure = structures[key];
    if (!structure) return null;
    const windows = structure.windows.filter((w) => seq >= w).join();
    const guard = structure.guards.find((r) => r.single === (batch === 1) && r.windows.join() === windows);
    const sizes = guard.f(BigInt(batch), BigInt(seq), BigInt(rank));
    const width = BigInt(data.components.length);
    const found = {};
    let at = 0;
    guard.names.forEach((name, i) => {
      let best = null, largest = -1n;
      for (let state = 0; state < guard.counts[i]; state++) {
        const parts = sizes.slice(at, at + Number(width));
        const total = parts.reduce((a, b) => a + b, 0n);
        if (total > largest) { largest = total; best = parts; }
        at += Number(width);
      }
      found[name] = { total: Number(largest), components: best.map(Number) };
    });
    return found;
  }
  function peak(key, batch, seq, rank) {
    const found = moments(key, batch, seq, rank);
    if (!found) return null;
    let name = null;
    for (const each in found) if (name === null || found[each].total > found[name].total) name = each;
    return { moment: name, allocated: found[name].total, components: found[name].components, moments: found };
  }
  // what a structure reserves: on the line between two replays (report_data.py ReservedTable)
  const reserved = (key, allocated) => {
    const points = data.reserved[key], last = points.length - 1, found = points.findIndex((p) => p[0] >= allocated);
    const after = found < 0 ? last : found, left = points[Math.max(0, after - 1)], right = points[Math.min(last, Math.max(1, after))];
    const slope = right[0] > left[0] ? (right[1] - left[1]) / (right[0] - left[0]) : 1;
    return Math.ceil(Math.max(allocated, Math.floor(left[1] + (allocated - left[0]) * slope + 0.5)) / data.segment) * data.segment;
  };
  const device = (key, allocated, card) => reserved(key, allocated) + card.context;
  const SAYS = { fits: "fits", tight: "tight", no: "does not fit", least: "or more" };
  const fits = (key, allocated, card) => device(key, allocated, card) + Math.round(reserved(key, allocated) * data.errors[key]) <= card.usable;
  // fits, tight or no; "least" where something is not counted, so that only "no" would stand
  const wordOf = (key, allocated, card) => {
    const bare = fits(key, allocated, card) ? "fits" : allocated * (1 - data.errors[key]) + card.context > card.usable ? "no" : "tight";
    return bare !== "no" && data.missing.length > 0 ? "least" : bare;
  };

  // ---- helpers
  const GIB = 2 ** 30;
  const gib = (n) => (n === 0 ? "0" : Math.abs(n) >= 0.1 * GIB ? (n / GIB).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) + " GiB" : (n / 2 ** 20).toFixed(2) + " MiB");
  const shortGib = (n) => { const d = n < 100 * GIB ? 1 : 0; return (n / GIB).toLocaleString("en", { minimumFractionDigits: d, maximumFractionDigits: d }); };
  const label = (name) => ({ optimizer_states: "optimizer states", load_peak: "load peak", optimizer_step: "optimizer step" })[name] || name.replaceAll("_", " ");
  const by = (id) => document.getElementById(id);
  const fill = (name) => "var(--" + name + ")";
  function node(tag, attributes, content) {
    const svg = ["svg", "rect", "line", "text", "polyline", "g", "title"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const key in attributes || {}) made.setAttribute(key, attributes[key]);
    if (typeof content === "string" || typeof content === "number") made.textContent = content;
    else if (content) made.append(...[content].flat());
    return made;
  }
  const BATCHES = [1, 2, 4, 8, 16, 32, 64];
  const SEQUENCES = [];
  for (let s = 256; s <= data.longest; s *= 2) SEQUENCES.push(s);
  if (SEQUENCES.length === 0) SEQUENCES.push(data.longest);
  const shortest = Math.min(128, data.longest);
  const toSeq = (x) => (x >= 1000 ? data.longest : Math.max(1, Math.round((shortest * (data.longest / shortest) ** (x / 1000)) / 8) * 8));
  const fromSeq = (s) => Math.round((1000 * Math.log(Math.max(1, s / shortest))) / Math.log(data.longest / shortest || 2));

  // ---- the state: from the setup asked for, then the address, then the controls
  const state = { ...data.state };
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    if (!Object.hasOwn(state, key)) continue;
    if (typeof state[key] === "number") { if (/^[0-9]{1,7}$/.test(value)) state[key] = Math.max(1, Number(value)); } else state[key] = value;
  }
  if (!data.methods.includes(state.method)) state.method = data.state.method;
  if (!data.checkpointings.includes(state.checkpointing)) state.checkpointing = data.state.checkpointing;
  if (!data.cards.some((c) => c.name === state.card)) state.card = data.state.card;
  state.seq = Math.min(state.seq, data.longest);
  const words = { none: "none", non_reentrant: "on", reentrant: "on (reentrant)" };
  for (const name of data.methods) by("method").append(node("option", { value: name }, name));
  for (const name of data.checkpointings) by("checkpointing").append(node("option", { value: name }, words[name] || name));
  for (const card of data.cards) by("card").append(node("option", { value: card.name }, card.name + " (" + gib(card.usable) + ")"));
  const keyOf = (method) => {
    const wanted = method + "|" + state.checkpointing;
    return data.keys.includes(wanted) ? wanted : data.keys.find((k) => k.startsWith(method + "|"));
  };

  function draw() {
    const card = data.cards.find((c) => c.name === state.card);
    const now = peak(keyOf(state.method), state.batch, state.seq, state.rank);
    const own = keyOf(state.method), needed = device(own, now.allocated, card), ok = fits(own, now.allocated, card);
    by("batch").value = state.batch; by("seq").value = fromSeq(state.seq); by("rank").value = state.rank;
    by("method").value = state.method; by("checkpointing").value = keyOf(state.method).split("|")[1]; by("card").value = state.card;
    by("batch-value").textContent = state.batch; by("seq-value").textContent = state.seq.toLocaleString("en"); by("rank-value").textContent = state.rank;
    by("rank").disabled = data.trains[state.method] !== "adapter";
    const room = card.usable - needed, share = data.uncounted[keyOf(state.method)], close = ok && room < now.allocated * share;
    const word = wordOf(own, now.allocated, card);
    by("verdict").className = "verdict " + (close || word === "least" ? "tight" : word);
    by("verdict").replaceChildren(node("span", { class: "pill" }, { fits: "fits ", tight: "tight on ", no: "does not fit ", least: "at least, on " }[word] + card.name), node("b", {}, gib(needed)),
      node("span", { class: "muted" }, "of " + gib(card.usable) + " usable, " + (room >= 0 ? gib(room) + " free" : gib(-room) + " short") +
        (word === "least" ? "; not counted: " + data.missing.join("; ") : "") +
        (close ? "; not counted: fragmentation, at most " + (100 * share).toFixed(0) + "% of allocated memory in 19 of 20 traced setups" : "")));
    document.body.dataset.device = String(needed); document.body.dataset.moment = now.moment; document.body.dataset.verdict = word;
    document.body.dataset.close = close ? "1" : "0";
    by("subject").textContent = state.method + ", recipe " + data.recipe + ": micro-batch " + state.batch + " x " + state.seq.toLocaleString("en") + " tokens" +
      (data.trains[state.method] === "adapter" ? ", rank " + state.rank : "");
    by("peak-moment").textContent = label(now.moment);
    drawBar(now, needed, card); drawTimeline(now, card); drawMethods(card); drawHeat(card);
  }

  function drawBar(now, needed, card) {
    const scale = Math.max(card.usable, needed) * 1.02;
    const parts = [...data.components.map((name, i) => [name, now.components[i]]), ["context", needed - now.allocated]];
    const long = by("bar").clientWidth, named = (name, size) => (long * size) / scale > 7 * label(name).length + 16;
    by("bar").replaceChildren(...parts.filter((p) => p[1] > 0).map(([name, size]) =>
      node("span", { style: "width:" + (100 * size) / scale + "%;background:" + fill(name) + (named(name, size) ? "" : ";padding:0"), title: label(name) + ": " + gib(size) },
        named(name, size) ? label(name) : "")),
      node("i", { style: "left:" + (100 * card.usable) / scale + "%", title: "usable: " + gib(card.usable) }));
    by("bar").setAttribute("aria-label", parts.map(([name, size]) => label(name) + " " + gib(size)).join(", "));
    const mark = (100 * card.usable) / scale;
    by("scale").replaceChildren(node("span", { style: mark > 50 ? "right:" + (100 - mark) + "%" : "left:" + mark + "%" }, card.name + ": " + gib(card.usable) + " usable"));
    const row = (name, size) => node("tr", {}, [node("td", {}, [node("span", { class: "key", style: "background:" + fill(name) }), label(name)]),
      node("td", {}, gib(size)), node("td", {}, ((100 * size) / needed).toFixed(1) + " %")]);
    by("components").tBodies[0].replaceChildren(...parts.map(([name, size]) => row(name, size)),
      node("tr", {}, [node("td", {}, "device memory"), node("td", {}, gib(needed)), node("td", {}, "")]));
    by("components").querySelectorAll("tr:nth-last-child(2) td")[0].lastChild.textContent = "CUDA context and rounding";
  }

  function drawTimeline(now, card) {
    const names = Object.keys(now.moments), width = Math.max(280, by("timeline").clientWidth), height = 290, base = 226, step = width / names.length;
    const measured = data.measured || {};
    const most = Math.max(card.usable, ...names.map((n) => now.moments[n].total), ...Object.values(measured)) * 1.14;
    const svg = node("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Allocated memory in each moment" });
    names.forEach((name, i) => {
      let y = base;
      now.moments[name].components.forEach((size, c) => {
        const h = (base * size) / most;
        y -= h;
        if (h > 0.2) svg.append(node("rect", { x: i * step + 10, y, width: step - 20, height: h, fill: fill(data.components[c]) },
          node("title", {}, label(name) + ", " + label(data.components[c]) + ": " + gib(size))));
      });
      const total = now.moments[name].total, head = name === now.moment ? "h" : "";
      svg.append(node("text", { x: i * step + step / 2, y: y - 6, "text-anchor": "middle", class: head }, step < 85 ? (total / GIB).toFixed(1) : gib(total)));
      label(name).split(" ").forEach((word, line) => svg.append(node("text", { x: i * step + step / 2, y: base + 17 + 14 * line, "text-anchor": "middle", class: head || "m" }, word)));
      if (measured[name]) {
        const m = base - (base * measured[name]) / most;
        svg.append(node("line", { x1: i * step + 4, x2: (i + 1) * step - 4, y1: m, y2: m, stroke: "var(--fg)", "stroke-width": 2, "stroke-dasharray": "5 3" },
          node("title", {}, "measured: " + gib(measured[name]))));
      }
    });
    const line = base - (base * card.usable) / most;
    svg.append(node("line", { x1: 0, x2: width, y1: line, y2: line, stroke: "var(--bad)", "stroke-width": 1.5 }));
    svg.append(node("text", { x: width - 4, y: line - 6, "text-anchor": "end", class: "bad" }, card.name + ", " + gib(card.usable) + " usable"));
    const legend = "allocated, GiB" + (Object.keys(measured).length ? "; dashed: measured, as asked" : "");
    svg.append(node("text", { x: 4, y: height - 6, class: "m" }, legend));
    by("timeline").replaceChildren(svg);
  }

  function drawMethods(card) {
    const found = data.methods.map((m) => [m, peak(keyOf(m), state.batch, state.seq, state.rank)]).filter((p) => p[1]);
    const most = Math.max(card.usable, ...found.map((p) => device(keyOf(p[0]), p[1].allocated, card))) * 1.02;
    const width = Math.max(280, by("methods").clientWidth), tall = 62, scale = width / most, limit = card.usable * scale;
    const svg = node("svg", { viewBox: "0 0 " + width + " " + (found.length * tall + 26), role: "img", "aria-label": "Device memory of each method" });
    found.forEach(([name, p], i) => {
      let x = 0;
      const y = i * tall, total = device(keyOf(name), p.allocated, card), word = wordOf(keyOf(name), p.allocated, card), row = node("g", {});
      const words = node("text", { x: 0, y: y + 14, class: name === state.method ? "h" : "" }, name);
      row.append(words, node("text", { x: width, y: y + 14, "text-anchor": "end", class: { fits: "good", no: "bad" }[word] || "close" }, gib(total) + ", " + SAYS[word]));
      row.append(node("rect", { x: 0, y: y + 22, width, height: 20, rx: 4, fill: "var(--track)" }));
      p.components.forEach((size, c) => {
        row.append(node("rect", { x, y: y + 22, width: Math.max(0, size * scale), height: 20, fill: fill(data.components[c]) },
          node("title", {}, name + ", " + label(data.components[c]) + ": " + gib(size))));
        x += size * scale;
      });
      row.append(node("line", { x1: limit, x2: limit, y1: y + 18, y2: y + 46, stroke: "var(--bad)", "stroke-width": 2 }));
      row.addEventListener("click", () => { state.method = name; draw(); });
      svg.append(row);
    });
    const right = limit > width / 2;
    svg.append(node("text", { x: right ? limit : limit + 2, y: found.length * tall + 6, "text-anchor": right ? "end" : "start", class: "bad" }, card.name + ", " + gib(card.usable) + " usable"));
    by("methods-note").textContent = "checkpointing " + words[state.checkpointing];
    by("methods").replaceChildren(svg);
  }

  function longest(key, batch, card) {
    const holds = (s) => fits(key, peak(key, batch, s, state.rank).allocated, card);
    if (!holds(1)) return 0;
    let low = 1, high = data.longest + 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (holds(middle)) low = middle; else high = middle; }
    return low;
  }

  function drawHeat(card) {
    const key = keyOf(state.method), left = 60, cell = 74, tall = 30, right = 130;
    const width = left + SEQUENCES.length * cell + right, height = (BATCHES.length + 1) * tall + 6;
    const svg = node("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Device memory by micro-batch and sequence length" });
    svg.style.width = Math.max(by("heat").clientWidth, Math.min(width, 760)) + "px";
    svg.append(node("text", { x: left - 8, y: 18, "text-anchor": "end", class: "m" }, "batch"));
    SEQUENCES.forEach((s, j) => svg.append(node("text", { x: left + j * cell + cell / 2, y: 18, "text-anchor": "middle", class: "m" }, s.toLocaleString("en"))));
    svg.append(node("text", { x: left + SEQUENCES.length * cell + 10, y: 18, class: "m" }, data.missing.length ? "at most" : "longest that fits"));
    const edge = [];
    BATCHES.forEach((b, i) => {
      const y = (i + 1) * tall - 4;
      svg.append(node("text", { x: left - 8, y: y + 19, "text-anchor": "end", class: "m" }, b));
      let last = 0;
      SEQUENCES.forEach((s, j) => {
        const allocated = peak(key, b, s, state.rank).allocated, size = device(key, allocated, card), ok = fits(key, allocated, card);
        if (ok) last = j + 1;
        const share = Math.min(1, size / card.usable);
        const rect = node("rect", { x: left + j * cell + 1, y: y + 1, width: cell - 2, height: tall - 2, rx: 3,
          fill: ok ? "color-mix(in srgb, var(--cool2) " + Math.round(100 * share) + "%, var(--cool))" : "var(--hot)", "data-fits": ok ? "1" : "0", "data-bytes": size,
          "data-batch": b, "data-seq": s, ...(b === state.batch && s === state.seq ? { stroke: "var(--fg)", "stroke-width": 2 } : {}) }, node("title", {}, b + " x " + s + ": " + gib(size) + ", " + SAYS[wordOf(key, allocated, card)]));
        rect.addEventListener("click", () => { state.batch = b; state.seq = s; draw(); });
        svg.append(rect);
        svg.append(node("text", { x: left + j * cell + cell / 2, y: y + 20, "text-anchor": "middle", "pointer-events": "none" }, shortGib(size)));
      });
      edge.push([left + last * cell, y], [left + last * cell, y + tall]);
      const most = longest(key, b, card);
      svg.append(node("text", { x: left + SEQUENCES.length * cell + 10, y: y + 20, "data-longest": most, "data-batch": b }, most ? most.toLocaleString("en") : "none"));
    });
    svg.append(node("polyline", { points: edge.map((p) => p.join()).join(" "), fill: "none", stroke: "var(--bad)", "stroke-width": 2.5 }));
    by("heat-card").textContent = state.method + " on " + card.name;
    by("heat").replaceChildren(svg);
  }

  for (const id of ["method", "checkpointing", "card"]) by(id).addEventListener("change", () => { state[id] = by(id).value; draw(); });
  by("batch").addEventListener("input", () => { state.batch = Number(by("batch").value); draw(); });
  by("seq").addEventListener("input", () => { state.seq = toSeq(Number(by("seq").value)); draw(); });
  by("rank").addEventListener("input", () => { state.rank = Number(by("rank").value); draw(); });
  window.addEventListener("hashchange", () => location.reload());
  window.addEventListener("resize", draw);
  window.addEventListener("beforeprint", draw);
  draw();
  document.body.dataset.ready = "1";
})();
