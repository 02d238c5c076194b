  // ---- the state: from the setup asked for, then the address, then the controls
  const given = new URLSearchParams(location.hash.slice(1));
  const state = read(given);
  const words = { none: "none", non_reentrant: "on", reentrant: "on (reentrant)" };
  for (const name of data.methods) by("method").append(node("option", { value: name }, name));
  for (const name of data.checkpointings) by("checkpointing").append(node("option", { value: name }, words[name] || name));
  for (const card of data.cards) by("card").append(node("option", { value: card.name }, card.name + " (" + gib(card.usable) + ")"));
  const keyOf = (method, checkpointing = state.checkpointing) => {
    const wanted = method + "|" + checkpointing;
    return data.keys.includes(wanted) ? wanted : data.keys.find((k) => k.startsWith(method + "|"));
  };

  function draw() {
    const card = data.cards.find((c) => c.name === state.card);
    const own = keyOf(state.method), now = at(own, state.batch, state.seq, state.rank);
    const needed = device(now, card), ok = fits(now, card);
    by("batch").value = state.batch; by("seq").value = fromSeq(state.seq); by("rank").value = state.rank;
    by("method").value = state.method; by("checkpointing").value = keyOf(state.method).split("|")[1]; by("card").value = state.card;
    by("batch-value").textContent = state.batch; by("seq-value").textContent = state.seq.toLocaleString("en"); by("rank-value").textContent = state.rank;
    by("rank").disabled = data.trains[state.method] !== "adapter";
    const room = card.usable - needed, share = data.uncounted[keyOf(state.method)], close = ok && room < now.allocated * share;
    const word = wordOf(now, card);
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
    drawBar(now, needed, card); drawTimeline(now, card); drawMethods(card); drawHeat(card); drawCourse(now, card); drawBeside();
    const rows = tensors(now);
    drawTreemap(rows, now); drawRows(rows, now);
    history.replaceState(null, "", address());
  }

  for (const id of ["method", "checkpointing", "card"]) by(id).addEventListener("change", () => { state[id] = by(id).value; draw(); });
  by("batch").addEventListener("input", () => { state.batch = Number(by("batch").value); draw(); });
  by("seq").addEventListener("input", () => { state.seq = toSeq(Number(by("seq").value)); draw(); });
  by("rank").addEventListener("input", () => { state.rank = Number(by("rank").value); draw(); });
  window.addEventListener("hashchange", () => location.reload());
  window.addEventListener("resize", draw);
  window.addEventListener("beforeprint", draw);
  by("link").addEventListener("click", () => copy(location.href, by("link")));
  by("command").addEventListener("click", () => copy(command(state), by("command")));
  by("pin").addEventListener("click", () => pin(pinned ? null : { ...state }));
  by("whole").addEventListener("click", () => zoom(null));
  if (given.has("than.method")) pin(read(given, "than.")); else draw();
  document.body.dataset.ready = "1";

