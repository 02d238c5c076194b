  // ---- the caching allocator: planner/allocator/quick.py, in the same order of addresses
  const MIN_BLOCK = 512, SMALL_LIMIT = 2 ** 20, SMALL_SEGMENT = 2 ** 21, LARGE_SEGMENT = 20 * 2 ** 20, LARGE_LIMIT = 10 * 2 ** 20, LARGE_ROUND = 2 ** 21;
  const EMPTY_CACHE = -1;
  const parsed = new Map();
  // the events of a run (report_runs.py): 0 a birth, n the n-th last released, EMPTY_CACHE
  function eventsOf(place) {
    if (!parsed.has(place)) {
      let born = 0, far = 0;
      parsed.set(place, Int32Array.from(structures.texts.steps[place].split(" "), (each) => {
        if (each === "e") return EMPTY_CACHE;
        if (each === "0") { born++; return 0; }
        if (each[0] !== "p" && each[0] !== "m") return Number(each);
        far += (each[0] === "p" ? 1 : -1) * Number(each.slice(1));
        return born - far;
      }));
    }
    return parsed.get(place);
  }
  // what one setup asks of the allocator: its steps, and bytes of each tensor in the order of births
  function runAt(p) {
    const run = guardOf(structures.of[p.key], p.batch, p.seq).run;
    if (!run) return null;
    const all = sizesAt(p.batch, p.seq, p.rank), sizes = run.sizes.map((place) => Math.ceil(all[place] / MIN_BLOCK) * MIN_BLOCK);
    return { steps: eventsOf(run.steps), which: integers("which", run.which), sizes, steady: run.steady, trained: run.trained };
  }
  // where a free block of this size and tie stands, or would
  function find(free, size, tie) {
    let low = 0, after = free.length;
    while (low < after) {
      const middle = (low + after) >> 1, block = free[middle];
      if (block.size < size || (block.size === size && block.tie < tie)) low = middle + 1; else after = middle;
    }
    return low;
  }
  // {allocated, reserved} at most, or null where a request does not fit after the cache was released; `watch` is told both after each step
  function replay(run, capacity = Infinity, watch = null) {
    const { steps, which, sizes } = run, live = new Array(which.length).fill(null), small = [], large = [], upwards = data.ties === "segment", creation = data.ties === "creation";
    const edge = { size: 0, used: true };
    let born = 0, created = 0, end = upwards ? 0 : 2 ** 48, allocated = 0, held = 0, most = 0, mostHeld = 0;
    const take = (block) => block.free.splice(find(block.free, block.size, block.tie), 1);
    const give = (block) => block.free.splice(find(block.free, block.size, block.tie), 0, block);
    const emptied = () => {
      for (const free of [large, small]) {
        const left = free.filter((block) => !(block.before === edge && block.after === edge && ((held -= block.size), true)));
        free.splice(0, free.length, ...left);
      }
    };
    for (let position = 0; position < steps.length; position++) {
      const step = steps[position];
      if (step === 0) {
        const which_ = born++, size = sizes[which[which_]];
        if (size > 0) {
          const free = size <= SMALL_LIMIT ? small : large, unsplit = size <= SMALL_LIMIT ? 0 : SMALL_LIMIT, place = find(free, size, -1);
          let block;
          if (place < free.length) { block = free[place]; free.splice(place, 1); block.used = true; } else {
            const segment = size <= SMALL_LIMIT ? SMALL_SEGMENT : size < LARGE_LIMIT ? LARGE_SEGMENT : Math.ceil(size / LARGE_ROUND) * LARGE_ROUND;
            if (held + segment > capacity) emptied();
            if (held + segment > capacity) return null;
            held += segment;
            const address = upwards ? end : end - segment;
            end = upwards ? end + segment : address;
            block = { size: segment, tie: creation ? created : address, before: edge, after: edge, address, used: true, free };
            created++;
            if (held > mostHeld) mostHeld = held;
          }
          const rest = block.size - size;
          if (rest > unsplit) {
            const address = block.address + size;
            const cut = { size: rest, tie: creation ? block.tie : address, before: block, after: block.after, address, used: false, free };
            if (creation) block.tie = created++; // the request gets a new object, the remainder keeps the old one
            if (block.after !== edge) block.after.before = cut;
            block.after = cut;
            block.size = size;
            give(cut);
          }
          allocated += block.size;
          live[which_] = block;
          if (allocated > most) most = allocated;
        }
      } else if (step === EMPTY_CACHE) emptied();
      else {
        let block = live[born - step];
        if (block) {
          live[born - step] = null;
          allocated -= block.size;
          const before = block.before, after = block.after;
          if (!before.used) {
            take(before);
            before.size += block.size;
            before.after = after;
            if (after !== edge) after.before = before;
            if (creation) before.tie = block.tie; // the object of the block being freed stays
            block = before;
          }
          if (!after.used) {
            take(after);
            block.size += after.size;
            block.after = after.after;
            if (after.after !== edge) after.after.before = block;
          }
          block.used = false;
          give(block);
        }
      }
      if (watch) watch(position, allocated, held);
    }
    return { allocated: most, reserved: mostHeld };
  }
