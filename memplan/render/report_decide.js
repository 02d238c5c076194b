  // ---- what is kept: the state in the address, a setup beside another, the setup as a command
  const FIELDS = Object.keys(data.state);
  const query = (chosen, mark = "") => FIELDS.map((key) => mark + key + "=" + encodeURIComponent(chosen[key])).join("&");
  // the address after #
  const address = () => "#" + query(state) + (pinned ? "&" + query(pinned, "than.") : "");
  // a state read from an address; what is not one of the page's own stays as asked
  function read(given, mark = "") {
    const found = { ...data.state };
    for (const key of FIELDS) {
      const value = given.get(mark + key);
      if (value === null) continue;
      if (typeof found[key] === "number") { if (/^[0-9]{1,7}$/.test(value)) found[key] = Math.max(1, Number(value)); } else found[key] = value;
    }
    for (const name of PICKERS) if (!data.offered[name].includes(found[name])) found[name] = data.state[name];
    if (!cardOf(found.card)) found.card = data.state.card;
    found.seq = Math.max(data.shortest, Math.min(found.seq, data.longest));
    return found;
  }
  // the setup as a command line
  function command(chosen) {
    const checkpointing = { none: " --no-checkpointing", non_reentrant: " --checkpointing" }[chosen.checkpointing] || " --set checkpointing=" + chosen.checkpointing;
    const rank = data.ranks[chosen.method] ? " " + data.ranks[chosen.method] + rankOf(chosen) : "";
    // what a method chooses by itself is not said of the method asked for
    const said = (name) => data.said.includes(name) || chosen.method !== data.state.method || chosen[name] !== data.state[name];
    const others = ["loss", "attention"].filter(said).map((name) => " --" + name + " " + chosen[name]).join("");
    return "memplan " + data.command + " --method " + chosen.method + checkpointing + others + " --batch " + chosen.batch + " --seq " + chosen.seq + rank + " --gpu " + chosen.card;
  }
  async function copy(text, button) {
    const said = button.textContent;
    by("copied").value = text;
    try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { by("copied").hidden = false; by("copied").select(); button.textContent = "select and copy below"; }
    setTimeout(() => { button.textContent = said; }, 1500);
  }

  let pinned = null;
  function pin(chosen) {
    pinned = chosen && keyOf(chosen) ? chosen : null;
    by("pin").textContent = pinned ? "stop comparing" : "compare with this";
    draw();
  }
  function drawBeside() {
    by("beside").hidden = !pinned;
    if (!pinned) { by("two").replaceChildren(); return; }
    const columns = [pinned, state].map((chosen) => {
      const card = cardOf(chosen.card), p = shown(chosen);
      return { chosen, card, p, size: device(p, card) };
    });
    const [a, b] = columns, signed = (n) => (n === 0 ? "same" : (n > 0 ? "+" : "\u2212") + gib(Math.abs(n)));
    const line = (name, of, bytes = false) => node("tr", {}, [node("td", {}, name), ...columns.map((c) => node("td", {}, bytes ? gib(of(c)) : String(of(c)))),
      node("td", { class: "muted" }, bytes ? signed(of(b) - of(a)) : "")]);
    by("two").replaceChildren(
      node("tr", {}, [node("th", {}, ""), node("th", {}, "kept"), node("th", {}, "now"), node("th", {}, "difference")]),
      line("method", (c) => c.chosen.method), ...PICKERS.slice(1).map((name) => line(name, (c) => wordFor(name, c.chosen[name]))),
      line("micro-batch x tokens", (c) => c.chosen.batch + " x " + c.chosen.seq.toLocaleString("en")),
      line("rank", (c) => (data.trains[c.chosen.method] === "adapter" ? c.p.rank : "none")),
      line("verdict", (c) => says(c.p, c.card) + " " + c.card.name), line("peak moment", (c) => label(c.p.moment)),
      ...data.components.map((name, i) => line(label(name), (c) => components(c.p)[i], true)),
      line("reserved, not allocated", (c) => reserved(c.p) - c.p.allocated, true), line("CUDA context", (c) => c.card.context, true), line("device memory", (c) => c.size, true));
    document.body.dataset.beside = columns.map((c) => c.size).join();
  }

  // ---- allocated and reserved after every event of the run, drawn to zoom into by dragging
  let course = { name: "", steps: 0 }, span = null;
  function drawCourse(now, card) {
    const run = runAt(now), box = by("course");
    if (!run) { box.replaceChildren(node("p", { class: "muted" }, "No replay of this setup is in this file.")); return; }
    const name = [now.key, now.batch, now.seq, now.rank].join();
    if (course.name !== name) {
      const steps = run.steps.length, allocated = new Float64Array(steps), held = new Float64Array(steps);
      replay(run, Infinity, (position, a, r) => { allocated[position] = a; held[position] = r; });
      if (course.steps !== steps) span = null;
      course = { name, steps, allocated, held };
    }
    const [from, to] = span || [0, course.steps], width = Math.max(280, box.clientWidth), height = 220, base = 196, bins = Math.min(width, to - from);
    let most = span ? 0 : card.usable - card.context;
    for (let i = from; i < to; i++) most = Math.max(most, course.held[i]);
    most *= 1.06;
    const x = (i) => (width * (i - from)) / (to - from), y = (n) => base - (base * n) / most;
    // of each bin of events the largest
    const line = (values) => {
      const points = [];
      for (let bin = 0; bin < bins; bin++) {
        const first = from + Math.floor(((to - from) * bin) / bins), last = from + Math.floor(((to - from) * (bin + 1)) / bins);
        let top = 0;
        for (let i = first; i < last; i++) top = Math.max(top, values[i]);
        points.push(x(first).toFixed(1) + "," + y(top).toFixed(1));
      }
      return points;
    };
    const svg = node("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Allocated and reserved memory after each event" });
    svg.append(node("polygon", { points: "0," + base + " " + line(course.allocated).join(" ") + " " + width + "," + base, fill: "var(--activations)", opacity: 0.45 }),
      node("polyline", { points: line(course.held).join(" "), fill: "none", stroke: "var(--weights)", "stroke-width": 1.5 }));
    for (const [place, what] of [[run.steady, "second step"], [run.trained, "end"]])
      if (place > from && place < to) svg.append(node("line", { x1: x(place), x2: x(place), y1: 0, y2: base, stroke: "var(--muted)", "stroke-dasharray": "3 3" }), node("text", { x: x(place) + 4, y: base - 6, class: "m" }, what));
    const room = y(card.usable - card.context);
    if (room > 0) svg.append(node("line", { x1: 0, x2: width, y1: room, y2: room, stroke: "var(--bad)", "stroke-width": 1.5 }), node("text", { x: width - 4, y: room + 14, "text-anchor": "end", class: "bad" }, card.name));
    svg.append(node("text", { x: 4, y: height - 6, class: "m" }, "events " + from.toLocaleString("en") + " to " + to.toLocaleString("en")), node("text", { x: width - 4, y: height - 6, "text-anchor": "end", class: "m" }, (width < 500 ? "" : "line: reserved; area: allocated; ") + "top " + gib(Math.round(most / 1.06))));
    const place = (event) => Math.min(course.steps, Math.max(0, Math.round(from + ((event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * (to - from))));
    let start = null;
    svg.addEventListener("pointerdown", (event) => { start = place(event); });
    svg.addEventListener("pointerup", (event) => {
      const end = place(event);
      if (start !== null && Math.abs(end - start) > 3) zoom([Math.min(start, end), Math.max(start, end)]);
      start = null;
    });
    svg.addEventListener("dblclick", () => zoom(null));
    box.replaceChildren(svg);
    document.body.dataset.course = [from, to, Math.max(...course.held)].join();
  }
  function zoom(chosen) { span = chosen; by("whole").disabled = !span; draw(); }
