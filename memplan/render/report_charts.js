  function drawBar(now, needed, card) {
    const scale = Math.max(card.usable, needed) * 1.02;
    const parts = [...data.components.map((name, i) => [name, components(now)[i]]), ["context", needed - now.allocated]];
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
    by("components").querySelectorAll("tr:nth-last-child(2) td")[0].lastChild.textContent = "CUDA context and fragmentation";
  }

  function drawTimeline(now, card) {
    const names = Object.keys(now.moments), width = Math.max(280, by("timeline").clientWidth), height = 290, base = 226, step = width / names.length;
    const measured = data.measured || {};
    const most = Math.max(card.usable, ...names.map((n) => now.moments[n].total), ...Object.values(measured)) * 1.14;
    const svg = node("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Allocated memory in each moment" });
    names.forEach((name, i) => {
      let y = base;
      componentsOf(now.moments[name]).forEach((size, c) => {
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
    const taken = names.slice(-3).some((name) => Math.abs(base - (base * now.moments[name].total) / most - 6 - line) < 22); // a total stands there
    svg.append(node("text", { x: taken ? 4 : width - 4, y: line - 6, "text-anchor": taken ? "start" : "end", class: "bad" }, card.name + ", " + gib(card.usable) + " usable"));
    const legend = "allocated, GiB" + (Object.keys(measured).length ? "; dashed: measured, as asked" : "");
    svg.append(node("text", { x: 4, y: height - 6, class: "m" }, legend));
    by("timeline").replaceChildren(svg);
  }

  function drawMethods(card) {
    const found = data.offered.method.map((method) => [method, shown({ ...state, method })]).filter((p) => p[1]);
    const most = Math.max(card.usable, ...found.map((p) => device(p[1], card))) * 1.02;
    const width = Math.max(280, by("methods").clientWidth), tall = 62, scale = width / most, limit = card.usable * scale;
    const svg = node("svg", { viewBox: "0 0 " + width + " " + (found.length * tall + 26), role: "img", "aria-label": "Device memory of each method" });
    found.forEach(([name, p], i) => {
      let x = 0;
      const y = i * tall, total = device(p, card), word = wordOf(p, card), row = node("g", {});
      const words = node("text", { x: 0, y: y + 14, class: name === state.method ? "h" : "" }, name);
      row.append(words, node("text", { x: width, y: y + 14, "text-anchor": "end", class: { fits: "good", no: "bad" }[word] || "close" }, gib(total) + ", " + data.words[word][1].toLowerCase()));
      row.append(node("rect", { x: 0, y: y + 22, width, height: 20, rx: 4, fill: "var(--track)" }));
      components(p).forEach((size, c) => {
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
    by("methods-note").textContent = "checkpointing " + wordFor("checkpointing", state.checkpointing);
    by("methods").replaceChildren(svg);
  }

  function longest(key, batch, card) {
    const holds = (s) => fits(at(key, batch, s, rankOf(state, key)), card);
    if (!holds(data.shortest)) return 0;
    let low = data.shortest, high = data.longest + 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (holds(middle)) low = middle; else high = middle; }
    return low;
  }

  // The table of what fits is some hundred replays: a row at a time, between two events of the page.
  const idle = () => new Promise((done) => setTimeout(done));
  let heat = "";
  function mark() {
    for (const rect of by("heat").querySelectorAll("rect"))
      rect.setAttribute("class", Number(rect.dataset.batch) === state.batch && Number(rect.dataset.seq) === state.seq ? "here" : "");
  }
  async function drawHeat(card) {
    const key = keyOf(state), left = 60, cell = 74, tall = 30, right = 130, wanted = [key, rankOf(state, key), card.name].join();
    if (wanted === heat) { mark(); return; }
    heat = wanted;
    document.body.dataset.heat = "";
    const width = left + SEQUENCES.length * cell + right, height = (BATCHES.length + 1) * tall + 6;
    const svg = node("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Device memory by micro-batch and sequence length" });
    svg.style.width = "max(100%, " + Math.min(width, 760) + "px)";
    svg.append(node("text", { x: left - 8, y: 18, "text-anchor": "end", class: "m" }, "batch"));
    SEQUENCES.forEach((s, j) => svg.append(node("text", { x: left + j * cell + cell / 2, y: 18, "text-anchor": "middle", class: "m" }, s.toLocaleString("en"))));
    svg.append(node("text", { x: left + SEQUENCES.length * cell + 10, y: 18, class: "m" }, missingOn(card).length ? "at most" : "longest that fits"));
    by("heat-card").textContent = state.method + " on " + card.name;
    by("heat").replaceChildren(svg);
    const edge = [];
    for (const [i, b] of BATCHES.entries()) {
      const y = (i + 1) * tall - 4;
      svg.append(node("text", { x: left - 8, y: y + 19, "text-anchor": "end", class: "m" }, b));
      let last = 0;
      for (const [j, s] of SEQUENCES.entries()) {
        await idle();
        if (heat !== wanted) return;
        const p = at(key, b, s, rankOf(state, key)), size = device(p, card), ok = fits(p, card);
        if (ok) last = j + 1;
        const share = Math.min(1, size / card.usable);
        const rect = node("rect", { x: left + j * cell + 1, y: y + 1, width: cell - 2, height: tall - 2, rx: 3,
          fill: ok ? "color-mix(in srgb, var(--cool2) " + Math.round(100 * share) + "%, var(--cool))" : "var(--hot)", "data-fits": ok ? "1" : "0", "data-bytes": size,
          "data-batch": b, "data-seq": s }, node("title", {}, b + " x " + s + ": " + gib(size) + (ok ? ", fits" : "")));
        rect.addEventListener("click", () => { state.batch = b; state.seq = s; draw(); });
        svg.append(rect);
        svg.append(node("text", { x: left + j * cell + cell / 2, y: y + 20, "text-anchor": "middle", "pointer-events": "none" }, shortGib(size)));
      }
      edge.push([left + last * cell, y], [left + last * cell, y + tall]);
      await idle();
      if (heat !== wanted) return;
      const most = longest(key, b, card);
      svg.append(node("text", { x: left + SEQUENCES.length * cell + 10, y: y + 20, "data-longest": most, "data-batch": b }, most ? most.toLocaleString("en") : "none"));
    }
    svg.append(node("polyline", { points: edge.map((p) => p.join()).join(" "), fill: "none", stroke: "var(--bad)", "stroke-width": 2.5 }));
    mark();
    document.body.dataset.heat = wanted;
  }
