  const data = JSON.parse(document.getElementById("data").textContent);
  const packed = Uint8Array.from(atob(document.getElementById("formulas").textContent), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const holder = document.createElement("script");
  holder.textContent = "window.memplanStructures = " + text;
  document.head.append(holder);
  const structures = window.memplanStructures;

  // ---- the formula: the largest state of each moment, from the emitted expressions
  function guardOf(structure, batch, seq) {
    const windows = structure.windows.filter((w) => seq >= w).join();
    return structure.guards.find((r) => r.single === (batch * structure.rows === 1) && r.windows.join() === windows);
  }
  function moments(key, batch, seq, rank) {
    const structure = structures.of[key];
    if (!structure) return null;
    const guard = guardOf(structure, batch, seq);
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
  // what a structure reserves on the line between two replays (report_data.py ReservedTable)
  const tabulated = (points, allocated) => {
    const last = points.length - 1, found = points.findIndex((p) => p[0] >= allocated);
    const after = found < 0 ? last : found, left = points[Math.max(0, after - 1)], right = points[Math.min(last, Math.max(1, after))];
    const slope = right[0] > left[0] ? (right[1] - left[1]) / (right[0] - left[0]) : 1;
    return Math.ceil(Math.max(allocated, Math.floor(left[1] + (allocated - left[0]) * slope + 0.5)) / data.segment) * data.segment;
  };

  // ---- one setup: its peak at once, what the allocator reserves for it when somebody asks
  const known = new Map();
  function at(key, batch, seq, rank) {
    const name = [key, batch, seq, rank].join();
    if (known.has(name)) return known.get(name);
    const found = peak(key, batch, seq, rank);
    if (!found) return null;
    if (known.size > 5000) known.clear();
    known.set(name, Object.assign(found, { key, batch, seq, rank }));
    return found;
  }
  function reserved(p) {
    if (p.reserved === undefined) {
      const run = runAt(p);
      p.reserved = run ? replay(run).reserved : tabulated(data.reserved[p.key], p.allocated);
    }
    return p.reserved;
  }
  const device = (p, card) => reserved(p) + card.context;
  const SAYS = { fits: "fits", tight: "tight", no: "does not fit", least: "or more" };
  const high = (p, card) => device(p, card) + Math.round(reserved(p) * data.errors[p.key]);
  // tensors alone that are too large need no replay
  const fits = (p, card) => p.allocated + card.context <= card.usable && high(p, card) <= card.usable;
  // the verdict of planner/answers/verdict.py Need.word: fits, tight or no
  function bare(p, card) {
    if (fits(p, card)) return "fits";
    const room = card.usable - card.context, error = data.errors[p.key];
    if (p.allocated * (1 - error) > room) return "no";
    const run = runAt(p);
    if (!run) return "tight";
    const capacity = Math.round(room / (1 - error));
    return capacity >= reserved(p) || replay(run, capacity) ? "tight" : "no";
  }
  // "least" where something is not counted, so that only "no" would stand
  const wordOf = (p, card) => {
    const word = bare(p, card);
    return word !== "no" && data.missing.length > 0 ? "least" : word;
  };
