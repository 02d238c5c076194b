  const data = JSON.parse(document.getElementById("data").textContent);
  const packed = Uint8Array.from(atob(document.getElementById("formulas").textContent), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const holder = document.createElement("script");
  holder.textContent = "window.memplanStructures = " + text;
  document.head.append(holder);
  const structures = window.memplanStructures;

  // ---- the formula: planner/formula/program.py Program.breakdowns, from a step's log and its sizes
  function guardOf(structure, batch, seq) {
    const windows = structure.windows.filter((w) => seq >= w).join();
    return structure.guards.find((r) => r.single === (batch * structure.rows === 1) && r.windows.join() === windows);
  }
  const split = new Map();
  // a text of whole numbers, by its kind and place
  function integers(what, place) {
    const name = what + place, text = structures.texts[what][place];
    if (!split.has(name)) split.set(name, text ? Int32Array.from(text.split(" "), Number) : new Int32Array());
    return split.get(name);
  }
  const logs = new Map();
  // {codes, groups}: a tape's log; where a code is GROUP, groups has the [item, count] pairs of that event
  const GROUP = 2 ** 31 - 1;
  function logOf(place) {
    if (!logs.has(place)) {
      const groups = new Map();
      const codes = Int32Array.from(structures.texts.log[place].split(" "), (token, position) => {
        if (!token.includes(":")) return Number(token);
        groups.set(position, token === ":" ? [] : token.split(",").map((pair) => pair.split(":").map(Number)));
        return GROUP;
      });
      logs.set(place, { codes, groups });
    }
    return logs.get(place);
  }
  const evaluated = new Map();
  // every size of the page at one place of the sliders
  function sizesAt(batch, seq, rank) {
    const name = [batch, seq, rank].join();
    if (!evaluated.has(name)) {
      if (evaluated.size > 500) evaluated.clear();
      evaluated.set(name, Float64Array.from(structures.f(BigInt(batch), BigInt(seq), BigInt(rank)), Number));
    }
    return evaluated.get(name);
  }
  // rows as [kind, bytes, count]
  function rowsOf(place, sizes) {
    const numbers = integers("rows", place), found = [];
    for (let i = 0; i < numbers.length; i += 3) found.push([numbers[i], sizes[numbers[i + 1]], numbers[i + 2]]);
    return found;
  }
  const sum = (rows) => rows.reduce((total, row) => total + row[1], 0);
  // for each moment of a tape its largest state: bytes, and after how many events it stands (tape/peaks.py largest)
  function largest(tape, sizes) {
    const { codes, groups } = logOf(tape.log), items = integers("items", tape.items), alive = new Float64Array(codes.length + 1);
    for (let i = 0, now = 0; i < codes.length; i++) {
      const code = codes[i];
      if (code === GROUP) for (const [item, count] of groups.get(i)) now += sizes[items[2 * item + 1]] * count;
      else now += code >= 0 ? sizes[items[2 * code + 1]] : -sizes[items[2 * ~code + 1]];
      alive[i + 1] = now;
    }
    const best = {};
    for (const name of tape.names) best[name] = { total: -1, position: 0 };
    tape.marks.forEach(([begin, name], which) => {
      if (!best[name]) return;
      const end = which + 1 < tape.marks.length ? tape.marks[which + 1][0] : codes.length;
      for (let i = begin; i <= end; i++) if (alive[i] > best[name].total) best[name] = { total: alive[i], position: i };
    });
    return best;
  }
  // the rows of a tape after so many events: one for each kind of buffer, in the order in which kinds appear
  function rowsAfter(tape, position, sizes) {
    const { codes, groups } = logOf(tape.log), items = integers("items", tape.items), counts = new Map();
    const add = (item, count) => counts.set(item, (counts.get(item) || 0) + count);
    for (let i = 0; i < position; i++) {
      const code = codes[i];
      if (code === GROUP) for (const [item, count] of groups.get(i)) add(item, count);
      else if (code >= 0) add(code, 1);
      else add(~code, -1);
    }
    return [...counts].filter((pair) => pair[1]).map(([item, count]) => [items[2 * item], sizes[items[2 * item + 1]] * count, count]);
  }
  // {moment: {total, rows()}} of a structure at these sizes
  function moments(key, batch, seq, rank) {
    const structure = structures.of[key];
    if (!structure) return null;
    const guard = guardOf(structure, batch, seq), sizes = sizesAt(batch, seq, rank), found = {};
    for (const [name, states] of structure.loading) {
      const all = states.map((place) => rowsOf(place, sizes)), totals = all.map(sum), total = Math.max(...totals);
      found[name] = { total, rows: () => all[totals.indexOf(total)] };
    }
    const stays = rowsOf(guard.resident, sizes), resident = sum(stays);
    for (const tape of guard.tapes)
      for (const [name, state] of Object.entries(largest(tape, sizes)))
        found[name] = { total: resident + state.total, rows: () => [...stays, ...rowsAfter(tape, state.position, sizes)] };
    return found;
  }
  // bytes of each component of a moment, in the order of data.components
  function componentsOf(moment) {
    if (!moment.components) {
      moment.components = data.components.map(() => 0);
      for (const [kind, bytes] of moment.rows()) moment.components[structures.kinds[kind][3]] += bytes;
    }
    return moment.components;
  }
  // the rows of a moment as a table shows them, the largest first
  function tensorsOf(moment, batch, seq, rank) {
    const sizes = sizesAt(batch, seq, rank), words = structures.words;
    const found = moment.rows().filter((row) => row[1] > 0).map(([kind, bytes, count]) => {
      const [name, dtype, why, component, ...shape] = structures.kinds[kind];
      return { name: words[name], shape: shape.map((size) => (size < 0 ? sizes[~size] : size)), dtype: words[dtype], count, bytes, component: data.components[component], why: words[why] };
    });
    return found.sort((a, b) => b.bytes - a.bytes);
  }
  function peak(key, batch, seq, rank) {
    const found = moments(key, batch, seq, rank);
    if (!found) return null;
    let name = null;
    for (const each in found) if (name === null || found[each].total > found[name].total) name = each;
    return { moment: name, allocated: found[name].total, moments: found };
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
  const components = (p) => componentsOf(p.moments[p.moment]);
  const tensors = (p) => p.tensors || tensorsOf(p.moments[p.moment], p.batch, p.seq, p.rank);
  function reserved(p) {
    if (p.reserved === undefined) {
      const run = runAt(p);
      p.reserved = run ? replay(run).reserved : tabulated(data.reserved[p.key], p.allocated);
    }
    return p.reserved;
  }
  const device = (p, card) => reserved(p) + card.context;
