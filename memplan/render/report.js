  // ---- the state: from the setup asked for, then the address, then the controls
  const given = new URLSearchParams(location.hash.slice(1));
  const state = read(given);
  fillPickers();

  function draw() {
    by("beyond").replaceChildren();
    document.body.classList.remove("beyond");
    delete document.body.dataset.beyond;
    drawControls();
    history.replaceState(null, "", address());
    const card = cardOf(state.card), now = shown(state);
    if (!now) { drawBeyond(); return; }
    drawVerdict(now, card);
    by("peak-moment").textContent = label(now.moment);
    drawBar(now, device(now, card), card); drawTimeline(now, card); drawMethods(card); drawHeat(card); drawCourse(now, card); drawBeside();
    const rows = tensors(now);
    drawTreemap(rows, now); drawRows(rows, now); drawChanges(now.formula || now, card);
  }
  function drawControls() {
    by("batch").value = state.batch; by("seq").value = fromSeq(state.seq); by("rank").value = rankOf(state);
    for (const name of [...PICKERS, "card"]) by(name).value = state[name];
    by("batch-value").textContent = state.batch; by("seq-value").textContent = state.seq.toLocaleString("en");
    markPickers();
    by("subject").textContent = state.method + ", recipe " + data.recipe + ": micro-batch " + state.batch + " x " + state.seq.toLocaleString("en") + " tokens" +
      (data.trains[state.method] === "adapter" ? ", rank " + rankOf(state) : "") +
      (data.traced ? (asAsked(state) ? "; traced: what moves is the formula's" : "; the formula's, the setup asked for is traced") : "");
  }
  function drawVerdict(now, card) {
    const needed = device(now, card), ok = fits(now, card);
    const room = card.usable - needed, share = data.uncounted[now.key], close = ok && room < now.allocated * share;
    const word = wordOf(now, card);
    by("verdict").className = "verdict " + (close || word === "least" ? "tight" : word);
    by("verdict").replaceChildren(node("span", { class: "pill" }, says(now, card) + (word === "least" ? "" : " " + card.name)), node("b", {}, gib(needed)),
      node("span", { class: "muted" }, (word === "least" ? "on " + card.name + " " : "") + "of " + gib(card.usable) + " usable, " + (room >= 0 ? (word === "least" ? "at most " : "") + gib(room) + " free" : gib(-room) + " short") +
        (word === "least" ? "; no verdict, not counted: " + missingOn(card).join("; ") : "") +
        (close ? "; not counted: fragmentation, at most " + (100 * share).toFixed(0) + "% of allocated memory in 19 of 20 traced setups" : "")));
    document.body.dataset.device = String(needed); document.body.dataset.moment = now.moment; document.body.dataset.verdict = word;
    document.body.dataset.close = close ? "1" : "0";
  }

  for (const id of [...PICKERS, "card"]) by(id).addEventListener("change", () => { state[id] = by(id).value; draw(); });
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

