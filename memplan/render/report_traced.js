  // ---- what the trace says of the setup asked for: shown until a control moves
  const asAsked = (chosen) => ["batch", "seq", "rank", "card", ...PICKERS].every((name) => chosen[name] === data.state[name]);
  // the formula's answer p with the trace's numbers in their place
  function asTraced(p) {
    const own = data.traced, moments = {};
    for (const [name, total, components] of own.moments) moments[name] = { total, components };
    return { ...p, moment: own.moment, allocated: own.allocated, reserved: own.reserved, word: own.word, moments, tensors: own.tensors, formula: p };
  }
