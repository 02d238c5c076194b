  // ---- single changes at the place of the controls: planner/answers/fit/changes.py single_changes, with Room.around
  const MOST_CHANGES = 4;
  function changesAt(now, card) {
    const spread = Math.max(0, reserved(now) / now.allocated - 1), error = data.errors[now.key], rank = now.rank;
    const whole = (bytes) => Math.ceil(bytes / data.segment) * data.segment;
    const held = (allocated) => whole(Math.max(allocated, Math.round(allocated * (1 + spread))));
    const size = (allocated) => held(allocated) + card.context, holds = (allocated) => size(allocated) + Math.round(held(allocated) * error) <= card.usable;
    const before = size(now.allocated), found = [];
    for (const change of structures.changes[now.key]) {
      if (!change.to) continue; // no structure of it is here
      if (change.rank !== null && data.fixed[now.key] === undefined && change.rank !== rank) continue;
      const own = { batch: now.batch, seq: now.seq, rank: change.rank ?? rank };
      if (change.halves) {
        if (own[change.halves] <= change.above) continue;
        own[change.halves] = Math.floor(own[change.halves] / 2);
      }
      const after = at(change.to, own.batch, own.seq, own.rank).allocated;
      if (size(after) < before) found.push({ text: change.text.replace(/\{(\w+)\}/g, (_, name) => own[name]), cost: change.cost, saved: before - size(after), after: size(after), fits: holds(after) });
    }
    return found.sort((a, b) => (a.fits === b.fits ? b.saved - a.saved : a.fits ? -1 : 1));
  }
  function drawChanges(now, card) {
    const able = missingOn(card).length === 0 && !fits(now, card), found = changesAt(now, card).filter((c) => c.saved * 100 >= c.after).slice(0, MOST_CHANGES);
    const row = (c) => {
      const [words, option] = c.text.includes(": ") ? [c.text.slice(0, c.text.indexOf(": ")), c.text.slice(c.text.indexOf(": ") + 2)] : [c.text, ""];
      const says = [words + " ", typed(option), ...(c.fits && able ? [", ", node("span", { class: "good" }, "fits")] : []), node("br"), node("span", { class: "muted" }, c.cost)];
      return node("tr", { "data-saved": c.saved, "data-after": c.after }, [node("td", {}, gib(c.saved)), node("td", {}, says)]);
    };
    by("changes").replaceChildren(...found.map(row));
    by("changes-head").textContent = found.length ? "Each of these changes alone would save" : "No single change saves one per cent";
    by("changes-note").hidden = structures.changes[now.key].every((change) => change.to);
    by("changes-command").replaceChildren(typed(command(state).replace("memplan ", "memplan fit ")));
  }
